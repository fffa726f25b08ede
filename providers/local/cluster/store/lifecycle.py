"""The life of an object: new generations, and what its deletion waits for, and how that shows."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store.resources import (
    CUSTOMRESOURCEDEFINITIONS,
    NAMESPACES,
    PODS,
    ResourceType,
)

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.objects import Object


class Propagation(enum.StrEnum):
    """What becomes of an object's dependents when it is deleted."""

    BACKGROUND = "Background"
    FOREGROUND = "Foreground"
    ORPHAN = "Orphan"


FOREGROUND_FINALIZER = "foregroundDeletion"
ORPHAN_FINALIZER = "orphan"
CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"

GRACE_PERIOD_SECONDS = 30
"""The seconds that the Kubernetes API gives a pod that does not say otherwise."""


def grace(resource: ResourceType, obj: Object, asked: int | None) -> int:
    """Seconds until the object may go. Only pods wait, and only those that a kubelet looks after."""
    if not resource.graceful:
        return 0
    spec, phase = obj.get("spec", {}), obj.get("status", {}).get("phase")
    if not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    if asked is None:
        asked = spec.get("terminationGracePeriodSeconds", GRACE_PERIOD_SECONDS)
    # A real cluster takes a negative number for one second.
    return int(asked) if asked >= 0 else 1


def must_linger(resource: ResourceType, obj: Object) -> bool:
    """A namespace stays until it is empty."""
    return resource is NAMESPACES and bool(obj.get("spec", {}).get("finalizers"))


def finalizers(metadata: Object, propagation: Propagation, resource: ResourceType) -> list[str]:
    found = [
        each
        for each in metadata.get("finalizers") or []
        if each not in (FOREGROUND_FINALIZER, ORPHAN_FINALIZER, CLEANUP_FINALIZER)
    ]
    if resource == CUSTOMRESOURCEDEFINITIONS:
        return [*found, CLEANUP_FINALIZER]
    # What belongs to a custom object goes with it at once: see rules/dependents.py.
    if resource in (PODS, NAMESPACES) or resource.custom is not None:
        return found
    if propagation is Propagation.FOREGROUND:
        found.append(FOREGROUND_FINALIZER)
    elif propagation is Propagation.ORPHAN:
        found.append(ORPHAN_FINALIZER)
    return found


def is_finished(resource: ResourceType, obj: Object) -> bool:
    """Deleted, and neither a finalizer nor a kubelet holds it back any more."""
    metadata = obj["metadata"]
    return (
        "deletionTimestamp" in metadata
        and not metadata.get("finalizers")
        and metadata.get("deletionGracePeriodSeconds", 0) == 0
        and not must_linger(resource, obj)
    )


def terminating(resource: ResourceType, status: Object, now: str) -> Object:
    """The status of a namespace or a definition that is on its way out."""
    if resource is NAMESPACES:
        return {**status, "phase": "Terminating"}
    conditions = status.get("conditions") or []
    if any(each["type"] == "Terminating" for each in conditions):
        return status
    condition = {
        "type": "Terminating",
        "status": "True",
        "lastTransitionTime": now,
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    }
    return {**status, "conditions": [*conditions, condition]}


def same_but(old: Object, new: Object, field: str) -> bool:
    return all(old.get(key) == new.get(key) for key in {*old, *new} - {field})


def is_new_generation(resource: ResourceType, old: Object, new: Object) -> bool:
    """True if a write counts as a new generation. Of a custom object everything is specification, but for its
    metadata and a status that is written separately."""
    if resource.custom is None:
        before, after = old.get("spec"), new.get("spec")
        if resource is PODS and before and after:
            # Binding is no new generation: the recorded pods stay at 1.
            before, after = {**before, "nodeName": ""}, {**after, "nodeName": ""}
        return bool(after != before)
    aside = {"apiVersion", "metadata"} | ({"status"} if resource.has_status else set())
    return any(old.get(key) != new.get(key) for key in {*old, *new} - aside)
