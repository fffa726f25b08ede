"""Runs, parents and experiments that somebody deleted fail no finished training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.tracked_training import TRAINING, finish, outage, runs_of, tracked

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.local.cluster.server import EmbeddedCluster


@pytest.mark.parametrize("deleted", ["run", "parent", "experiment", "experiment of an unknown run"])
async def test_a_finished_training_is_not_failed_for_what_lies_in_the_trash(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, deleted: str, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = deleted.endswith("unknown run")
    async with outage(mlflow_server, begun=unknown) as mlflow:
        work = tracked(cluster, mlflow, "pass" if unknown else TRAINING)
        experiment = mlflow_server.experiment(work.experiment_name)
        started = await work.start()
        if unknown:
            await mlflow.end()
        outcome = await finish(work, started)
        if deleted.startswith("experiment"):
            mlflow_server.call("POST", "experiments/delete", experiment_id=experiment)
        else:
            gone = started.run_id if deleted == "run" else started.parent_run_id
            mlflow_server.call("POST", "runs/delete", run_id=gone)
        closed = (await work.attempt(started).settle(outcome)).started
        assert await work.attempt(closed).logged_models() == []
        await work.attempt(closed).mark_consumed(outcome)
    if deleted != "parent":
        assert "restore --" in caplog.text
        return
    (child,) = await runs_of(mlflow_server, work)
    assert child.status == "FINISHED"


async def test_a_parent_in_the_trash_is_followed_by_another(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING)
        first = await work.start()
        mlflow_server.call("POST", "runs/delete", run_id=first.parent_run_id)
        second = await work.start()
        assert second.run_id == first.run_id
        assert second.parent_run_id != first.parent_run_id
        outcome = await finish(work, second)
        await work.attempt(second).settle(outcome)
        child, parent = sorted(await runs_of(mlflow_server, work), key=lambda run: "rmse" not in run.metrics)
    assert (child.tags["mlflow.parentRunId"], child.status, parent.status) == (
        parent.run_id,
        "FINISHED",
        "FINISHED",
    )


async def test_a_run_that_was_removed_for_good_does_not_fail_its_training(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, "pass")
        started = await work.start()
        outcome = await finish(work, started)
        mlflow_server.call("POST", "runs/delete", run_id=started.run_id)
        mlflow_server.remove_for_good(started.run_id)
        closed = (await work.attempt(started).settle(outcome)).started
        assert await work.attempt(closed).logged_models() == []
    assert f"its run {started.run_id} was removed from MLflow for good" in caplog.text
    assert "Train again to have a model" in caplog.text
