"""Waiting for a stage, an alias, a version or a tag in the model registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nighttrain.providers.registry.feed.hub import subscribe
from nighttrain.sensors.common.connections import aget_mlflow
from nighttrain.sensors.common.nudges import read_nudge
from nighttrain.sensors.registry_condition import RegistryCondition
from nighttrain.sensors.triggers.settling import Settling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class RegistryTrigger(BaseTrigger):
    """Waits until a condition holds in the model registry.

    However many of them wait in a triggerer, MLflow is asked once for all that share a server and a user.
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
        async with subscribe(
            mlflow.config, condition.interest, self.poll_seconds, nudges=read_nudge
        ) as subscription:
            found = None
            while found is None:
                state, _ = await subscription.next()
                found = condition.fulfilled_by(state)
        await silence.wait()
        yield TriggerEvent({"model_name": condition.model_name, "version": found})
