"""Trainings in the task loops of Airflow 3.4: each iteration is a task of its own. In a real Airflow.

``./run test-airflow-next`` runs this with an Airflow that has them.
"""

from __future__ import annotations

import os
import signal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.airflow_api import TOKEN_VARIABLE, AirflowAPI
from nighttrain.providers.attempts.lifecycle import submit
from nighttrain.providers.attempts.reaper import TaskState
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import REGION_ANNOTATION, WorkloadIdentity

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.pipeline import Pipeline

AIRFLOW = tuple(int(part) for part in version("apache-airflow-core").split(".")[:2])
pytestmark = [
    pytest.mark.slow,
    pytest.mark.airflow,
    pytest.mark.mlflow,
    pytest.mark.timeout(420),
    pytest.mark.skipif(AIRFLOW < (3, 4), reason="Airflow has task loops since 3.4: ./run test-airflow-next"),
]


def trigger(pipeline: Pipeline, dag_id: str, **conf: str) -> str:
    pipeline.until(
        lambda: pipeline.stack.api("GET", f"/dags/{dag_id}").status_code == 200, 60, f"{dag_id} to be known"
    )
    return pipeline.trigger(dag_id, **conf)


def iterations(pipeline: Pipeline, dag_id: str, run_id: str, task_id: str = "train") -> list[dict[str, Any]]:
    """The task's live instances, in the order of their iterations."""
    answer = pipeline.stack.api(
        "GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 100}
    )
    found = [ti for ti in answer.json()["task_instances"] if ti["task_id"] == f"loop.{task_id}"]
    return sorted(found, key=lambda ti: (ti["loop_iteration"]["iteration"], ti["map_index"]))


def coordinates(ti: dict[str, Any]) -> dict[str, str]:
    return {"region_id": ti["region_id"], "region_index": str(ti["region_index"])}


def region(ti: dict[str, Any]) -> str:
    return f"{ti['region_id']}:{ti['region_index']}"


def job_of(pipeline: Pipeline, ti: dict[str, Any]) -> dict[str, Any]:
    """The only Job of this iteration."""
    (job,) = [
        job
        for job in pipeline.jobs(ti["dag_id"])
        if job["metadata"]["annotations"].get(REGION_ANNOTATION) == region(ti)
    ]
    return job


def argument_of(job: dict[str, Any], index: int = 1) -> str:
    return str(job["spec"]["template"]["spec"]["containers"][0]["args"][index])


def params(run: dict[str, Any]) -> dict[str, str]:
    return {param["key"]: param["value"] for param in run["data"].get("params", [])}


def tag(run: dict[str, Any], name: str) -> str | None:
    return next((tag["value"] for tag in run["data"]["tags"] if tag["key"] == f"nighttrain.{name}"), None)


def task_runs(pipeline: Pipeline, dag_id: str) -> dict[str | None, dict[str, Any]]:
    """The MLflow runs of tasks, by their argument."""
    found = [run for run in pipeline.mlflow_runs(dag_id) if tag(run, "task_id")]
    by_argument = {params(run).get("argument"): run for run in found}
    assert len(by_argument) == len(found), "two runs with one argument"
    return by_argument


def log_of(pipeline: Pipeline, dag_id: str, run_id: str) -> str:
    folder = pipeline.stack.directory / "airflow" / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
    return "\n".join(file.read_text(errors="replace") for file in sorted(folder.rglob("*.log")))


def waiting(pipeline: Pipeline, dag_id: str, run_id: str, index: int, state: str) -> dict[str, Any]:
    """The iteration ``index`` once its container runs and its task is in ``state``."""

    def found() -> dict[str, Any] | None:
        tis = iterations(pipeline, dag_id, run_id)
        if len(tis) <= index or tis[index]["state"] != state:
            return None
        jobs = [
            job
            for job in pipeline.jobs(dag_id)
            if job["metadata"]["annotations"].get(REGION_ANNOTATION) == region(tis[index])
        ]
        started = log_of(pipeline, dag_id, run_id).count("training started") > index
        return tis[index] if jobs and started else None

    return dict(pipeline.until(found, 120, f"iteration {index} to train"))


