"""Runs that say they go on, for whoever knows whether their task does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.tracking.runs import PARENT_TAG, RUN_KEY_TAG, Run
from nighttrain.providers.tracking.tags import PREFIX, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nighttrain.providers.tracking.client import MLflowClient

EXPERIMENTS_AT_ONCE = 100
"""MLflow writes every id into one SQL statement; databases take some hundred values in one."""

PAGE = 1_000
"""The most that MLflow gives at once."""


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
    """Whether a task of the DAG run has a run.

    :raises TrackingError: MLflow does not answer, or refuses
    """
    of_parent = f"tags.`{PARENT_TAG}` = {quoted(parent.run_id)}"
    asked = {"experiment_ids": [parent.experiment_id], "filter": of_parent, "max_results": 1}
    return bool((await client.post("runs/search", asked)).get("runs"))


async def _running(client: MLflowClient, orchestrator: str, begun_before: int) -> list[Run]:
    experiments = [str(each["experiment_id"]) for each in await _all(client, "experiments", {})]
    found: list[Run] = []
    for start in range(0, len(experiments), EXPERIMENTS_AT_ONCE):
        asked = {
            "experiment_ids": experiments[start : start + EXPERIMENTS_AT_ONCE],
            "filter": f"attributes.status = 'RUNNING' AND attributes.start_time < {begun_before} "
            f"AND tags.`{PREFIX}orchestrator` = '{orchestrator}'",
        }
        found += [Run.from_api(run) for run in await _all(client, "runs", asked)]
    return found


async def _all(client: MLflowClient, kind: str, asked: Mapping[str, object]) -> list[dict[str, Any]]:
    """Every object that a search finds, however many pages they take."""
    found: list[dict[str, Any]] = []
    token = None
    while True:
        body = {**asked, "max_results": PAGE, "page_token": token}
        answer = await client.post(f"{kind}/search", body)
        found += answer.get(kind, [])
        token = answer.get("next_page_token")
        if not token:
            return found
