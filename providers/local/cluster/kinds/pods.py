"""A pod, as those read it who did not write it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store.errors import bad_request

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


def choose_container(pod: Object, asked: str | None) -> str:
    """The name of the container whose log is meant.

    :raises ApiError: 400: no such container, or several and none is asked for
    """
    spec, name = pod["spec"], pod["metadata"]["name"]
    mains = [each["name"] for each in spec["containers"]]
    inits = [each["name"] for each in spec.get("initContainers") or []]
    if asked:
        if asked not in [*mains, *inits]:
            raise bad_request(f"container {asked} is not valid for pod {name}")
        return asked
    if len(mains) == 1:
        return str(mains[0])
    message = f"a container name must be specified for pod {name}, choose one of: [{' '.join(mains)}]"
    if inits:
        message += f" or one of the init containers: [{' '.join(inits)}]"
    raise bad_request(message)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def ended_at(pod: Object) -> datetime | None:
    """The end of a pod's last container; for one on its way out, the time of its deletion."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    ends = [((each.get("state") or {}).get("terminated") or {}).get("finishedAt") for each in statuses]
    moments = [moment(end) for end in ends if end]
    if moments and len(moments) == len(statuses):
        return max(moments)
    metadata = pod["metadata"]
    if "deletionTimestamp" in metadata:
        grace = timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
        return moment(metadata["deletionTimestamp"]) - grace
    return None
