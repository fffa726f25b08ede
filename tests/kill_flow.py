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
import os
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import yaml
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from kill_calls import Crash, Fault, Schedule, current

from nighttrain.operators.registry import RegisterModelOperator
from nighttrain.operators.training import TrainingJobOperator
from nighttrain.providers.kubernetes.identity import ATTEMPT_KEY_LABEL, CONSUMED_ANNOTATION, WorkloadIdentity
from nighttrain.sensors import triggers

DAG = "nightly"
_MARKING = threading.Lock()
# More than any schedule's faults can use up: a task that fails for good was failed by its training.
TRIES = 16
# Of a whole flow. One takes two to five seconds; sixteen tries of one on a busy machine stay below.
DEADLINE_SECONDS = 180.0

# The container: notes its start and end, logs a model if it ends well, as mlflow's own client would.
TRAINING = """
import json, os, sys, time, urllib.request
book, codes = {book!r}, {codes!r}
with open(book, "a+") as f:
    f.write("start\\n"); f.flush(); f.seek(0)
    number = f.read().count("start")
code = codes[min(number, len(codes)) - 1]
base = os.environ["MLFLOW_TRACKING_URI"]
def call(method, path, body, raw=None):
    data = json.dumps(body).encode() if raw is None else raw
    ask = urllib.request.Request(base + path, data, {{"Content-Type": "application/json"}}, method=method)
    return json.loads(urllib.request.urlopen(ask, timeout=60).read() or b"{{}}")
api = "/api/2.0/mlflow/"
run, experiment = os.environ.get("MLFLOW_RUN_ID"), os.environ.get("MLFLOW_EXPERIMENT_ID")
if not run:
    name = os.environ["MLFLOW_EXPERIMENT_NAME"].replace(" ", "%20")
    asked = base + api + "experiments/get-by-name?experiment_name=" + name
    found = json.loads(urllib.request.urlopen(asked).read())
    experiment = found["experiment"]["experiment_id"]
    tags = [{{"key": k, "value": v}} for k, v in json.loads(os.environ["MLFLOW_RUN_CONTEXT"]).items()]
    body = {{"experiment_id": experiment, "start_time": int(time.time() * 1000), "tags": tags}}
    made = call("POST", api + "runs/create", body)
    run = made["run"]["info"]["run_id"]
print("epoch 1", flush=True)
if code == 0:
    body = {{"experiment_id": experiment, "name": "model", "source_run_id": run}}
    info = call("POST", api + "logged-models", body)["model"]["info"]
    place = info["artifact_uri"].removeprefix("mlflow-artifacts:/").strip("/")
    call("PUT", "/api/2.0/mlflow-artifacts/artifacts/" + place + "/MLmodel", None, b"flavors: {{}}\\n")
    body = {{"model_id": info["model_id"], "status": "LOGGED_MODEL_READY"}}
    call("PATCH", api + "logged-models/" + info["model_id"], body)
if {slow}:
    time.sleep({slow})
with open(book, "a") as f:
    f.write("end %d\\n" % code)
sys.exit(code)
"""


@dataclass(frozen=True)
class Plan:
    """One schedule: what goes wrong, what the training does, what a person does."""

    faults: tuple[Fault, ...] = ()
    codes: tuple[int, ...] = (0,)
    deferrable: bool = True
    clears: int = 0
    mark_failed: bool = False

    def __str__(self) -> str:
        about = f"codes={self.codes} deferrable={self.deferrable} clears={self.clears} "
        return f"{about}mark_failed={self.mark_failed}: " + ("; ".join(map(str, self.faults)) or "no fault")


class _TaskInstance(SimpleNamespace):
    """The part of a task instance that operators use, on XComs that outlive the process."""

    def xcom_push(self, key: str, value: Any) -> None:
        with self.flow.schedule.step(f"airflow xcom {self.task_id} {key}"):
            self.xcoms[key] = json.loads(json.dumps(value))

    def xcom_pull(self, *, key: str = "return_value", **_: Any) -> Any:
        return json.loads(json.dumps(self.xcoms.get(key)))


