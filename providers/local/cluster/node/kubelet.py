"""The cluster's one node: runs pods that are bound to it as processes, reads their logs."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.controllers.pace import BackOff
from nighttrain.providers.local.cluster.kinds.pods import choose_container, has_ended
from nighttrain.providers.local.cluster.machine.host import NODE_NAME, host_resources
from nighttrain.providers.local.cluster.machine.janitor import Janitor, kill_marked
from nighttrain.providers.local.cluster.machine.memory import MemoryLimits
from nighttrain.providers.local.cluster.machine.mounts import MountNamespaces, Namespaces
from nighttrain.providers.local.cluster.node import logs
from nighttrain.providers.local.cluster.node.container_runner import Node
from nighttrain.providers.local.cluster.node.pod_worker import PodWorker
from nighttrain.providers.local.cluster.node.state import remember_restarts
from nighttrain.providers.local.cluster.rules.claims import ClaimFolders
from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.following import follow
from nighttrain.providers.local.cluster.store.resources import (
    CONFIGMAPS,
    NODES,
    PODS,
    SECRETS,
)
from nighttrain.providers.local.cluster.store.store import EventType, Object, Store, timestamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nighttrain.providers.local.cluster.machine.images import ImageTable
    from nighttrain.providers.local.cluster.machine.network import ClusterNetwork

_log = logging.getLogger(__name__)

# Two processors start about this many processes at a time without slowing one another down.
_STARTING_AT_ONCE = 4

# The version whose behaviour was recorded and is reproduced.
KUBERNETES_VERSION = "v1.36.2"


class Kubelet:
    """The kubelet of the embedded cluster's one node.

    Everything it starts ends with it: :meth:`stop` kills what runs, and a janitor process does the same if
    this process is killed.

    :param images: which interpreter stands for which image
    :param directory: folders and logs of the containers go below it
    :param back_off: pauses between restarts and between tries to pull
    :param sleep: waits; replaced in tests that do not want to
    :param remove: removed by the janitor if this process dies; default: the containers' own folder
    :param namespaces: how containers get mount namespaces; without, pods with volumes wait
    """

    def __init__(
        self,
        store: Store,
        images: ImageTable,
        directory: Path,
        network: ClusterNetwork,
        *,
        claims: Path | None = None,
        node_name: str = NODE_NAME,
        back_off: BackOff | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        remove: Path | None = None,
        namespaces: Namespaces = Namespaces.AUTO,
    ) -> None:
        self.cluster_id = uuid.uuid4().hex
        self._store = store
        self._directory = Path(os.path.abspath(directory)) / f"containers-{self.cluster_id[:8]}"
        self._remove = remove or self._directory
        self.claims = ClaimFolders(claims or self._directory / "claims")
        self._node = Node(
            store=store,
            images=images,
            network=network,
            directory=self._directory,
            cluster_id=self.cluster_id,
            name=node_name,
            recorder=EventRecorder(store, "kubelet", node_name),
            starting=asyncio.Semaphore(_STARTING_AT_ONCE),
            back_off=back_off or BackOff(),
            sleep=sleep,
            configuration_changed=asyncio.Event(),
            namespaces=MountNamespaces(self._directory / "namespace", namespaces),
            memory=MemoryLimits(),
            claims=self.claims,
        )
        labels = {
            "kubernetes.io/hostname": node_name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _architecture(),
        }
        self._labels = labels
        self._workers: dict[str, PodWorker] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._janitor: Janitor | None = None

    async def start(self) -> None:
        self._directory.mkdir(parents=True)
        self._janitor = Janitor(self.cluster_id, self._remove)
        await self._node.namespaces.start()
        self._create_node()
        self._tasks = [
            asyncio.create_task(each, name="kubelet")
            for each in (
                follow(self._store, PODS, self._pod_changed, self._forget_lost),
                follow(self._store, CONFIGMAPS, self._configuration_changed),
                follow(self._store, SECRETS, self._configuration_changed),
            )
        ]

    async def stop(self) -> None:
        """Kill every container and remove its files. Nothing is written to the store."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))
        self._workers.clear()
        await asyncio.to_thread(self._clean_up)

    def _clean_up(self) -> None:
        self._node.namespaces.close()
        self._node.memory.close()
        kill_marked(self.cluster_id)
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._janitor is not None:
            self._janitor.dismiss()

    @property
    def mount_refusal(self) -> str:
        """The reason why containers have no mount namespaces, and pods no volumes; empty if they have."""
        return self._node.namespaces.refusal

    def open_log(
        self, pod: Object, container: str | None = None, *, previous: bool = False, **options: Any
    ) -> AsyncIterator[bytes]:
        """The container's output in pieces. A pod that is not bound yet has an empty log.

        :param options: as :func:`logs.read` takes them
        :raises ApiError: 400: no such container, several and none named, not started yet, nothing previous
        """
        name = choose_container(pod, container)
        if not pod["spec"].get("nodeName"):
            return logs.nothing()
        worker = self._workers.get(pod["metadata"]["uid"])
        found = worker.find(name) if worker is not None else None
        log = logs.choose_log(pod, name, found, previous=previous)
        return logs.nothing() if log is None else logs.read(log, **options)

    # Pods

    def _forget_lost(self) -> None:
        present = {pod["metadata"]["uid"] for pod in self._store.list(PODS)[0]}
        for uid in set(self._workers) - present:
            self._gone(uid)

    def _pod_changed(self, type_: EventType, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if type_ is EventType.DELETED:
            self._gone(uid)
        elif worker is not None:
            worker.update(pod)
        elif pod["spec"].get("nodeName") == self._node.name and not has_ended(pod) and self._exists(pod):
            worker = self._workers[uid] = PodWorker(self._node, pod, self._finished)
            remember_restarts(worker.containers, pod)

    def _exists(self, pod: Object) -> bool:
        """True if this is not old news: a pod may have come to its end before its watch is read."""
        metadata = pod["metadata"]
        current = self._store.find(PODS, metadata["namespace"], metadata["name"])
        return (
            current is not None and current["metadata"]["uid"] == metadata["uid"] and not has_ended(current)
        )

    def _gone(self, uid: str) -> None:
        worker = self._workers.get(uid)
        if worker is None:
            return
        worker.gone()
        if worker.ended:
            del self._workers[uid]
            worker.clean()

    def _finished(self, worker: PodWorker) -> None:
        """The worker's pod ended. Its log stays readable until the object goes."""
        if worker.is_gone():
            self._workers.pop(worker.uid, None)
            worker.clean()

    def _configuration_changed(self, *_: object) -> None:
        changed, self._node.configuration_changed = self._node.configuration_changed, asyncio.Event()
        changed.set()

    # The node

    def _create_node(self) -> None:
        now = timestamp(datetime.now(UTC))
        resources = host_resources()
        amounts = {
            "cpu": str(resources["cpu"]),
            "memory": f"{int(resources['memory']) // 1024}Ki",
            "pods": "1000",
        }
        condition = {
            "type": "Ready",
            "status": "True",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }
        node = {
            "metadata": {"name": self._node.name, "labels": self._labels},
            "spec": {},
            "status": {
                "capacity": amounts,
                "allocatable": amounts,
                "conditions": [condition],
                "addresses": [
                    {"type": "InternalIP", "address": self._node.network.host_ip},
                    {"type": "Hostname", "address": self._node.name},
                ],
                "nodeInfo": {
                    "architecture": _architecture(),
                    "kubeletVersion": KUBERNETES_VERSION,
                    "machineID": self.cluster_id,
                    "operatingSystem": "linux",
                    "osImage": "nighttrain embedded cluster",
                },
            },
        }
        if self._store.find(NODES, None, self._node.name) is None:
            self._store.create(NODES, node)
        else:
            # A state file's: the same node after a restart.
            status = node["status"]
            self._store.mutate(NODES, None, self._node.name, lambda known: known.update(status=status))


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
