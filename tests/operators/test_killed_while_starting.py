"""A process that is told to end while its training runs, or before it knows what it has started."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from helpers.airflow_connections import connect_kubernetes
from helpers.training_task import Task
from nighttrain.operators.workload import Prepared
from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.kubernetes.outcome.outcome import Observation, Phase

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]


@pytest.fixture
def task(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    state: str,
) -> Task:
    """A training that notes its start and goes on, of a task with this state."""
    connect_kubernetes(monkeypatch, cluster)
    code = f"open({str(tmp_path / 'runs')!r}, 'w').close(); import time; time.sleep(60)"
    task = Task(monkeypatch, code, deferrable=False, termination_grace_period=1)
    task.mlflow_is(mlflow_server.uri)
    states = {task.ti.run_id: {"train": state}}
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", lambda **_: states)
    return task


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("state", "left"), [("failed", 0), ("running", 1)])
def test_a_worker_that_is_told_to_end_removes_its_training_only_where_the_task_is_over(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    task: Task,
    left: int,
) -> None:
    """With Airflow's signal, in the middle of the wait; then the process is gone."""
    called = []
    runs = threading.Event()

    def seen(observation: Observation) -> None:
        if observation.phase is Phase.RUNNING:
            runs.set()

    monkeypatch.setattr(task.operator, "_say", seen)

    def told_to_end(*_: object) -> None:
        called.append(signal.SIGTERM)
        task.operator.on_kill()
        raise KeyboardInterrupt

    def tell() -> None:
        # Not earlier: an exception in the middle of a loop's own beginning is nobody's to bear.
        while not ((tmp_path / "runs").exists() and runs.is_set()) and not over.wait(0.02):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    over = threading.Event()
    telling = threading.Thread(target=tell)
    before = signal.signal(signal.SIGTERM, told_to_end)
    try:
        telling.start()
        with pytest.raises(KeyboardInterrupt):
            task.execute()
    finally:
        over.set()
        telling.join()
        signal.signal(signal.SIGTERM, before)
        # The exception may have struck between a socket's making and its keeping: a process that ends has no
        # socket left, and no later test is to be blamed for it.
        gc.collect()
    assert called == [signal.SIGTERM]
    _left(task, cluster, mlflow_server, left)


@pytest.mark.parametrize(("state", "left"), [("failed", 0), ("running", 1)])
def test_a_workload_whose_creation_was_not_answered_yet_goes_with_its_task(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    task: Task,
    left: int,
) -> None:
    starts = TrackedWorkload.start

    async def told_to_end(tracked: TrackedWorkload, **options: Any) -> Any:
        await starts(tracked, **options)
        await asyncio.to_thread(task.operator.on_kill)  # as Airflow's signal handler, in the middle of it
        raise KeyboardInterrupt

    monkeypatch.setattr(TrackedWorkload, "start", told_to_end)
    with pytest.raises(KeyboardInterrupt):
        task.execute()
    monkeypatch.setattr(TrackedWorkload, "start", starts)
    _left(task, cluster, mlflow_server, left)


def _left(task: Task, cluster: EmbeddedCluster, mlflow_server: MLflowServer, left: int) -> None:
    """So many Jobs are left, and the run says so. The next try takes it over, and ends it for the test."""
    assert len(task.jobs(cluster)) == left
    experiment = mlflow_server.call("GET", "experiments/get-by-name", experiment_name=task.ti.dag_id)
    found = mlflow_server.call(
        "POST", "runs/search", experiment_ids=[experiment["experiment"]["experiment_id"]]
    )
    expected = {"KILLED"} if left == 0 else {"RUNNING"}
    assert {run["info"]["status"] for run in found["runs"]} == expected
    if left:
        tracked = task.operator._tracked(task.context, Prepared())
        assert run_sync(tracked.cancel_if_started())
        assert not run_sync(tracked.cancel_if_started())
