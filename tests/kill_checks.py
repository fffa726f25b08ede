"""What has to hold after every flow, read from the servers and from the containers' own notes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoResult
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from kill_calls import Fault, kinds_for
from kill_flow import DAG, DEADLINE_SECONDS, Flow, Plan

from nighttrain.providers.kubernetes.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.identity import ATTEMPT_KEY_LABEL
from nighttrain.providers.tracking.runs import RUN_KEY_TAG, RunKey

if TYPE_CHECKING:
    from mlflow_server import MLflowServer

NAMESPACE = "default"
# Containers are processes of this machine: with more at once, two cores only queue them.
AT_ONCE = 6


def is_live(job: dict[str, Any]) -> bool:
    """Whether the Job may still run something."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return not any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)


class JobHistory:
    """Watches every Job from the first to the last: which there were, and which lived at the same time."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self.live: dict[str, set[str]] = defaultdict(set)
        self.ever: dict[str, set[str]] = defaultdict(set)
        self.doubles: dict[str, set[str]] = defaultdict(set)
        self._versions: dict[str, str] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="job-history")

    def __enter__(self) -> JobHistory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30)

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.create_task(self._watch())
            await asyncio.wait([self._task])

        asyncio.run(main())

    async def _watch(self) -> None:
        async with await ClusterClient.open(self._config) as client:
            version = (await client.list(JOBS, NAMESPACE))["metadata"]["resourceVersion"]
            while True:
                async for event in client.watch(JOBS, NAMESPACE, resource_version=version):
                    version = event.object["metadata"]["resourceVersion"]
                    if event.type != "BOOKMARK":
                        self._note(event.type, event.object)

    def _note(self, kind: str, job: dict[str, Any]) -> None:
        key = job["metadata"]["labels"].get(ATTEMPT_KEY_LABEL, "")
        uid = job["metadata"]["uid"]
        self._versions[uid] = "" if kind == "DELETED" else job["metadata"]["resourceVersion"]
        self.ever[key].add(uid)
        if kind == "DELETED" or not is_live(job):
            self.live[key].discard(uid)
        else:
            self.live[key].add(uid)
        if len(self.live[key]) > 1:
            self.doubles[key] |= self.live[key]

    def settled(self, key: str, seconds: float = 20) -> list[dict[str, Any]]:
        """The identity's Jobs once this history has seen them as they are, and none is being deleted."""
        end = time.monotonic() + seconds
        while True:
            jobs = asyncio.run(self._list(key))
            same = all(
                self._versions.get(job["metadata"]["uid"]) == job["metadata"]["resourceVersion"]
                for job in jobs
            )
            going = any("deletionTimestamp" in job["metadata"] for job in jobs)
            if (same and not going) or time.monotonic() > end:
                return jobs
            time.sleep(0.05)

    async def _list(self, key: str) -> list[dict[str, Any]]:
        async with await ClusterClient.open(self._config) as client:
            found = await client.list(JOBS, NAMESPACE, label_selector=f"{ATTEMPT_KEY_LABEL}={key}")
            return list(found["items"])


def violations(flow: Flow, history: JobHistory, mlflow: MLflowServer) -> list[str]:
    """Every promise that the flow broke, as sentences; none if all is well."""
    return [*_jobs(flow, history), *_state(flow), *_runs(flow, mlflow), *_versions(flow, mlflow)]


def _jobs(flow: Flow, history: JobHistory) -> Iterator[str]:
    key = flow.identity.key
    jobs = history.settled(key)
    orphans = [job["metadata"]["name"] for job in jobs if is_live(job)]
    if orphans:
        yield f"orphan: {orphans} still live after the task ended {flow.state}"
    if history.doubles[key]:
        yield f"duplicate workload: {len(history.doubles[key])} Jobs lived at the same time"
    wanted = _wanted_attempts(flow.plan)
    starts = flow.lines().count("start")
    if starts > wanted:
        yield f"duplicate workload: {starts} containers ran, {wanted} attempts were called for"
    if len(history.ever[key]) > wanted:
        yield f"duplicate workload: {len(history.ever[key])} Jobs, {wanted} attempts were called for"


