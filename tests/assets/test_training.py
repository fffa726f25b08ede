"""A training asset when things go wrong: failures, retries, re-executions, two MLflow servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from helpers.mlflow_server import free_port, running_mlflow, unique
from helpers.polling import until
from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.training import training_asset
from nighttrain.assets.workload import Step, consume, run_workload
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import (
    ClusterUnreachableError,
    ConfigurationError,
    ObjectNotFoundError,
    RunWithoutModelError,
    TrackingUnreachableError,
)
from nighttrain.providers.local.cluster.store.resources import PODS
from nighttrain.providers.registry.models import ModelRegistry

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer
    from helpers.scripted_http import Scripted
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

NIGHTLY = Path(__file__).with_name("nightly.py")

Small = Callable[..., "WorkloadSpec"]
Jobs = Callable[[], list[dict[str, Any]]]


def asset(model: str, spec: WorkloadSpec, **options: Any) -> dg.AssetsDefinition:
    return training_asset(name="model", model_name=model, spec=spec, **options)


def runs_of(server: MLflowServer, experiment: str) -> list[dict[str, Any]]:
    """Child runs of an experiment."""
    found = server.call("GET", "experiments/get-by-name", experiment_name=experiment)["experiment"]
    body = {"experiment_ids": [found["experiment_id"]], "filter": "tags.`mlflow.parentRunId` LIKE '%'"}
    return list(server.call("POST", "runs/search", **body).get("runs", []))


def until_runs(cluster: EmbeddedCluster, argument: str) -> None:
    """Wait until a container with this argument runs: another process or thread started it."""

    def runs(pod: dict[str, Any]) -> bool:
        return pod["status"].get("phase") == "Running" and argument in pod["spec"]["containers"][0]["args"]

    until(
        lambda: any(map(runs, cluster.call(lambda store: store.list(PODS)[0]))), 60, f"a pod with {argument}"
    )


def experiments(server: MLflowServer) -> set[str]:
    found = server.call("POST", "experiments/search", max_results=1000)
    return {experiment["name"] for experiment in found["experiments"]}


def test_exit_code_3_fails_the_step_and_leaves_no_version(
    mlflow_server: MLflowServer, resources: dict[str, Any], instance: dg.DagsterInstance, small: Small
) -> None:
    model = unique("model")
    failing = asset(model, small("fail"))
    result = dg.materialize([failing], instance=instance, resources=resources, raise_on_error=False)

    assert not result.success
    (event,) = result.get_step_failure_events()
    error = event.step_failure_data.error
    assert error is not None
    assert error.cause is not None
    assert error.cause.cls_name == "ApplicationError"
    assert "exit code 3" in error.cause.message
    assert "the flights are late" in error.cause.message
    assert result.get_asset_materialization_events() == []
    (run,) = runs_of(mlflow_server, model)
    assert run["info"]["status"] == "FAILED"
    assert mlflow_server.versions(model) == []


def test_a_mistake_on_the_way_to_mlflow_is_not_tried_again(
    kubernetes: KubernetesResource,
    instance: dg.DagsterInstance,
    small: Small,
    jobs: Jobs,
    scripted: Scripted,
) -> None:
    scripted.says(401)
    model = unique("model")
    wrong = asset(model, small("train", "3.5"), retry_policy=dg.RetryPolicy(max_retries=2))
    resources = {"kubernetes": kubernetes, "mlflow": MLflowResource(tracking_uri=scripted.uri)}
    before = len(jobs())
    result = dg.materialize([wrong], instance=instance, resources=resources, raise_on_error=False)
    (event,) = result.get_step_failure_events()
    error = event.step_failure_data.error
    assert error is not None
    assert "TrackingUnauthorizedError" in str(error)
    assert len(scripted.requests) == 1
    assert len(jobs()) == before


def test_a_step_retry_makes_another_attempt_with_a_run_of_its_own(
    mlflow_server: MLflowServer,
    resources: dict[str, Any],
    instance: dg.DagsterInstance,
    small: Small,
    jobs: Jobs,
) -> None:
    model = unique("model")
    flaky = asset(model, small("fail-once"), retry_policy=dg.RetryPolicy(max_retries=1))
    result = dg.materialize([flaky], instance=instance, resources=resources)

    (made,) = result.asset_materializations_for_node("model")
    assert made.metadata["attempt"].value == 2
    assert sorted(job["metadata"]["labels"]["nighttrain.dev/attempt"] for job in jobs()) == ["1", "2"]
    runs = {tags_of(run)["nighttrain.attempt"]: run for run in runs_of(mlflow_server, model)}
    assert {attempt: run["info"]["status"] for attempt, run in runs.items()} == {
        "1": "FAILED",
        "2": "FINISHED",
    }
    assert tags_of(runs["2"])["nighttrain.try_number"] == "2"
    assert tags_of(runs["1"])["nighttrain.superseded_by"] == runs["2"]["info"]["run_id"]
    (version,) = mlflow_server.versions(model)
    assert version["run_id"] == runs["2"]["info"]["run_id"]


def tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]}


def test_until_its_result_is_consumed_a_re_execution_adopts_the_workload(
    mlflow_server: MLflowServer,
    kubernetes: KubernetesResource,
    mlflow: MLflowResource,
    small: Small,
    jobs: Jobs,
) -> None:
    model, root = unique("model"), unique("run")

    def execute(run_id: str) -> tuple[Any, str]:
        """What a step does up to the point where Dagster stores its materialization."""
        step = Step(job_name="nightly", root_run_id=root, run_id=run_id, name="model")
        finished = run_workload(
            dg.build_asset_context(),
            step,
            small("train", "2.0"),
            kubernetes=kubernetes,
            mlflow=mlflow,
            experiment_name=model,
        )

        async def register() -> str:
            async with mlflow.client() as client:
                run_id = finished.started.run_id
                return (await ModelRegistry(client).register(model, run_id=run_id)).version

        return finished, run_sync(register())

    first, version = execute(root)
    again, same = execute(unique("re-execution"))
    assert not first.started.workload.adopted
    assert again.started.workload.adopted
    assert again.started.workload.uid == first.started.workload.uid
    assert again.started.run_id == first.started.run_id
    assert same == version == "1"
    assert len(jobs()) == len(runs_of(mlflow_server, model)) == len(mlflow_server.versions(model)) == 1

    consume(again)
    anew, newer = execute(unique("re-execution"))
    assert (anew.started.workload.attempt, newer) == (2, "2")
    assert len(runs_of(mlflow_server, model)) == 2


def test_a_run_that_was_killed_is_taken_over_by_its_re_execution(
    mlflow_server: MLflowServer, cluster: EmbeddedCluster, jobs: Jobs, tmp_path: Path
) -> None:
    model = unique("model")
    command = [sys.executable, str(NIGHTLY), str(tmp_path), model, mlflow_server.uri, str(cluster.kubeconfig)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        try:
            until_runs(cluster, "slow")
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    again = subprocess.run([*command, "again"], capture_output=True, text=True, timeout=120)

    assert again.returncode == 0, again.stderr[-4000:]
    assert "Adopted Job" in again.stderr
    assert len(jobs()) == 1
    (run,) = runs_of(mlflow_server, model)
    assert run["info"]["status"] == "FINISHED"
    (version,) = mlflow_server.versions(model)
    assert version["run_id"] == run["info"]["run_id"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("moment", "materializations"), [("registered", 0), ("stored", 1)])
def test_a_run_that_dies_once_it_has_its_result_trains_no_second_time(
    mlflow_server: MLflowServer,
    cluster: EmbeddedCluster,
    jobs: Jobs,
    tmp_path: Path,
    moment: str,
    materializations: int,
) -> None:
    """Between the version and Dagster's word of it, and between that word and the note on the Job."""
    model = unique("model")
    command = [sys.executable, str(NIGHTLY), str(tmp_path), model, mlflow_server.uri, str(cluster.kubeconfig)]
    first = subprocess.run(
        command, env={**os.environ, "DIES_AT": moment}, capture_output=True, text=True, timeout=120
    )
    assert first.returncode == -signal.SIGKILL, first.stderr[-4000:]
    assert first.stderr.count("ASSET_MATERIALIZATION - ") == materializations
    (version,) = mlflow_server.versions(model)
    (job,) = jobs()
    assert "nighttrain.dev/consumed" not in job["metadata"]["annotations"]

    again = subprocess.run([*command, "again", "quick"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr[-4000:]
    assert "Adopted Job" in again.stderr
    assert [each["version"] for each in mlflow_server.versions(model)] == [version["version"]]
    (job,) = jobs()
    assert "nighttrain.dev/consumed" in job["metadata"]["annotations"]
    (run,) = runs_of(mlflow_server, model)
    assert run["info"]["status"] == "FINISHED"


@pytest.mark.parametrize("restored", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_run_in_the_trash_is_taken_over_once_it_is_restored_and_trained_anew_once_it_is_gone(
    mlflow_server: MLflowServer, cluster: EmbeddedCluster, jobs: Jobs, tmp_path: Path, restored: bool
) -> None:
    model = unique("model")
    command = [sys.executable, str(NIGHTLY), str(tmp_path), model, mlflow_server.uri, str(cluster.kubeconfig)]

    def execute(*more: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **variables}
        return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=120)

    first = execute(DIES_AT="trained")
    assert "mlflow runs restore --run-id" in first.stderr
    assert "re-execute the run" in first.stderr
    assert "clear" not in first.stderr
    (job,) = jobs()
    assert "nighttrain.dev/consumed" not in job["metadata"]["annotations"]
    variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
    (run_id,) = (variable["value"] for variable in variables if variable["name"] == "MLFLOW_RUN_ID")
    if restored:
        mlflow_server.call("POST", "runs/restore", run_id=run_id)
    else:
        mlflow_server.remove_for_good(run_id)
        gone = execute("again", "quick")
        assert f"run {run_id} was removed from MLflow for good" in gone.stderr
        assert "Re-execute the run" in gone.stderr
    again = execute("again", "quick")
    assert again.returncode == 0, again.stderr[-4000:]
    assert ("Adopted Job" in again.stderr) == restored
    assert len(jobs()) == (1 if restored else 2)
    (version,) = mlflow_server.versions(model)
    assert (version["run_id"] == run_id) == restored


def test_a_training_that_logs_no_model_says_so_and_can_be_executed_anew(
    mlflow_server: MLflowServer,
    resources: dict[str, Any],
    instance: dg.DagsterInstance,
    small: Small,
    jobs: Jobs,
) -> None:
    model = unique("model")
    with pytest.raises(RunWithoutModelError, match="logged no model"):
        dg.materialize([asset(model, small("nothing"))], instance=instance, resources=resources)
    (job,) = jobs()
    assert "nighttrain.dev/consumed" in job["metadata"]["annotations"]
    assert mlflow_server.versions(model) == []


def test_terminating_the_run_removes_the_workload(
    mlflow_server: MLflowServer,
    cluster: EmbeddedCluster,
    resources: dict[str, Any],
    instance: dg.DagsterInstance,
    small: Small,
    jobs: Jobs,
) -> None:
    model = unique("model")

    def terminate_once_it_runs() -> None:
        until_runs(cluster, "wait")
        # What Dagster's daemon and its run page do.
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=terminate_once_it_runs)
    other.start()
    try:
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            dg.materialize([asset(model, small("wait"))], instance=instance, resources=resources)
    finally:
        other.join()
    assert jobs() == []
    (run,) = runs_of(mlflow_server, model)
    assert run["info"]["status"] == "KILLED"


@pytest.mark.thorough
def test_two_servers_in_one_process_do_not_mix(
    mlflow_server: MLflowServer,
    kubernetes: KubernetesResource,
    mlflow: MLflowResource,
    small: Small,
    tmp_path: Path,
) -> None:
    model = unique("model")

    with running_mlflow(tmp_path / "there") as there:
        for resource, error in ((mlflow, "1.0"), (MLflowResource(tracking_uri=there.uri), "2.0")):
            assert dg.materialize(
                [asset(model, small("train", error))],
                resources={"kubernetes": kubernetes, "mlflow": resource},
            ).success
        for server, error in ((mlflow_server, 1.0), (there, 2.0)):
            (run,) = runs_of(server, model)
            metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
            assert metrics == {"train.mae": error}
            (version,) = server.versions(model)
            assert version["run_id"] == run["info"]["run_id"]


# Bad input: a clear message, and nothing is created.


def test_an_outage_of_mlflow_fails_no_training_and_a_re_execution_completes_its_run(
    kubernetes: KubernetesResource, instance: dg.DagsterInstance, small: Small, jobs: Jobs
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    resources = {
        "kubernetes": kubernetes,
        "mlflow": MLflowResource(tracking_uri=address, retry_seconds=0),
    }
    with pytest.raises(TrackingUnreachableError, match=address):
        dg.materialize([asset(unique("model"), small("fail"))], instance=instance, resources=resources)
    assert len(jobs()) == 1


def test_the_cluster_cannot_be_reached(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    mlflow: MLflowResource,
    instance: dg.DagsterInstance,
    small: Small,
    tmp_path: Path,
) -> None:
    address = f"127.0.0.1:{free_port()}"
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig.read_text().replace(f"127.0.0.1:{cluster.port}", address))
    resources = {"kubernetes": KubernetesResource(kubeconfig=str(kubeconfig)), "mlflow": mlflow}
    model = unique("model")
    with pytest.raises(ClusterUnreachableError, match=address):
        dg.materialize([asset(model, small("train", "1"))], instance=instance, resources=resources)
    assert model not in experiments(mlflow_server)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"container_resources": {"limits": {"memory": "much"}}}, ConfigurationError, "memory"),
        ({"labels": {"team": "a b"}}, ConfigurationError, "labels"),
        ({"namespace": "nowhere"}, ObjectNotFoundError, "nowhere"),
    ],
)
def test_a_job_that_cannot_be(
    mlflow_server: MLflowServer,
    resources: dict[str, Any],
    instance: dg.DagsterInstance,
    small: Small,
    jobs: Jobs,
    change: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    model = unique("model")
    with pytest.raises(error, match=message):
        dg.materialize(
            [asset(model, replace(small("train", "1"), **change))], instance=instance, resources=resources
        )
    assert jobs() == []
    assert model not in experiments(mlflow_server)
