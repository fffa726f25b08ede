"""What the version before wrote into clusters, MLflow and Airflow is understood."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.module_loading import import_string

from helpers.mlflow_server import unique
from nighttrain.providers.attempts.attempt import StartedWorkload
from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
from nighttrain.providers.kubernetes.api.client import (
    DEPLOYMENTS,
    JOBS,
    SERVICES,
    ClusterClient,
    ClusterConfig,
)
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.tracking.config import TrackingConfig
from nighttrain.providers.tracking.runs import Lineage, RunKey

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.mlflow_server import MLflowServer

WRITTEN: dict[str, Any] = json.loads(Path(__file__).with_name("written_before.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}) as running:
        yield running


@pytest.fixture
def config(cluster: EmbeddedCluster) -> ClusterConfig:
    return ClusterConfig(kubeconfig=str(cluster.kubeconfig))


def test_the_same_spec_makes_the_same_job() -> None:
    """Its hash too: an attempt that the version before started is adopted, and not cancelled, by it."""
    workload = check_workload(WorkloadSpec(**WRITTEN["spec"]))
    assert build_job(workload, WorkloadIdentity(**WRITTEN["identity"]), 2) == WRITTEN["job"]


def test_a_tasks_runs_are_found_by_the_same_key() -> None:
    key = RunKey(**WRITTEN["identity"])
    assert (key.value, key.parent.value) == (WRITTEN["run_key"], WRITTEN["parent_key"])


@pytest.mark.parametrize("name", WRITTEN["triggers"])
def test_a_stored_trigger_is_made_again(name: str) -> None:
    path, arguments = WRITTEN["triggers"][name]
    assert import_string(path)(**arguments).serialize() == (path, arguments)


def test_what_a_deferred_task_remembers_is_read() -> None:
    assert StartedWorkload.from_dict(WRITTEN["started"]).to_dict() == WRITTEN["started"]


@pytest.mark.slow
@pytest.mark.mlflow
async def test_a_job_and_its_runs_are_adopted_and_settled(
    config: ClusterConfig, mlflow_server: MLflowServer
) -> None:
    experiment = unique("nightly")
    experiment_id = mlflow_server.experiment(experiment)
    parent = _run(mlflow_server, experiment_id, WRITTEN["parent_tags"])
    run = _run(mlflow_server, experiment_id, {**WRITTEN["run_tags"], "mlflow.parentRunId": parent})
    written = copy.deepcopy(WRITTEN["submitted"])
    for variable in written["spec"]["template"]["spec"]["containers"][0]["env"]:
        known = {"MLFLOW_RUN_ID": run, "MLFLOW_EXPERIMENT_ID": experiment_id}
        variable["value"] = known.get(variable["name"], variable["value"])
    async with await ClusterClient.open(config) as client:
        job = await client.create(JOBS, "default", written)
    whose = {name: WRITTEN["run_tags"][f"nighttrain.{name}"] for name in ("dag_id", "run_id", "task_id")}
    work = TrackedWorkload(
        cluster=config,
        tracking=TrackingConfig(uri=mlflow_server.uri),
        tracking_uri_for_pods=mlflow_server.uri,
        spec=WorkloadSpec(image="py", cmds=["python", "-c", "print('trained')"], termination_grace_period=1),
        identity=WorkloadIdentity(orchestrator="airflow", **whose),
        epoch=WRITTEN["run_tags"]["nighttrain.epoch"],
        experiment_name=experiment,
        run_name="train",
        lineage=partial(Lineage, orchestrator="airflow", **whose),
    )
    started = await work.start()
    assert (started.workload.uid, started.workload.adopted) == (job["metadata"]["uid"], True)
    assert (started.run_id, started.parent_run_id) == (run, parent)
    attempt = work.attempt(started)
    outcome = await attempt.follow(timeouts=Timeouts(60))
    await attempt.settle(outcome)
    await attempt.mark_consumed(outcome)
    assert [_status(mlflow_server, each) for each in (run, parent)] == ["FINISHED", "FINISHED"]


async def test_an_endpoint_is_read(config: ClusterConfig) -> None:
    async with await ClusterClient.open(config) as client:
        for resource, name in ((DEPLOYMENTS, "deployment"), (SERVICES, "service")):
            written = copy.deepcopy(WRITTEN[name])
            written["metadata"]["namespace"] = "default"
            await client.create(resource, "default", written)
        status = await KubernetesDeployments(client).status("delay", "default")
    assert status is not None
    assert (status.stable_version, status.previous_version) == ("7", "6")
    assert [version.version for version in status.versions] == ["7"]


def _run(server: MLflowServer, experiment_id: str, tags: dict[str, str]) -> str:
    given = [{"key": key, "value": value} for key, value in tags.items()]
    made = server.call("POST", "runs/create", experiment_id=experiment_id, start_time=1, tags=given)
    return str(made["run"]["info"]["run_id"])


def _status(server: MLflowServer, run_id: str) -> str:
    return str(server.call("GET", "runs/get", run_id=run_id)["run"]["info"]["status"])
