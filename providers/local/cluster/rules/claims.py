"""PersistentVolumeClaims: each is a folder, which comes and goes with it.

Volumes and classes are no objects here: a claim of whatever class is bound as soon as it is made.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    invalid_value,
    required_value,
    unsupported_value,
)
from nighttrain.providers.local.cluster.store.quantities import quantity
from nighttrain.providers.local.cluster.store.resources import PERSISTENTVOLUMECLAIMS

if TYPE_CHECKING:
    from pathlib import Path

    from nighttrain.providers.local.cluster.store.store import Store

Object = dict[str, Any]

_STORAGE_CLASS = "standard"
_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")


class ClaimFolders:
    """The folders of the claims' data: a folder for each, named by the claim's uid."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(self, uid: str) -> Path:
        """Have the folder, which every user in a container may write to, and nobody else may reach."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self.folder(uid)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        return folder

    def folder(self, uid: str) -> Path:
        return self._root / uid

    def remove(self, uid: str) -> None:
        """The claim is gone, and its data with it."""
        shutil.rmtree(self.folder(uid), ignore_errors=True)


def default_claim(claim: Object, old: Object | None) -> None:
    """Complete the spec; a new claim is bound."""
    spec = claim.setdefault("spec", {})
    spec.setdefault("volumeMode", "Filesystem")
    if old is not None:
        return
    if spec.get("storageClassName") is None:
        spec["storageClassName"] = _STORAGE_CLASS
    spec["volumeName"] = spec.get("volumeName") or f"pvc-{claim['metadata']['uid']}"
    capacity = {"storage": _requested(spec)}
    claim["status"] = {"phase": "Bound", "accessModes": spec.get("accessModes"), "capacity": capacity}


def validate_claim(claim: Object, old: Object | None) -> list[Cause]:
    """The rules of a claim's spec."""
    spec = claim["spec"]
    if old is not None:
        same = spec == old["spec"]
        return [] if same else [errors.forbidden_value("spec", "spec is immutable after creation")]
    modes = spec.get("accessModes") or []
    causes = [] if modes else [required_value("spec.accessModes", "at least 1 access mode is required")]
    causes += [unsupported_value("spec.accessModes", mode, _MODES) for mode in modes if mode not in _MODES]
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        why = "may not use ReadWriteOncePod with other access modes"
        causes.append(errors.forbidden_value("spec.accessModes", why))
    asked = _requested(spec)
    if asked is None:
        causes.append(required_value("spec.resources[storage]"))
    elif quantity(asked) <= 0:
        causes.append(invalid_value("spec.resources[storage]", asked, "must be greater than zero"))
    if spec["volumeMode"] != "Filesystem":
        causes.append(unsupported_value("spec.volumeMode", spec["volumeMode"], ("Filesystem",)))
    return causes


def _requested(spec: Object) -> Any:
    return ((spec.get("resources") or {}).get("requests") or {}).get("storage")


def missing_claim(store: Store, pod: Object) -> str | None:
    """The first claim that the pod mounts and that is not there."""
    for volume in pod["spec"].get("volumes") or ():
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if name and not store.find(PERSISTENTVOLUMECLAIMS, pod["metadata"]["namespace"], name):
            return str(name)
    return None
