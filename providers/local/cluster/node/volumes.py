"""A pod's volumes: folders and files below the pod's own folder, and where its containers mount them."""

from __future__ import annotations

import base64
import binascii
import os
import posixpath
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.machine.mounts import Mount, MountNamespaces, SpawnError, SubPathError
from nighttrain.providers.local.cluster.store.resources import CONFIGMAPS, PERSISTENTVOLUMECLAIMS, SECRETS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nighttrain.providers.local.cluster.rules.claims import ClaimFolders
    from nighttrain.providers.local.cluster.store.store import Object, Store

# What a file of a configuration volume may do unless its volume says otherwise: Kubernetes' own default.
_DEFAULT_MODE = 0o644


class VolumeError(Exception):
    """A volume cannot be set up (yet); the message is the FailedMount event's."""


@dataclass(frozen=True)
class Volume:
    """A volume that is ready to be mounted.

    :param read_only: whatever the mount says
    """

    source: str
    read_only: bool = False


@dataclass(frozen=True)
class _File:
    content: bytes
    mode: int


class PodVolumes:
    """Sets up the volumes that the pod's containers mount.

    ConfigMaps, Secrets and fields of the pod are written once, when the pod starts: later changes do not
    reach it, as with ``subPath`` mounts on every cluster.

    :param directory: the pod's own folder
    """

    def __init__(
        self,
        store: Store,
        namespaces: MountNamespaces,
        pod: Object,
        directory: Path,
        claims: ClaimFolders,
    ) -> None:
        self._claims = claims
        self._store = store
        self._namespaces = namespaces
        self._pod = pod
        self._namespace: str = pod["metadata"]["namespace"]
        self._directory = directory / ".volumes"  # no container can have this name
        self._ready: dict[str, Volume] = {}

    def set_up(self) -> None:
        """Raises :class:`VolumeError` if one of them cannot be had; to be called again then."""
        spec = self._pod["spec"]
        volumes = {each["name"]: each for each in spec.get("volumes") or []}
        for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
            for mount in container.get("volumeMounts") or []:
                volume = volumes.get(mount["name"])
                if volume is not None:
                    self._set_up(volume, mount)

    def mounts(self, container: Object) -> list[Mount]:
        """The mounts of a container, outer folders first. Raises :class:`SubPathError`."""
        found = []
        for mount in container.get("volumeMounts") or []:
            volume = self._ready.get(mount["name"])
            if volume is None:
                continue
            read_only = volume.read_only or bool(mount.get("readOnly"))
            # Relative to the root, as container runtimes take it.
            target = posixpath.normpath("/" + mount["mountPath"].lstrip("/"))
            found.append(Mount(volume.source, target, read_only, _sub_path(container, mount)))
        return sorted(found, key=lambda each: each.target.count("/"))

    def _set_up(self, volume: Object, mount: Object) -> None:
        name = volume["name"]
        if name in self._ready:
            return
        kind = next((key for key in volume if key != "name"), "emptyDir")
        try:
            if kind in _FILES:
                # Before anything else is said: what is missing is missing on every machine.
                files = _FILES[kind](self, volume[kind])
            if not self._namespaces.available:
                self._check_is_there(kind, volume, mount)
                return
            if kind in _FILES:
                self._ready[name] = self._write(name, files)
            elif kind == "emptyDir":
                self._ready[name] = self._empty(name, volume.get("emptyDir") or {})
            elif kind == "persistentVolumeClaim":
                self._ready[name] = self._claim(volume[kind])
            elif kind == "hostPath":
                self._ready[name] = Volume(_host_path(volume["hostPath"]))
            else:
                raise VolumeError(f"the embedded cluster has no volumes of type {kind}")
        except (VolumeError, SpawnError, OSError) as error:
            raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from error

    def _check_is_there(self, kind: str, volume: Object, mount: Object) -> None:
        """Without mounts, only what containers see anyway is where it belongs."""
        path = (volume.get("hostPath") or {}).get("path")
        if path and path == mount["mountPath"] and not mount.get("readOnly") and not mount.get("subPath"):
            return
        raise VolumeError(
            f"a volume of type {kind} at {mount['mountPath']} needs a private mount namespace, and this "
            f"machine does not allow one ({self._namespaces.refusal}); pass settings as environment "
            "variables (env, envFrom) and use $TMPDIR for scratch files"
        )

    # Kinds of volumes

    def _empty(self, name: str, source: Object) -> Volume:
        if source.get("medium") not in (None, "", "Memory"):
            raise VolumeError(f"the embedded cluster has no storage medium {source['medium']!r}")
        folder = self._directory / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        return Volume(str(folder))

    def _claim(self, source: Object) -> Volume:
        name = source["claimName"]
        claim = self._store.find(PERSISTENTVOLUMECLAIMS, self._namespace, name)
        if claim is None:
            # The scheduler asks too; a pod that names its node has not seen it.
            raise VolumeError(f'persistentvolumeclaim "{name}" not found')
        folder = self._claims.make(claim["metadata"]["uid"])
        return Volume(str(folder), read_only=bool(source.get("readOnly")))

    def _write(self, name: str, files: Mapping[str, _File]) -> Volume:
        folder = self._directory / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, file in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content)
            target.chmod(file.mode)
        return Volume(str(folder), read_only=True)

    def _config_map(self, source: Object) -> dict[str, _File]:
        data = self._data("configMap", source.get("name", ""))
        missing = f'configmap "{source.get("name", "")}" not found'
        return _chosen(data, source, missing, "configmap references non-existent config key: {}")

    def _secret(self, source: Object) -> dict[str, _File]:
        name = source.get("secretName") or source.get("name", "")
        data = self._data("secret", name)
        missing = f'secret "{name}" not found'
        return _chosen(data, source, missing, "references non-existent secret key: {}")

    def _data(self, kind: str, name: str) -> dict[str, bytes] | None:
        found = self._store.find(CONFIGMAPS if kind == "configMap" else SECRETS, self._namespace, name)
        if found is None:
            return None
        data: Object = found.get("data") or {}
        if kind == "secret":
            return {key: _decoded(value) for key, value in data.items()}
        plain = {key: str(value).encode() for key, value in data.items()}
        return plain | {key: _decoded(value) for key, value in (found.get("binaryData") or {}).items()}


