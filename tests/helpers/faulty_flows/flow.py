"""What a DAG run consists of, and a plan of what goes wrong in it."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from helpers.faulty_flows import container_programs
from helpers.faulty_flows.airflow_tasks import TRIES, Airflow, over
from helpers.faulty_flows.call_faults import TASK, Fault, Schedule, current
from helpers.faulty_flows.interference import Interference, Marking, TimingOut
from helpers.faulty_flows.plain_client import DEPLOYMENTS, Cluster, is_live
from nighttrain.operators.maintenance import ReapWorkloadsOperator
from nighttrain.operators.registry import ModelGateOperator, PromoteModelOperator, RegisterModelOperator
from nighttrain.operators.serving import RolloutModelOperator
from nighttrain.operators.training import EvaluateModelOperator, TrainingJobOperator
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer

DAG = "nightly"
ZOMBIE, REAPER = "zombie", "reaper"
PROCESSES = (TASK, ZOMBIE, REAPER)
DEATH = Fault("airflow xcom train return_value", 1, "crash_before")
# Longer than a person or a time-out needs to end it.
ENDLESS = 120.0
MODEL_FILES = {"MLmodel": b"flavors: {}\n"}


@dataclass(frozen=True)
class Plan:
    """One schedule: what runs, what goes wrong in it, what people do.

    :param flow: ``train`` and register; ``judge``: evaluate, gate and promote; or ``rollout``
    :param codes: exit codes of the training's containers, in turn
    :param deferrable: wait in the triggerer, or in the worker
    :param clears: how often a person clears the task after its end
    :param cancel: while the container runs (the candidate starts), a person marks the task, or its time is up
    :param evicted: the first container's pod is evicted
    :param zombie: the first try's worker lives on, though Airflow has given it up and started the next
    :param last: there is one try, and it is the last
    :param unsettled: the worker dies before it stores its result
    :param worse: the candidate scores worse than the champion
    """

    faults: tuple[Fault, ...] = ()
    flow: Literal["train", "judge", "rollout"] = "train"
    codes: tuple[int, ...] = (0,)
    deferrable: bool = True
    clears: int = 0
    cancel: Literal["", "marked", "timed out"] = ""
    evicted: bool = False
    zombie: bool = False
    last: bool = False
    unsettled: bool = False
    worse: bool = False

    @property
    def attempts(self) -> int:
        """How many containers are called for at most."""
        if 0 not in self.codes:
            return max(len(self.codes), 2)
        # A worker that dies while it ends what has timed out is followed by another try, which starts anew.
        again = len(self.faults) if self.cancel == "timed out" else 0
        return self.codes.index(0) + 1 + self.clears + self.evicted + again


@dataclass(frozen=True)
class Place:
    """Where flows run."""

    directory: Path
    cluster: Cluster
    mlflow: MLflowServer


@dataclass
class Flow:
    """One DAG run."""

    plan: Plan
    place: Place
    run_id: str = field(default_factory=lambda: f"kill-{uuid.uuid4().hex[:12]}")
    states: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    trail: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Promises broken on the way, seen while it ran."""
    cancelled: bool = False
    """Whoever was to cancel it did so to the end: no crash, no refusal."""
    overlapped: bool = False
    """The worker that was given up made calls beside its successor."""

    def __post_init__(self) -> None:
        faults = (*self.plan.faults, *([DEATH] if self.plan.unsettled else []))
        self.schedules = {
            name: Schedule(tuple(fault for fault in faults if fault.process == name)) for name in PROCESSES
        }
        self.experiment = f"experiment-{self.run_id}"
        self.earlier = f"earlier-{self.run_id}"
        self.model = f"model-{self.run_id}"
        self.endpoint = f"e-{self.run_id}"
        self.book = self.place.directory / f"{self.run_id}.book"
        self.begun = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=1)

    @property
    def workload_task(self) -> str:
        """The task that has a Job and a run; none in a rollout."""
        return {"train": "train", "judge": "evaluate", "rollout": ""}[self.plan.flow]

    @property
    def experiments(self) -> list[str]:
        """Where its runs are in MLflow."""
        own = [] if self.plan.flow == "rollout" else [self.experiment]
        return own if self.plan.flow == "train" else [*own, self.earlier]

    @property
    def identity(self) -> WorkloadIdentity:
        return WorkloadIdentity(
            orchestrator="airflow", dag_id=DAG, run_id=self.run_id, task_id=self.workload_task or "rollout"
        )

    @property
    def struck(self) -> list[tuple[Fault, str]]:
        """Each of the plan's faults that met a call, and which."""
        met = [each for schedule in self.schedules.values() for each in schedule.struck]
        return [(fault, label) for fault, label in met if fault in self.plan.faults]

    @property
    def missed(self) -> list[Fault]:
        """Faults that met nothing: an earlier one changed what was called."""
        met = {fault for fault, _ in self.struck}
        return [fault for fault in self.plan.faults if fault not in met]

    def lines(self) -> list[str]:
        """What the containers noted."""
        return self.book.read_text().splitlines() if self.book.exists() else []

    def run(self) -> Flow:
        """From the first try to the stored end, and to the reaper's visit where one is due."""
        prepare: Callable[[], object]
        prepare = {"train": list, "judge": self._two_versions, "rollout": self._serving}[self.plan.flow]
        prepare()
        with self._as_process(TASK) as airflow, over.serving(self.run_id, self._ask):
            {"train": self._train, "judge": self._judge, "rollout": self._rollout}[self.plan.flow](airflow)
        if self.workload_task and (self.plan.cancel or self.plan.last or self.plan.zombie):
            self._reaper()
        return self

    @contextmanager
    def _as_process(self, name: str) -> Iterator[Airflow]:
        current.schedule = self.schedules[name]
        try:
            yield Airflow(self.schedules[name], self.trail, DAG, self.run_id, self.begun)
        finally:
            current.schedule = None

    def _ask(self, task_id: str) -> str:
        """The task's state, as its process asks for it when it is told to end."""
        return "failed" if self.plan.cancel else self.states.get(task_id, "running")

    # Train, register

    def _train(self, airflow: Airflow) -> None:
        tries = 1 if self.plan.last else TRIES
        for clear in range(self.plan.clears + 1):
            self.trail.append(f"-- epoch {clear}")
            task = airflow.task("train", self._training, tries=tries, max_tries=TRIES * (clear + 1))
            if 0 not in self.plan.codes:
                task.fails_for_good = self._failed_often_enough
            with ExitStack() as stack:
                task.interference = stack.enter_context(self._interference())
                if self.plan.zombie:
                    stack.enter_context(self._zombie(task.xcoms))
                    task.first = 2
                self.states["train"], self.results["train"] = task.run()
                if self.states["train"] == "success":
                    self._register(airflow, self.results["train"]["run_id"])

    def _register(self, airflow: Airflow, run: str) -> None:
        task = airflow.task(
            "register",
            lambda: RegisterModelOperator(task_id="register", model_name=self.model, run_id=run),
            tries=TRIES,
        )
        self.states["register"], self.results["register"] = task.run()

    def _failed_often_enough(self) -> bool:
        """As often as the task may fail: a try counts also where its process died after it had noted it."""
        wanted = self.plan.attempts
        noted = sum(
            "nighttrain.dev/consumed" in job["metadata"]["annotations"]
            for job in self.place.cluster.jobs(self.identity.key)
        )
        return noted >= wanted

    def _training(self, *, zombie: bool = False) -> TrainingJobOperator:
        # Long enough for what comes in between to come in between.
        slow = (ENDLESS,) if self.plan.cancel else (ENDLESS, 0) if self.plan.evicted else (0,)
        if self.plan.zombie and not self.plan.evicted:
            slow = (0.7, 0)
        return TrainingJobOperator(
            task_id="train",
            image="py",
            cmds=["python", "-u", "-c", container_programs.training(self.book, self.plan.codes, slow)],
            termination_grace_period=1,
            experiment_name=self.experiment,
            parameters={"rate": 0.1},
            deferrable=self.plan.deferrable and not zombie,
            startup_timeout_seconds=120,
        )

    @contextmanager
    def _zombie(self, xcoms: dict[str, Any]) -> Iterator[None]:
        """A worker that Airflow has given up goes on in the background; the task's next try begins when the
        container runs.
        """

        def live() -> None:
            with self._as_process(ZOMBIE) as airflow:
                airflow.task("train", lambda: self._training(zombie=True), tries=1, xcoms=xcoms).run()

        thread = threading.Thread(target=live, name="zombie")
        thread.start()
        self.wait_until(lambda: bool(self.lines()) or not thread.is_alive())
        before = len(self.schedules[ZOMBIE].calls)
        try:
            yield
        finally:
            thread.join(60)
            self.overlapped = len(self.schedules[ZOMBIE].calls) > before
            if thread.is_alive():
                self.broken.append("hang: a worker that was given up does not end")

    @contextmanager
    def _interference(self) -> Iterator[Interference | None]:
        if self.plan.evicted:
            drain = threading.Thread(target=self._drain, name="drain")
            drain.start()
            try:
                yield None
            finally:
                drain.join(60)
        elif self.plan.cancel:
            follows = "pods all" if self.plan.flow == "rollout" else "pods log"
            kind = Marking if self.plan.cancel == "marked" else TimingOut
            interference = kind(self._runs, follows, self.trail)
            yield interference
            self.cancelled = interference.done
            if self.cancelled:
                self.broken += self._left()
        else:
            yield None

    def _left(self) -> list[str]:
        """What a cancelling that was done to its end has left."""
        if self.plan.flow == "rollout":
            left = [self.place.cluster.read(DEPLOYMENTS, f"{self.endpoint}-v2")]
            left = [found for found in left if found and "deletionTimestamp" not in found["metadata"]]
        else:
            left = [job for job in self.place.cluster.jobs(self.identity.key) if is_live(job)]
        return [f"cancelled, and {found['metadata']['name']} is left" for found in left]

    def _drain(self) -> None:
        self.wait_until(self._runs)
        self.place.cluster.evict(self.identity.key)

    def _runs(self) -> bool:
        """Whether the container runs (the candidate is there): people and drains come now."""
        if self.plan.flow == "rollout":
            return self.place.cluster.read(DEPLOYMENTS, f"{self.endpoint}-v2") is not None
        return bool(self.lines())

    @staticmethod
    def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for what containers or other threads do."""
        end = time.monotonic() + seconds
        while not holds() and time.monotonic() < end:
            time.sleep(0.02)

    # Evaluate, gate, promote

    def _two_versions(self) -> None:
        mlflow = self.place.mlflow
        experiment = mlflow.experiment(self.earlier)
        for version in ("1", "2"):
            run = mlflow.run(experiment)
            files = {**MODEL_FILES, "model.txt": self._text(version).encode()}
            model = mlflow.logged_model(experiment, run, files=files)
            assert mlflow.version(self.model, run, model) == version
            folder = self.store / self.model / version
            folder.mkdir(parents=True)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            mlflow.call("POST", "runs/update", run_id=run, status="FINISHED")
        mlflow.call("POST", "registered-models/alias", name=self.model, alias="champion", version="1")
        mlflow.stage(self.model, "1", "Production")

    def _judge(self, airflow: Airflow) -> None:
        evaluate = airflow.task("evaluate", self._evaluating, tries=TRIES)
        self.states["evaluate"], self.results["evaluate"] = evaluate.run()
        if self.states["evaluate"] != "success":
            return
        self.states["gate"], self.results["gate"] = airflow.task("gate", self._gate, tries=TRIES).run()
        if self.states["gate"] != "success":
            return
        promote = airflow.task("promote", self._promoting, tries=TRIES)
        self.states["promote"], self.results["promote"] = promote.run()

    def _evaluating(self) -> EvaluateModelOperator:
        scores = {"candidate.mae": 3.0 if self.plan.worse else 1.0, "champion.mae": 2.0}
        return EvaluateModelOperator(
            task_id="evaluate",
            image="py",
            cmds=["python", "-u", "-c", container_programs.scoring(self.book, scores)],
            termination_grace_period=1,
            experiment_name=self.experiment,
            model_name=self.model,
            version="2",
            deferrable=self.plan.deferrable,
            startup_timeout_seconds=120,
        )

    def _gate(self) -> ModelGateOperator:
        return ModelGateOperator(
            task_id="gate", evaluation=self.results["evaluate"], rules=["mae <= champion.mae"]
        )

    def _promoting(self) -> PromoteModelOperator:
        verdict = self.results["gate"]
        return PromoteModelOperator(
            task_id="promote",
            model_name=self.model,
            version=verdict["version"],
            stage="Production",
            verdict=verdict,
        )

    # Roll out

    @property
    def store(self) -> Path:
        """Where serving containers find the versions' files."""
        return self.place.directory / f"{self.run_id}.store"

    def _text(self, version: str) -> str:
        """What a version answers; one that is to be cancelled takes its time to load."""
        slow = self.plan.flow == "rollout" and self.plan.cancel and version == "2"
        return f"slow version {version}" if slow else f"version {version}"

    def _serving(self) -> None:
        self._two_versions()
        airflow = Airflow(Schedule(), self.trail, DAG, f"{self.run_id}-before", self.begun)
        before = airflow.task("rollout", lambda: self._rolling_out("1", deferrable=False), tries=1)
        state, _ = before.run()
        assert state == "success", self.trail

    def _rollout(self, airflow: Airflow) -> None:
        task = airflow.task(
            "rollout", lambda: self._rolling_out("2", deferrable=self.plan.deferrable), tries=TRIES
        )
        with self._interference() as task.interference:
            self.states["rollout"], self.results["rollout"] = task.run()

    def _rolling_out(self, version: str, *, deferrable: bool) -> RolloutModelOperator:
        return RolloutModelOperator(
            task_id="rollout",
            endpoint=self.endpoint,
            model_name=self.model,
            version=version,
            image="model-server",
            env_vars={"FAKE_STORE": str(self.store)},
            startup_timeout_seconds=120,
            deferrable=deferrable,
        )

    # Reap

    def _reaper(self) -> None:
        """Comes by later, as a task of its own; again, where something had changed under its eyes."""
        jobs = self.place.cluster.jobs
        key = self.identity.key
        self.wait_until(lambda: not any("deletionTimestamp" in job["metadata"] for job in jobs(key)))
        with self._as_process(REAPER) as airflow:
            for _ in range(2):
                task = airflow.task("reap", self._reaping, tries=TRIES)
                task.states = self._states_for_reaper
                state, findings = task.run()
                if state != "success":
                    self.broken.append(f"the reaper is {state}")
                    return
                if "taken over" not in [each["verdict"] for each in findings]:
                    return

    @staticmethod
    def _reaping() -> ReapWorkloadsOperator:
        return ReapWorkloadsOperator(task_id="reap", minimum_age_seconds=0, mlflow_conn_id="mlflow_default")

    def _states_for_reaper(self, run_id: str, task_id: str) -> str:
        """Other flows' tasks run while this one is over."""
        return self.states.get(task_id, "failed") if run_id == self.run_id else "running"
