"""Limits for the log streams of one client: so many open at once, and so much of the event loop for all."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nighttrain.providers.kubernetes.api.client import ClusterClient

# Each stream is a connection here, one in the API server and one in a kubelet. An API server takes 400
# requests at once unless told otherwise (--max-requests-inflight), and streams are not all it has to do.
MAX_STREAMS = 100
# With ten times as many trainings as streams each one's lines come every three minutes, and five streams are
# opened in a second, which an API server does not notice.
SLICE_SECONDS = 20.0
# A triggerer complains of a loop that is blocked for 0.2 s; a third of its time for all logs together leaves
# the rest to what tasks wait for.
WINDOW_SECONDS = 0.06
BUSY_SECONDS = 0.02


class Ticket:
    """A place among the open streams, or in the queue for one.

    :param wake: called when the place is granted
    """

    def __init__(self, streams: StreamLimits, wake: Callable[[], None]) -> None:
        self._streams = streams
        self._wake = wake
        self.granted_at: float | None = None
        self.urgent = False
        self._limit: asyncio.Timeout | None = None

    @property
    def granted(self) -> bool:
        """True while the place is held."""
        return self.granted_at is not None

    def hurry(self) -> None:
        """Go to the front: the workload has ended, and its last lines are asked for."""
        if not self.urgent:
            self.urgent = True
            self._streams.move_up(self)

    def slice(self) -> asyncio.Timeout:
        """A context that ends with TimeoutError when the place is needed by others."""
        self._limit = asyncio.timeout(None)
        return self._limit

    def grant(self, now: float) -> None:
        """Give the place to its holder; ``now`` is the loop's time in seconds."""
        self.granted_at = now
        self._wake()

    def revoke(self, now: float) -> None:
        """Have the holder let go."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(now)
            self._limit = None

    @property
    def revocable(self) -> bool:
        """True if the place may be taken from its holder."""
        return self._limit is not None and not self.urgent


class StreamLimits:
    """Hands out the places among the open streams, in turns.

    :param limit: how many streams may be open at once
    :param slice_seconds: how long one may stay open while others wait
    """

    def __init__(self, limit: int = MAX_STREAMS, slice_seconds: float = SLICE_SECONDS) -> None:
        self._limit = limit
        self._slice = slice_seconds
        self._held: dict[Ticket, None] = {}
        self._urgent: deque[Ticket] = deque()
        self._queue: deque[Ticket] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._window_ends = 0.0
        self._used = 0.0

    @property
    def open(self) -> int:
        """The number of places taken."""
        return len(self._held)

    @contextmanager
    def ticket(self, wake: Callable[[], None]) -> Iterator[Ticket]:
        """Queue for a place; it is free again after the context."""
        ticket = Ticket(self, wake)
        self._queue.append(ticket)
        self._hand_out()
        try:
            yield ticket
        finally:
            self._held.pop(ticket, None)
            for queue in (self._urgent, self._queue):
                if ticket in queue:
                    queue.remove(ticket)
            self._hand_out()

    def move_up(self, ticket: Ticket) -> None:
        """Put a waiting ticket before those that are not urgent."""
        if ticket in self._queue:
            self._queue.remove(ticket)
            self._urgent.append(ticket)
            self._hand_out()

    async def breathe(self, began: float) -> float:
        """Account for work since ``began``; pause if all streams together have used their share.

        :param began: the loop's time in seconds
        :return: the loop's time at which the next piece of work begins
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._window_ends:
            self._window_ends, self._used = now + WINDOW_SECONDS, 0.0
        self._used += now - began
        if self._used > BUSY_SECONDS:
            await asyncio.sleep(self._window_ends - loop.time())
        return loop.time()

    def _hand_out(self) -> None:
        now = asyncio.get_running_loop().time()
        while len(self._held) < self._limit and (self._urgent or self._queue):
            ticket = (self._urgent or self._queue).popleft()
            self._held[ticket] = None
            ticket.grant(now)
        self._plan(now)

    def _plan(self, now: float) -> None:
        """Look again when the oldest stream's slice is over, if somebody waits for it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = len(self._urgent) + len(self._queue)
        if not waiting:
            return
        # In the order in which they were granted: the oldest first.
        holders = [ticket for ticket in self._held if ticket.revocable]
        for number, ticket in enumerate(holders[:waiting]):
            over = (ticket.granted_at or now) + self._slice
            if over <= now or number < len(self._urgent):
                ticket.revoke(now)
            else:
                self._timer = asyncio.get_running_loop().call_at(over, self._again)
                return
        self._timer = asyncio.get_running_loop().call_at(now + self._slice, self._again)

    def _again(self) -> None:
        self._timer = None
        self._plan(asyncio.get_running_loop().time())


_limits: WeakKeyDictionary[ClusterClient, StreamLimits] = WeakKeyDictionary()


def stream_limits_of(client: ClusterClient) -> StreamLimits:
    """The limits that all streams of this client share."""
    return _limits.setdefault(client, StreamLimits())
