"""Runs left open: found for whoever knows whether their tasks go on, and closed once a task was killed.

Also where nobody knows the run's id: the container started while MLflow was away, and opened a run of its own
or none.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nighttrain.providers.tracking.config import PAGE
from nighttrain.providers.tracking.runs import (
    OPENING_TAG,
    PARENT_TAG,
    RUN_KEY_TAG,
    Lineage,
    Run,
    RunKey,
    RunStatus,
)
from nighttrain.providers.tracking.tags import PREFIX, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.run_tree import RunTree

EXPERIMENTS_AT_ONCE = 100
"""MLflow writes every id into one SQL statement; databases take some hundred values in one."""


async def open_runs(client: MLflowClient, *, orchestrator: str, begun_before: int) -> list[Run]:
    """The runs of an orchestrator's tasks that are RUNNING, wherever in MLflow they are.

    :param begun_before: milliseconds since 1970
    :raises TrackingError: MLflow does not answer, or refuses
    """
    running = await _running(client, orchestrator, begun_before)
    return [run for run in running if f"{PREFIX}task_id" in run.tags]


async def open_parents(client: MLflowClient, *, orchestrator: str, begun_before: int) -> list[Run]:
    """The runs of an orchestrator's DAG runs that are RUNNING, wherever in MLflow they are.

    :param begun_before: milliseconds since 1970
    :raises TrackingError: MLflow does not answer, or refuses
    """
    running = await _running(client, orchestrator, begun_before)
    return [run for run in running if RUN_KEY_TAG in run.tags and f"{PREFIX}task_id" not in run.tags]


async def has_children(client: MLflowClient, parent: Run) -> bool:
    """Tell whether any task of the DAG run has a run.

    :raises TrackingError: MLflow does not answer, or refuses
    """
    of_parent = f"tags.`{PARENT_TAG}` = {quoted(parent.run_id)}"
    asked = {"experiment_ids": [parent.experiment_id], "filter": of_parent, "max_results": 1}
    return bool((await client.post("runs/search", asked)).get("runs"))


async def _running(client: MLflowClient, orchestrator: str, begun_before: int) -> list[Run]:
    experiments = [
        str(each["experiment_id"]) for each in await client.search("experiments", {"max_results": PAGE})
    ]
    found: list[Run] = []
    for start in range(0, len(experiments), EXPERIMENTS_AT_ONCE):
        asked = {
            "experiment_ids": experiments[start : start + EXPERIMENTS_AT_ONCE],
            "filter": f"attributes.status = 'RUNNING' AND attributes.start_time < {begun_before} "
            f"AND tags.`{PREFIX}orchestrator` = '{orchestrator}'",
            "max_results": PAGE,
        }
        found += [Run.from_api(run) for run in await client.search("runs", asked)]
    return found


def described(experiment_name: str, run_name: str, key: RunKey, opening: str) -> dict[str, Any]:
    """A description that finds the run again, as plain JSON values.

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
    """The token in MLFLOW_RUN_CONTEXT, by which a container opens its run; empty if there is none."""
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
    """Close a run, and settle its DAG run's. Call it after the container is gone.

    :raises TrackingError: MLflow does not answer, or refuses
    """
    await tree.close(run.run_id, status)
    if run.tags.get(PARENT_TAG):
        await tree.settle_parent(run.tags[PARENT_TAG])


async def close_run_of_workload(tree: RunTree, run: Run, status: RunStatus) -> None:
    """Close a run that a workload wrote to, and its parent; what was opened for it before gives way.

    :raises TrackingError: MLflow does not answer, or refuses
    """
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
