"""A Dagster sensor for stage and alias changes in MLflow's model registry."""

# No `from __future__ import annotations` here: Dagster reads the annotations below as they are.

import json
from dataclasses import dataclass
from typing import Any

import dagster as dg

from nighttrain.assets.resources import MLflowResource
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.feed import WATCHED_STAGES, Change, RegistryState, diff, read_state
from nighttrain.providers.registry.models import ModelRegistry


@dataclass(frozen=True)
class Cursor:
    """A sensor's memory between two ticks.

    :param seen: what the model held at the last tick; ``None`` before the first
    :param changes: how many changes this sensor has reported: tells 1 -> 2 from a later 1 -> 2, and is the
        same again when a tick is repeated because its cursor was lost
    """

    seen: RegistryState | None = None
    changes: int = 0

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """The inverse of :meth:`text`. :raises ConfigurationError: somebody else's cursor"""
        if not text:
            return cls()
        try:
            values = json.loads(text)
            return cls(RegistryState.from_dict(values["seen"]), int(values["changes"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                "cursor", text, "this sensor did not write it: reset the sensor's cursor in Dagster"
            ) from error

    def text(self) -> str:
        """One line of JSON."""
        seen = self.seen.to_dict() if self.seen else {}
        return json.dumps({"seen": seen, "changes": self.changes}, sort_keys=True)


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
    noticed afterwards, and the first tick reports what is held already. Run keys name the change, so it is
    requested once; going back to an earlier version is a change of its own.

    Needs the resource ``mlflow``.

    :param stage: the stage to follow: Staging, Production or Archived
    :param alias: the alias to follow, instead of a stage
    :param target: a job or an asset selection to run; its run has the tags ``nighttrain/model``,
        ``nighttrain/version`` and ``nighttrain/stage`` or ``nighttrain/alias``
    :param asset_key: an external asset to observe with the version as its data version, so that
        ``AutomationCondition.eager()`` downstream follows it
    :param minimum_interval_seconds: Dagster's own default of 30 s; one look costs MLflow about 10 ms
    :raises ConfigurationError: both or neither of stage and alias, neither target nor asset_key, or a name
        that MLflow refuses
    """
    kind, key = _followed(model_name, stage, alias)
    if target is None and asset_key is None:
        raise ConfigurationError("target, asset_key", None, "name a job to run, an asset to observe, or both")
    observed = dg.AssetKey.from_coercible(asset_key) if asset_key is not None else None

    @dg.sensor(
        name=name,
        target=target,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=f"Follows {kind} {key} of {model_name}",
    )
    def follow(context: dg.SensorEvaluationContext, mlflow: MLflowResource) -> dg.SensorResult:
        before = Cursor.parse(context.cursor)
        state = run_sync(_read(mlflow, model_name, before.seen))
        changes = [c for c in diff(before.seen, state) if c.kind == kind and c.key == key and c.version]
        after = Cursor(state, before.changes + len(changes))
        return dg.SensorResult(
            run_requests=[_request(c, after.changes) for c in changes] if target is not None else [],
            asset_events=[_observation(observed, c) for c in changes] if observed else [],
            cursor=after.text(),
            skip_reason=None if changes else _nothing_new(state, model_name, kind, key),
        )

    return follow


def _followed(model_name: str, stage: str | None, alias: str | None) -> tuple[str, str]:
    from nighttrain.providers.registry.versions import check_alias, check_name, check_stage

    check_name(model_name)
    if (stage is None) == (alias is None):
        raise ConfigurationError("stage, alias", (stage, alias), "name exactly one of the two")
    if alias is not None:
        return "alias", check_alias(alias)
    known = check_stage(str(stage))
    if known not in WATCHED_STAGES:
        raise ConfigurationError("stage", stage, f"can be followed: {', '.join(WATCHED_STAGES)}")
    return "stage", known


async def _read(mlflow: MLflowResource, model_name: str, before: RegistryState | None) -> RegistryState:
    async with mlflow.client() as client:
        return await read_state(ModelRegistry(client), model_name, before)


def _nothing_new(state: RegistryState, model_name: str, kind: str, key: str) -> str:
    holder = (state.aliases if kind == "alias" else state.stages).get(key)
    if holder is None:
        return f"no version holds {kind} {key} of {model_name}"
    return f"version {holder} still holds {kind} {key} of {model_name}"


def _request(change: Change, number: int) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{change.name}:{change.kind}:{change.key}:{change.version}:{number}",
        tags={
            "nighttrain/model": change.name,
            "nighttrain/version": str(change.version),
            f"nighttrain/{change.kind}": change.key,
        },
    )


def _observation(asset_key: dg.AssetKey, change: Change) -> dg.AssetObservation:
    return dg.AssetObservation(
        asset_key=asset_key,
        tags={"dagster/data_version": str(change.version)},
        metadata={
            "model_name": change.name,
            "version": str(change.version),
            "previous": change.previous or "none",
            change.kind: change.key,
        },
    )
