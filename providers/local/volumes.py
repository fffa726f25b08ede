"""What of a pod's volumes the embedded cluster can honour without mounts of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.resources import CONFIGMAPS, SECRETS

if TYPE_CHECKING:
    from nighttrain.providers.local.store import Object, Store


class VolumeError(Exception):
    """The pod's volumes cannot be set up; the message is the FailedMount event's."""


def check_volumes(store: Store, pod: Object) -> None:
    """Raise :class:`VolumeError` unless every mounted volume is there without mounting anything.

    Containers see this machine's files, so a ``hostPath`` mounted read-write at its own path already is where
    it belongs. Volumes that no container mounts change nothing.
    """
    spec = pod["spec"]
    volumes = {each["name"]: each for each in spec.get("volumes") or []}
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        for mount in container.get("volumeMounts") or []:
            volume = volumes.get(mount["name"])
            if volume is not None:
                _check(store, pod["metadata"]["namespace"], volume, mount)


def _check(store: Store, namespace: str, volume: Object, mount: Object) -> None:
    name = volume["name"]
    for kind, resource, key in (("configMap", CONFIGMAPS, "name"), ("secret", SECRETS, "secretName")):
        source = volume.get(kind)
        if source is None or source.get("optional"):
            continue
        if store.find(resource, namespace, source.get(key, "")) is None:
            noun = kind.lower()
            raise VolumeError(
                f'MountVolume.SetUp failed for volume "{name}" : {noun} "{source.get(key)}" not found'
            )
    path = (volume.get("hostPath") or {}).get("path")
    if path and path == mount["mountPath"] and not mount.get("readOnly") and not mount.get("subPath"):
        return
    kind = next((key for key in volume if key != "name"), "emptyDir")
    raise VolumeError(
        f'MountVolume.SetUp failed for volume "{name}" : the embedded cluster cannot mount a volume of type '
        f"{kind} at {mount['mountPath']} yet: its containers see this machine's files; pass settings as "
        "environment variables (env, envFrom) and use $TMPDIR for scratch files"
    )
