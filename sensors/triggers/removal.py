"""Removing what a trigger waited for, once a person has ended its task."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from nighttrain.providers.errors import AirflowError, ClusterUnreachableError, NighttrainError
from nighttrain.sensors.common.killed_tasks import task_waits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow.triggers.base import BaseTrigger

# As long as a wait goes on while the cluster does not answer; afterwards it is the reaper's.
REMOVING_SECONDS = 3600.0
# The first pause is for a busy database, the longest for an upgrade of Airflow or of the cluster.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0

_removals: set[asyncio.Task[None]] = set()


async def remove_with_its_task(
    trigger: BaseTrigger, remove: Callable[[], Awaitable[None]], what: str, removed_with: str
) -> None:
    """Remove ``what``, for a trigger's ``on_kill``, unless the task waits on; even if ``on_kill`` is cut off.

    A triggerer that compares its triggers with the database cancels those that are not wanted any more each
    second, also one whose ``on_kill`` runs, and gives up after 30 s: what takes longer would never get done.

    :param remove: may be called again after a :class:`ClusterUnreachableError`
    :param removed_with: what a reader of the log can do where it could not be removed
    """
    work = until_removed(trigger, remove, what, removed_with)
    task = asyncio.get_running_loop().create_task(work, name=f"removal of {what}")
    _removals.add(task)
    task.add_done_callback(_forget)
    await asyncio.shield(task)


def _forget(task: asyncio.Task[None]) -> None:
    _removals.discard(task)
    if not task.cancelled():
        task.exception()  # it was logged; nobody else may be there to ask for it


async def until_removed(
    trigger: BaseTrigger,
    remove: Callable[[], Awaitable[None]],
    what: str,
    removed_with: str,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """The same, in the caller's own time. An outage of Airflow or of the cluster is waited out for an hour.

    :raises NighttrainError: it was not removed, which the log says too
    """
    until = clock() + REMOVING_SECONDS
    pause, said = FIRST_PAUSE_SECONDS, ""
    while True:
        try:
            if trigger.task_instance is not None and await task_waits(trigger.task_instance):
                trigger.log.warning("The task still waits: %s goes on", what)
            else:
                await remove()
            return
        except NighttrainError as error:
            outage = isinstance(error, AirflowError | ClusterUnreachableError)
            if not outage or clock() >= until:
                trigger.log.warning("%s was not removed: %s. If it goes on: %s", what, error, removed_with)
                raise
            if str(error) != said:
                said = str(error)
                trigger.log.warning("%s is not removed yet, will try again: %s", what, error)
        await sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
