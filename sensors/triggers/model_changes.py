"""Announcing that another version holds a stage, an alias or a tag, or is there: an asset's trigger.

A DAG file that is scheduled on the asset makes the trigger: clients are imported when it runs.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from nighttrain.sensors.common.connections import DEFAULT_MLFLOW_CONN_ID, DEFAULT_POLL_SECONDS, aget_mlflow
from nighttrain.sensors.common.nudges import read_nudge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Hashable

    from airflow.triggers.shared_stream import SharedStreamProducer

    from nighttrain.providers.registry.feed.changes import Interest
    from nighttrain.providers.registry.feed.outbox import Outbox, Told

CURSOR_KEY = "nighttrain.registry.outbox"
"""In the asset's state store, which is the asset's own."""


class ModelChangeTrigger(BaseEventTrigger):
    """Feeds an asset: one event each time another version comes to hold a stage, an alias or a tag, or is
    there.

    Level-triggered: what is compared is what is held now with what was announced last, which the asset's
    state store keeps. So a transition made while the triggerer was down or the DAG was paused is announced
    afterwards. What is announced is kept there first, and off the list once Airflow has stored the event:
    an event may come twice, under the same ``sequence``, and never zero times.

    The event is ``{"model_name", "kind", "key", "version", "previous_version", "noticed_at", "sequence",
    "author", "changed_at", "changed_at_clock"}``.
    """

    def __init__(
        self,
        *,
        model_name: str,
        stage: str | None = None,
        alias: str | None = None,
        mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        versions: bool = False,
        tag: str | None = None,
        value: str | None = None,
    ) -> None:
        from nighttrain.providers.registry.feed.changes import followed

        super().__init__()  # type: ignore[no-untyped-call]
        followed(model_name, stage=stage, alias=alias, versions=versions, tag=tag, value=value)
        self.model_name = model_name
        self.stage = stage
        self.alias = alias
        self.mlflow_conn_id = mlflow_conn_id
        self.poll_seconds = poll_seconds
        self.versions = versions
        self.tag = tag
        self.value = value
        self._kept: dict[str, Any] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        values = {
            "model_name": self.model_name,
            "stage": self.stage,
            "alias": self.alias,
            "mlflow_conn_id": self.mlflow_conn_id,
            "poll_seconds": self.poll_seconds,
        }
        # As it was before there were more: Airflow knows a watcher by these values.
        if self.versions:
            values["versions"] = True
        if self.tag is not None:
            values |= {"tag": self.tag, "value": self.value}
        return "nighttrain.sensors.triggers.ModelChangeTrigger", values

    @property
    def interest(self) -> Interest:
        """What is followed."""
        from nighttrain.providers.registry.feed.changes import followed

        return followed(
            self.model_name,
            stage=self.stage,
            alias=self.alias,
            versions=self.versions,
            tag=self.tag,
            value=self.value,
        )

    def shared_stream_key(self) -> Hashable:
        """A stream of its own. Airflow tells a stream's producer when an event is stored, and a trigger's
        run not."""
        key = _stream_of(self.serialize()[1])
        _running[key] = self
        return key

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        from nighttrain.sensors.triggers.announcements import Announcements

        trigger = _running[_stream_of(kwargs)]
        return Announcements(trigger.outboxes, trigger.keep)

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Outbox]) -> AsyncIterator[TriggerEvent]:
        async for outbox in shared_stream:
            for told in outbox.to_tell():
                yield TriggerEvent(self._event(told))

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Where nobody says when an event is stored: it is taken to be once the next one is asked for."""
        async with aclosing(self.outboxes()) as outboxes:
            async for outbox in outboxes:
                for told in outbox.to_tell():
                    yield TriggerEvent(self._event(told))
                await self.keep(outbox.arrived())

    async def outboxes(self) -> AsyncGenerator[Outbox, None]:
        """What is to be told, each time that there is something, and kept already.

        To ask for the next one says that this one has arrived.
        """
        from nighttrain.providers.registry.feed.authors import with_authors
        from nighttrain.providers.registry.feed.hub import subscribe

        interest = self.interest.checked()
        outbox = await self._load(interest)
        mlflow = await aget_mlflow(self.mlflow_conn_id)
        async with subscribe(mlflow.config, interest, self.poll_seconds, nudges=read_nudge) as subscription:
            while True:
                if outbox.sending:
                    yield outbox
                    outbox = outbox.arrived()
                state, noticed = await subscription.next()
                after = outbox.seen(interest, state, noticed, removals=False)
                # Before it is kept, so that what is told again says the same.
                after = replace(after, sending=await with_authors(mlflow.config, after.sending))
                if after != outbox:
                    await self.keep(after)
                outbox = after

    async def keep(self, outbox: Outbox) -> None:
        """Remember what was told, over restarts where Airflow has a place for it."""
        if self.asset_state_store is None:
            self._kept = outbox.to_dict()
        else:
            await self.asset_state_store.aset(CURSOR_KEY, outbox.to_dict())

    async def _load(self, interest: Interest) -> Outbox:
        from nighttrain.providers.registry.feed.outbox import Outbox, view_of_former_cursor

        if self.asset_state_store is None:
            return Outbox.from_dict(self._kept or {})
        stored = await self.asset_state_store.aget(CURSOR_KEY)
        if isinstance(stored, dict):
            return Outbox.from_dict(stored)
        former = await self.asset_state_store.aget(f"nighttrain.registry.{self.model_name}")
        return Outbox(view_of_former_cursor(interest, former) if isinstance(former, dict) else None)

    def _event(self, told: Told) -> dict[str, Any]:
        change = told.change
        moment = None if change.at is None else datetime.fromtimestamp(change.at / 1000, UTC).isoformat()
        return {
            "model_name": change.name,
            "kind": change.kind.value,
            "key": change.key,
            "version": change.version,
            "previous_version": change.previous,
            "noticed_at": datetime.now(UTC).isoformat(),
            "sequence": told.sequence,
            "author": change.author,
            "changed_at": moment,
            "changed_at_clock": None if change.clock is None else change.clock.value,
        }


_running: WeakValueDictionary[str, ModelChangeTrigger] = WeakValueDictionary()
"""By what they are made of: all that a stream's producer is given. Airflow runs no two alike."""


def _stream_of(values: dict[str, Any]) -> str:
    return json.dumps(["nighttrain.registry", values], sort_keys=True)
