"""What Airflow keeps around a task, and nothing else of it: tries, XComs, deferral, the trigger's row.

The operators and triggers are the real ones; every process that Airflow would start is a fresh set of objects
here. A crash drops them and starts again where Airflow would:

- in ``execute`` or ``execute_complete``: the next try, from ``execute`` (a task whose process died has no
  deferral any more), with its XComs cleared;
- in the trigger: the trigger again, from what was serialized.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    TaskDeferralTimeout,
    TaskDeferred,
)

from helpers.dag_runs import dag_run
from helpers.faulty_flows.call_faults import ASK, Schedule, current
from helpers.faulty_flows.interference import Interference, TaskIsOver, TimingOut
from nighttrain.sensors import triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

# More than any schedule's faults can use up: a task that fails for good was failed by its training.
TRIES = 16
# Of a whole flow. One takes two to five seconds; sixteen tries of one on a busy machine stay below.
DEADLINE_SECONDS = 180.0


class TaskInstance(SimpleNamespace):
    """The part of a task instance that operators use, on XComs that outlive the process."""

    def xcom_push(self, key: str, value: Any) -> None:
        with self.task.schedule.step(f"airflow xcom {self.task_id} {key}"):
            self.task.xcoms[key] = json.loads(json.dumps(value))

    def xcom_pull(self, *, key: str = "return_value", **_: Any) -> Any:
        return json.loads(json.dumps(self.task.xcoms.get(key)))

    def get_task_states(
        self, *, task_ids: list[str], run_ids: list[str], **_: Any
    ) -> dict[str, dict[str, str]]:
        """What the reaper asks."""
        (task_id,), (run_id,) = task_ids, run_ids
        return {run_id: {task_id: self.task.states(run_id, task_id)}}


class _Over:
    """Airflow's answer to a process that was told to end: what is my task's state?"""

    def __init__(self) -> None:
        self._flows: dict[str, tuple[Schedule, Callable[[str], str]]] = {}

    @contextlib.contextmanager
    def serving(self, run_id: str, states: Callable[[str], str]) -> Iterator[None]:
        """Answer for the tasks of one DAG run, through the schedule of this thread."""
        assert current.schedule is not None
        self._flows[run_id] = current.schedule, states
        try:
            yield
        finally:
            del self._flows[run_id]

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While this is open, processes get these answers."""
        target = "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states"
        with patch(target, staticmethod(self._answer)):
            yield

    def _answer(self, *, task_ids: list[str], run_ids: list[str], **_: Any) -> dict[str, dict[str, str]]:
        (task_id,), (run_id,) = task_ids, run_ids
        schedule, states = self._flows[run_id]
        # It is asked in a thread: a crash of the process shows there as no answer.
        if schedule.dead:
            raise ConnectionError("the process is gone")
        kind = schedule.meet(ASK)
        if kind == "no_answer":
            raise ConnectionError("injected")
        if kind is not None:
            schedule.die()
            raise ConnectionError("the process is gone")
        return {run_id: {task_id: states(task_id)}}


over = _Over()


@dataclass
class Airflow:
    """The scheduler's view of one DAG run, for tasks whose processes have this schedule."""

    schedule: Schedule
    trail: list[str]
    dag_id: str
    run_id: str
    begun: datetime

    def task(
        self,
        name: str,
        make: Callable[[], Any],
        *,
        tries: int,
        max_tries: int = TRIES,
        xcoms: dict[str, Any] | None = None,
    ) -> Task:
        """A task of this DAG run; ``make`` makes its operator, as parsing the DAG does for every process."""
        return Task(self, name, make, tries, max_tries, {} if xcoms is None else xcoms)


@dataclass
class Task:
    """A task, from its first try to its stored end."""

    airflow: Airflow
    name: str
    make: Callable[[], Any]
    tries: int
    max_tries: int
    xcoms: dict[str, Any]
    first: int = 1
    fails_for_good: Callable[[], bool] = field(default=lambda: False)
    interference: Interference | None = None
    states: Callable[[str, str], str] = field(default=lambda run_id, task_id: "running")

    @property
    def schedule(self) -> Schedule:
        return self.airflow.schedule

    def run(self) -> tuple[str, Any]:
        """Its state and its result."""
        for number in range(self.first, self.tries + 1):
            self.xcoms.clear()
            self.schedule.revive()
            try:
                return self._try(self._context(number))
            except TaskIsOver as state:
                return str(state), None
            except AirflowSkipException:
                return "skipped", None
            except TaskDeferralTimeout:
                assert isinstance(self.interference, TimingOut)
                self.interference.timed_out()
                return "failed", None
            except AirflowFailException as error:
                self._note(f"try {number}: failed for good: {error}")
                return "failed", None
            except BaseException as error:
                if not self.schedule.dead and not isinstance(error, Exception):
                    raise
                self._note(
                    f"try {number}: the process died"
                    if self.schedule.dead
                    else f"try {number}: {type(error).__name__}: {error}"[:400]
                )
                if self.interference is not None and self.interference.is_over():
                    return "failed", None
                if self.fails_for_good():
                    return "failed", None
        return "failed", None

    def _note(self, what: str) -> None:
        self.airflow.trail.append(f"{self.name} {what}")

    def _context(self, number: int) -> dict[str, Any]:
        airflow = self.airflow
        ti = TaskInstance(
            task=self,
            dag_id=airflow.dag_id,
            run_id=airflow.run_id,
            task_id=self.name,
            map_index=-1,
            try_number=number,
            max_tries=self.max_tries,
        )
        return {"ti": ti, "dag_run": dag_run(airflow.begun)}

    def _try(self, context: dict[str, Any]) -> tuple[str, Any]:
        method, kwargs = "", None
        while True:
            operator = self.make()
            ExecutorSafeguard.tracker.set(operator)  # as Airflow's task runner does
            try:
                result = self._process(operator, method, kwargs, context)
            except TaskDeferred as deferred:
                method, kwargs = self._deferred(deferred, context)
                continue
            with self.schedule.step(f"airflow success {self.name}"):
                return "success", json.loads(json.dumps(result))

    def _process(self, operator: Any, method: str, kwargs: Any, context: dict[str, Any]) -> Any:
        if method:
            return operator.resume_execution(method, kwargs, context)
        if self.interference is None:
            return operator.execute(context)
        return self.interference.in_worker(operator, context, self.schedule)

    def _deferred(self, deferred: TaskDeferred, context: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """How the task is resumed."""
        classpath, arguments = deferred.trigger.serialize()
        with self.schedule.step("airflow defer"):
            stored = json.loads(json.dumps(arguments))
        make = getattr(triggers, classpath.rpartition(".")[2])
        kwargs = deferred.kwargs or {}
        if self.interference is not None and make is not triggers.MLflowAnswersTrigger:
            ended = self.interference.in_triggerer(lambda: make(**stored), context["ti"], self.schedule)
            if ended is not None:
                return ended
        return deferred.method_name, {**kwargs, "event": self._triggered(lambda: make(**stored))}

    def _triggered(self, make: Callable[[], Any]) -> Any:
        """The event, whatever number of triggerers it takes."""

        async def wait() -> Any:
            events = make().run()
            async with asyncio.timeout(DEADLINE_SECONDS):
                async with contextlib.aclosing(events):
                    event = await anext(events)
            with self.schedule.step("airflow event"):
                return event.payload

        while True:
            self.schedule.revive()
            try:
                return asyncio.run(wait())
            except BaseException as error:
                if not self.schedule.dead:
                    raise
                self._note(f"the triggerer died ({type(error).__name__})")
