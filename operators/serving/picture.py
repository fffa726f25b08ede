"""The link from a rollout's task to its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.operators.links import remember_links
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import NighttrainError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context

    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.sensors.common.connections import MLflowConnection


def remember_picture(
    context: Context, mlflow: MLflowConnection, state: State, warn: Callable[..., object]
) -> None:
    """Link the task's page to the picture, once the rollout has a run. A link that MLflow does not give fails
    nothing."""
    from nighttrain.providers.serving.rollouts.record import PICTURE_FILE
    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.run_store import RunStore

    run_id = state.run_id
    if run_id is None:
        return

    async def experiment() -> str:
        async with MLflowClient(mlflow.config) as client:
            return (await RunStore(client).get(run_id)).experiment_id

    try:
        url = mlflow.artifact_url(run_sync(experiment()), run_id, PICTURE_FILE)
    except NighttrainError as error:
        warn("no link to the rollout's picture in run %s: %s", run_id, error)
        return
    remember_links(context, rollout=url)
