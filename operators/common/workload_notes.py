"""Notes of a task's workload for its next try, in Airflow's task state store, where there is one.

Only a hint for whoever reads the log. What runs is read from the cluster and verified there: the store can be
behind (a worker that died between the Job's creation and its note), expired or absent (Airflow before 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context

    from nighttrain.providers.attempts.attempt import StartedWorkload

KEY = "nighttrain_workload"


def note(context: Context, started: StartedWorkload, debug: Callable[..., object]) -> None:
    """Note the workload for the tries to come. That it cannot be noted is no error."""
    store = _store(context)
    if store is None:
        return
    workload = started.workload
    noted = {
        "job": f"{workload.namespace}/{workload.name}",
        "uid": workload.uid,
        "attempt": workload.attempt,
    }
    try:
        store.set(KEY, noted)
    except Exception as error:  # the store can be anybody's backend
        debug("Could not note the workload in the task state store: %s", error)


def forget(context: Context, debug: Callable[..., object]) -> None:
    """The attempt is about to be settled, and its end told: that it is gone later is no news to the next."""
    store = _store(context)
    if store is None:
        return
    try:
        store.delete(KEY)
    except Exception as error:
        debug("Could not remove the note from the task state store: %s", error)


def lost_workload(context: Context, started: StartedWorkload, debug: Callable[..., object]) -> str | None:
    """The Job that an earlier try noted and that the cluster no longer knows, if there is one.

    Attempts are counted on from what the cluster has: a number that is no greater than the noted one says
    that nothing of the noted attempt was left.
    """
    store = _store(context)
    if store is None:
        return None
    try:
        noted = store.get(KEY)
    except Exception as error:
        debug("Could not read the task state store: %s", error)
        return None
    if not isinstance(noted, dict) or noted.get("uid") == started.workload.uid:
        return None
    attempt = noted.get("attempt")
    forgotten = isinstance(attempt, int) and started.workload.attempt <= attempt
    return str(noted.get("job")) if forgotten else None


def _store(context: Context) -> Any:
    return context.get("task_state_store")
