"""PersistentVolumeClaims: their defaults and rules, and the pods that use them.

There is one storage class, ``standard``, which is the default and binds at once. Volumes and classes are no
objects here: a claim's volume is a folder.
"""

from __future__ import annotations

from decimal import Decimal
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
    from collections.abc import Iterator

    from nighttrain.providers.local.cluster.store.store import Store

Object = dict[str, Any]

STORAGE_CLASS = "standard"
IN_USE_FINALIZER = "kubernetes.io/pvc-protection"
_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_ALTERABLE = "resources.requests and volumeAttributesClassName for bound claims"
_IMMUTABLE = f"spec is immutable after creation except {_ALTERABLE}"


def default_claim(claim: Object, old: Object | None) -> None:
    """Defaults, and what admission adds: the default class, and the protection of claims in use."""
    spec = claim.setdefault("spec", {})
    spec.setdefault("volumeMode", "Filesystem")
    if old is not None:
        return
    if spec.get("storageClassName") is None:
        spec["storageClassName"] = STORAGE_CLASS
    finalizers = claim["metadata"].setdefault("finalizers", [])
    if IN_USE_FINALIZER not in finalizers:
        finalizers.append(IN_USE_FINALIZER)
    claim["status"] = {"phase": "Pending"}


def validate_claim(claim: Object, old: Object | None) -> list[Cause]:
    """The rules of a claim's spec.

    :raises ApiError: 403 for a resize, which the storage class does not allow
    """
    if old is not None:
        return _validate_update(claim, old)
    spec = claim["spec"]
    modes = spec.get("accessModes") or []
    causes = [] if modes else [required_value("spec.accessModes", "at least 1 access mode is required")]
    causes += [unsupported_value("spec.accessModes", mode, _MODES) for mode in modes if mode not in _MODES]
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        why = "may not use ReadWriteOncePod with other access modes"
        causes.append(errors.forbidden_value("spec.accessModes", why))
    asked = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if asked is None:
        causes.append(required_value("spec.resources[storage]"))
    elif quantity(asked) <= 0:
        causes.append(invalid_value("spec.resources[storage]", asked, "must be greater than zero"))
    if spec["volumeMode"] not in ("Block", "Filesystem"):
        causes.append(unsupported_value("spec.volumeMode", spec["volumeMode"], ("Block", "Filesystem")))
    return causes


def _validate_update(claim: Object, old: Object) -> list[Cause]:
    new_spec, old_spec = dict(claim["spec"]), dict(old["spec"])
    if not old_spec.get("volumeName"):  # binding it is a change of its spec
        new_spec.pop("volumeName", None)
        old_spec.pop("volumeName", None)
    asked, had = _requested(new_spec), _requested(old_spec)
    bound = (old.get("status") or {}).get("phase") == "Bound"
    if bound:
        for spec in (new_spec, old_spec):
            spec.pop("volumeAttributesClassName", None)
            spec["resources"] = {"limits": (spec.get("resources") or {}).get("limits")}
    if new_spec != old_spec:
        return [errors.forbidden_value("spec", _IMMUTABLE)]
    if bound and asked < had:
        why = "field can not be less than status.capacity"
        return [errors.forbidden_value("spec.resources.requests.storage", why)]
    if bound and asked > had:
        raise errors.forbidden(
            PERSISTENTVOLUMECLAIMS,
            claim["metadata"]["name"],
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc "
            "must support resize",
        )
    return []


def _requested(spec: Object) -> Decimal:
    return Decimal(quantity(((spec.get("resources") or {}).get("requests") or {}).get("storage") or "0"))


def why_not_provided(spec: Object) -> str | None:
    """What a claim asks for that a folder cannot be."""
    if spec["volumeMode"] == "Block":
        return "block volumes are not supported"
    for field in ("selector", "dataSource", "dataSourceRef", "volumeAttributesClassName"):
        if spec.get(field):
            return f"claim.Spec.{field[0].upper()}{field[1:]} is not supported"
    return None


def claims_of(pod: Object) -> Iterator[str]:
    """The names of the claims that a pod mounts."""
    for volume in pod["spec"].get("volumes") or ():
        source = volume.get("persistentVolumeClaim")
        if source and source.get("claimName"):
            yield source["claimName"]


def missing_claim(store: Store, pod: Object) -> str | None:
    """Why a pod cannot be scheduled for its claims' sake, in the scheduler's words."""
    unbound = None
    for name in claims_of(pod):
        claim = store.find(PERSISTENTVOLUMECLAIMS, pod["metadata"]["namespace"], name)
        if claim is None:
            return f'persistentvolumeclaim "{name}" not found'
        if "deletionTimestamp" in claim["metadata"]:
            return f'persistentvolumeclaim "{name}" is being deleted'
        if claim["status"].get("phase") != "Bound":
            unbound = "pod has unbound immediate PersistentVolumeClaims"
    return unbound
