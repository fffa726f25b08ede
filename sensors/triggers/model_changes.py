"""Announcing that another version holds a stage or an alias: an asset's trigger.

A DAG file that is scheduled on the asset makes the trigger: clients are imported when it runs.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from nighttrain.providers.errors import ConfigurationError, TrackingError
from nighttrain.sensors.common.connections import DEFAULT_MLFLOW_CONN_ID, DEFAULT_POLL_SECONDS, aget_mlflow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nighttrain.providers.registry.feed import Change


class ModelChangeTrigger(BaseEventTrigger):
    """Feeds an asset: one event each time another version comes to hold a stage or an alias.

    Level-triggered: what is compared is what is held now with what was announced last (kept in the asset's
    state store), so that a transition made while the triggerer was down or the DAG was paused is announced
    afterwards. An event whose announcement was not recorded is sent again: at least once, never lost.

    The event is ``{"model_name", "kind", "key", "version", "previous_version", "noticed_at"}``.
    """

    def __init__(
        self,
        *,
        model_name: str,
        stage: str | None = None,
        alias: str | None = None,
        mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if (stage is None) == (alias is None):
            raise ConfigurationError("stage, alias", (stage, alias), "name exactly one of the two")
        self.model_name = model_name
        self.stage = stage
        self.alias = alias
        self.mlflow_conn_id = mlflow_conn_id
        self.poll_seconds = poll_seconds
        self._announced: dict[str, Any] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.ModelChangeTrigger",
            {
                "model_name": self.model_name,
                "stage": self.stage,
                "alias": self.alias,
                "mlflow_conn_id": self.mlflow_conn_id,
                "poll_seconds": self.poll_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from nighttrain.providers.registry.feed import RegistryState, diff, read_state
        from nighttrain.providers.registry.models import ModelRegistry
        from nighttrain.providers.tracking.client import MLflowClient

        mlflow = await aget_mlflow(self.mlflow_conn_id)
        stored = await self._load()
        announced = RegistryState.from_dict(stored) if stored else None
        async with MLflowClient(mlflow.config) as client:
            registry = ModelRegistry(client)
            while True:
                try:
                    state = await read_state(registry, self.model_name)
                except TrackingError as error:
                    self.log.warning("MLflow cannot be asked now, will look again: %s", error)
                else:
                    for change in diff(announced, state):
                        if self._concerns(change):
                            yield TriggerEvent(self._event(change))
                    if announced is None or state.to_dict() != announced.to_dict():
                        announced = state
                        await self._store(state.to_dict())
                await asyncio.sleep(self.poll_seconds)

    def _concerns(self, change: Change) -> bool:
        kind, key = ("stage", self.stage) if self.stage is not None else ("alias", self.alias)
        return change.kind == kind and change.key == key and change.version is not None

    def _event(self, change: Change) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            "kind": change.kind,
            "key": change.key,
            "version": change.version,
            "previous_version": change.previous,
            "noticed_at": datetime.now(UTC).isoformat(),
        }

    @property
    def _cursor_key(self) -> str:
        return f"nighttrain.registry.{self.model_name}"

    async def _load(self) -> dict[str, Any] | None:
        if self.asset_state_store is None:
            return self._announced
        stored = await self.asset_state_store.aget(self._cursor_key)
        return stored if isinstance(stored, dict) else None

    async def _store(self, state: dict[str, Any]) -> None:
        if self.asset_state_store is None:
            self._announced = state
        else:
            await self.asset_state_store.aset(self._cursor_key, state)
