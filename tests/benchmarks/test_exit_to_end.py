"""How long after a container's exit its waiter knows.

The container writes the time into a file as its last act (``finishedAt`` has whole seconds only), on the same
clock as the waiter's: one machine.

1. The wait alone. 20 Jobs on an embedded cluster (another process), 0.25 s apart in length. For each, in one
   event loop: nighttrain's ``wait``, which watches and returns at the *Job's* end; and beside it a loop that
   reads the *pod* every 2 s with kubernetes_asyncio until its container has terminated, as
   ``KubernetesPodTrigger`` does with its default ``poll_interval``. The lengths spread over the polling
   interval evenly, so that polling is neither lucky nor unlucky. p50, p95, most.
2. The task. From the exit to the task instance's ``end_date``, in a real Airflow (scheduler, triggerer,
   LocalExecutor, SQLite): ``TrainingJobOperator`` against ``KubernetesPodOperator`` (deferrable,
   ``poll_interval=2``), each in a DAG file that imports nothing else, because a resumed task parses its file
   again. 4 runs of each, one at a time in turn so that they do not compete; one before them is not counted.
   Shown beside it: from the exit to the trigger's line that it has fired, the part that waiting decides.
   What remains is Airflow's: the event's way to the scheduler, a slot, a new process, the file's imports.
   TrainingJobOperator also closes an MLflow run in that time; KubernetesPodOperator also deletes its pod.
   The jobs last about 10 s, longer than a nighttrain trigger keeps silent after its start: a shorter job's
   task ends no earlier for being watched.
Command: ``./run bench -k exit_to_end``.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.attempts.lifecycle import submit, wait
from nighttrain.providers.kubernetes.api.client import PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.kinds import JOB_NAME_LABEL
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.outcome.outcome import (
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nighttrain.providers.kubernetes.values.submitted_workload import Workload

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(900)]

JOBS = 20
POLL_SECONDS = 2.0
# Sleeps, then writes the time and is gone: nothing slow may come between the two.
SCRIPT = """
import os, sys, time
time.sleep(float(sys.argv[1]))
with open(sys.argv[2], "w") as file:
    file.write(repr(time.time()))