def test_each_iteration_of_a_loop_trains_once_with_its_own_argument(pipeline: Pipeline) -> None:
    run_id = trigger(pipeline, "looped")
    assert pipeline.finished("looped", run_id, 300) == "success"
    tis = iterations(pipeline, "looped", run_id)
    jobs = [job_of(pipeline, ti) for ti in tis]
    assert len(pipeline.jobs("looped")) == 3
    assert [argument_of(job) for job in jobs] == ["0", "1", "2"]
    assert all(job["status"]["succeeded"] == 1 for job in jobs)
    runs = task_runs(pipeline, "looped")
    assert set(runs) == {"0", "1", "2"}
    assert all(run["info"]["status"] == "FINISHED" for run in runs.values())
    # What an iteration reads of the one before it is that one's.
    ids = [runs[str(index)]["info"]["run_id"] for index in range(3)]
    assert [params(runs[str(index)])["previous"] for index in range(3)] == ["none", *ids[:2]]
    # And so are lineage and links.
    for index, ti in enumerate(tis):
        assert tag(runs[str(index)], "region") == region(ti)
        assert tag(runs[str(index)], "job_name") == jobs[index]["metadata"]["name"]
        path = f"/dags/looped/dagRuns/{run_id}/taskInstances/loop.train/links"
        links = pipeline.stack.api("GET", path, params=coordinates(ti)).json()["extra_links"]
        assert str(links["MLflow run"]).endswith(ids[index])
        assert jobs[index]["metadata"]["name"] in str(links["Workload"])
    # The gate is cleared: later iterations are replaced, and train anew.
    gate = iterations(pipeline, "looped", run_id, "__loop_gate")[0]
    clear = {
        "dry_run": False,
        "dag_run_id": run_id,
        "task_instance_ids": [gate["id"]],
        "only_failed": False,
    }
    answer = pipeline.stack.api("POST", "/dags/looped/clearTaskInstances", json=clear)
    assert answer.status_code == 200, answer.text
    pipeline.until(lambda: pipeline.run("looped", run_id)["state"] != "success", 30, "the run to go on")
    assert pipeline.finished("looped", run_id, 300) == "success"
    again = iterations(pipeline, "looped", run_id)
    assert region(again[0]) == region(tis[0])
    assert not {region(ti) for ti in again[1:]} & {region(ti) for ti in tis}
    assert [argument_of(job_of(pipeline, ti)) for ti in again] == ["0", "1", "2"]
    assert len(pipeline.jobs("looped")) == 5


def test_a_mapped_task_in_a_loop_trains_once_for_each_iteration_and_index(pipeline: Pipeline) -> None:
    run_id = trigger(pipeline, "looped_mapped")
    assert pipeline.finished("looped_mapped", run_id, 300) == "success"
    tis = iterations(pipeline, "looped_mapped", run_id)
    assert [argument_of(job_of(pipeline, ti)) for ti in tis] == ["0a", "0b", "1a", "1b"]
    assert set(task_runs(pipeline, "looped_mapped")) == {"0a", "0b", "1a", "1b"}


