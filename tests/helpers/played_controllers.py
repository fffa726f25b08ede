"""Who plays the controllers and the clock for a rollout on an embedded cluster that runs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.subresources import below, status_of
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, PODS, SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient

NAMESPACE = "default"


class Player:
    """The controllers and the clock: waiting lets the next thing happen."""

    def __init__(self, client: ClusterClient) -> None:
        self.client = client
        self.now = 0.0
        self.slept: list[float] = []
        self.told: list[str] = []
        self.next: list[Callable[[], Any]] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        if self.next:
            await self.next.pop(0)()

    async def make_ready(self, version: str, ready: int | None = None) -> None:
        """Every pod of the version is there, and so many are ready: all, if not said."""
        found = await self.client.get(DEPLOYMENTS, NAMESPACE, f"delay-v{version}")
        count = found["spec"]["replicas"]
        there = dict.fromkeys(("replicas", "updatedReplicas"), count)
        good = dict.fromkeys(("readyReplicas", "availableReplicas"), count if ready is None else ready)
        status = {"observedGeneration": found["metadata"]["generation"], **there, **good}
        await self.client.patch(status_of(DEPLOYMENTS), NAMESPACE, f"delay-v{version}", {"status": status})

    async def scale(self, version: str, replicas: int) -> None:
        """As an autoscaler or ``kubectl scale`` does, and the pods follow."""
        await self.client.patch(
            below(DEPLOYMENTS, "scale"), NAMESPACE, f"delay-v{version}", {"spec": {"replicas": replicas}}
        )
        await self.make_ready(version)

    async def replicas(self, version: str) -> int:
        found = await self.client.get(DEPLOYMENTS, NAMESPACE, f"delay-v{version}")
        return int(found["spec"]["replicas"])

    async def pod(self, version: str, state: dict[str, Any]) -> None:
        labels = {"nighttrain.dev/endpoint": "delay", "nighttrain.dev/version": version}
        name = f"delay-v{version}-x"
        container = {"name": "main", "image": "model-server:1"}
        meta = {"name": name, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}
        await self.client.create(PODS, NAMESPACE, body)
        entry = container | {"state": state, "ready": False, "restartCount": 0, "imageID": ""}
        status = {"phase": "Running", "containerStatuses": [entry]}
        await self.client.patch(status_of(PODS), NAMESPACE, name, {"status": status})

    async def versions(self) -> set[str]:
        found = await self.client.list(DEPLOYMENTS, NAMESPACE)
        return {item["metadata"]["labels"]["nighttrain.dev/version"] for item in found["items"]}

    async def selected(self) -> str:
        found = await self.client.get(SERVICES, NAMESPACE, "delay")
        return str(found["spec"]["selector"]["nighttrain.dev/version"])
