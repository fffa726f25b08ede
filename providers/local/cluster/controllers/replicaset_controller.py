"""ReplicaSets: as many pods as they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.reconcile import (
    PODS_AT_A_TIME,
    Controller,
    ReconcileLoop,
    controller_of,
    new_pod,
)
from nighttrain.providers.local.cluster.kinds.pods import is_active, is_ready, is_terminating
from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.resources import PODS, REPLICASETS, ResourceType

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.store import EventType, Object


class ReplicaSetController(Controller):
    """Creates and deletes a ReplicaSet's pods, and counts them."""

    def __init__(self, loop: ReconcileLoop) -> None:
        super().__init__(loop)
        self._recorder = EventRecorder(loop.store, "replicaset-controller")

    def changed(self, type_: EventType, resource: ResourceType, obj: Object) -> None:
        metadata = obj["metadata"]
        if resource is REPLICASETS:
            self.enqueue(metadata["namespace"], metadata["name"])
        elif resource is PODS:
            owner = controller_of(obj)
            if owner is not None and owner["kind"] == "ReplicaSet":
                self.enqueue(metadata["namespace"], owner["name"])

    def reconcile(self, namespace: str, name: str) -> None:
        replica_set = self.store.find(REPLICASETS, namespace, name)
        if replica_set is None:
            return
        if "deletionTimestamp" not in replica_set["metadata"]:
            self._manage(replica_set)
        self._write_status(replica_set)

    def _manage(self, replica_set: Object) -> None:
        pods = [pod for pod in self.owned(replica_set, PODS) if is_active(pod)]
        wanted = replica_set["spec"].get("replicas", 1)
        for _ in range(min(wanted - len(pods), PODS_AT_A_TIME)):
            self._create(replica_set)
        if len(pods) > wanted:
            for pod in sorted(pods, key=_worth)[: len(pods) - wanted]:
                metadata = pod["metadata"]
                self.store.delete(PODS, metadata["namespace"], metadata["name"])
                self._recorder.normal(replica_set, "SuccessfulDelete", f"Deleted pod: {metadata['name']}")

    def _create(self, replica_set: Object) -> None:
        pod = new_pod(replica_set)
        try:
            created = self.store.create(PODS, pod)
        except ApiError as error:
            self._recorder.warning(replica_set, "FailedCreate", f"Error creating: {error}")
            raise
        self._recorder.normal(replica_set, "SuccessfulCreate", f"Created pod: {created['metadata']['name']}")

    def _write_status(self, replica_set: Object) -> None:
        metadata = replica_set["metadata"]
        pods = self.owned(replica_set, PODS)
        active = [pod for pod in pods if is_active(pod)]
        ready = [pod for pod in active if is_ready(pod)]
        counts = {
            "replicas": len(active),
            "fullyLabeledReplicas": len(active),
            "readyReplicas": len(ready),
            "availableReplicas": len(ready),
        }
        status = {key: count for key, count in counts.items() if count or key == "replicas"}
        status["terminatingReplicas"] = sum(is_terminating(pod) for pod in pods)
        status["observedGeneration"] = metadata.get("generation", 1)

        def write(new: Object) -> None:
            new["status"] = status

        self.store.mutate(REPLICASETS, metadata["namespace"], metadata["name"], write)


def _worth(pod: Object) -> tuple[bool, bool, int]:
    """The worth of a pod: those without a node go first, then those not ready, then the youngest."""
    return (
        bool(pod["spec"].get("nodeName")),
        is_ready(pod),
        -int(pod["metadata"]["resourceVersion"]),
    )
