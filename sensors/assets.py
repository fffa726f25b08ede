"""A registered model's stage or alias as an Airflow asset that starts DAGs when it changes."""

from __future__ import annotations

from urllib.parse import quote

from airflow.sdk import Asset, AssetWatcher

from nighttrain.providers.errors import ConfigurationError
from nighttrain.sensors.common.connections import DEFAULT_MLFLOW_CONN_ID, DEFAULT_POLL_SECONDS
from nighttrain.sensors.triggers import ModelChangeTrigger


def registered_model(
    model_name: str,
    *,
    stage: str | None = None,
    alias: str | None = None,
    mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
    poll_seconds: float = DEFAULT_POLL_SECONDS,
) -> Asset:
    """An asset whose watcher starts the DAGs that are scheduled on it.

    Write ``schedule=[registered_model("airline-delay", stage="Production")]`` and the DAG runs whenever
    another version comes to hold the stage, whoever moved it: a DAG, a person on MLflow's page, or a script.

    :param model_name: the registered model's name
    :param stage: ``Staging``, ``Production`` or ``Archived``
    :param alias: an alias, such as ``champion``; exactly one of ``stage`` and ``alias``
    :param mlflow_conn_id: the ``mlflow`` connection
    :param poll_seconds: seconds between two looks at the registry (MLflow announces no stage transition by
        itself)
    :raises ConfigurationError: none or both of ``stage`` and ``alias``, or a name that MLflow cannot have
    """
    if not model_name or any(c in model_name for c in "/:"):
        raise ConfigurationError("model_name", model_name, "must be a registered model's name: no / or :")
    if not poll_seconds > 0:
        raise ConfigurationError("poll_seconds", poll_seconds, "must be above 0")
    trigger = ModelChangeTrigger(
        model_name=model_name,
        stage=stage,
        alias=alias,
        mlflow_conn_id=mlflow_conn_id,
        poll_seconds=poll_seconds,
    )
    kind, key = ("stage", stage) if stage is not None else ("alias", alias)
    name = f"{model_name}-{kind}-{key}"
    return Asset(
        name=name,
        uri=f"mlflow-model://{mlflow_conn_id}/{quote(model_name, safe='')}/{kind}/{quote(str(key), safe='')}",
        watchers=[AssetWatcher(name=name, trigger=trigger)],
    )
