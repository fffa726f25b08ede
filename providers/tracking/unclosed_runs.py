"""Runs left open, for whoever knows whether their tasks go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.tracking.config import PAGE
from nighttrain.providers.tracking.runs import PARENT_TAG, RUN_KEY_TAG, Run
from nighttrain.providers.tracking.tags import PREFIX, quoted

if TYPE_CHECKING:
    from nighttrain.providers.tracking.client import MLflowClient

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