def test_a_retry_in_an_iteration_adopts_that_iterations_job(pipeline: Pipeline, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run_id = trigger(pipeline, "looped_worker", mark=str(mark))
    ti = waiting(pipeline, "looped_worker", run_id, 1, "running")
    job = job_of(pipeline, ti)
    os.kill(ti["pid"], signal.SIGTERM)
    told = f"Only this process is told to end: Job {job['metadata']['name']} goes on"
    pipeline.until(lambda: told in log_of(pipeline, "looped_worker", run_id), 10, "a word about it")
    os.kill(ti["pid"], signal.SIGKILL)  # as Airflow's supervisor does when a told process does not end
    adopted = f"Adopted Job default/{job['metadata']['name']}"
    pipeline.until(lambda: adopted in log_of(pipeline, "looped_worker", run_id), 90, "the Job to be adopted")
    mark.touch()
    assert pipeline.finished("looped_worker", run_id) == "success"
    tis = iterations(pipeline, "looped_worker", run_id)
    assert [ti["try_number"] for ti in tis] == [1, 2, 1]
    assert region(tis[1]) == region(ti)
    assert job_of(pipeline, tis[1])["metadata"]["uid"] == job["metadata"]["uid"]
    assert len(pipeline.jobs("looped_worker")) == 3
    assert log_of(pipeline, "looped_worker", run_id).count("Adopted Job") == 1


def test_marking_an_iteration_removes_its_workload_only(pipeline: Pipeline, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run_id = trigger(pipeline, "looped_cancelled", mark=str(mark))
    ti = waiting(pipeline, "looped_cancelled", run_id, 1, "deferred")
    first = iterations(pipeline, "looped_cancelled", run_id)[0]
    kept = job_of(pipeline, first)["metadata"]["uid"]
    told = _states(pipeline, run_id, [region(first), region(ti), f"{ti['region_id'][:-12]}000000000000:1"])
    assert told == [TaskState.OVER, TaskState.ALIVE, TaskState.GONE]
    # What nobody waits for is reaped, this iteration's Job is not.
    left = run_sync(_leave_behind(pipeline, run_id, region(first)))
    assert pipeline.finished("reaping", pipeline.trigger("reaping")) == "success"
    jobs = {job["metadata"]["uid"] for job in pipeline.jobs("looped_cancelled")}
    assert left not in jobs
    assert {kept, job_of(pipeline, ti)["metadata"]["uid"]} <= jobs

    path = f"/dags/looped_cancelled/dagRuns/{run_id}/taskInstances/loop.train"
    body = {"new_state": "success", **coordinates(ti)}
    answer = pipeline.stack.api("PATCH", path, json=body)
    assert answer.status_code == 200, answer.text

    def is_gone() -> bool:
        return all(
            job["metadata"]["annotations"].get(REGION_ANNOTATION) != region(ti)
            for job in pipeline.jobs("looped_cancelled")
        )

    pipeline.until(is_gone, 60, "the workload to be gone")
    last = waiting(pipeline, "looped_cancelled", run_id, 2, "deferred")
    assert job_of(pipeline, last)["status"]["active"] == 1
    mark.touch()
    assert pipeline.finished("looped_cancelled", run_id) == "success"
    assert job_of(pipeline, first)["metadata"]["uid"] == kept
    assert job_of(pipeline, last)["status"]["succeeded"] == 1


def _identity(run_id: str, region: str) -> WorkloadIdentity:
    return WorkloadIdentity(
        orchestrator="airflow",
        dag_id="looped_cancelled",
        run_id=run_id,
        task_id="loop.train",
        region=region,
    )


async def _leave_behind(pipeline: Pipeline, run_id: str, region: str) -> str:
    """A second Job of an iteration that has ended, as a worker that nobody heard of again leaves it."""
    spec = WorkloadSpec(image="localhost/python:3.11", cmds=["python3", "-c", "import time; time.sleep(600)"])
    config = ClusterConfig(kubeconfig=str(pipeline.stack.kubeconfig))
    async with await ClusterClient.open(config) as client:
        left = await submit(
            client, check_workload(spec), _identity(run_id, region), namespace="default", epoch="9"
        )
        return left.uid


def _states(pipeline: Pipeline, run_id: str, regions: list[str]) -> list[TaskState]:
    """As ``nighttrain reap`` asks, of Airflow's REST API."""

    async def asked() -> list[TaskState]:
        async with AirflowAPI(pipeline.stack.airflow_uri) as states:
            return [await states.state(_identity(run_id, region)) for region in regions]

    with pytest.MonkeyPatch.context() as patch:
        pipeline.stack.api("GET", "/version")
        patch.setenv(TOKEN_VARIABLE, str(pipeline.stack._token))
        return run_sync(asked())
