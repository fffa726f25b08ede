"""Silence until Airflow has noticed that the deferring process is over."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from airflow.configuration import conf

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Beside the worker's own report: the executor's and the scheduler's loops take up to a second each.
REPORT_SECONDS = 2.0


class Settling:
    """Holds a trigger's event back until the executor has reported the end of the process that deferred.

    A scheduler that hears of that end only after the task was resumed takes the resumed task for a killed
    one, and fails it. Airflow's supervisor notices a process's end within
    ``[workers] min_heartbeat_interval`` seconds, so that long after its start a trigger stays silent. Tasks
    that wait longer lose nothing.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        interval = conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)
        self._clock, self._sleep = clock, sleep
        self._until = clock() + interval + REPORT_SECONDS

    async def wait(self) -> None:
        await self._sleep(max(0.0, self._until - self._clock()))
