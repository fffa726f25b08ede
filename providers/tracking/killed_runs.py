"""Closing the runs of tasks that were killed, also where nobody knows the run's id: the container started
while MLflow was away, and opened one of its own or none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nighttrain.providers.tracking.runs import OPENING_TAG, PARENT_TAG, Lineage, RunKey, RunStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.tracking.run_tree import RunTree
    from nighttrain.providers.tracking.runs import Run


def described(experiment_name: str, run_name: str, key: RunKey, opening: str) -> dict[str, Any]:
    """What finds the run again, as plain JSON values.

    :param opening: the token that the container was given
    """
    return {
        "experiment_name": experiment_name,
        "run_name": run_name,
        "orchestrator": key.orchestrator,
        "dag_id": key.dag_id,
        "run_id": key.run_id,
        "task_id": key.task_id,
        "map_index": key.map_index,
        "region": key.region,
        "opening": opening,
    }


def opening_of(run_context: str | None) -> str:
    """The token in what a container was told of the run that it is to open; empty if there is none."""
    try:
        told = json.loads(run_context or "{}")
    except ValueError:  # the user's own
        return ""
    return str(told.get(OPENING_TAG, "")) if isinstance(told, dict) else ""


async def take_over_described(tree: RunTree, run: Mapping[str, Any]) -> Run:
    """The run that its container opened. Where it opened none, one is made: a task that ran is in the tree.

    :param run: from :func:`described`
    :raises TrackingError: MLflow does not answer, or refuses
    """
    fields = {name: run[name] for name in ("orchestrator", "dag_id", "run_id", "task_id", "map_index")}
    # A trigger that an earlier version stored knows no region.
    key = RunKey(**fields, region=run.get("region", ""))
    experiment_id = await tree.ensure_experiment(run["experiment_name"])
    whole = Lineage(orchestrator=key.orchestrator, dag_id=key.dag_id, run_id=key.run_id)
    parent = await tree.open_parent(experiment_id, key, name=f"{key.dag_id} {key.run_id}", tags=whole.tags())
    return await tree.take_over(
        experiment_id,
        key,
        name=run["run_name"],
        opening=run.get("opening", ""),
        parent_run_id=parent.run_id,
    )


async def close_with_parent(tree: RunTree, run: Run, status: RunStatus) -> None:
    """Close it, and settle the DAG run's. Call it after the container is gone.

    :raises TrackingError: MLflow does not answer, or refuses
    """
    await tree.close(run.run_id, status)
    if run.tags.get(PARENT_TAG):
        await tree.settle_parent(run.tags[PARENT_TAG])


async def close_run_of_workload(tree: RunTree, run: Run, status: RunStatus) -> None:
    """The same for a run that a workload wrote to: what had been opened for it before gives way."""
    await tree.supersede(run)
    await close_with_parent(tree, run, status)


async def close_run_of_container(
    tree: RunTree,
    key: RunKey,
    environment: Mapping[str, str],
    status: RunStatus = RunStatus.KILLED,
    *,
    tags: Mapping[str, object] | None = None,
) -> None:
    """Close the run that a container wrote to. Call it after the container is gone.

    :param key: of the container's task
    :param environment: what the container was started with. It names the run, or the experiment in which the
        container was to open one; where it names neither there is nothing to close
    :param status: how the container ended
    :param tags: what the run is to say of the container
    :raises TrackingError: MLflow does not answer, or refuses
    """
    if run_id := environment.get("MLFLOW_RUN_ID"):
        run = await tree.get(run_id)
    elif opening := opening_of(environment.get("MLFLOW_RUN_CONTEXT")):
        experiment_name = environment["MLFLOW_EXPERIMENT_NAME"]
        run = await take_over_described(tree, described(experiment_name, str(key.task_id), key, opening))
    else:
        return
    if tags:
        await tree.set_tags(run.run_id, tags)
    await close_run_of_workload(tree, run, status)
