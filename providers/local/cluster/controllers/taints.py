"""Taints of the node: which pods may come, and which have to go."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.reconcile import Controller
from nighttrain.providers.local.cluster.kinds.disruption import disrupt
from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.resources import NODES, PODS, ResourceType
from nighttrain.providers.local.cluster.store.store import DELETED

if TYPE_CHECKING:
    from datetime import datetime

    from nighttrain.providers.local.cluster.controllers.reconcile import ReconcileLoop
    from nighttrain.providers.local.cluster.store.store import Object

UNSCHEDULABLE = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


def taints_of(node: Object) -> list[Object]:
    """The node's taints; a cordoned node has one more."""
    spec = node.get("spec") or {}
    taints = list(spec.get("taints") or [])
    if spec.get("unschedulable") and all(each["key"] != UNSCHEDULABLE["key"] for each in taints):
        taints.append(UNSCHEDULABLE)
    return taints


def tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")


def untolerated(pod: Object, taints: list[Object], *effects: str) -> Object | None:
    """The first taint of these effects that the pod does not tolerate."""
    tolerations = pod["spec"].get("tolerations") or []
    for taint in taints:
        if taint["effect"] in effects and not any(tolerates(each, taint) for each in tolerations):
            return taint
    return None


def seconds_left(pod: Object, taints: list[Object]) -> float | None:
    """How long the pod may stay on a node with these taints: None for ever, 0 for not at all."""
    tolerations = pod["spec"].get("tolerations") or []
    least: float | None = None
    for taint in taints:
        if taint["effect"] != "NoExecute":
            continue
        matching = [each for each in tolerations if tolerates(each, taint)]
        if not matching:
            return 0.0
        for each in matching:
            seconds = each.get("tolerationSeconds")
            if seconds is not None:
                least = max(0.0, float(seconds)) if least is None else min(least, max(0.0, float(seconds)))
    return least


class TaintController(Controller):
    """Evicts the pods that do not tolerate a ``NoExecute`` taint of their node."""

    def __init__(self, loop: ReconcileLoop) -> None:
        super().__init__(loop)
        self._recorder = EventRecorder(loop.store, "taint-eviction-controller")
        self._since: dict[str, datetime] = {}
        self._taints: dict[str, list[Object]] = {}

    def changed(self, type_: str, resource: ResourceType, obj: Object) -> None:
        metadata = obj["metadata"]
        if resource is NODES:
            taints = [each for each in taints_of(obj) if each["effect"] == "NoExecute"]
            if taints != self._taints.get(metadata["name"], []):
                self._taints[metadata["name"]] = taints
                for pod in self.store.list(PODS)[0]:
                    if pod["spec"].get("nodeName") == metadata["name"]:
                        self.enqueue(pod["metadata"]["namespace"], pod["metadata"]["name"])
        elif resource is PODS:
            if type_ == DELETED:
                self._since.pop(metadata["uid"], None)
            elif self._taints.get(obj["spec"].get("nodeName", "")):
                self.enqueue(metadata["namespace"], metadata["name"])

    def reconcile(self, namespace: str, name: str) -> None:
        pod = self.store.find(PODS, namespace, name)
        if pod is None or "deletionTimestamp" in pod["metadata"]:
            return
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return
        uid = pod["metadata"]["uid"]
        seconds = seconds_left(pod, self._taints.get(pod["spec"].get("nodeName", ""), []))
        if seconds is None:
            self._since.pop(uid, None)
            return
        left = seconds
        if seconds:
            since = self._since.setdefault(uid, self.store.clock())
            left = (since + timedelta(seconds=seconds) - self.store.clock()).total_seconds()
        if left > 0:
            self.enqueue_after(namespace, name, left)
            return
        self._recorder.normal(pod, "TaintManagerEviction", f"Marking for deletion Pod {namespace}/{name}")
        why = "Taint manager: deleting due to NoExecute taint"
        disrupt(self.store, pod, "DeletionByTaintManager", why, observed=True)
        self.store.delete(PODS, namespace, name)