def _wanted_attempts(plan: Plan) -> int:
    if 0 not in plan.codes:
        return max(len(plan.codes), 2)
    return plan.codes.index(0) + 1 + plan.clears


def _state(flow: Flow) -> Iterator[str]:
    ended = [line for line in flow.lines() if line.startswith("end")]
    good = bool(ended) and ended[-1] == "end 0"
    if flow.state == "success" and not good:
        yield f"false success: the containers noted {flow.lines()}"
    if flow.state != "success" and good and not flow.plan.mark_failed:
        yield f"false failure: the training ended well, the task is {flow.state}"
    if flow.state == "success" and flow.registered != "success":
        yield f"false failure: register is {flow.registered}"


def _search(mlflow: MLflowServer, experiment_id: str, key: str) -> list[dict[str, Any]]:
    answer = mlflow.call(
        "POST",
        "runs/search",
        experiment_ids=[experiment_id],
        filter=f"tags.`{RUN_KEY_TAG}` = '{key}'",
        max_results=100,
    )
    return list(answer.get("runs", ()))


def _runs(flow: Flow, mlflow: MLflowServer) -> Iterator[str]:
    key = RunKey(orchestrator="airflow", dag_id=DAG, run_id=flow.run_id, task_id="train")
    experiment = mlflow.call("GET", "experiments/get-by-name", experiment_name=flow.experiment)
    experiment_id = experiment["experiment"]["experiment_id"]
    expected = {"success": "FINISHED", "failed": "FAILED"}[flow.state]
    if flow.plan.mark_failed and "end 0" not in flow.lines():
        expected = "KILLED"
    for what, value in (("task", key.value), ("parent", key.parent.value)):
        runs = _search(mlflow, experiment_id, value)
        if len(runs) != 1:
            yield f"{len(runs)} {what} runs"
        statuses = [run["info"]["status"] for run in runs]
        if len(runs) == 1 and statuses != [expected] and not flow.plan.mark_failed:
            yield f"the {what} run is {statuses[0]}, the task ended {flow.state}"
        if flow.plan.mark_failed and set(statuses) - {"KILLED", "FAILED", "FINISHED"}:
            yield f"the {what} run is {statuses} though the task was marked failed"


def _versions(flow: Flow, mlflow: MLflowServer) -> Iterator[str]:
    versions = mlflow.versions(flow.model)
    sources = [version["source"] for version in versions]
    if len(set(sources)) != len(sources):
        yield f"duplicate version: {sources}"
    wanted = flow.plan.clears + 1 if flow.registered == "success" else 0
    if len(versions) != wanted:
        yield f"{len(versions)} versions, {wanted} were called for"


# Every call of a night, so that a seed means the same whatever was recorded; and how often a flow makes it.
CALLS = {
    "airflow defer": 1,
    "airflow event": 1,
    "airflow success register": 1,
    "airflow success train": 1,
    "airflow xcom register nighttrain_link_version": 1,
    "airflow xcom train nighttrain_link_run": 2,
    "airflow xcom train nighttrain_link_workload": 2,
    "airflow xcom train nighttrain_started": 2,
    "airflow xcom train return_value": 1,
    "k8s GET jobs all": 3,
    "k8s GET jobs one": 2,
    "k8s GET jobs watch": 2,
    "k8s GET pods all": 3,
    "k8s GET pods log": 3,
    "k8s GET pods watch": 2,
    "k8s PATCH jobs one": 1,
    "k8s POST jobs all": 1,
    "k8s POST jobs dry-run": 1,
    "mlflow GET experiments/get-by-name": 1,
    "mlflow GET logged-models/m-<id>/artifacts/directories": 1,
    "mlflow GET logged-models/m-<id>/artifacts/files": 1,
    "mlflow GET model-versions/get": 1,
    "mlflow GET model-versions/search": 2,
    "mlflow GET runs/get": 5,
    "mlflow POST logged-models/search": 2,
    "mlflow POST model-versions/create": 1,
    "mlflow POST registered-models/create": 1,
    "mlflow POST runs/create": 2,
    "mlflow POST runs/log-batch": 3,
    "mlflow POST runs/search": 5,
    "mlflow POST runs/update": 2,
}


