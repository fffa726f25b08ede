"""Carrying a rollout through its steps in the triggerer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nighttrain.providers.errors import NighttrainError
from nighttrain.sensors.common.connections import aget_cluster_config, aget_mlflow
from nighttrain.sensors.triggers.removal import remove_with_its_task
from nighttrain.sensors.triggers.settling import Settling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nighttrain.providers.serving.rollouts.state import State


class RolloutTrigger(BaseTrigger):
    """Drives a rollout that a task has begun, step by step, to its end.

    Its state is in the cluster, so another triggerer goes on where this one died. The event is
    ``{"phase": ..., "version": ...}``, or ``{"error": sentence}``.

    :param setting: where it happens, as :meth:`Setting.to_dict` gives it
    :param step: return once this step was held; the end, if left out
    """

    def __init__(
        self,
        *,
        kubernetes_conn_id: str,
        mlflow_conn_id: str,
        namespace: str | None,
        endpoint: str,
        rollout_id: str,
        setting: dict[str, Any],
        step: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kubernetes_conn_id = kubernetes_conn_id
        self.mlflow_conn_id = mlflow_conn_id
        self.namespace = namespace
        self.endpoint = endpoint
        self.rollout_id = rollout_id
        self.setting = setting
        self.step = step

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.RolloutTrigger",
            {
                "kubernetes_conn_id": self.kubernetes_conn_id,
                "mlflow_conn_id": self.mlflow_conn_id,
                "namespace": self.namespace,
                "endpoint": self.endpoint,
                "rollout_id": self.rollout_id,
                "setting": self.setting,
                "step": self.step,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        silence = Settling()
        try:
            state = await self._drive()
            event: dict[str, Any] = {"phase": state.phase.value, "version": state.target.candidate}
        except NighttrainError as error:
            event = {"error": str(error)}
        await silence.wait()
        yield TriggerEvent(event)

    async def on_kill(self) -> None:
        """Somebody marked or cleared the task: the rollout is undone, traffic and alias go back."""
        what = f"the rollout of {self.endpoint}"
        await remove_with_its_task(self, self._abort, what, f"nighttrain rollout abort {self.endpoint}")

    def _is_done(self, state: State) -> bool:
        from nighttrain.providers.serving.rollouts.state import has_held

        return self.step is not None and has_held(state, self.step)

    async def _drive(self) -> State:
        from nighttrain.providers.serving.rollouts.opening import Setting, open_engine

        cluster, mlflow = await self._connections()
        async with open_engine(cluster, mlflow.config, Setting.from_dict(self.setting)) as (client, engine):
            return await engine.drive(
                self.endpoint,
                self.namespace or client.namespace,
                rollout_id=self.rollout_id,
                until=self._is_done,
                tell=self.log.info,
            )

    async def _abort(self) -> None:
        from nighttrain.providers.serving.rollouts.opening import Setting, open_engine

        cluster, mlflow = await self._connections()
        async with open_engine(cluster, mlflow.config, Setting.from_dict(self.setting)) as (client, engine):
            await engine.abort(
                self.endpoint,
                self.namespace or client.namespace,
                self.rollout_id,
                by="Airflow",
                reason="its task was cleared or marked",
                tell=self.log.info,
            )

    async def _connections(self) -> tuple[Any, Any]:
        return await aget_cluster_config(self.kubernetes_conn_id), await aget_mlflow(self.mlflow_conn_id)


class RolloutEndTrigger(BaseTrigger):
    """Waits until a rollout that others drive has ended.

    The event is ``{"state": its state as JSON}``, or ``{"error": sentence}``.

    :param version: of which version; any, if left out
    """

    def __init__(
        self, *, kubernetes_conn_id: str, namespace: str | None, endpoint: str, version: str | None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kubernetes_conn_id = kubernetes_conn_id
        self.namespace = namespace
        self.endpoint = endpoint
        self.version = version

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.RolloutEndTrigger",
            {
                "kubernetes_conn_id": self.kubernetes_conn_id,
                "namespace": self.namespace,
                "endpoint": self.endpoint,
                "version": self.version,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.sensors.rollout_end import wait_end

        silence = Settling()
        try:
            async with shared_client(await aget_cluster_config(self.kubernetes_conn_id)) as client:
                namespace = self.namespace or client.namespace
                state = await wait_end(
                    client, namespace, self.endpoint, self.version, on_progress=self.log.info
                )
            event: dict[str, Any] = {"state": state.to_json()}
        except NighttrainError as error:
            event = {"error": str(error)}
        await silence.wait()
        yield TriggerEvent(event)