@dataclass
class Flow:
    """One DAG run: train, then register."""

    plan: Plan
    directory: Path
    experiment: str
    run_id: str = field(default_factory=lambda: f"kill-{uuid.uuid4().hex[:12]}")
    state: str = ""
    registered: str = ""
    trail: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.plan.faults)
        self.model = f"model-{self.run_id}"
        self.book = self.directory / f"{self.run_id}.book"
        self.begun = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=1)

    @property
    def identity(self) -> WorkloadIdentity:
        return WorkloadIdentity(orchestrator="airflow", dag_id=DAG, run_id=self.run_id, task_id="train")

    def lines(self) -> list[str]:
        """What the containers noted."""
        return self.book.read_text().splitlines() if self.book.exists() else []

    def run(self) -> Flow:
        """From the first try to the stored end, with the person's clears."""
        current.schedule = self.schedule
        try:
            for clear in range(self.plan.clears + 1):
                self.trail.append(f"-- epoch {clear}")
                self.state, result = self._task("train", max_tries=TRIES * (clear + 1))
                if self.state == "success":
                    self.registered, _ = self._task("register", max_tries=TRIES, run=result["run_id"])
        finally:
            current.schedule = None
        return self

    def _task(self, name: str, *, max_tries: int, run: str = "") -> tuple[str, Any]:
        limit = max(len(self.plan.codes), 2) if 0 not in self.plan.codes else TRIES
        xcoms: dict[str, Any] = {}
        app_failures = 0
        for number in range(1, TRIES + 1):
            xcoms.clear()
            self.schedule.revive()
            ti = _TaskInstance(
                flow=self, xcoms=xcoms, dag_id=DAG, run_id=self.run_id, task_id=name, map_index=-1
            )
            ti.try_number, ti.max_tries = number, max_tries
            dag_run = SimpleNamespace(start_date=self.begun, data_interval_start=None, data_interval_end=None)
            context = {"ti": ti, "dag_run": dag_run}
            try:
                return self._try(name, context, run)
            except AirflowFailException as error:
                self.trail.append(f"{name} try {number}: failed for good: {error}")
                return "failed", None
            except BaseException as error:
                if self.schedule.dead:
                    self.trail.append(f"{name} try {number}: the process died")
                elif isinstance(error, Exception):
                    self.trail.append(f"{name} try {number}: {type(error).__name__}: {error}"[:400])
                    app_failures += type(error).__name__ == "ApplicationError" or "exit code" in str(error)
                else:
                    raise
                # A try counts also where its process died after it had noted its training's failure.
                if limit < TRIES and max(app_failures, self._noted_failures()) >= limit:
                    return "failed", None
        return "failed", None

    def _noted_failures(self) -> int:
        """How many Jobs carry the note that their end was taken over."""
        connection = json.loads(os.environ["AIRFLOW_CONN_KUBERNETES_DEFAULT"])
        config = yaml.safe_load(Path(connection["extra"]["kube_config_path"]).read_text())
        server, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        answer = httpx.get(
            f"{server}/apis/batch/v1/namespaces/default/jobs",
            params={"labelSelector": f"{ATTEMPT_KEY_LABEL}={self.identity.key}"},
            headers={"Authorization": f"Bearer {token}"},
        )
        return sum(CONSUMED_ANNOTATION in job["metadata"]["annotations"] for job in answer.json()["items"])

    def _operator(self, name: str, run: str) -> Any:
        if name == "register":
            return RegisterModelOperator(task_id="register", model_name=self.model, run_id=run)
        slow = 1.5 if self.plan.mark_failed else 0
        code = TRAINING.format(book=str(self.book), codes=self.plan.codes, slow=slow)
        return TrainingJobOperator(
            task_id="train",
            image="py",
            cmds=["python", "-u", "-c", code],
            termination_grace_period=1,
            experiment_name=self.experiment,
            parameters={"rate": 0.1},
            deferrable=self.plan.deferrable,
            startup_timeout_seconds=120,
        )

    def _try(self, name: str, context: dict[str, Any], run: str) -> tuple[str, Any]:
        method, kwargs = "", None
        while True:
            operator = self._operator(name, run)
            ExecutorSafeguard.tracker.set(operator)  # as Airflow's task runner does
            try:
                if not method:
                    result = operator.execute(context)
                else:
                    result = operator.resume_execution(method, kwargs, context)
            except TaskDeferred as deferred:
                classpath, arguments = deferred.trigger.serialize()
                with self.schedule.step("airflow defer"):
                    stored = json.loads(json.dumps(arguments))
                method = deferred.method_name
                if self.plan.mark_failed and classpath.endswith("WorkloadTrigger"):
                    self._mark_failed(stored)
                    return "failed", None
                kwargs = {**(deferred.kwargs or {}), "event": self._triggered(classpath, stored)}
                continue
            with self.schedule.step(f"airflow success {name}"):
                return self._stored(result)

    def _stored(self, result: Any) -> tuple[str, Any]:
        return "success", json.loads(json.dumps(result))

    def _triggered(self, classpath: str, arguments: dict[str, Any]) -> Any:
        """The event, whatever number of triggerers it takes."""

        async def wait() -> Any:
            trigger = getattr(triggers, classpath.rpartition(".")[2])(**arguments)
            events = trigger.run()
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
                self.trail.append(f"the triggerer died ({type(error).__name__})")

    def _mark_failed(self, arguments: dict[str, Any]) -> None:
        """A person marks the task as failed while it is deferred and its container runs."""

        async def kill() -> None:
            trigger = triggers.WorkloadTrigger(**arguments)
            trigger.task_instance = SimpleNamespace(
                dag_id=DAG, run_id=self.run_id, task_id="train", map_index=-1
            )

            async def follow() -> None:
                async for _ in trigger.run():
                    return

            following = asyncio.create_task(follow())
            end = time.monotonic() + 30
            while not self.lines() and not following.done() and time.monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # the containers' notes are a file
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            # Faults in here are the reaper's business: see the tests of it.
            self.schedule.revive()
            self.schedule.quiet = True
            await trigger.on_kill()

        states = {self.run_id: {"train": "failed"}}
        target = "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states"
        # One at a time: patches that overlap in threads are not undone in the order they were made.
        with _MARKING, patch(target, staticmethod(lambda **_: states)):
            try:
                asyncio.run(kill())
            except (Crash, asyncio.CancelledError):
                if not self.schedule.dead:
                    raise
                self.schedule.revive()
                self.schedule.quiet = True
                asyncio.run(kill())
