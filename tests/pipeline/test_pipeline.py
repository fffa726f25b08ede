"""nighttrain in a real Airflow: scheduler, triggerer, killed workers, clients nobody here wrote."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from datetime import UTC, datetime
from subprocess import run
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(420)]


@pytest.mark.thorough
def test_stock_pod_operator_runs_to_success_and_to_failure(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("stock_operators")
    assert pipeline.finished("stock_operators", run_id) == "failed"
    states = {
        task: pipeline.task("stock_operators", run_id, task)["state"]
        for task in ("succeeds_blocking", "succeeds_deferrable", "fails_blocking", "fails_deferrable")
    }
    assert states == {
        "succeeds_blocking": "success",
        "succeeds_deferrable": "success",
        "fails_blocking": "failed",
        "fails_deferrable": "failed",
    }
    assert "it ran" in pipeline.log("stock_operators", run_id, "succeeds_blocking")
    phases = sorted(
        pod["status"]["phase"]
        for pod in pipeline.kubernetes("/api/v1/namespaces/default/pods")["items"]
        if pod["metadata"]["labels"].get("dag_id") == "stock_operators"
    )
    assert phases == ["Failed", "Failed", "Succeeded", "Succeeded"]


def test_worker_killed_in_mid_training_leaves_one_job_one_run_one_version(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("worker_killed")

    def training() -> int | None:
        task = pipeline.task("worker_killed", run_id, "train")
        logged = task["state"] == "running" and "training started" in pipeline.log(
            "worker_killed", run_id, "train"
        )
        return task["pid"] if logged else None

    pid = pipeline.until(training, 90, "the training to start in the worker")
    os.kill(pid, signal.SIGKILL)

    assert pipeline.finished("worker_killed", run_id) == "success"
    assert pipeline.task("worker_killed", run_id, "train")["try_number"] == 2
    assert "Adopted Job" in pipeline.log("worker_killed", run_id, "train")
    (job,) = pipeline.jobs("worker_killed")
    assert job["status"]["succeeded"] == 1
    children = [r for r in pipeline.mlflow_runs("worker_killed") if _tags(r).get("mlflow.parentRunId")]
    (child,) = children
    assert child["info"]["status"] == "FINISHED"
    (version,) = pipeline.versions("worker-killed")
    assert version["run_id"] == child["info"]["run_id"]
    tags = _tags(version)
    assert tags["nighttrain.job"] == f"default/{job['metadata']['name']}"
    assert tags["nighttrain.dag_run"] == f"worker_killed/{run_id}"
    assert len(tags["nighttrain.artifact.sha256"]) == 64
    lineage = _tags(child)
    assert lineage["nighttrain.job_uid"] == job["metadata"]["uid"]
    assert lineage["nighttrain.run_id"] == run_id
    assert "/dags/worker_killed/runs/" in unquote(version["description"])
    links = pipeline.links("worker_killed", run_id, "train")
    assert links["MLflow run"].endswith(f"/runs/{child['info']['run_id']}")
    assert links["Workload"].endswith(f"/jobs/{job['metadata']['name']}")
    assert pipeline.links("worker_killed", run_id, "register")["Model version"].endswith("/versions/1")


def test_exit_code_3_fails_the_task_with_its_last_lines(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("exit_3")
    assert pipeline.finished("exit_3", run_id) == "failed"
    log = pipeline.log("exit_3", run_id, "train")
    assert "exit code 3" in log
    assert "the data are gone" in log
    assert pipeline.task("exit_3", run_id, "register")["state"] == "upstream_failed"
    statuses = {
        bool(_tags(r).get("mlflow.parentRunId")): r["info"]["status"] for r in _runs(pipeline, "exit_3")
    }
    assert statuses == {True: "FAILED", False: "FAILED"}
    assert pipeline.versions("exit-3") == []


def test_a_retry_policy_tells_the_training_codes_failures_from_others(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("told_apart")
    assert pipeline.finished("told_apart", run_id) == "failed"
    task = pipeline.task("told_apart", run_id, "train")
    assert (task["try_number"], task["max_tries"]) == (1, 2)
    assert len(pipeline.jobs("told_apart")) == 1


def test_a_function_in_the_dag_file_is_the_training_code(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("train_function")
    state = pipeline.finished("train_function", run_id)
    assert state == "success", pipeline.log("train_function", run_id, "report")
    trained = {
        tuple(sorted((given["key"], given["value"]) for given in run["data"]["params"])): {
            metric["key"]: metric["value"] for metric in run["data"].get("metrics", [])
        }
        for run in _runs(pipeline, "train_function")
        if _tags(run).get("mlflow.parentRunId")
    }
    assert trained == {
        (("depth", "3"), ("rate", "0.5")): {"mae": 3.0, "loss": 0.5},
        (("depth", "3"), ("rate", "1.0")): {"mae": 3.0, "loss": 1.0},
        (("depth", "3"), ("rate", "2.0")): {"mae": 6.0, "loss": 2.0},
    }
    # Picked from the mapped ones by what they returned.
    picked = pipeline.log("train_function", run_id, "pick")
    assert "loss: run" in picked
    assert "(index 0) has the least, 1, of 2" in picked
    assert "fitting with 0.5 on ['2013-09-04', '2013-09-05']" in pipeline.log("train_function", run_id, "fit")
    files = {
        each["metadata"]["name"]: each["data"]
        for each in pipeline.kubernetes("/api/v1/namespaces/default/configmaps")["items"]
        if each["metadata"].get("labels", {}).get("nighttrain.dev/dag-id") == "train_function"
    }
    assert files.keys() == {job["metadata"]["name"] for job in pipeline.jobs("train_function")}
    assert len(files) == 3
    assert not [name for name in files if "NOT_SHIPPED" in files[name]["train.py"]]
    assert f'"{run_id}"' in "".join(data["arguments.json"] for data in files.values())


def test_marking_a_deferred_training_as_failed_removes_its_workload(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("cancelled")
    pipeline.until(
        lambda: (
            pipeline.task("cancelled", run_id, "train")["state"] == "deferred"
            and "[cancelled-train" in pipeline.log("cancelled", run_id, "train")
        ),
        90,
        "the triggerer to pass on the training's first line",
    )
    answer = pipeline.stack.api(
        "PATCH",
        f"/dags/cancelled/dagRuns/{run_id}/taskInstances/train",
        json={"new_state": "failed"},
    )
    assert answer.status_code == 200, answer.text
    pipeline.until(lambda: not pipeline.jobs("cancelled"), 60, "the workload to be gone")


@pytest.mark.thorough
def test_the_reaper_removes_what_no_task_waits_for_and_nothing_else(pipeline: Pipeline) -> None:
    from nighttrain.providers.attempts.lifecycle import submit
    from nighttrain.providers.bridge import run_sync
    from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
    from nighttrain.providers.kubernetes.job.checked import check_workload
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity

    async def leave_behind() -> None:
        """What a DAG run that was deleted leaves."""
        spec = WorkloadSpec(
            image="localhost/python:3.11", cmds=["python3", "-c", "import time; time.sleep(600)"]
        )
        gone = WorkloadIdentity(
            orchestrator="airflow", dag_id="left_behind", run_id="deleted", task_id="train"
        )
        config = ClusterConfig(kubeconfig=str(pipeline.stack.kubeconfig))
        async with await ClusterClient.open(config) as client:
            await submit(client, check_workload(spec), gone, namespace="default")

    run_id = pipeline.trigger("cancelled")
    pipeline.until(
        lambda: pipeline.task("cancelled", run_id, "train")["state"] == "deferred", 90, "a task that waits"
    )
    run_sync(leave_behind())
    assert pipeline.finished("reaping", pipeline.trigger("reaping")) == "success"
    assert not pipeline.jobs("left_behind")
    assert [job for job in pipeline.jobs("cancelled") if job["status"].get("active")]
    pipeline.stack.api(
        "PATCH", f"/dags/cancelled/dagRuns/{run_id}/taskInstances/train", json={"new_state": "failed"}
    )
    pipeline.until(lambda: not pipeline.jobs("cancelled"), 60, "the workload to be gone")


def test_clearing_a_deferred_training_ends_it_and_trains_anew(pipeline: Pipeline, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run_id = pipeline.trigger("cleared", mark=str(mark))
    _until_deferred_training(pipeline, "cleared", run_id, mark)
    (first,) = pipeline.jobs("cleared")
    answer = pipeline.stack.api(
        "POST",
        "/dags/cleared/clearTaskInstances",
        json={"dry_run": False, "dag_run_id": run_id, "task_ids": ["train"], "only_failed": False},
    )
    assert answer.status_code == 200, answer.text
    assert pipeline.finished("cleared", run_id) == "success"
    (second,) = [job for job in pipeline.jobs("cleared") if "succeeded" in job["status"]]
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert first["metadata"]["uid"] not in {
        job["metadata"]["uid"] for job in pipeline.jobs("cleared") if job["status"].get("active")
    }
    statuses = sorted(r["info"]["status"] for r in _runs(pipeline, "cleared"))
    assert statuses == ["FINISHED", "FINISHED", "KILLED"]  # the DAG run's, and one for each attempt


def test_an_evicted_training_is_tried_again_without_using_up_a_retry(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    run_id = pipeline.trigger("evicted", mark=str(mark))
    _until_deferred_training(pipeline, "evicted", run_id, mark)
    (first,) = pipeline.jobs("evicted")
    pipeline.evict(first["metadata"]["name"])
    assert pipeline.finished("evicted", run_id) == "success"
    task = pipeline.task("evicted", run_id, "train")
    assert (task["try_number"], task["max_tries"]) == (1, 0)
    assert "starting another (1 of 3)" in pipeline.log("evicted", run_id, "train")
    attempts = sorted(job["metadata"]["labels"]["nighttrain.dev/attempt"] for job in pipeline.jobs("evicted"))
    assert attempts == ["1", "2"]
    statuses = sorted(r["info"]["status"] for r in _runs(pipeline, "evicted"))
    assert statuses == ["FAILED", "FINISHED", "FINISHED"]  # the first attempt's, the second's, the DAG run's


def _until_deferred_training(pipeline: Pipeline, dag_id: str, run_id: str, mark: Path) -> None:
    pipeline.until(
        lambda: mark.exists() and pipeline.task(dag_id, run_id, "train")["state"] == "deferred",
        90,
        "the training to run while its task is deferred",
    )


def test_image_that_can_never_start_leaves_no_workload(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("cannot_start")
    assert pipeline.finished("cannot_start", run_id) == "failed"
    assert "InvalidImageName" in pipeline.log("cannot_start", run_id, "train")
    pipeline.until(lambda: not pipeline.jobs("cannot_start"), 30, "the workload to be gone")


@pytest.mark.thorough
def test_timed_out_training_leaves_no_workload(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("timed_out")
    assert pipeline.finished("timed_out", run_id) == "failed"
    timed_out = {"train_deferred": "TaskDeferralTimeout", "train_blocking": "AirflowTaskTimeout"}
    for task, error in timed_out.items():
        assert pipeline.task("timed_out", run_id, task)["state"] == "failed"
        log = pipeline.log("timed_out", run_id, task)
        # It ran, and nothing but its time's end ended it.
        assert ("waiting" in log, error in log) == (True, True), log
    pipeline.until(lambda: not pipeline.jobs("timed_out"), 30, "the workloads to be gone")
    children = [run for run in _runs(pipeline, "timed_out") if _tags(run).get("mlflow.parentRunId")]
    assert [run["info"]["status"] for run in children] == ["KILLED", "KILLED"]


@pytest.mark.thorough
def test_training_that_ends_while_mlflow_is_away_is_written_down_later(pipeline: Pipeline) -> None:
    run_id = pipeline.trigger("mlflow_away")
    pipeline.until(
        lambda: pipeline.task("mlflow_away", run_id, "train")["state"] == "deferred",
        90,
        "the training to run",
    )
    pipeline.stack.stop_server("mlflow")
    pipeline.until(
        lambda: "waiting for MLflow to write it down" in pipeline.log("mlflow_away", run_id, "train"),
        180,
        "the task to notice that MLflow is away",
    )
    assert pipeline.task("mlflow_away", run_id, "train")["state"] in {"running", "deferred"}
    pipeline.stack.start_mlflow()
    pipeline.stack.wait_mlflow()
    assert pipeline.finished("mlflow_away", run_id) == "success"
    statuses = [run["info"]["status"] for run in pipeline.mlflow_runs("mlflow_away")]
    assert statuses == ["FINISHED", "FINISHED"]
    assert len(pipeline.jobs("mlflow_away")) == 1


def test_registry_sensors_see_what_somebody_does_in_mlflow(pipeline: Pipeline, model_by_hand: Any) -> None:
    run_id = pipeline.trigger("sensing")
    pipeline.until(
        lambda: pipeline.task("sensing", run_id, "version_deferred")["state"] == "deferred",
        60,
        "the deferral",
    )
    version = model_by_hand("sensed")
    pipeline.mlflow("POST", "registered-models/alias", name="sensed", alias="champion", version=version)
    pipeline.mlflow(
        "POST",
        "model-versions/transition-stage",
        name="sensed",
        version=version,
        stage="Production",
        archive_existing_versions=False,
    )
    assert pipeline.finished("sensing", run_id) == "success"


@pytest.mark.thorough
def test_stage_transition_by_hand_deploys_that_version(pipeline: Pipeline, model_by_hand: Any) -> None:
    """With MLflow's own client: the deployment DAG runs, and the endpoint serves that version."""
    first, second = model_by_hand("airline-delay", answer=1.0), model_by_hand("airline-delay", answer=2.0)
    pipeline.unpause("deploy_on_stage_transition")

    moved = _transition(pipeline.stack.mlflow_uri, "airline-delay", first)
    run_one = pipeline.until(lambda: pipeline.runs("deploy_on_stage_transition"), 60, "the first DAG run")[0]
    assert pipeline.finished("deploy_on_stage_transition", run_one["dag_run_id"], 240) == "success"
    assert _predict(pipeline) == [1.0]
    links = pipeline.links("deploy_on_stage_transition", run_one["dag_run_id"], "rollout")
    assert links["Model version"].endswith(f"/models/airline-delay/versions/{first}")
    assert httpx.get(f"{links['Endpoint']}/ping").status_code == 200
    assert links["Rollout picture"].endswith("/artifacts/nighttrain/rollout.svg")

    moved = _transition(pipeline.stack.mlflow_uri, "airline-delay", second)
    run_two = pipeline.until(
        lambda: [r for r in pipeline.runs("deploy_on_stage_transition") if r != run_one and _after(r, moved)],
        60,
        "the second DAG run",
    )[0]
    pipeline.until(
        lambda: pipeline.run("deploy_on_stage_transition", run_two["dag_run_id"])["start_date"],
        60,
        "its start",
    )
    started = pipeline.run("deploy_on_stage_transition", run_two["dag_run_id"])["start_date"]
    seconds = (datetime.fromisoformat(started) - moved).total_seconds()
    print(f"\nfrom the stage transition to the DAG run's start: {seconds:.1f} s")
    assert pipeline.finished("deploy_on_stage_transition", run_two["dag_run_id"], 240) == "success"
    assert _predict(pipeline) == [2.0]
    service = pipeline.kubernetes("/api/v1/namespaces/default/services/airline-delay")
    assert service["spec"]["selector"]["nighttrain.dev/version"] == second

    rollback = pipeline.trigger("rolling_back")
    assert pipeline.finished("rolling_back", rollback) == "success"
    assert _predict(pipeline) == [1.0]
    stages = {version["version"]: version["current_stage"] for version in pipeline.versions("airline-delay")}
    # Other tests' nights may have versions of this model, too: they are in no stage.
    assert {version: stage for version, stage in stages.items() if stage != "None"} == {
        first: "Production",
        second: "Archived",
    }
    entries = pipeline.mlflow_runs("nighttrain history of airline-delay")
    reasons = [
        tags["nighttrain.history.reason"]
        for tags in map(_tags, entries)
        if tags["nighttrain.history.kind"] == "rollback"
    ]
    assert reasons == ["the second answers 2"]


