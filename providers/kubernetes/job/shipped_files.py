"""Files for a workload's container, mounted at one folder: their checks, and their place in the pod."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.values.objects import items

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.plain_json import Json

FOLDER = "/nighttrain"
VOLUME = "nighttrain-files"
# What the API server takes in one ConfigMap.
MAX_BYTES = 1024 * 1024

_NAME = re.compile(r"[A-Za-z0-9_][-._A-Za-z0-9]{0,252}")


def check_files(files: Mapping[str, str]) -> None:
    """
    :raises ConfigurationError: a name that no file can have, or more than a ConfigMap holds
    """
    size = 0
    for name, content in files.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError("files", name, "a file's name has letters, digits, '-', '_' and '.'")
        if not isinstance(content, str):
            raise ConfigurationError(f"files[{name!r}]", type(content).__name__, "must be text")
        try:
            size += len(content.encode())
        except UnicodeEncodeError as error:
            raise ConfigurationError(f"files[{name!r}]", None, f"is not UTF-8: {error.reason}") from error
    if size > MAX_BYTES:
        raise ConfigurationError(
            "files",
            f"{size} bytes",
            f"at most {MAX_BYTES} in all reach the pod: pass where the data are, not the data",
        )


def files_digest(files: Mapping[str, str]) -> str:
    """The sha256 of names and contents, in whatever order they were given."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


def check_place(pod_spec: Json) -> None:
    """Check that there is room for the files in the pod.

    :raises ConfigurationError: something else is mounted there
    """
    container = pod_spec["containers"][0]
    if any(
        str(mount.get("mountPath")).rstrip("/") == FOLDER for mount in items(container.get("volumeMounts"))
    ):
        raise ConfigurationError("volume_mounts", FOLDER, "the shipped files are there: mount it elsewhere")
    if any(volume.get("name") == VOLUME for volume in items(pod_spec.get("volumes"))):
        raise ConfigurationError("volumes", VOLUME, "this name is reserved for the shipped files")


def attach_files(pod_spec: Json, config_map: str) -> None:
    """Mount the ConfigMap at :data:`FOLDER` of the main container."""
    container = pod_spec["containers"][0]
    volume = {"name": VOLUME, "configMap": {"name": config_map}}
    mount = {"name": VOLUME, "mountPath": FOLDER, "readOnly": True}
    pod_spec.setdefault("volumes", []).append(volume)
    container.setdefault("volumeMounts", []).append(mount)


def replace_reference(pod_spec: Json, digest: str) -> None:
    """Let the pod say what the files are instead of where: for comparing what two Jobs run."""
    for volume in items(pod_spec.get("volumes")):
        if volume.get("name") == VOLUME:
            volume["configMap"] = digest
