"""Waiting for a workload's end while its lines arrive: what a person wants to see of a training."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from nighttrain.providers.attempts.wait_for_end import wait
from nighttrain.providers.kubernetes.logs.logs import EndSignal, follow

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Observation,
        Outcome,
    )
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.kubernetes.values.timeouts import Timeouts

# After the end the last lines are a matter of one request; a log server that stalls longer than this is not
# waited for, since logs never decide anything.
LAST_LINES_SECONDS = 10.0


async def follow_to_end(
    client: ClusterClient,
    workload: Workload,
    *,
    timeouts: Timeouts,
    on_observation: Callable[[Observation], None] | None = None,
    on_line: Callable[[str], None] | None = None,
    narrow: bool = False,
) -> Outcome:
    """Wait for the outcome; pass each line of the log to ``on_line`` once, while the pod runs.

    ``timeouts`` and ``narrow`` are those of :func:`~nighttrain.providers.attempts.wait_for_end.wait`.

    :raises ClusterError: the cluster refused, or could not be asked for an hour
    """
    lines: asyncio.Task[None] | None = None
    end = EndSignal()
    if on_line is not None:
        lines = asyncio.create_task(
            follow(client, workload, on_line, narrow=narrow, end=end), name=f"logs of {workload.name}"
        )
    try:
        outcome = await wait(
            client,
            workload,
            timeouts=timeouts,
            on_observation=on_observation,
            narrow=narrow,
        )
        end.say()
        if lines is not None and on_line is not None:
            _, unread = await asyncio.wait({lines}, timeout=LAST_LINES_SECONDS)
            if unread:
                on_line(_rest_of(workload))
        return outcome
    finally:
        if lines is not None:
            lines.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await lines


def _rest_of(workload: Workload) -> str:
    command = f"kubectl logs --namespace {workload.namespace} job/{workload.name}"
    return f"nighttrain: more lines were not read in {LAST_LINES_SECONDS:g} s after the end; see `{command}`"
