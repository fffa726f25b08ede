"""A watcher's stream: each announcement, until Airflow has stored its events.

Only a stream's producer is told that (Airflow calls it ack mode); a trigger that merely yields an event and
then keeps its cursor loses the event if the triggerer dies in the second in between.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

from nighttrain.providers.errors import AirflowError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

    from nighttrain.providers.registry.feed.outbox import Outbox


class Announcements(SharedStreamProducer):
    """One watcher's announcements, one at a time and in order.

    :param outboxes: gives each announcement; to ask for the next one says that this one has arrived
    :param keep: remembers what has arrived
    """

    def __init__(
        self,
        outboxes: Callable[[], AsyncGenerator[Outbox, None]],
        keep: Callable[[Outbox], Awaitable[None]],
    ) -> None:
        self._outboxes = outboxes
        self._keep = keep
        self._arrived = asyncio.Event()

    async def open_stream(self) -> AsyncIterator[tuple[Outbox, Outbox]]:
        async with aclosing(self._outboxes()) as outboxes:
            async for outbox in outboxes:
                self._arrived.clear()
                yield outbox, outbox
                await self._arrived.wait()

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        for item in batch:
            if not item.outcome.is_clean:
                raise AirflowError(
                    "Airflow did not store an event of a registered model in time: the watcher starts again, "
                    "and sends it again"
                )
            await self._keep(item.broker_payload.arrived())
        self._arrived.set()
