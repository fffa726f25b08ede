"""The best of several training assets, or of one's partitions, as an asset."""

# No `from __future__ import annotations` here: Dagster reads the annotations below as they are.

from collections.abc import Sequence
from typing import Any

import dagster as dg

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.selection import check_mode, select_best
from nighttrain.providers.tracking.names import check_key


def best_training_asset(
    *,
    name: str,
    trainings: Sequence[dg.AssetsDefinition],
    metric: str,
    mode: str = "min",
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    group_name: str | None = None,
    key_prefix: Sequence[str] | None = None,
) -> dg.AssetsDefinition:
    """An asset that picks the best of trainings by a metric of their runs.

    It reads what the trainings' last materializations recorded, and trains nothing. Without partitions of its
    own it compares every partition of each training with all others (one for each learning rate, say); with
    them, only the trainings of its own partition (one asset for each model, a partition for each night).

    Its metadata hold ``model_name``, ``version`` and ``run_id`` of the best, ``metric``, ``value``, the
    ``candidates`` and, by name, those with the same value (``ties``; the first counts) and those without a
    number (``missing``). Its data version is the best one's version.

    :param name: the asset's name
    :param trainings: what :func:`nighttrain.assets.training.training_asset` returned; their order decides
        between equals
    :param metric: the metric's name, as the training code logs it
    :param mode: ``min`` or ``max``
    :param partitions_def: the trainings' own, to choose for each partition; see above
    :raises ConfigurationError: no trainings, no metric, or no such mode. When it is materialized also
        ``NothingToSelectError``: none of them has a number
    """
    wanted = check_mode(mode)
    if not trainings:
        raise ConfigurationError("trainings", trainings, "name the training assets to choose from")
    if not metric.strip():
        raise ConfigurationError("metric", metric, "name a metric that the trainings log, such as val_mae")
    check_key(metric, field="metric")
    keys = [training.key for training in trainings]

    @dg.asset(
        name=name,
        key_prefix=list(key_prefix) if key_prefix else None,
        partitions_def=partitions_def,
        group_name=group_name,
        deps=list(trainings),
        kinds={"mlflow"},
        description=f"The training with the best {metric} ({wanted.value})",
    )
    def best(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        partition = context.partition_key if context.has_partition_key else None
        found = [result for key in keys for result in _results(context, key, partition)]
        selection = select_best(found, metric, wanted)
        context.log.info(selection.explain())
        chosen = next(each for each in found if each and each["run_id"] == selection.best.run_id)
        values = selection.to_dict()
        return dg.MaterializeResult(
            metadata={
                "model_name": chosen["model_name"],
                "version": chosen["version"],
                "run_id": selection.best.run_id,
                "metric": metric,
                "value": selection.best.value,
                **{kind: dg.MetadataValue.json(values[kind]) for kind in ("candidates", "missing", "ties")},
            },
            data_version=dg.DataVersion(str(chosen["version"])),
        )

    return best


def _results(
    context: dg.AssetExecutionContext, key: dg.AssetKey, partition: str | None
) -> list[dict[str, Any] | None]:
    """What each partition's last materialization recorded; ``None`` for an asset that has none yet."""
    instance = context.instance
    partitions: list[str | None] = [partition]
    if partition is None:
        partitions = [*sorted(instance.get_materialized_partitions(key))] or [None]
    return [_recorded(context, key, each) for each in partitions]


def _recorded(
    context: dg.AssetExecutionContext, key: dg.AssetKey, partition: str | None
) -> dict[str, Any] | None:
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
    records = context.instance.fetch_materializations(wanted, limit=1).records
    materialization = records[0].asset_materialization if records else None
    if materialization is None:
        return None
    values = {name: entry.value for name, entry in materialization.metadata.items()}
    return {name: values.get(name) for name in ("run_id", "model_name", "version", "metrics")}