def _after(dag_run: dict[str, Any], moment: datetime) -> bool:
    return datetime.fromisoformat(dag_run["run_after"]) >= moment


def _runs(pipeline: Pipeline, experiment: str) -> list[dict[str, Any]]:
    return pipeline.mlflow_runs(experiment)


def _tags(thing: dict[str, Any]) -> dict[str, str]:
    tags = thing["data"]["tags"] if "data" in thing else thing.get("tags", [])
    return {tag["key"]: tag["value"] for tag in tags}


def _predict(pipeline: Pipeline) -> Any:
    service = pipeline.kubernetes("/api/v1/namespaces/default/services/airline-delay")
    address = f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}/invocations"
    answer = httpx.post(address, json={"inputs": [[0.0]]}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def _transition(uri: str, model: str, version: str) -> datetime:
    """MLflow's own client, in a process of its own: importing mlflow takes seconds and stays."""
    code = f"""
        import warnings; warnings.simplefilter("ignore")
        from datetime import datetime, timezone
        from mlflow import MlflowClient
        client = MlflowClient({uri!r})
        before = datetime.now(timezone.utc)
        client.transition_model_version_stage(
            {model!r}, {version!r}, "Production", archive_existing_versions=True
        )
        print("moved", before.isoformat())
    """
    done = run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("moved "))
    return datetime.fromisoformat(line.split()[1]).astimezone(UTC)


@pytest.fixture
def model_by_hand(pipeline: Pipeline, tmp_path: Path) -> Any:
    """Logs and registers a real model as a person would, with MLflow's own client; gives its version."""

    def make(name: str, answer: float = 1.0) -> str:
        code = f"""
            import mlflow
            mlflow.set_tracking_uri({pipeline.stack.mlflow_uri!r})
            mlflow.set_experiment("by-hand")
            class Constant(mlflow.pyfunc.PythonModel):
                def predict(self, context, model_input, params=None):
                    return [{answer}] * len(model_input)
            with mlflow.start_run():
                info = mlflow.pyfunc.log_model(
                    name="model", python_model=Constant(), pip_requirements=["mlflow"],
                    registered_model_name={name!r},
                )
            print("version", info.registered_model_version)
        """
        done = run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        assert done.returncode == 0, done.stderr
        line = next(line for line in done.stdout.splitlines() if line.startswith("version "))
        return line.split()[1]

    return make
