"""Who cancels ends the training; who only ends a process does not. In a real Airflow."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(420)]


def deferred(pipeline: Pipeline) -> str:
    """A DAG run whose training runs while its task is deferred, and whose trigger follows it."""
    run_id = pipeline.trigger("cancelled")
    pipeline.until(
        lambda: (
            pipeline.task("cancelled", run_id, "train")["state"] == "deferred"
            and "[cancelled-train" in pipeline.log("cancelled", run_id, "train")
        ),
        90,
        "the triggerer to pass on the training's first line",
    )
    return run_id


@pytest.mark.thorough
def test_marking_a_deferred_training_as_success_removes_its_workload(pipeline: Pipeline) -> None:
    run_id = deferred(pipeline)
    path = f"/dags/cancelled/dagRuns/{run_id}/taskInstances/train"
    assert pipeline.stack.api("PATCH", path, json={"new_state": "success"}).status_code == 200
    pipeline.until(lambda: not pipeline.jobs("cancelled"), 60, "the workload to be gone")
    assert pipeline.task("cancelled", run_id, "train")["state"] == "success"


def test_a_task_that_is_cleared_tells_that_its_earlier_job_is_gone(pipeline: Pipeline) -> None:
    """From Airflow's task state store: the cluster knows nothing of it any more."""
    run_id = deferred(pipeline)
    path = f"/dags/cancelled/dagRuns/{run_id}/taskInstances/train"
    (first,) = pipeline.jobs("cancelled")
    assert pipeline.stack.api("PATCH", path, json={"new_state": "failed"}).status_code == 200
    pipeline.until(lambda: not pipeline.jobs("cancelled"), 60, "the workload to be gone")
    pipeline.finished("cancelled", run_id)
    assert "is gone" not in pipeline.log("cancelled", run_id, "train")
    clear = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["train"], "only_failed": False}
    answer = pipeline.stack.api("POST", "/dags/cancelled/clearTaskInstances", json=clear)
    assert answer.status_code == 200, answer.text
    told = f"Job default/{first['metadata']['name']}, which an earlier try started, is gone"
    pipeline.until(
        lambda: told in pipeline.log("cancelled", run_id, "train"), 90, "a word about the first Job"
    )
    # Airflow tells no trigger that has not begun: wait until it follows.
    pipeline.until(
        lambda: pipeline.log("cancelled", run_id, "train").count("] waiting") == 2, 90, "the second training"
    )
    assert pipeline.stack.api("PATCH", path, json={"new_state": "failed"}).status_code == 200
    pipeline.until(lambda: not pipeline.jobs("cancelled"), 60, "the workload to be gone")


def test_deleting_the_dag_run_of_a_deferred_training_removes_its_workload(pipeline: Pipeline) -> None:
    run_id = deferred(pipeline)
    # Airflow deletes no DAG run that runs: whoever wants to, fails it first.
    path = f"/dags/cancelled/dagRuns/{run_id}"
    assert pipeline.stack.api("PATCH", path, json={"state": "failed"}).status_code == 200
    assert pipeline.stack.api("DELETE", path).status_code == 204
    pipeline.until(lambda: not pipeline.jobs("cancelled"), 60, "the workload to be gone")


def test_a_worker_that_is_told_to_end_leaves_its_training_to_the_next_try(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("worker_told_to_end")

    def training() -> int | None:
        task = pipeline.task("worker_told_to_end", run_id, "train")
        logged = task["state"] == "running" and "training started" in pipeline.log(
            "worker_told_to_end", run_id, "train"
        )
        return task["pid"] if logged else None

    pid = pipeline.until(training, 90, "the training to start in the worker")
    os.kill(pid, signal.SIGTERM)
    told = "Only this process is told to end"
    pipeline.until(lambda: told in pipeline.log("worker_told_to_end", run_id, "train"), 5, "a word about it")
    os.kill(pid, signal.SIGKILL)  # as Airflow's supervisor does when a told process does not end
    assert pipeline.finished("worker_told_to_end", run_id) == "success"
    assert pipeline.task("worker_told_to_end", run_id, "train")["try_number"] == 2
    assert "Adopted Job" in pipeline.log("worker_told_to_end", run_id, "train")
    (job,) = pipeline.jobs("worker_told_to_end")
    assert job["status"]["succeeded"] == 1
