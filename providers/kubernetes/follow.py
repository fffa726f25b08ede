"""Waiting for a workload's end while its lines arrive: what a person wants to see of a training."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.client import ClusterClient
    from nighttrain.providers.kubernetes.outcome import Observation, Outcome
    from nighttrain.providers.kubernetes.workload import Workload

# After the end the last lines are a matter of one request; a log server that stalls longer than this is not
# waited for, since logs never decide anything.
LAST_LINES_SECONDS = 10.0


async def follow_to_end(
    client: ClusterClient,
    workload: Workload,
    *,
    startup_timeout_seconds: float,
    on_observation: Callable[[Observation], None] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Outcome:
    """Wait for the outcome; pass each line of the log to ``on_line`` once, while the pod runs.

    :raises ClusterError: the cluster could not be asked for longer than the client's retries
    """
    from nighttrain.providers.kubernetes.logs import follow
    from nighttrain.providers.kubernetes.workload import wait

    lines: asyncio.Task[None] | None = None
    if on_line is not None:
        lines = asyncio.create_task(follow(client, workload, on_line), name=f"logs of {workload.name}")
    try:
        outcome = await wait(
            client, workload, startup_timeout_seconds=startup_timeout_seconds, on_observation=on_observation
        )
        if lines is not None:
            await asyncio.wait({lines}, timeout=LAST_LINES_SECONDS)
        return outcome
    finally:
        if lines is not None:
            lines.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await lines
