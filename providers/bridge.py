"""The one bridge from synchronous callers (workers, Dagster steps) to the async core."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end and return its result.

    Where a loop already runs in this thread (a notebook, ``dag.test()`` inside one), a thread with a loop of
    its own does the work, so that the caller's loop is not entered twice.
    """
    # Outside of an except clause: what the work raises would carry "no running event loop" as its context.
    return _run_in_thread(work) if _loop_runs() else asyncio.run(work)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="nighttrain-bridge")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
