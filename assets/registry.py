"""A Dagster sensor for stage and alias changes in MLflow's model registry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dagster as dg

from nighttrain.assets.resources import MLflowResource
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from nighttrain.providers.registry.feed import Change, RegistryState


def registered_model_sensor(
    *,
    name: str,
    model_name: str,
    stage: str | None = None,
    alias: str | None = None,
    target: Any = None,
    asset_key: dg.AssetKey | str | None = None,
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.STOPPED,
) -> dg.SensorDefinition:
    """A sensor that requests a run, or observes an asset, when another version holds a stage or an alias.

    Level-triggered: the cursor is what was held at the last tick, so a change while the sensor was stopped is
    noticed afterwards. Run keys name the change, so it is requested once.

    Needs the resource ``mlflow``.

    :param target: a job or an asset selection to run; its run has the tags ``nighttrain/model``,
        ``nighttrain/version`` and ``nighttrain/stage`` or ``nighttrain/alias``
    :param asset_key: an external asset to observe with the version as its data version, so that
        ``AutomationCondition.eager()`` downstream follows it
    :param minimum_interval_seconds: Dagster's own default of 30 s; one look costs MLflow about 10 ms
    """
    if (stage is None) == (alias is None):
        raise ConfigurationError("stage, alias", (stage, alias), "name exactly one of the two")
    if target is None and asset_key is None:
        raise ConfigurationError("target, asset_key", None, "name a job to run, an asset to observe, or both")
    kind, key = ("stage", stage) if stage is not None else ("alias", alias)
    observed = dg.AssetKey.from_coercible(asset_key) if asset_key is not None else None

    @dg.sensor(
        name=name,
        target=target,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=f"Follows {kind} {key} of {model_name}",
    )
    def follow(context: dg.SensorEvaluationContext, mlflow: MLflowResource) -> dg.SensorResult:
        from nighttrain.providers.registry.feed import RegistryState, diff

        before = RegistryState.from_dict(json.loads(context.cursor)) if context.cursor else None
        state = run_sync(_read(mlflow, model_name))
        changes = [c for c in diff(before, state) if c.kind == kind and c.key == key and c.version]
        return dg.SensorResult(
            run_requests=[_request(model_name, change) for change in changes] if target is not None else [],
            asset_events=[_observation(observed, change) for change in changes] if observed else [],
            cursor=json.dumps(state.to_dict(), sort_keys=True),
            skip_reason=None if changes else f"no other version holds {kind} {key} of {model_name}",
        )

    return follow


async def _read(mlflow: MLflowResource, model_name: str) -> RegistryState:
    from nighttrain.providers.registry.feed import read_state
    from nighttrain.providers.registry.models import ModelRegistry

    async with mlflow.client() as client:
        return await read_state(ModelRegistry(client), model_name)


def _request(model_name: str, change: Change) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{model_name}:{change.kind}:{change.key}:{change.previous}->{change.version}",
        tags={
            "nighttrain/model": model_name,
            "nighttrain/version": str(change.version),
            f"nighttrain/{change.kind}": change.key,
        },
    )


def _observation(asset_key: dg.AssetKey, change: Change) -> dg.AssetObservation:
    return dg.AssetObservation(
        asset_key=asset_key,
        tags={"dagster/data_version": str(change.version)},
        metadata={"version": str(change.version), "previous": str(change.previous), change.kind: change.key},
    )
