"""What an outage of MLflow may and may not do to a training and its run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from helpers.container_code import lasts_until
from helpers.tracked_training import GOES_ON, TRAINING, finish, outage, runs_of, tracked
from nighttrain.providers.errors import TrackingUnreachableError
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient
from nighttrain.providers.kubernetes.api.resources import SECRETS
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.run_tree import RunTree

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.local.cluster.server import EmbeddedCluster


async def test_a_training_starts_while_mlflow_is_down_and_its_own_run_is_taken_over(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, TRAINING)
        started = await work.start()
        assert started.run_id == ""
        await mlflow.end()
        outcome = await finish(work, started)
        assert outcome.succeeded, outcome.explain()
        closed = (await work.attempt(started).settle(outcome)).started
        child, parent = sorted(await runs_of(mlflow_server, work), key=lambda run: "rmse" not in run.metrics)
    assert (child.run_id, child.status, child.metrics) == (closed.run_id, "FINISHED", {"rmse": 1.5})
    assert child.tags["mlflow.parentRunId"] == parent.run_id == closed.parent_run_id
    assert child.tags["nighttrain.job_uid"] == started.workload.uid
    assert parent.status == "FINISHED"


async def test_what_needs_the_runs_id_does_not_start_without_a_run(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    code = """if True:
        import os, sys
        assert os.environ["OUT"] == "/out/" + os.environ["MLFLOW_RUN_ID"]
        assert os.environ["DB"].endswith(":pw@db")
    """
    secret = {"metadata": {"name": "db", "namespace": "default"}, "stringData": {"password": "pw"}}
    first = {
        "name": "first",
        "image": "py",
        "command": ["python", "-c", "import os; os.environ['MLFLOW_RUN_ID']"],
    }
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, code)
        async with await ClusterClient.open(work.cluster) as client:
            await client.create(SECRETS, "default", {"apiVersion": "v1", "kind": "Secret", **secret})
        spec = replace(
            work.spec,
            env_vars={"OUT": "/out/$(MLFLOW_RUN_ID)", "DB": "postgresql://me:$(DB_PASS)@db"},
            secrets=[
                SimpleNamespace(deploy_type="env", deploy_target="DB_PASS", secret="db", key="password")
            ],
            init_containers=[first],
        )
        work = replace(work, spec=spec)
        with pytest.raises(TrackingUnreachableError, match=r"\$\(MLFLOW_RUN_ID\), which nobody knows"):
            await work.start()
        async with await ClusterClient.open(work.cluster) as client:
            jobs = (await client.list(JOBS, "default"))["items"]
        labels = work.identity.labels(1)
        assert not [job for job in jobs if labels.items() <= job["metadata"]["labels"].items()]
        await mlflow.end()
        started = await work.start()
        outcome = await finish(work, started)
        assert outcome.succeeded, outcome.explain()


@pytest.mark.parametrize("retry", ["during the outage", "after the outage"])
async def test_a_retry_of_what_started_during_the_outage_opens_no_second_run(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, tmp_path: Path, retry: str
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, TRAINING + lasts_until(tmp_path / "go"))
        first = await work.start()
        if retry == "after the outage":
            await mlflow.end()
        second = await work.start()
        assert (second.workload.uid, second.run_id) == (first.workload.uid, "")
        if retry == "during the outage":
            await mlflow.end()
        (tmp_path / "go").touch()
        outcome = await finish(work, second)
        await work.attempt(second).settle(outcome)
        await work.attempt(second).settle(outcome)
        assert outcome.succeeded
        assert len(await runs_of(mlflow_server, work)) == 2  # one parent, one child


async def test_a_run_whose_making_was_never_confirmed_gives_way_to_the_containers_own(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, TRAINING)
        started = await work.start()
        # The outage began between the making of the run and its answer.
        async with MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as client:
            tree = RunTree(client)
            experiment = await tree.ensure_experiment(work.experiment_name)
            parent = await tree.open_parent(experiment, work.run_key.parent, name="night")
            opening = work.attempt(started).run.opening
            empty = await tree.open_attempt(experiment, work.run_key, name="train", opening=opening)
        await mlflow.end()
        outcome = await finish(work, started)
        closed = (await work.attempt(started).settle(outcome)).started
        runs = await runs_of(mlflow_server, work)
    assert closed.run_id != empty.run_id
    assert {run.run_id for run in runs} == {closed.run_id, parent.run_id}
    assert {run.status for run in runs} == {"FINISHED"}


async def test_two_who_take_over_a_training_that_opened_no_run_agree_on_one(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, "pass")
        started = await work.start()
        outcome = await finish(work, started)
        await mlflow.end()
        closed = await asyncio.gather(*(work.attempt(started).settle(outcome) for _ in range(3)))
        assert len({each.run.run_id for each in closed}) == 1
        assert len(await runs_of(mlflow_server, work)) == 2


async def test_an_outage_at_the_end_loses_nothing(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    from nighttrain.providers.errors import TrackingUnreachableError

    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING)
        started = await work.start()
        outcome = await finish(work, started)
        await mlflow.begin()
        with pytest.raises(TrackingUnreachableError):
            await work.attempt(started).settle(outcome)
        await mlflow.end()
        closed = (await work.attempt(started).settle(outcome)).started
        assert closed == started
        assert {run.status for run in await runs_of(mlflow_server, work)} == {"FINISHED"}


async def test_cancelling_during_an_outage_removes_the_workload(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON)
        started = await work.start()
        await work.attempt(started).cancel()
        outcome = await finish(work, started)
    assert outcome.reason == "JobDeleted"