def every_boundary(flow: Flow) -> list[Plan]:
    """One plan for each call of a recorded flow and each fault that it can meet."""
    found: list[Plan] = []
    for label, count in _counts(flow.schedule.calls).items():
        # A poll or a watch that comes again and again is the same boundary.
        for nth in range(1, min(count, 4) + 1):
            found += [
                Plan((Fault(label, nth, kind),), flow.plan.codes, flow.plan.deferrable)
                for kind in kinds_for(label)
            ]
    return found


def _counts(calls: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for call in calls:
        counts[call] = counts.get(call, 0) + 1
    return counts


def random_plan(seed: int) -> Plan:
    """The plan of a seed: up to four faults, a training that may fail, a person's wishes."""
    dice = random.Random(seed)
    labels = sorted(CALLS)
    faults = []
    for _ in range(dice.randint(1, 4)):
        label = dice.choice(labels)
        kind = dice.choice(kinds_for(label))
        # A dozen in a row is more than a client tries again: the task's try fails.
        times = dice.choice((1, 1, 12)) if not kind.startswith("crash") else 1
        faults.append(Fault(label, dice.randint(1, CALLS[label] + 1), kind, times))
    codes = dice.choice(((0,), (0,), (0,), (3, 0), (3, 3)))
    clears = dice.choice((0, 0, 0, 1)) if codes == (0,) else 0
    mark_failed = codes == (0,) and not clears and dice.random() < 0.15
    return Plan(tuple(faults), codes, mark_failed or dice.random() < 0.75, clears, mark_failed)


class Arena:
    """Two servers and a history; runs plans, several at once, and says what they broke."""

    def __init__(self, directory: Path, experiment: str, history: JobHistory, mlflow: MLflowServer) -> None:
        self._flow = (directory, experiment)
        self._history = history
        self._mlflow = mlflow

    def record(self, plan: Plan) -> Flow:
        """A flow that has to go well: its calls are the boundaries."""
        flow = Flow(plan, *self._flow).run()
        assert flow.state == "success", flow.trail
        assert not violations(flow, self._history, self._mlflow), flow.trail
        return flow

    def broken(self, flow: Flow) -> list[str]:
        """What a flow that ended elsewhere broke."""
        return violations(flow, self._history, self._mlflow)

    def run(self, plan: Plan) -> tuple[list[str], Flow]:
        """One plan to its end."""
        flow = Flow(plan, *self._flow)
        try:
            flow.run()
        except Exception as error:
            return [f"the model of Airflow met {type(error).__name__}: {error}"], flow
        return violations(flow, self._history, self._mlflow), flow

    def all(self, plans: Sequence[tuple[str, Plan]]) -> list[str]:
        """Run all, ``AT_ONCE`` at a time; a report for each that broke something or hung."""
        struck = 0
        reports: list[str] = []
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            futures = [(name, plan, pool.submit(self.run, plan)) for name, plan in plans]
            for number, (name, plan, future) in enumerate(futures, 1):
                try:
                    broken, flow = future.result(timeout=DEADLINE_SECONDS * 2)
                except NoResult:
                    reports.append(f"{name}: hang\n  {plan}")
                else:
                    struck += bool(flow.schedule.struck)
                    if not broken:
                        continue
                    lines = [*broken, str(plan), *flow.schedule.struck, *flow.trail, str(flow.lines())]
                    reports.append(f"{name}: " + "\n  ".join(lines))
                print(f"BROKEN after {number} of {len(plans)}: {reports[-1]}", flush=True)
        finally:
            # A flow that hangs must not keep the report back.
            pool.shutdown(wait=False, cancel_futures=True)
        print(f"{len(plans)} schedules, {struck} met a fault, {len(reports)} broke a promise")
        return reports


@contextmanager
def arena(kubeconfig: str, directory: Path, mlflow: MLflowServer, experiment: str) -> Iterator[Arena]:
    """An arena on servers that run already."""
    # Flows take seconds, and the server closes a connection that idles as long: none is kept.
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        JobHistory(ClusterConfig(kubeconfig=kubeconfig)) as history,
        httpx.Client(base_url=mlflow.uri, timeout=60, trust_env=False, limits=limits) as http,
    ):
        yield Arena(directory, experiment, history, replace(mlflow, http=http))
