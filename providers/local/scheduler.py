"""The scheduler of a cluster with one node: a pod fits, or waits and says why."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from nighttrain.providers.local.environment import host_resources, quantity
from nighttrain.providers.local.events import EventRecorder
from nighttrain.providers.local.podstatus import quality_of_service
from nighttrain.providers.local.resources import EVENTS, PODS
from nighttrain.providers.local.store import Object, Store, timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMPONENT = "default-scheduler"
_PREEMPTION = "no new claims to deallocate, preemption: 0/1 nodes are available: 1"
_HOPELESS = f"{_PREEMPTION} Preemption is not helpful for scheduling."
_OCCUPIED = f"{_PREEMPTION} No preemption victims found for incoming pod."


class Scheduler:
    """Binds pods to the node while their requests of CPU and memory fit; call it from the event loop."""

    def __init__(self, store: Store, node_name: str, labels: Mapping[str, str]) -> None:
        self._store = store
        self._node_name = node_name
        self._labels = labels
        self._capacity = host_resources()
        self._used: dict[str, dict[str, Decimal]] = {}
        self._total = {name: Decimal(0) for name in self._capacity}
        self._waiting: dict[str, tuple[str, str]] = {}
        self._recorder = EventRecorder(store, _COMPONENT)

    def offer(self, pod: Object) -> None:
        """A pod without a node: bind it, or remember it."""
        if "deletionTimestamp" in pod["metadata"] or pod["spec"].get("schedulingGates"):
            return
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
        """The pod ended or is gone: what it used is free for those that wait, the longest waiting first."""
        self._waiting.pop(uid, None)
        used = self._used.pop(uid, None)
        if used is None:
            return
        for name, amount in used.items():
            self._total[name] -= amount
        if any(used.values()):
            for namespace, name in list(self._waiting.values()):
                pod = self._store.find(PODS, namespace, name)
                if pod is not None and not pod["spec"].get("nodeName"):
                    self._try(pod)

    def _try(self, pod: Object) -> None:
        metadata = pod["metadata"]
        problem = self._problem(pod)
        if problem is None:
            self._waiting.pop(metadata["uid"], None)
            self.account(pod)
            self._bind(pod)
        else:
            self._waiting[metadata["uid"]] = (metadata["namespace"], metadata["name"])
            self._refuse(pod, f"0/1 nodes are available: {problem}")

    def _problem(self, pod: Object) -> str | None:
        selector = pod["spec"].get("nodeSelector") or {}
        if any(self._labels.get(key) != value for key, value in selector.items()):
            return f"1 node(s) didn't match Pod's node affinity/selector. {_HOPELESS}"
        short, hopeless = [], False
        for name, amount in _requests(pod).items():
            capacity = self._capacity.get(name, Decimal(0))
            if amount and self._total.get(name, Decimal(0)) + amount > capacity:
                short.append(f"1 Insufficient {name}")
                hopeless = hopeless or amount > capacity
        if not short:
            return None
        return f"{', '.join(short)}. {_HOPELESS if hopeless else _OCCUPIED}"

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
        condition = {
            "type": "PodScheduled",
            "observedGeneration": pod["metadata"].get("generation", 1),
            "lastProbeTime": None,
            "lastTransitionTime": old["lastTransitionTime"]
            if old is not None and same
            else timestamp(self._store.clock()),
            **verdict,
        }
        others = [each for each in conditions if each["type"] != "PodScheduled"]
        return {
            **status,
            "phase": status.get("phase") or "Pending",
            "conditions": [*others, condition],
            "qosClass": status.get("qosClass") or quality_of_service(pod),
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