os._exit(0)
"""


def row(name: str, delays: list[float]) -> tuple[str, ...]:
    p95 = quantiles(delays, n=20, method="inclusive")[-1]
    return (
        name,
        str(len(delays)),
        f"{median(delays):.3f}",
        f"{p95:.3f}",
        f"{min(delays):.3f}",
        f"{max(delays):.3f}",
    )


def test_exit_to_wait(show: Any, start_cluster: Any, tmp_path: Path) -> None:
    with start_cluster(tmp_path / "cluster") as cluster:
        watched, polled = asyncio.run(measure_waits(str(cluster.kubeconfig), tmp_path))
    show(
        "From a container's exit to its waiter's return",
        ("waiter", "Jobs", "p50 s", "p95 s", "least", "most"),
        [
            row("nighttrain's wait: watches, until the Job's end", watched),
            row("a read of the pod every 2 s, until its container's end", polled),
        ],
        "both at once, in one event loop, on the same Jobs",
    )
    assert median(watched) < median(polled)


async def measure_waits(kubeconfig: str, directory: Path) -> tuple[list[float], list[float]]:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=kubeconfig)) as client:
        pairs = await asyncio.gather(*(one_job(client, kubeconfig, directory, n) for n in range(JOBS)))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


async def one_job(
    client: ClusterClient, kubeconfig: str, directory: Path, number: int
) -> tuple[float, float]:
    """Seconds after the exit until the watching and the polling waiter return."""
    file = directory / f"exit-{number}"
    spec = WorkloadSpec(
        image="localhost/python:3.11",
        cmds=["python3", "-S", "-E", "-c"],
        arguments=[SCRIPT, str(4 + number * 0.25), str(file)],
    )
    identity = WorkloadIdentity(orchestrator="airflow", dag_id="bench", run_id="1", task_id=f"job-{number}")
    workload = await submit(client, check_workload(spec), identity, namespace="default", epoch="1")
    watched, polled = await asyncio.gather(watching(client, workload), polling(kubeconfig, client, workload))
    exited = float(file.read_text())
    return watched - exited, polled - exited


async def watching(client: ClusterClient, workload: Workload) -> float:
    outcome = await wait(client, workload, timeouts=Timeouts(60))
    ended = time.time()
    assert outcome.kind is OutcomeKind.SUCCEEDED
    return ended


async def polling(kubeconfig: str, client: ClusterClient, workload: Workload) -> float:
    from kubernetes_asyncio.client import ApiClient, Configuration, CoreV1Api
    from kubernetes_asyncio.config import load_kube_config

    name = await pod_name(client, workload)
    configuration = Configuration()
    await load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    async with ApiClient(configuration) as api:
        while True:
            pod = await CoreV1Api(api).read_namespaced_pod(name, "default")
            states = [status.state for status in pod.status.container_statuses or []]
            if states and states[0].terminated:
                return time.time()
            await asyncio.sleep(POLL_SECONDS)


async def pod_name(client: ClusterClient, workload: Workload) -> str:
    selector = f"{JOB_NAME_LABEL}={workload.name}"
    while True:
        pods = (await client.list(PODS, "default", label_selector=selector))["items"]
        if pods:
            return str(pods[0]["metadata"]["name"])
        await asyncio.sleep(0.05)


# In Airflow

RUNS = 4
DAGS = {
    "training_job_exits": "TrainingJobOperator",
    "pod_exits": "KubernetesPodOperator, deferrable, poll_interval=2",
}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    # Airflow's processes leave their compiled files in the DAG folder: give them a copy.
    dags = tmp_path / "dags"
    shutil.copytree(Path(__file__).parent / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "exits").mkdir()
    settings = {"NIGHTTRAIN_BENCH_EXITS": str(tmp_path / "exits")}
    stack = Stack(tmp_path / "stack", [dags], airflow_settings=settings)
    try:
        stack.start_mlflow()
        stack.start_airflow()
        stack.start_cluster()
        stack.wait_mlflow()
        stack.wait_airflow(list(DAGS))
        yield stack
    finally:
        stack.stop()


def test_exit_to_task_end(show: Any, stack: Stack, tmp_path: Path) -> None:
    fired: dict[str, list[float]] = {dag_id: [] for dag_id in DAGS}
    ended: dict[str, list[float]] = {dag_id: [] for dag_id in DAGS}
    for number in range(RUNS + 1):
        for dag_id in DAGS:
            run_id, end = run_once(stack, dag_id)
            exited = float((tmp_path / "exits" / dag_id).read_text())
            if number:
                fired[dag_id].append(trigger_fired(stack, dag_id, run_id) - exited)
                ended[dag_id].append(end - exited)
    show(
        "From a container's exit to the task's end in Airflow",
        ("operator", "trigger fired, median s", "task ended, median s", "task ended, each run"),
        [
            (
                name,
                f"{median(fired[dag_id]):.2f}",
                f"{median(ended[dag_id]):.2f}",
                "  ".join(f"{delay:.2f}" for delay in ended[dag_id]),
            )
            for dag_id, name in DAGS.items()
        ],
        f"{RUNS} runs each, one task at a time, in turn",
    )


def run_once(stack: Stack, dag_id: str) -> tuple[str, float]:
    """Run the DAG: the run's id and when its task ended."""
    stack.unpause(dag_id)
    answer = stack.api("POST", f"/dags/{dag_id}/dagRuns", json={"logical_date": None})
    assert answer.status_code == 200, answer.text
    run_id = answer.json()["dag_run_id"]
    path = f"/dags/{dag_id}/dagRuns/{run_id}"
    until(stack, lambda: stack.api("GET", path).json()["state"] in {"success", "failed"}, 120)
    task = stack.api("GET", f"{path}/taskInstances/task").json()
    assert task["state"] == "success", task
    return run_id, datetime.fromisoformat(task["end_date"]).timestamp()


def trigger_fired(stack: Stack, dag_id: str, run_id: str) -> float:
    """When the triggerer logged the event. Its lines of a task are in a file of their own."""
    folder = stack.directory / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}" / "task_id=task"
    for file in folder.glob("*.trigger.*.log"):
        for line in file.read_text().splitlines():
            if "Trigger fired event" in line:
                return datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
    raise AssertionError(f"no trigger fired: {sorted(folder.iterdir())}")


def until(stack: Stack, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        stack.check_alive()
        assert time.monotonic() < deadline, f"the DAG run did not end within {seconds:.0f} s"
        # A request costs the machine 20 ms: rarely enough not to slow what is measured.
        time.sleep(1)