_FILES: dict[str, Callable[[PodVolumes, Object], dict[str, _File]]] = {
    "configMap": PodVolumes._config_map,
    "secret": PodVolumes._secret,
}


def _chosen(data: dict[str, bytes] | None, source: Object, missing: str, no_key: str) -> dict[str, _File]:
    """The keys of a ConfigMap or Secret as files."""
    optional = bool(source.get("optional"))
    if data is None:
        if not optional:
            raise VolumeError(missing)
        return {}
    if not source.get("items"):
        mode = _mode(source.get("defaultMode"))
        return {_inside(key): _File(content, mode) for key, content in data.items()}
    files = {}
    for item in source["items"]:
        if item["key"] in data:
            mode = _mode(item.get("mode"), source.get("defaultMode"))
            files[_inside(item["path"])] = _File(data[item["key"]], mode)
        elif not optional:
            raise VolumeError(no_key.format(item["key"]))
    return files


def _mode(*given: Any) -> int:
    return next((int(mode) & 0o777 for mode in given if mode is not None), _DEFAULT_MODE)


def _inside(path: str) -> str:
    """The path of a file in its volume, which it must not leave."""
    if not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise VolumeError(f"invalid path {path!r}: must be a relative path without '..'")
    return path


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value)
    except binascii.Error:
        return b""


def _host_path(source: Object) -> str:
    path, kind = Path(source["path"]), source.get("type") or ""
    if not path.is_absolute():
        raise VolumeError(f"hostPath {source['path']!r} is not an absolute path")
    if kind in ("", "DirectoryOrCreate") and not path.exists():
        # Container runtimes do this too: a hostPath says which folder of the machine is meant.
        path.mkdir(0o755, parents=True)
    if kind and not (path.is_file() if kind == "File" else path.is_dir()):
        raise VolumeError(f"hostPath type check failed: {path} is not a {kind.lower()}")
    return os.fspath(path)


def _sub_path(container: Object, mount: Object) -> str:
    given: str = mount.get("subPath") or ""
    if given.startswith("/") or ".." in given.split("/") or "\0" in given:
        raise SubPathError(
            f'failed to prepare subPath for volumeMount "{mount["name"]}" of container "{container["name"]}"'
        )
    return given
