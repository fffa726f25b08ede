"""Waiting for a workload in a step that Dagster may terminate at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
Say = Callable[[str], None]


def run_interruptibly(work: Callable[[Say], Coroutine[Any, Any, T]], say: Say) -> T:
    """Run ``work(say)`` to its end; where this thread is interrupted, cancel it first, then go on raising.

    Dagster terminates a step by an exception out of a signal handler. Raised inside an event loop it would
    end whichever task happens to run, so the loop has a thread of its own, and this thread, where signals
    arrive, waits for lines and passes them to ``say``.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()
    result: Future[T] = Future()

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        running.set_result((asyncio.get_running_loop(), task))
        return await work(lines.put)

    def target() -> None:
        try:
            result.set_result(asyncio.run(main()))
        except BaseException as error:
            result.set_exception(error)
        finally:
            lines.put(None)

    thread = threading.Thread(target=target, name="nighttrain-step")
    thread.start()
    try:
        _say_all(lines, say)
    except BaseException:
        loop, task = running.result()
        with contextlib.suppress(RuntimeError):  # it has just ended by itself
            loop.call_soon_threadsafe(task.cancel)
        _say_all(lines, say)
        raise
    finally:
        thread.join()
    return result.result()


def _say_all(lines: queue.SimpleQueue[str | None], say: Say) -> None:
    while (line := lines.get()) is not None:
        # A log that cannot be written is no reason to stop a training.
        with contextlib.suppress(Exception):
            say(line)
