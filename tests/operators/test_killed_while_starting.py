"""A process that is told to end before it knows what it has started."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from one_task import Task

from nighttrain.operators.workload import Prepared
from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from mlflow_server import MLflowServer

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}) as running:
        yield running


@pytest.mark.parametrize(("state", "left"), [("failed", 0), ("running", 1)])
def test_a_workload_whose_creation_was_not_answered_yet_goes_with_its_task(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    left: int,
) -> None:
    kubernetes = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(cluster.kubeconfig)}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(kubernetes))
    task = Task(monkeypatch, "import time; time.sleep(60)", deferrable=False, termination_grace_period=1)
    task.mlflow_is(mlflow_server.uri)
    states = {task.ti.run_id: {"train": state}}
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", lambda **_: states)
    starts = TrackedWorkload.start

    async def told_to_end(tracked: TrackedWorkload, **options: Any) -> Any:
        await starts(tracked, **options)
        await asyncio.to_thread(task.operator.on_kill)  # as Airflow's signal handler, in the middle of it
        raise KeyboardInterrupt

    monkeypatch.setattr(TrackedWorkload, "start", told_to_end)
    with pytest.raises(KeyboardInterrupt):
        task.execute()
    assert len(task.jobs(cluster)) == left
    experiment = mlflow_server.call("GET", "experiments/get-by-name", experiment_name=task.ti.dag_id)
    found = mlflow_server.call(
        "POST", "runs/search", experiment_ids=[experiment["experiment"]["experiment_id"]]
    )
    expected = {"KILLED"} if left == 0 else {"RUNNING"}
    assert {run["info"]["status"] for run in found["runs"]} == expected
    if left:  # the next try takes it over, and ends it for the test
        monkeypatch.setattr(TrackedWorkload, "start", starts)
        tracked = task.operator._tracked(task.context, Prepared())
        assert run_sync(tracked.cancel_if_started())
        assert not run_sync(tracked.cancel_if_started())
