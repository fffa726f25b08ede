"""The run of a task that was killed is found again by what its trigger wrote down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from helpers.mlflow_server import unique
from nighttrain.providers.attempts.attempt_run import AttemptRun, settle_parent
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import JOB_UID_TAG, RUN_KEY_TAG, SUPERSEDED_TAG, RunKey, RunStatus

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer

pytestmark = [pytest.mark.mlflow, pytest.mark.slow]


async def test_a_killed_iteration_closes_its_own_run(mlflow_server: MLflowServer) -> None:
    """And a trigger from before there were regions still finds the one of a task outside of loops."""
    experiment, run_id = unique("killed"), unique("r")
    outside = RunKey(orchestrator="airflow", dag_id="d", run_id=run_id, task_id="t")
    first = RunKey(orchestrator="airflow", dag_id="d", run_id=run_id, task_id="t", region="019b:0")
    second = RunKey(orchestrator="airflow", dag_id="d", run_id=run_id, task_id="t", region="019b:1")
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        tree = RunTree(client)
        experiment_id = await tree.ensure_experiment(experiment)
        parent = await tree.open_parent(experiment_id, outside, name="parent")
        for key in (outside, first, second):
            await tree.open_attempt(
                experiment_id, key, name="t", parent_run_id=parent.run_id, opening=key.value
            )
        killed = AttemptRun(key=second, experiment_name=experiment, run_name="t", opening=second.value)
        await _close(tree, killed.wanted())
        assert await _statuses(mlflow_server, experiment_id) == {second.value: "KILLED"}
        before = AttemptRun(key=outside, experiment_name=experiment, run_name="t").wanted()
        del before["region"], before["opening"]
        await _close(tree, before)
        assert await _statuses(mlflow_server, experiment_id) == {
            second.value: "KILLED",
            outside.value: "KILLED",
        }


async def test_a_killed_attempt_tells_the_run_that_another_process_had_opened_for_it(
    mlflow_server: MLflowServer,
) -> None:
    key = RunKey(orchestrator="airflow", dag_id="d", run_id=unique("r"), task_id="t")
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        tree = RunTree(client)
        experiment_id = await tree.ensure_experiment(unique("killed"))
        parent = await tree.open_parent(experiment_id, key, name="parent")
        # Its process died before it had made the Job.
        left = await tree.open_attempt(experiment_id, key, name="t", parent_run_id=parent.run_id)
        run = await tree.open_attempt(experiment_id, key, name="t", parent_run_id=parent.run_id)
        await tree.set_tags(run.run_id, {JOB_UID_TAG: "uid"})
        await _close(tree, {}, run_id=run.run_id)
        left, parent = await tree.get(left.run_id), await tree.get(parent.run_id)
    assert (left.status, left.tags[SUPERSEDED_TAG]) == ("KILLED", run.run_id)
    assert parent.status == "KILLED"


async def _close(tree: RunTree, wanted: dict[str, Any], **ids: str) -> None:
    run = await AttemptRun.from_dicts(ids, wanted).find(tree)
    await run.close(tree, RunStatus.KILLED, {})
    await settle_parent(tree, run.parent_run_id)


async def _statuses(server: MLflowServer, experiment_id: str) -> dict[str, str]:
    """Of the runs that do not run any more, by key."""
    found = server.call("POST", "runs/search", experiment_ids=[experiment_id])["runs"]
    keys = {
        run["info"]["run_id"]: tag["value"]
        for run in found
        for tag in run["data"]["tags"]
        if tag["key"] == RUN_KEY_TAG
    }
    return {
        keys[run["info"]["run_id"]]: run["info"]["status"]
        for run in found
        if run["info"]["status"] != "RUNNING"
    }
