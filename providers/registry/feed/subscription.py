"""One consumer's end of the poll: the states that concern it, each once and in order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nighttrain.providers.registry.feed.changes import Interest
    from nighttrain.providers.registry.feed.model_state import ModelState


class Subscription:
    """The polls that began after this subscription did, where what it follows looks other than before.

    A poll from before is not handed over: its consumer may have been told of a later one, in another process.

    :param poll_seconds: the longest pause between two polls
    """

    def __init__(self, interest: Interest, poll_seconds: float) -> None:
        self.interest = interest
        self.poll_seconds = poll_seconds
        self._states: deque[tuple[ModelState, int]] = deque()
        self._arrived = asyncio.Event()
        self._last: ModelState | None = None
        self._error: Exception | None = None

    def offer(self, state: ModelState, noticed: int) -> None:
        """Take a poll's state over, if it looked at what is followed and that looks other than before.

        :param noticed: when the poll was, in ms since 1970
        """
        if not self.interest.covered_by(state):
            return
        if self._last is not None and self.interest.sees_the_same(self._last, state):
            return
        self._last = state
        self._states.append((state, noticed))
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """End it: the poll cannot go on."""
        self._error = error
        self._arrived.set()

    async def next(self) -> tuple[ModelState, int]:
        """The next state, once there is one, and when it was noticed, in ms since 1970."""
        while not self._states:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        return self._states.popleft()

    def waiting(self) -> list[tuple[ModelState, int]]:
        """What has arrived and was not taken yet, taken now."""
        states = list(self._states)
        self._states.clear()
        return states
