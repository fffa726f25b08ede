"""Waiting for an MLflow that is away."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nighttrain.providers.errors import ConfigurationError, NighttrainError, TrackingError
from nighttrain.providers.tracking.client import MLflowClient
from nighttrain.sensors.common.connections import DEFAULT_POLL_SECONDS, aget_mlflow
from nighttrain.sensors.common.failures import MLFLOW_OUTAGE_SECONDS
from nighttrain.sensors.triggers.settling import Settling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Somebody who mends a connection sees the wait end within a minute; asking for it at every look would make a
# request to Airflow of each.
REREAD_SECONDS = 60.0


class MLflowAnswersTrigger(BaseTrigger):
    """Waits until MLflow answers again, then passes ``event`` on: what waited is written then.

    A mistake on the way to MLflow is waited for like an outage: somebody may mend the connection. After
    ``timeout_seconds`` without an answer the event has ``"tracking_error"`` as well, a sentence.
    """

    def __init__(
        self,
        *,
        mlflow_conn_id: str,
        event: dict[str, Any],
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        timeout_seconds: float = MLFLOW_OUTAGE_SECONDS,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mlflow_conn_id = mlflow_conn_id
        self.event = event
        self.poll_seconds = poll_seconds
        self.timeout_seconds = timeout_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.MLflowAnswersTrigger",
            {
                "mlflow_conn_id": self.mlflow_conn_id,
                "event": self.event,
                "poll_seconds": self.poll_seconds,
                "timeout_seconds": self.timeout_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        silence = Settling()
        # By the clock that the task began to wait by: a triggerer that dies does not make the wait longer.
        waited = time.time() - float(self.event.get("mlflow_away_since", time.time()))
        until = time.monotonic() + self.timeout_seconds - waited
        self.log.info("Looking every %.0f s whether MLflow answers", self.poll_seconds)
        event, said = self.event, ""
        while (error := await self._failure(min(until, time.monotonic() + REREAD_SECONDS))) is not None:
            if str(error) != said:
                said = str(error)
                self.log.warning("%s", said)
            if time.monotonic() >= until:
                event = {**self.event, "tracking_error": said}
                break
        await silence.wait()
        yield TriggerEvent(event)

    async def _failure(self, until: float) -> NighttrainError | None:
        """Look until MLflow answers, by the connection as it is now, or the time is over."""
        client: MLflowClient | None = None
        try:
            while True:
                try:
                    if client is None:
                        client = MLflowClient((await aget_mlflow(self.mlflow_conn_id)).config)
                    await client.ping()
                except (TrackingError, ConfigurationError) as error:
                    pause = min(self.poll_seconds, until - time.monotonic())
                    if pause <= 0:
                        return error
                    await asyncio.sleep(pause)
                else:
                    return None
        finally:
            if client is not None:
                await client.aclose()
