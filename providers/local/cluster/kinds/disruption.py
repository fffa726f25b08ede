"""The condition of a pod that is ended for no fault of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store.resources import PODS
from nighttrain.providers.local.cluster.store.store import timestamp

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.store import Object, Store

DISRUPTION_TARGET = "DisruptionTarget"


def disrupt(store: Store, pod: Object, reason: str, message: str, *, observed: bool = False) -> None:
    """Add the condition that says that the pod is ended for no fault of its own.

    A pod that has ended, or is on its way out, is not disrupted any more.

    :param observed: with the generation seen, as the components that watch pods write it
    """
    metadata = pod["metadata"]
    if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") or "deletionTimestamp" in metadata:
        return
    condition: Object = {"type": DISRUPTION_TARGET}
    if observed:
        condition["observedGeneration"] = metadata.get("generation", 1)
    now = timestamp(store.clock())
    condition |= {"status": "True", "lastProbeTime": None, "lastTransitionTime": now}
    condition |= {"reason": reason, "message": message}

    def add(new: Object) -> None:
        status = new.get("status") or {}
        others = [each for each in status.get("conditions") or [] if each["type"] != DISRUPTION_TARGET]
        new["status"] = {**status, "conditions": [*others, condition]}

    store.mutate(PODS, metadata["namespace"], metadata["name"], add)
