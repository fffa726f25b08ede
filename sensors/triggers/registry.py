"""Waiting for a stage, an alias or a version in the model registry."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nighttrain.providers.errors import TrackingError
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient
from nighttrain.sensors.common.connections import aget_mlflow
from nighttrain.sensors.registry_condition import RegistryCondition
from nighttrain.sensors.triggers.settling import Settling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RegistryTrigger(BaseTrigger):
    """Waits until a condition holds in the model registry.

    The event is ``{"model_name", "version"}``. An outage of MLflow is waited out: the condition cannot be
    judged meanwhile, and the task's own time-out bounds the wait.
    """

    def __init__(self, *, mlflow_conn_id: str, condition: dict[str, Any], poll_seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mlflow_conn_id = mlflow_conn_id
        self.condition = condition
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.RegistryTrigger",
            {
                "mlflow_conn_id": self.mlflow_conn_id,
                "condition": self.condition,
                "poll_seconds": self.poll_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        silence = Settling()
        condition = RegistryCondition.from_dict(self.condition)
        mlflow = await aget_mlflow(self.mlflow_conn_id)
        async with MLflowClient(mlflow.config) as client:
            registry = ModelRegistry(client)
            while True:
                try:
                    found = await condition.holder(registry)
                except TrackingError as error:
                    self.log.warning("MLflow cannot be asked now, will look again: %s", error)
                    found = None
                if found is not None:
                    await silence.wait()
                    yield TriggerEvent({"model_name": found.name, "version": found.version})
                    return
                await asyncio.sleep(self.poll_seconds)
