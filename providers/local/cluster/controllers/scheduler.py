"""The scheduler of a cluster with one node: a pod fits, or waits and says why."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from nighttrain.providers.local.cluster.kinds.pods import has_ended
from nighttrain.providers.local.cluster.machine.host import NODE_NAME, host_resources
from nighttrain.providers.local.cluster.rules.claims import missing_claim
from nighttrain.providers.local.cluster.rules.defaults import quality_of_service
from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.following import follow
from nighttrain.providers.local.cluster.store.quantities import quantity
from nighttrain.providers.local.cluster.store.resources import NODES, PERSISTENTVOLUMECLAIMS, PODS
from nighttrain.providers.local.cluster.store.store import EventType, Object, Store, timestamp

Amounts = dict[str, Decimal]

_COMPONENT = "default-scheduler"
_NOWHERE = "0/1 nodes are available:"
_PREEMPTION = "no new claims to deallocate, preemption: 0/1 nodes are available: 1"
_HOPELESS = f"{_PREEMPTION} Preemption is not helpful for scheduling."
_OCCUPIED = f"{_PREEMPTION} No preemption victims found for incoming pod."


class Scheduler:
    """Binds pods to the node while their requests of CPU and memory fit."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._labels: Object | None = None
        self._recorder = EventRecorder(store, _COMPONENT)
        self._tasks: list[asyncio.Task[None]] = []
        self._capacity = host_resources()
        self._used: dict[str, Amounts] = {}
        self._total = {name: Decimal(0) for name in self._capacity}
        self._waiting: dict[str, tuple[str, str]] = {}

    def start(self) -> None:
        followed = (
            follow(self._store, NODES, self._node_changed),
            follow(self._store, PERSISTENTVOLUMECLAIMS, lambda *_: self._retry()),
            follow(self._store, PODS, self._pod_changed, self._forget_lost),
        )
        self._tasks = [asyncio.create_task(each, name="scheduler") for each in followed]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _pod_changed(self, type_: EventType, pod: Object) -> None:
        if type_ is EventType.DELETED or has_ended(pod):
            self._release(pod["metadata"]["uid"])
        elif pod["spec"].get("nodeName"):
            self._account(pod)
        else:
            self._offer(pod)

    def _forget_lost(self) -> None:
        present = {pod["metadata"]["uid"] for pod in self._store.list(PODS)[0]}
        for uid in set(self._used) - present:
            self._release(uid)

    def _offer(self, pod: Object) -> None:
        """A pod without a node: bind it, or remember it."""
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            return
        if pod["spec"].get("schedulerName", _COMPONENT) != _COMPONENT:
            return  # another scheduler's to bind
        if metadata["uid"] not in self._used:
            self._try(pod)

    def _account(self, pod: Object) -> None:
        """A bound pod that has not ended uses what it requests."""
        uid = pod["metadata"]["uid"]
        self._waiting.pop(uid, None)
        if uid not in self._used:
            self._used[uid] = _requests(pod)
            for name, amount in self._used[uid].items():
                self._total[name] = self._total.get(name, Decimal(0)) + amount

    def _release(self, uid: str) -> None:
        """The pod ended or is gone: what it used is free for those that wait."""
        self._waiting.pop(uid, None)
        used = self._used.pop(uid, None) or {}
        for name, amount in used.items():
            self._total[name] -= amount
        if any(used.values()):
            self._retry()

    def _node_changed(self, type_: EventType, node: Object) -> None:
        """Labels of the node may let in who had to wait."""
        labels = node["metadata"].get("labels") or {}
        if type_ is not EventType.DELETED and labels != self._labels:
            self._labels = labels
            self._retry()

    def _retry(self) -> None:
        """Try those that wait, the one that waits longest first."""
        for name in list(self._waiting.values()):
            pod = self._store.find(PODS, *name)
            if pod is not None and not pod["spec"].get("nodeName"):
                self._offer(pod)

    def _try(self, pod: Object) -> None:
        metadata = pod["metadata"]
        if self._labels is None:  # the node is not there yet
            self._waiting[metadata["uid"]] = (metadata["namespace"], metadata["name"])
            return
        why = self._why_not(pod, self._labels)
        if why is None:
            self._account(pod)
            self._bind(pod)
        else:
            self._waiting[metadata["uid"]] = (metadata["namespace"], metadata["name"])
            self._refuse(pod, f"{_NOWHERE} {why}")

    def _why_not(self, pod: Object, labels: Object) -> str | None:
        """The reason that keeps the pod from the node, in the order in which a real scheduler asks."""
        claim = missing_claim(self._store, pod)
        if claim is not None:  # before any node is looked at
            return f'persistentvolumeclaim "{claim}" not found. not found'
        selector = pod["spec"].get("nodeSelector") or {}
        if any(labels.get(key) != value for key, value in selector.items()):
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
            new["spec"]["nodeName"] = NODE_NAME
            new["status"] = self._with_condition(new, {"status": "True"})

        metadata = pod["metadata"]
        stored = self._store.mutate(PODS, metadata["namespace"], metadata["name"], bind)
        if stored is not None:
            name = f"{metadata['namespace']}/{metadata['name']}"
            self._recorder.normal(pod, "Scheduled", f"Successfully assigned {name} to {NODE_NAME}")

    def _refuse(self, pod: Object, why: str) -> None:
        def refuse(new: Object) -> None:
            condition = {"status": "False", "reason": "Unschedulable", "message": why}
            new["status"] = self._with_condition(new, condition)

        metadata = pod["metadata"]
        before = metadata["resourceVersion"]
        stored = self._store.mutate(PODS, metadata["namespace"], metadata["name"], refuse)
        if stored is not None and stored["metadata"]["resourceVersion"] != before:
            self._recorder.warning(pod, "FailedScheduling", why)

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


def _requests(pod: Object) -> dict[str, Decimal]:
    """A pod's requests: its containers together, or its most demanding init container if that is more."""
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
