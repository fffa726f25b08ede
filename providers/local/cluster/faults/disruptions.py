"""Faults that strike pods and the node, not the call they are aimed by."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.faults.faults import Effect
from nighttrain.providers.local.cluster.kinds.disruption import disrupt
from nighttrain.providers.local.cluster.store.resources import PODS

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.faults.faults import Fault, FaultPlan
    from nighttrain.providers.local.cluster.node.kubelet import Kubelet
    from nighttrain.providers.local.cluster.store.store import Object, Store


class Disruptions:
    """Evicts and preempts pods, loses and returns the node. Call it from the cluster's event loop.

    :param kubelet: None where no containers run: there is no node then
    """

    def __init__(self, store: Store, kubelet: Kubelet | None, plan: FaultPlan) -> None:
        self._store = store
        self._kubelet = kubelet
        self._plan = plan
        self._returns: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._returns:
            task.cancel()
        await asyncio.gather(*self._returns, return_exceptions=True)

    def strike(self, fault: Fault) -> None:
        """Do what the fault says, at once.

        :raises RuntimeError: it needs a node, and this cluster has none
        """
        match fault.effect:
            case Effect.EVICT:
                for pod in self._targets(fault.pod):
                    disrupt(self._store, pod, "EvictionByEvictionAPI", "Eviction API: evicting")
                    self._store.delete(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
            case Effect.PREEMPT:
                for pod in self._targets(fault.pod):
                    self._node().preempt(pod)
            case Effect.LOSE_NODE:
                self._node().lose()
                if fault.seconds:
                    task = asyncio.get_running_loop().create_task(self._return_after(fault.seconds))
                    self._returns.add(task)
                    task.add_done_callback(self._returns.discard)
            case Effect.RETURN_NODE:
                self._node().return_()

    def _targets(self, pattern: str) -> list[Object]:
        """Pods on the node that neither have ended nor are on their way out, by name."""
        found = [pod for pod in self._store.list(PODS)[0] if fnmatchcase(pod["metadata"]["name"], pattern)]
        return sorted((pod for pod in found if _lives(pod)), key=lambda pod: str(pod["metadata"]["name"]))

    async def _return_after(self, seconds: float) -> None:
        await self._plan.sleep(seconds)
        self._node().return_()

    def _node(self) -> Kubelet:
        if self._kubelet is None:
            raise RuntimeError("this cluster has no node: start it with containers=True")
        return self._kubelet


def _lives(pod: Object) -> bool:
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    return bool(pod["spec"].get("nodeName")) and not ended and "deletionTimestamp" not in pod["metadata"]
