"""A Dagster sensor for changes of a stage, an alias, a tag or the versions in MLflow's model registry."""

# No `from __future__ import annotations` here: Dagster reads the annotations below as they are.

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import dagster as dg

from nighttrain.assets.resources import MLflowResource
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.feed.authors import with_authors
from nighttrain.providers.registry.feed.changes import Change, ChangeKind, Interest, View, followed
from nighttrain.providers.registry.feed.one_look import look
from nighttrain.providers.registry.feed.outbox import view_of_former_cursor


@dataclass(frozen=True)
class Cursor:
    """A sensor's memory between two ticks.

    :param view: what was held at the last tick; ``None`` before the first
    :param updated: MLflow's time of the model's last update at the last tick, in ms
    :param changes: how many changes this sensor has reported: tells 1 -> 2 from a later 1 -> 2, and is the
        same again when a tick is repeated because its cursor was lost
    """

    view: View | None = None
    updated: int = 0
    changes: int = 0

    @classmethod
    def parse(cls, text: str | None, interest: Interest) -> "Cursor":
        """The inverse of :meth:`text`; the form of earlier versions is read too.

        :raises ConfigurationError: somebody else's cursor
        """
        if not text:
            return cls()
        try:
            values = json.loads(text)
            changes = int(values["changes"])
            if "seen" in values:
                return cls(view_of_former_cursor(interest, values["seen"]), 0, changes)
            return cls(dict(values["view"]), int(values["updated"]), changes)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                "cursor", text, "this sensor did not write it: reset the sensor's cursor in Dagster"
            ) from error

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)


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
    versions: bool = False,
    tag: str | None = None,
    value: str | None = None,
) -> dg.SensorDefinition:
    """A sensor that requests a run, or observes an asset, when another version holds a stage or an alias,
    has a tag, or is there.

    Level-triggered: the cursor is what was held at the last tick, so a change while the sensor was stopped is
    noticed afterwards, and the first tick reports what is held already. Run keys name the change, so it is
    requested once; going back to an earlier version is a change of its own.

    Needs the resource ``mlflow``.

    :param stage: the stage to follow: Staging, Production or Archived
    :param alias: the alias to follow, instead of a stage
    :param target: a job or an asset selection to run; its run has the tags ``nighttrain/model``,
        ``nighttrain/version`` and ``nighttrain/stage`` (or ``alias``, ``tag``), and ``nighttrain/author``
        where it is known who did it
    :param asset_key: an external asset to observe with the version as its data version, so that
        ``AutomationCondition.eager()`` downstream follows it
    :param minimum_interval_seconds: Dagster's own default of 30 s; one look costs MLflow about 10 ms
    :param versions: each new version, instead of a stage
    :param tag: each version that gets this tag with ``value``, instead of a stage
    :param value: the tag's value
    :raises ConfigurationError: none or several of what can be followed, neither target nor asset_key, or a
        name that MLflow refuses
    """
    interest = followed(
        model_name, stage=stage, alias=alias, versions=versions, tag=tag, value=value
    ).checked()
    if target is None and asset_key is None:
        raise ConfigurationError("target, asset_key", None, "name a job to run, an asset to observe, or both")
    observed = dg.AssetKey.from_coercible(asset_key) if asset_key is not None else None

    @dg.sensor(
        name=name,
        target=target,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        description=f"Follows {_described(interest)}",
    )
    def follow(context: dg.SensorEvaluationContext, mlflow: MLflowResource) -> dg.SensorResult:
        before = Cursor.parse(context.cursor, interest)
        view, updated, changes = run_sync(_look(mlflow, interest, before))
        held = [change for change in changes if change.version]
        after = Cursor(view, updated, before.changes + len(held))
        numbered = list(enumerate(held, before.changes + 1))
        return dg.SensorResult(
            run_requests=[_request(each, number) for number, each in numbered] if target is not None else [],
            asset_events=[_observation(observed, each) for each in held] if observed else [],
            cursor=after.text(),
            skip_reason=None if held else _nothing_new(view, interest),
        )

    return follow


async def _look(mlflow: MLflowResource, interest: Interest, before: Cursor) -> tuple[View, int, list[Change]]:
    async with mlflow.client() as client:
        noticed = int(time.time() * 1000)
        view, updated, changes = await look(client, interest, before.view, before.updated, noticed)
    return view, updated, list(await with_authors(mlflow.tracking_config(), changes))


def _described(interest: Interest) -> str:
    match interest.kind:
        case ChangeKind.VERSION:
            return f"the versions of {interest.name}"
        case ChangeKind.TAG:
            return f"tag {interest.key} = {interest.value} of {interest.name}"
        case _:
            return f"{interest.kind.value} {interest.key} of {interest.name}"


def _nothing_new(view: View, interest: Interest) -> str:
    if interest.kind in (ChangeKind.VERSION, ChangeKind.TAG):
        return f"nothing new of {_described(interest)}"
    if view["version"] is None:
        return f"no version holds {_described(interest)}"
    return f"version {view['version']} still holds {_described(interest)}"


def _request(change: Change, number: int) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=f"{change.name}:{change.kind.value}:{change.key}:{change.version}:{number}",
        tags={
            "nighttrain/model": change.name,
            "nighttrain/version": str(change.version),
            **({} if change.kind is ChangeKind.VERSION else {f"nighttrain/{change.kind.value}": change.key}),
            **({"nighttrain/author": change.author} if change.author else {}),
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
            change.kind.value: change.key,
        },
    )
