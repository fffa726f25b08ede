"""A registered model's stage, alias, versions or tag as an Airflow asset that starts DAGs when it changes."""

from __future__ import annotations

from urllib.parse import quote

from airflow.sdk import Asset, AssetWatcher

from nighttrain.providers.errors import ConfigurationError
from nighttrain.sensors.common.connections import DEFAULT_MLFLOW_CONN_ID, DEFAULT_POLL_SECONDS
from nighttrain.sensors.triggers import ModelChangeTrigger

MAX_ASSET_NAME = 1_500
"""Airflow's own limit; model, tag and the words between take up to 600."""


def registered_model(
    model_name: str,
    *,
    stage: str | None = None,
    alias: str | None = None,
    mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
    poll_seconds: float = DEFAULT_POLL_SECONDS,
    versions: bool = False,
    tag: str | None = None,
    value: str | None = None,
) -> Asset:
    """An asset whose watcher starts the DAGs that are scheduled on it.

    Write ``schedule=[registered_model("airline-delay", stage="Production")]`` and the DAG runs whenever
    another version comes to hold the stage, whoever moved it: a DAG, a person on MLflow's page, or a script.

    :param model_name: the registered model's name
    :param stage: ``Staging``, ``Production`` or ``Archived``
    :param alias: an alias, such as ``champion``; exactly one of ``stage``, ``alias``, ``versions`` and
        ``tag``
    :param mlflow_conn_id: the ``mlflow`` connection
    :param poll_seconds: seconds between two looks at the registry (MLflow announces no stage transition by
        itself). All that follow one server share one poll, as often as the most impatient of them wants it
    :param versions: each new version
    :param tag: a tag's key: each version that gets the tag, with ``value``
    :param value: the tag's value
    :raises ConfigurationError: none or several of what can be followed, or a name that MLflow cannot have
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
        versions=versions,
        tag=tag,
        value=value,
    )
    interest = trigger.interest.checked()
    parts = [interest.kind.value, interest.key if tag is None else f"{tag}={value}"]
    if stage is not None:
        parts[1] = stage  # as it was written: Airflow knows the asset by it
    name = "-".join([model_name, *parts])
    if len(name) > MAX_ASSET_NAME:
        raise ConfigurationError("value", value, "an asset's name holds it: use at most 900 characters")
    place = "/".join(quote(part, safe="") for part in [model_name, *parts])
    return Asset(
        name=name,
        uri=f"mlflow-model://{mlflow_conn_id}/{place}",
        watchers=[AssetWatcher(name=name, trigger=trigger)],
    )
