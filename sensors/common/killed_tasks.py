"""The reason why a task or a trigger is killed: its task was ended, or only its process goes away."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any

from airflow.sdk import TaskInstanceState
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from nighttrain.providers.airflow_regions import has_ended, region_of
from nighttrain.providers.errors import AirflowError

if TYPE_CHECKING:
    from collections.abc import Mapping

# The supervisor follows its SIGTERM with SIGKILL after 5 s: asking may take 2, deleting has the rest.
ASK_TIMEOUT_SECONDS = 2.0

# States that nobody but a person, or the end of the last try, gives to a task whose process still runs.
# "scheduled", "queued", "running", "deferred" and "up_for_retry" are absent: another process or try
# adopts the workload.
OVER = frozenset(
    {
        TaskInstanceState.SUCCESS,
        TaskInstanceState.FAILED,
        TaskInstanceState.SKIPPED,
        TaskInstanceState.UPSTREAM_FAILED,
        TaskInstanceState.REMOVED,
        TaskInstanceState.RESTARTING,
    }
)


def task_is_over(states: Mapping[str, Any], *, run_id: str, task_id: str, map_index: int) -> bool:
    """True if Airflow's answer to "what is this task's state" means that its workload must go.

    A task that is gone (its DAG run was deleted) and one without a state (it was cleared) are over.
    """
    state = _state(states, run_id, task_id, map_index)
    return state is None or state in OVER


def cancelled_by_user(ti: Any, *, timeout_seconds: float = ASK_TIMEOUT_SECONDS) -> bool:
    """True if an operator's ``on_kill`` must delete the workload; False if Airflow does not answer.

    True as well inside the handler of an execution time-out.
    """
    if isinstance(sys.exc_info()[1], AirflowTaskTimeout):
        return True
    answers: list[bool] = []

    def ask() -> None:
        try:
            answers.append(_ask(ti))
        except Exception:
            return  # no answer: the workload stays, for the next try or the reaper

    # A signal handler may have interrupted a request that holds the supervisor's lock: another thread waits
    # for that lock, this one must not.
    thread = threading.Thread(target=ask, name="nighttrain-killed", daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    return bool(answers and answers[0])


async def task_waits(ti: Any) -> bool:
    """Ask Airflow, in the triggerer's event loop, whether the task waits on although its trigger is ended.

    There is no time-out: the triggerer's supervisor answers, and where its first answer takes it half a
    minute, or the database is busy, the question is still the same.

    :param ti: the trigger's task instance
    :raises AirflowError: no answer
    """
    if region_of(ti):
        # A triggerer cannot ask for one iteration of a loop. It need not: Airflow has regions since 3.4, and
        # since then calls ``on_kill`` only where the task waits for its trigger no more.
        return False

    try:
        return not await asyncio.to_thread(_ask, ti)
    except Exception as error:
        raise AirflowError(f"Airflow did not say whether the task still waits: {error!r}") from error


def _ask(ti: Any) -> bool:
    map_index = -1 if ti.map_index is None else ti.map_index
    states = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, map_index=map_index, task_ids=[ti.task_id], run_ids=[ti.run_id]
    )
    over = task_is_over(states, run_id=ti.run_id, task_id=ti.task_id, map_index=map_index)
    region = region_of(ti)
    if not region or not states.get(ti.run_id):
        return over
    # The states are those of a loop's latest iteration, which may have ended long ago where an earlier one
    # was cleared and runs again. That this one has ended stands elsewhere; that a process which still runs
    # is to end ("restarting"), of the latest one only.
    if _state(states, ti.run_id, ti.task_id, map_index) == TaskInstanceState.RESTARTING:
        return True
    return has_ended(RuntimeTaskInstance.get_task_breadcrumbs(ti.dag_id, ti.run_id), ti.task_id, region)


def _state(states: Mapping[str, Any], run_id: str, task_id: str, map_index: int) -> str | None:
    key = f"{task_id}_{map_index}" if map_index >= 0 else task_id
    state = (states.get(run_id) or {}).get(key)
    return None if state is None else str(getattr(state, "value", state))
