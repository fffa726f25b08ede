"""A pod's condition, as those read it who did not write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.objects import Object


def phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def has_ended(pod: Object) -> bool:
    return phase(pod) in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    """Neither ended nor on its way out."""
    return not has_ended(pod) and "deletionTimestamp" not in pod["metadata"]


def is_terminating(pod: Object) -> bool:
    """On its way out, and not ended yet."""
    return not has_ended(pod) and "deletionTimestamp" in pod["metadata"]


def ready_since(pod: Object) -> str | None:
    """Since when a pod is ready; None if it is not."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] == "True":
            # Who writes a status may leave the time out: then it is long ago.
            return str(condition.get("lastTransitionTime") or "0001-01-01T00:00:00Z")
    return None


def is_ready(pod: Object) -> bool:
    return ready_since(pod) is not None
