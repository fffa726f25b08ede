"""Waiting for a version behind an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nighttrain.providers.errors import NighttrainError
from nighttrain.providers.kubernetes.api.client import ClusterClient, shared_client
from nighttrain.sensors.common.connections import aget_cluster_config
from nighttrain.sensors.endpoint_readiness import remove_candidate, wait_candidate_ready, wait_endpoint_serves
from nighttrain.sensors.triggers.removal import remove_with_its_task
from nighttrain.sensors.triggers.settling import Settling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class EndpointTrigger(BaseTrigger):
    """Waits until a version is ready behind an endpoint, or cannot become so.

    The event is ``{"ready": True}``, or ``{"ready": False, "error": sentence}``.
    """

    def __init__(
        self,
        *,
        kubernetes_conn_id: str,
        namespace: str | None,
        endpoint: str,
        version: str | None,
        timeout_seconds: float,
        serving_only: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kubernetes_conn_id = kubernetes_conn_id
        self.namespace = namespace
        self.endpoint = endpoint
        self.version = version
        self.timeout_seconds = timeout_seconds
        self.serving_only = serving_only

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.EndpointTrigger",
            {
                "kubernetes_conn_id": self.kubernetes_conn_id,
                "namespace": self.namespace,
                "endpoint": self.endpoint,
                "version": self.version,
                "timeout_seconds": self.timeout_seconds,
                "serving_only": self.serving_only,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        silence = Settling()
        try:
            config = await aget_cluster_config(self.kubernetes_conn_id)
            async with shared_client(config) as client:
                event = {"ready": True, "status": await self._wait(client)}
        except NighttrainError as error:
            event = {"ready": False, "error": str(error)}
        await silence.wait()
        yield TriggerEvent(event)

    async def on_kill(self) -> None:
        """Somebody marked or cleared the rollout: its candidate goes, what serves stays.

        A triggerer whose triggers another one took over is asked to end them too: what still waits is left
        alone.
        """
        if not self.serving_only and self.version is not None:
            what = f"version {self.version} of {self.endpoint}"
            await remove_with_its_task(self, self._remove, what, "roll out again, or roll back")

    async def _remove(self) -> None:
        config = await aget_cluster_config(self.kubernetes_conn_id)
        async with shared_client(config) as client:
            namespace = self.namespace or client.namespace
            await remove_candidate(client, namespace, self.endpoint, str(self.version))

    async def _wait(self, client: ClusterClient) -> dict[str, Any]:
        wait = wait_endpoint_serves if self.serving_only else wait_candidate_ready
        return await wait(
            client,
            self.namespace or client.namespace,
            self.endpoint,
            self.version,
            timeout_seconds=self.timeout_seconds,
            on_progress=self.log.info,
        )
