"""One poll for all: whoever follows models of one server, as one user, shares it.

A :class:`Hub` runs from its first subscriber to its last, on the event loop that they share. How many they
are changes nothing of what MLflow is asked.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from contextlib import asynccontextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from nighttrain.providers.errors import TrackingError
from nighttrain.providers.registry.feed.reader import RegistryReader, Scope
from nighttrain.providers.registry.feed.subscription import Subscription
from nighttrain.providers.tracking.client import MLflowClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from nighttrain.providers.registry.feed.changes import Interest
    from nighttrain.providers.tracking.config import TrackingConfig

_log = logging.getLogger(__name__)

NUDGE_SECONDS = 1.0
"""Between two looks for a nudge. It is one row of the orchestrator's own database."""

FIRST_NUDGE_SECONDS = 5.0
"""As long as nobody ever nudged."""

GATHER_SECONDS = 0.2
"""Before the first poll: subscribers that start together are in it together."""

RETRY_SECONDS = 3.0
"""Enough for a connection that MLflow had just closed. What takes longer is the next poll's: it is the next
try."""

Nudges: TypeAlias = "Callable[[], Awaitable[str | None]]"
"""Gives a mark that changes with every nudge; ``None`` where nobody nudges."""


class Hub:
    """Polls one server, and hands what it sees to its subscribers.

    :param clock: seconds since 1970, for when a change was noticed
    :param timer: seconds, for how long ago something was
    :param sleep: waits so many seconds
    :param nudges: what shortens the wait
    :param retry_seconds: how long a request is tried again within one poll
    """

    def __init__(
        self,
        config: TrackingConfig,
        *,
        nudges: Nudges | None = None,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._client = MLflowClient(dataclasses.replace(config, retry_seconds=retry_seconds))
        self._reader = RegistryReader(self._client, clock=timer)
        self._nudges, self._clock, self._sleep = nudges, clock, sleep
        self._subscribers: dict[str, set[Subscription]] = {}
        self._look_now = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failing = False
        self._nudge: str | None = None
        self.error: Exception | None = None

    @property
    def idle(self) -> bool:
        """True while nobody subscribes."""
        return not self._subscribers

    def start(self) -> None:
        """Begin to poll."""
        self._tasks = [self._start_task(self._run(), "registry poll")]
        if self._nudges is not None:
            self._tasks.append(self._start_task(self._listen(self._nudges), "registry nudges"))

    async def stop(self) -> None:
        """End the polls; no task is left."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def add(self, subscription: Subscription) -> None:
        """Hand the states of its model to a subscriber from the next poll on."""
        if not self.idle and subscription.poll_seconds < self._interval:
            self.look_now()
        self._subscribers.setdefault(subscription.interest.name, set()).add(subscription)

    def remove(self, subscription: Subscription) -> None:
        """The inverse of :meth:`add`."""
        name = subscription.interest.name
        others = self._subscribers.get(name, set())
        others.discard(subscription)
        if not others:
            self._subscribers.pop(name, None)

    def look_now(self) -> None:
        """Poll without waiting any longer."""
        self._look_now.set()

    async def poll(self) -> bool:
        """Look once. :return: False where MLflow could not be asked, and nothing was handed over"""
        everyone = [each for subscribers in self._subscribers.values() for each in subscribers]
        noticed = int(self._clock() * 1000)
        try:
            states = await self._reader.read(Scope.of({each.interest for each in everyone}))
        except TrackingError as error:
            if not self._failing:
                _log.warning("MLflow cannot be asked now; looking goes on meanwhile: %s", error)
            self._failing = True
            return False
        if self._failing:
            _log.warning("MLflow at %s answers again", self._client.uri)
            self._failing = False
        # Not those who came meanwhile: this poll began before they did.
        for subscription in everyone:
            subscription.offer(states[subscription.interest.name], noticed)
        return True

    async def nudged(self, nudges: Nudges) -> bool:
        """Tell whether somebody nudged since the last time, or for the first time."""
        before, self._nudge = self._nudge, await nudges()
        return self._nudge is not None and self._nudge != before

    async def _run(self) -> None:
        try:
            await self._sleep(GATHER_SECONDS)
            while True:
                self._look_now.clear()
                await self.poll()
                await self._pause()
        except Exception as error:
            self.error = error
            for subscribers in self._subscribers.values():
                for subscription in subscribers:
                    subscription.fail(error)

    async def _pause(self) -> None:
        waits = [
            asyncio.ensure_future(self._sleep(self._interval)),
            asyncio.ensure_future(self._look_now.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _listen(self, nudges: Nudges) -> None:
        while True:
            try:
                if await self.nudged(nudges):
                    self.look_now()
            except Exception:
                _log.warning("Nudges cannot be read now; the polls go on", exc_info=True)
            await self._sleep(NUDGE_SECONDS if self._nudge is not None else FIRST_NUDGE_SECONDS)

    @property
    def _interval(self) -> float:
        pauses = [each.poll_seconds for subscribers in self._subscribers.values() for each in subscribers]
        return min(pauses, default=NUDGE_SECONDS)

    def _start_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        # Not in the context of whichever subscriber happens to be first: its task's log is not the hub's.
        return asyncio.get_running_loop().create_task(work, name=name, context=Context())


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[TrackingConfig, Hub]] = WeakKeyDictionary()


@asynccontextmanager
async def subscribe(
    config: TrackingConfig, interest: Interest, poll_seconds: float, *, nudges: Nudges | None = None
) -> AsyncIterator[Subscription]:
    """Follow one thing of one model through the poll of its server, shared over the whole event loop.

    :param nudges: what shortens the wait; the first subscriber's counts
    :raises ConfigurationError: a name that MLflow or its filters refuse
    """
    subscription = Subscription(interest.checked(), poll_seconds)
    hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
    hub = hubs.get(config)
    if hub is None or hub.error is not None:
        hub = hubs[config] = Hub(config, nudges=nudges)
        hub.start()
    hub.add(subscription)
    try:
        yield subscription
    finally:
        hub.remove(subscription)
        if hub.idle:
            if hubs.get(config) is hub:
                del hubs[config]
            await hub.stop()
