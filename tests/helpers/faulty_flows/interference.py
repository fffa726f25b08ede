"""Who ends a task from outside: a person who marks it, or Airflow itself when its time is up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.sdk.exceptions import AirflowTaskTimeout

from helpers.faulty_flows.call_faults import NO_ANSWER, Crash, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable


class TaskIsOver(Exception):
    """Somebody ended the task: it has this state, whatever its process still says."""


# The supervisor's is five seconds; shorter is harder.
GRACE_SECONDS = 1.0


class Interference:
    """Ends a task once its container runs.

    :param runs: whether it does
    :param follows: the end of the label of a call by which one sees that the process follows it
    """

    def __init__(self, runs: Callable[[], bool], follows: str, trail: list[str]) -> None:
        self._runs = runs
        self._follows = follows
        self._trail = trail
        self.came = False
        self.done = False
        """What is told to the process was done to its end: nothing may be left."""

    def is_over(self) -> bool:
        """Whether Airflow starts nothing for the task any more."""
        raise NotImplementedError

    def in_worker(self, operator: Any, context: dict[str, Any], schedule: Schedule) -> Any:
        """``execute``, while the end comes from outside, if the operator waits there."""
        if operator.deferrable:
            return operator.execute(context)
        return self._in_worker(operator, context, schedule)

    def _in_worker(self, operator: Any, context: dict[str, Any], schedule: Schedule) -> Any:
        raise NotImplementedError

    def in_triggerer(
        self, make: Callable[[], Any], ti: Any, schedule: Schedule
    ) -> tuple[str, dict[str, Any]] | None:
        """Wait in the trigger while the end comes; how the task is resumed, if it is."""
        raise NotImplementedError

    async def _until_it_runs(self, trigger: Any) -> bool:
        """Follow as a triggerer does until the container runs; False if the trigger has ended before."""

        async def follow() -> None:
            async for _ in trigger.run():
                return

        following = asyncio.create_task(follow())
        while not self._runs() and not following.done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # what containers note is a file
        ended = following.done()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        return not ended


class _Outside(threading.Thread):
    """Does ``come`` in the loop of the process once it follows a container that runs, as a signal would."""

    def __init__(self, owner: Interference, schedule: Schedule, come: Callable[[], None]) -> None:
        super().__init__(name="outside")
        self._owner, self._schedule, self._come = owner, schedule, come
        self._ended = threading.Event()
        self._before = len(schedule.calls)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(60)

    def run(self) -> None:
        while not self._ended.wait(0.02):
            calls = self._schedule.calls[self._before :]
            follows = any(call.endswith(self._owner._follows) for call in calls)
            if follows and self._owner._runs() and self._schedule.loop is not None:
                break
        else:
            return
        while not self._owner.came and not self._ended.wait(0.02):
            # The loop may have ended meanwhile, and the process may be in the next one.
            with contextlib.suppress(RuntimeError):
                self._schedule.loop.call_soon_threadsafe(self._once)
            self._ended.wait(0.1)

    def _once(self) -> None:
        if not self._owner.came:
            self._owner.came = True
            self._come()


class Marking(Interference):
    """A person marks the task as failed: its process, or its trigger, is told so."""

    def is_over(self) -> bool:
        return self.came

    def _in_worker(self, operator: Any, context: dict[str, Any], schedule: Schedule) -> Any:
        def told() -> None:
            try:
                operator.on_kill()
            except Exception as error:
                self._trail.append(f"on_kill: {type(error).__name__}: {error}"[:400])
            except BaseException:
                if not schedule.dead:
                    raise
            else:
                self.done = not schedule.dead and _answered(schedule)
            if schedule.dead:
                _kill(schedule)
            else:
                asyncio.get_running_loop().call_later(GRACE_SECONDS, _kill, schedule)

        with _Outside(self, schedule, told):
            return operator.execute(context)

    def in_triggerer(
        self, make: Callable[[], Any], ti: Any, schedule: Schedule
    ) -> tuple[str, dict[str, Any]] | None:
        async def kill() -> bool:
            schedule.loop = asyncio.get_running_loop()
            trigger = make()
            trigger.task_instance = SimpleNamespace(
                dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index
            )
            if not await self._until_it_runs(trigger):
                return False
            if schedule.dead:
                raise Crash
            self.came = True
            await trigger.on_kill()
            return True

        while not self.came:
            schedule.revive()
            try:
                if not asyncio.run(kill()):
                    return None
                self.done = not schedule.dead
            except BaseException as error:
                if not schedule.dead and not (self.came and isinstance(error, Exception)):
                    raise
                self._trail.append(f"the triggerer: {type(error).__name__}: {error}"[:400])
        raise TaskIsOver("failed")


class TimingOut(Interference):
    """The task's ``execution_timeout``: each try has as much time."""

    def is_over(self) -> bool:
        # There may be retries after a time-out; here there are none. A worker that died was not timed out.
        return self.done

    def timed_out(self) -> None:
        """The resumed task has done what there is to do."""
        self.done = True

    def _in_worker(self, operator: Any, context: dict[str, Any], schedule: Schedule) -> Any:
        timed_out = False

        def ring() -> None:
            nonlocal timed_out
            timed_out = True
            for task in asyncio.all_tasks():
                task.cancel()

        self.came = False
        try:
            with _Outside(self, schedule, ring):
                return operator.execute(context)
        except asyncio.CancelledError:
            if not timed_out or schedule.dead:
                raise
        try:
            raise AirflowTaskTimeout
        except AirflowTaskTimeout:
            operator.on_kill()
        self.done = not schedule.dead
        raise TaskIsOver("failed")

    def in_triggerer(
        self, make: Callable[[], Any], ti: Any, schedule: Schedule
    ) -> tuple[str, dict[str, Any]] | None:
        while True:
            schedule.revive()
            try:
                ended = not asyncio.run(self._until_it_runs(make()))
            except BaseException as error:
                if not schedule.dead:
                    raise
                self._trail.append(f"the triggerer died ({type(error).__name__})")
            else:
                break
        if ended:
            return None
        schedule.revive()
        return TRIGGER_FAIL_REPR, {"error": TriggerFailureReason.TRIGGER_TIMEOUT}


def _kill(schedule: Schedule) -> None:
    """SIGKILL, in the loop of the process."""
    schedule.dead = True
    for task in asyncio.all_tasks():
        task.cancel()


def _answered(schedule: Schedule) -> bool:
    return not any(fault.kind == NO_ANSWER for fault, _ in schedule.struck)
