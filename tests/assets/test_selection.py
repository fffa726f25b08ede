"""The best of training assets and of their partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from helpers.mlflow_server import unique
from nighttrain.assets.selection import best_training_asset
from nighttrain.assets.training import training_asset
from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

RATES = dg.StaticPartitionsDefinition(["2.0", "3.5", "inf"])


def test_the_best_of_the_partitions_of_a_training(
    resources: dict[str, Any], instance: dg.DagsterInstance, small: Callable[..., WorkloadSpec]
) -> None:
    model = unique("model")
    training = training_asset(
        name="tuned",
        model_name=model,
        spec=small(),
        arguments=lambda context: ["train", context.partition_key],
        partitions_def=RATES,
    )
    best = best_training_asset(name="best", trainings=[training], metric="train.mae")
    for rate in ("3.5", "2.0", "inf"):
        assert dg.materialize([training], instance=instance, resources=resources, partition_key=rate).success
    picked = dg.materialize([best, training], selection=[best], instance=instance, resources=resources)
    (made,) = picked.asset_materializations_for_node("best")
    seen = {name: entry.value for name, entry in made.metadata.items()}
    assert (seen["model_name"], seen["version"], seen["value"]) == (model, "2", 2.0)
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == "2"
    assert [each["value"] for each in seen["candidates"]] == [2.0, 3.5]
    assert [each["why"] for each in seen["missing"]] == ["it is infinite"]


def test_the_best_of_several_assets_of_one_night_and_none_yet(
    resources: dict[str, Any], instance: dg.DagsterInstance, small: Callable[..., WorkloadSpec]
) -> None:
    nights = dg.StaticPartitionsDefinition(["2026-11-24", "2026-11-25"])
    trainings = [
        training_asset(name=name, model_name=unique(name), spec=small("train", error), partitions_def=nights)
        for name, error in (("first", "2.0"), ("second", "2.0"), ("third", "1.0"))
    ]
    best = best_training_asset(
        name="best", trainings=trainings, metric="train.mae", mode="min", partitions_def=nights
    )
    # The third one was trained for another night only.
    for training, night in zip(trainings, ["2026-11-25", "2026-11-25", "2026-11-24"], strict=True):
        assert dg.materialize([training], instance=instance, resources=resources, partition_key=night).success

    def pick(night: str) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [best, *trainings],
            selection=[best],
            resources=resources,
            instance=instance,
            partition_key=night,
            raise_on_error=False,
        )

    (made,) = pick("2026-11-25").asset_materializations_for_node("best")
    seen = {name: entry.value for name, entry in made.metadata.items()}
    assert seen["model_name"].startswith("first-")
    assert [each["index"] for each in seen["ties"]] == [0, 1]
    assert [each["index"] for each in seen["missing"]] == [2]
    with dg.DagsterInstance.ephemeral() as empty:
        result = dg.materialize(
            [best, *trainings],
            selection=[best],
            resources=resources,
            instance=empty,
            partition_key="2026-11-25",
            raise_on_error=False,
        )
        (failed,) = result.get_step_failure_events()
        error = failed.step_failure_data.error
        assert error is not None
        assert error.cause is not None
        assert error.cause.cls_name == "NothingToSelectError"


def test_mistakes_are_named_when_it_is_defined() -> None:
    for options, field in (
        ({"trainings": [], "metric": "mae"}, "trainings"),
        ({"trainings": [object()], "metric": " "}, "metric"),
        ({"trainings": [object()], "metric": "mae", "mode": "least"}, "mode"),
    ):
        with pytest.raises(ConfigurationError, match=field):
            best_training_asset(name="best", **options)  # type: ignore[arg-type]
