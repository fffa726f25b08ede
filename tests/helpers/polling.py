"""Polling with a bound, for what tells nobody when it happens. What does tell is awaited instead."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_SECONDS = 0.05


def until(holds: Callable[[], Any], seconds: float = 30.0, what: str = "it") -> Any:
    """Ask until the answer is true; the answer.

    :param what: what is waited for, for the message of a wait that was too long
    """
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(PAUSE_SECONDS)
    return found


async def until_async(holds: Callable[[], Any], seconds: float = 30.0) -> Any:
    """As :func:`until`, in an event loop: ``holds`` may return something to await."""
    async with asyncio.timeout(seconds):
        while True:
            found = holds()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(PAUSE_SECONDS)
