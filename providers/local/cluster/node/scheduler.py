"""The scheduler of a cluster with one node: a pod fits, or waits and says why."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.taints import UNSCHEDULABLE, taints_of, untolerated
from nighttrain.providers.local.cluster.kinds.disruption import disrupt
from nighttrain.providers.local.cluster.machine.host import host_resources
from nighttrain.providers.local.cluster.node.podstatus import quality_of_service
from nighttrain.providers.local.cluster.rules.claims import missing_claim
from nighttrain.providers.local.cluster.rules.preemption import priority, victims
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
        self._taints: list[Object] = []
        self._cordoned = False
        self._capacity = host_resources()
        self._used: dict[str, Amounts] = {}
        self._bound: dict[str, tuple[str, str]] = {}
        self._total = {name: Decimal(0) for name in self._capacity}
        self._waiting: dict[str, tuple[str, str]] = {}
        # Pods that others make room for: nobody less important may take it.
        self._nominated: dict[str, tuple[int, Amounts]] = {}

    def offer(self, pod: Object) -> None:
        """A pod without a node: bind it, or remember it."""
        metadata = pod["metadata"]
        spec = pod["spec"]
        if "deletionTimestamp" in metadata or spec.get("schedulingGates"):
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
        metadata = pod["metadata"]
        uid = metadata["uid"]
        self._forget(uid)
        if uid not in self._used:
            self._used[uid] = _requests(pod)
            self._bound[uid] = (metadata["namespace"], metadata["name"])
            for name, amount in self._used[uid].items():
                self._total[name] = self._total.get(name, Decimal(0)) + amount

    def release(self, uid: str) -> None:
        """The pod ended or is gone: what it used, or what was kept for it, is free for those that wait."""
        kept = self._forget(uid)
        used = self._used.pop(uid, None) or {}
        self._bound.pop(uid, None)
        for name, amount in used.items():
            self._total[name] -= amount
        if kept or any(used.values()):
            self._retry()

    def node_changed(self, node: Object) -> None:
        """Labels or taints of the node may let in who had to wait."""
        if self._look_at(node):
            self._retry()

    def claims_changed(self) -> None:
        """A claim that pods wait for may be bound by now."""
        if self._waiting:
            self._retry()

    def _look_at(self, node: Object) -> bool:
        """Whether the node is another one than it was, for those that want to come."""
        before = self._labels, self._taints, self._cordoned
        self._labels, self._taints = node["metadata"].get("labels") or {}, taints_of(node)
        self._cordoned = bool(node["spec"].get("unschedulable"))
        return (self._labels, self._taints, self._cordoned) != before

    def _forget(self, uid: str) -> bool:
        self._waiting.pop(uid, None)
        return self._nominated.pop(uid, None) is not None

    def _retry(self) -> None:
        """Try those that wait: the most important first, of equals the one that waits longest."""
        found = [self._store.find(PODS, *name) for name in self._waiting.values()]
        pods = [pod for pod in found if pod is not None and not pod["spec"].get("nodeName")]
        for pod in sorted(pods, key=priority, reverse=True):
            self.offer(pod)

    def _try(self, pod: Object) -> None:
        metadata = pod["metadata"]
        claims = missing_claim(self._store, pod)
        problem = None if claims else self._mismatch(pod)
        missing = {} if claims or problem else self._missing(pod)
        if claims is None and problem is None and not missing:
            self.account(pod)
            self._bind(pod)
            return
        self._waiting[metadata["uid"]] = (metadata["namespace"], metadata["name"])
        if claims is not None:  # before any node is looked at
            self._refuse(pod, f"{_NOWHERE} {claims}. not found")
        elif problem is not None:
            self._refuse(pod, f"{_NOWHERE} {problem}. {_HOPELESS}")
        else:
            self._make_room(pod, missing)

    def _mismatch(self, pod: Object) -> str | None:
        """What keeps the pod from the node, however empty it is: the first that a real scheduler finds."""
        if self._cordoned and untolerated(pod, [UNSCHEDULABLE], "NoSchedule") is not None:
            return "1 node(s) were unschedulable"
        if untolerated(pod, self._taints, "NoSchedule", "NoExecute") is not None:
            return "1 node(s) had untolerated taint(s)"
        selector = pod["spec"].get("nodeSelector") or {}
        if any(self._labels.get(key) != value for key, value in selector.items()):
            return "1 node(s) didn't match Pod's node affinity/selector"
        return None

    def _missing(self, pod: Object) -> Amounts:
        """By how much the node is too full for the pod; empty if it fits."""
        kept = [
            amounts
            for uid, (important, amounts) in self._nominated.items()
            if uid != pod["metadata"]["uid"] and important >= priority(pod)
        ]
        missing = {}
        for name, amount in _requests(pod).items():
            taken = self._total.get(name, Decimal(0)) + sum(each.get(name, Decimal(0)) for each in kept)
            over = taken + amount - self._capacity.get(name, Decimal(0))
            if amount and over > 0:
                missing[name] = over
        return missing

    def _make_room(self, pod: Object, missing: Amounts) -> None:
        """Preempt less important pods if that helps; in any case the pod waits for now."""
        full = f"{_NOWHERE} {', '.join(f'1 Insufficient {name}' for name in missing)}."
        requests = _requests(pod)
        if any(requests[name] > self._capacity.get(name, Decimal(0)) for name in missing):
            self._refuse(pod, f"{full} {_HOPELESS}")
            return
        staying, left = [], dict(missing)
        for uid, bound in self._bound.items():
            other = self._store.find(PODS, *bound)
            if other is None or "deletionTimestamp" in other["metadata"]:
                left = {name: over - self._used[uid].get(name, Decimal(0)) for name, over in left.items()}
            else:
                staying.append((other, self._used[uid]))
        nominated = pod["metadata"]["uid"] in self._nominated
        if nominated and all(over <= 0 for over in left.values()):
            return  # its room is being made
        chosen = victims(pod, staying, left)
        if chosen is None:
            self._refuse(pod, f"{full} {_OCCUPIED}")
            return
        if chosen:
            self._nominated[pod["metadata"]["uid"]] = (priority(pod), requests)
            self._refuse(pod, full, nominated=True)
            for victim in chosen:
                self.preempt(victim, pod["metadata"]["uid"])
        else:
            self._refuse(pod, f"{full} {_OCCUPIED}")

    def preempt(self, victim: Object, uid: str) -> None:
        """End the pod in favour of the one with this uid."""
        what = f"Preempted by pod {uid} on node {self._node_name}"
        self._event(victim, "Normal", "Preempted", what, "Preempting")
        why = f"{_COMPONENT}: preempting to accommodate a higher priority pod"
        disrupt(self._store, victim, "PreemptionByScheduler", why, observed=True)
        self._store.delete(PODS, victim["metadata"]["namespace"], victim["metadata"]["name"])

    def _bind(self, pod: Object) -> None:
        def bind(new: Object) -> None:
            new["spec"]["nodeName"] = self._node_name
            new["status"] = self._with_condition(new, {"status": "True"})
            new["status"].pop("nominatedNodeName", None)

        metadata = pod["metadata"]
        stored = self._store.mutate(PODS, metadata["namespace"], metadata["name"], bind)
        if stored is not None:
            name = f"{metadata['namespace']}/{metadata['name']}"
            self._event(
                pod, "Normal", "Scheduled", f"Successfully assigned {name} to {self._node_name}", "Binding"
            )

    def _refuse(self, pod: Object, why: str, *, nominated: bool = False) -> None:
        def refuse(new: Object) -> None:
            condition = {"status": "False", "reason": "Unschedulable", "message": why}
            new["status"] = self._with_condition(new, condition)
            if nominated:
                new["status"]["nominatedNodeName"] = self._node_name

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
