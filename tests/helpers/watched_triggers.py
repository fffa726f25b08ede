"""What Airflow's triggerer does with a watcher: its own shared stream, and a database that a test looks
into."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow.triggers.shared_stream import SharedStreamManager

if TYPE_CHECKING:
    from airflow.triggers.base import BaseEventTrigger

_trigger_ids = itertools.count(1)


class AssetStore:
    """An asset's state store, as a trigger sees it; it outlives triggers."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    async def aget(self, key: str, default: Any = None) -> Any:
        return json.loads(self.values[key]) if key in self.values else default

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = json.dumps(value)


class Triggerer:
    """Runs one watcher as ``TriggerRunner.run_trigger`` does, and stores its events when told to.

    :param store: False holds back that events were stored, as if the process died before
    """

    def __init__(self, trigger: BaseEventTrigger, assets: AssetStore, *, store: bool = True) -> None:
        self.trigger, self.store = trigger, store
        trigger.asset_state_store = assets  # type: ignore[assignment]
        self.events: list[dict[str, Any]] = []
        self.stream = SharedStreamManager()
        self.trigger_id = next(_trigger_ids)
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Triggerer:
        self.task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.stream.stop_all()

    async def _run(self) -> None:
        key = self.trigger.shared_stream_key()
        assert key is not None
        raw = self.stream.subscribe(trigger_id=self.trigger_id, trigger=self.trigger, key=key)
        try:
            async for event in self.trigger.filter_shared_stream(raw):
                number = self.stream.bind_pending_event(trigger_id=self.trigger_id, key=key)
                self.events.append(event.payload)
                if self.store and number is not None:
                    self.stream.confirm_persisted([number])
        finally:
            await self.stream.unsubscribe(self.trigger_id, key)

    async def until(self, arrived: Callable[[list[dict[str, Any]]], bool], *, seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not arrived(self.events):
                assert self.task is not None
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.01)
