"""Closing the runs of tasks that were killed, also where nobody knows the run's id: the container started
while MLflow was away, and opened one of its own or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.tracking.runs import PARENT_TAG, Lineage, RunKey, RunStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.tracking.runs import RunTree


def described(experiment_name: str, run_name: str, key: RunKey) -> dict[str, Any]:
    """What finds the run again, as plain JSON values."""
    return {
        "experiment_name": experiment_name,
        "run_name": run_name,
        "orchestrator": key.orchestrator,
        "dag_id": key.dag_id,
        "run_id": key.run_id,
        "task_id": key.task_id,
        "map_index": key.map_index,
        "region": key.region,
    }


async def close_killed(tree: RunTree, run: Mapping[str, Any]) -> None:
    """Close it as KILLED, and settle the DAG run's. Call it after the container is gone.

    The container may have opened a run of its own. Where it did not, one is made: a task that ran is in the
    tree.

    :param run: from :func:`described`
    :raises TrackingError: MLflow does not answer, or refuses
    """
    fields = {name: run[name] for name in ("orchestrator", "dag_id", "run_id", "task_id", "map_index")}
    # A trigger that an earlier version stored knows no region.
    key = RunKey(**fields, region=run.get("region", ""))
    experiment_id = await tree.ensure_experiment(run["experiment_name"])
    await tree.prefer_container_run(experiment_id, key)
    whole = Lineage(orchestrator=key.orchestrator, dag_id=key.dag_id, run_id=key.run_id)
    parent = await tree.open_parent(experiment_id, key, name=f"{key.dag_id} {key.run_id}", tags=whole.tags())
    child = await tree.open_child(parent, key, name=run["run_name"])
    await tree.close(child.run_id, RunStatus.KILLED)
    await tree.settle_parent(parent.run_id)


async def close_run_of_container(tree: RunTree, key: RunKey, environment: Mapping[str, str]) -> None:
    """Close the run that a container wrote to as KILLED. Call it after the container is gone.

    :param key: of the container's task
    :param environment: what the container was started with. It names the run, or the experiment in which the
        container was to open one; where it names neither there is nothing to close
    :raises TrackingError: MLflow does not answer, or refuses
    """
    if run_id := environment.get("MLFLOW_RUN_ID"):
        run = await tree.get(run_id)
        await tree.close(run.run_id, RunStatus.KILLED)
        if run.tags.get(PARENT_TAG):
            await tree.settle_parent(run.tags[PARENT_TAG])
    elif key.value in environment.get("MLFLOW_RUN_CONTEXT", ""):
        await close_killed(tree, described(environment["MLFLOW_EXPERIMENT_NAME"], str(key.task_id), key))
