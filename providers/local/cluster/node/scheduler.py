"""The scheduler of a cluster with one node: a pod fits, or waits and says why."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.machine.host import host_resources
from nighttrain.providers.local.cluster.rules.claims import missing_claim
from nighttrain.providers.local.cluster.rules.defaults import quality_of_service
from nighttrain.providers.local.cluster.store.quantities import quantity
from nighttrain.providers.local.cluster.store.resources import EVENTS, NODES, PODS
from nighttrain.providers.local.cluster.store.store import Object, Store, timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

Amounts = dict[str, Decimal]

_COMPONENT = "default-scheduler"
_NOWHERE = "0/1 nodes are available:"
_PREEMPTION = "no new claims to deallocate, preemption: 0/1 nodes are available: 1"
_HOPELESS = f"{_PREEMPTION} Preemption is not helpful for scheduling."
_OCCUPIED = f"{_PREEMPTION} No preemption victims found for incoming pod."


class Scheduler:
    """Binds pods to the node while their requests of CPU and memory fit; call it from the event loop."""

    def __init__(self, store: Store, node_name: str, labels: Mapping[str, str]) -> None:
        self._store = store
        self._node_name = node_name
        self._labels: Mapping[str, str] = labels
        self._capacity = host_resources()
        self._used: dict[str, Amounts] = {}
        self._total = {name: Decimal(0) for name in self._capacity}
        self._waiting: dict[str, tuple[str, str]] = {}

    def offer(self, pod: Object) -> None:
        """A pod without a node: bind it, or remember it."""
        metadata = pod["metadata"]
        spec = pod["spec"]
        if "deletionTimestamp" in metadata:
            return
        if spec.get("schedulerName", _COMPONENT) != _COMPONENT:
            return  # another scheduler's to bind
        node = self._store.find(NODES, None, self._node_name)
        if node is not None and self._look_at(node):
            self._retry()
        if metadata["uid"] not in self._used:
            self._try(pod)

    def account(self, pod: Object) -> None:
        """A bound pod that has not ended uses what it requests."""
        uid = pod["metadata"]["uid"]
        self._waiting.pop(uid, None)
        if uid not in self._used:
            self._used[uid] = _requests(pod)
            for name, amount in self._used[uid].items():
                self._total[name] = self._total.get(name, Decimal(0)) + amount

    def release(self, uid: str) -> None:
        """The pod ended or is gone: what it used is free for those that wait."""
        self._waiting.pop(uid, None)
        used = self._used.pop(uid, None) or {}
        for name, amount in used.items():
            self._total[name] -= amount
        if any(used.values()):
            self._retry()

    def node_changed(self, node: Object) -> None:
        """Labels of the node may let in who had to wait."""
        if self._look_at(node):
            self._retry()

    def claims_changed(self) -> None:
        """A claim that pods wait for may be there by now."""
        if self._waiting:
            self._retry()

    def _look_at(self, node: Object) -> bool:
        """Whether the node is another one than it was, for those that want to come."""
        before, self._labels = self._labels, node["metadata"].get("labels") or {}
        return self._labels != before

    def _retry(self) -> None:
        """Try those that wait, the one that waits longest first."""
        for name in list(self._waiting.values()):
            pod = self._store.find(PODS, *name)
            if pod is not None and not pod["spec"].get("nodeName"):
                self.offer(pod)

    def _try(self, pod: Object) -> None:
        metadata = pod["metadata"]
        why = self._why_not(pod)
        if why is None:
            self.account(pod)
            self._bind(pod)
        else:
            self._waiting[metadata["uid"]] = (metadata["namespace"], metadata["name"])
            self._refuse(pod, f"{_NOWHERE} {why}")

    def _why_not(self, pod: Object) -> str | None:
        """What keeps the pod from the node, in the order in which a real scheduler asks."""
        claim = missing_claim(self._store, pod)
        if claim is not None:  # before any node is looked at
            return f'persistentvolumeclaim "{claim}" not found. not found'
        selector = pod["spec"].get("nodeSelector") or {}
        if any(self._labels.get(key) != value for key, value in selector.items()):
            return f"1 node(s) didn't match Pod's node affinity/selector. {_HOPELESS}"
        requests = _requests(pod)
        free = {name: self._free(name) for name in requests}
        missing = [name for name, amount in requests.items() if amount and amount > free[name]]
        if not missing:
            return None
        hopeless = any(requests[name] > self._capacity.get(name, Decimal(0)) for name in missing)
        full = ", ".join(f"1 Insufficient {name}" for name in missing)
        return f"{full}. {_HOPELESS if hopeless else _OCCUPIED}"

    def _free(self, name: str) -> Decimal:
        return self._capacity.get(name, Decimal(0)) - self._total.get(name, Decimal(0))

    def _bind(self, pod: Object) -> None:
        def bind(new: Object) -> None:
            new["spec"]["nodeName"] = self._node_name
            new["status"] = self._with_condition(new, {"status": "True"})

        metadata = pod["metadata"]
        stored = self._store.mutate(PODS, metadata["namespace"], metadata["name"], bind)
        if stored is not None:
            name = f"{metadata['namespace']}/{metadata['name']}"
            self._event(
                pod, "Normal", "Scheduled", f"Successfully assigned {name} to {self._node_name}", "Binding"
            )

    def _refuse(self, pod: Object, why: str) -> None:
        def refuse(new: Object) -> None:
            condition = {"status": "False", "reason": "Unschedulable", "message": why}
            new["status"] = self._with_condition(new, condition)

        metadata = pod["metadata"]
        before = metadata["resourceVersion"]
        stored = self._store.mutate(PODS, metadata["namespace"], metadata["name"], refuse)
        if stored is not None and stored["metadata"]["resourceVersion"] != before:
            self._event(pod, "Warning", "FailedScheduling", why, "Scheduling")

    def _with_condition(self, pod: Object, verdict: Object) -> Object:
        status: Object = pod.get("status") or {}
        conditions = status.get("conditions") or []
        old = next((each for each in conditions if each["type"] == "PodScheduled"), None)
        same = old is not None and old["status"] == verdict["status"]
        since = old.get("lastTransitionTime") if old is not None and same else None
        condition = {
            "type": "PodScheduled",
            "observedGeneration": pod["metadata"].get("generation", 1),
            "lastProbeTime": None,
            "lastTransitionTime": since or timestamp(self._store.clock()),
            **verdict,
        }
        others = [each for each in conditions if each["type"] != "PodScheduled"]
        return {
            **status,
            "phase": status.get("phase") or "Pending",
            "conditions": [*others, condition],
            "qosClass": status.get("qosClass") or quality_of_service(pod["spec"]),
        }

    def _event(self, pod: Object, type_: str, reason: str, message: str, action: str) -> None:
        """The scheduler's events have the newer form: a time with microseconds, no count."""
        metadata = pod["metadata"]
        now = datetime.now(UTC)
        event = {
            "metadata": {
                "name": f"{metadata['name']}.{time.time_ns():x}",
                "namespace": metadata["namespace"],
            },
            "involvedObject": {
                "kind": "Pod",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "apiVersion": "v1",
                "resourceVersion": metadata["resourceVersion"],
            },
            "reason": reason,
            "message": message,
            "source": {},
            "firstTimestamp": None,
            "lastTimestamp": None,
            "type": type_,
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "action": action,
            "reportingComponent": _COMPONENT,
            "reportingInstance": f"{_COMPONENT}-{self._node_name}",
        }
        self._store.create(EVENTS, event)


def _requests(pod: Object) -> dict[str, Decimal]:
    """What a pod requests: its containers together, or its most demanding init container if that is more."""
    spec = pod["spec"]
    total: dict[str, Decimal] = {}
    for container in spec["containers"]:
        for name, amount in _container_requests(container).items():
            total[name] = total.get(name, Decimal(0)) + amount
    for container in spec.get("initContainers") or []:
        for name, amount in _container_requests(container).items():
            steady = container.get("restartPolicy") == "Always"
            total[name] = (
                total.get(name, Decimal(0)) + amount if steady else max(total.get(name, amount), amount)
            )
    return total


def _container_requests(container: Object) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    given = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(amount) for name, amount in given.items()}
