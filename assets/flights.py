"""The airline-delay model in Dagster: the nights of 2013 as partitions, a gate, a sensor."""

from __future__ import annotations

from typing import Any

import dagster as dg

from nighttrain.assets.gates import model_gate_check
from nighttrain.assets.registry import registered_model_sensor
from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.assets.training import training_asset
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

MODEL = "airline-delay"
IMAGE = "localhost/airline-delay:1"
RULES = (
    "mae <= 25",
    "mae <= baseline.mae * 0.98",
    "mae <= champion.mae",
    "mae <= champion.mae * 1.05 (paired)",
    "rows >= 500",
)
RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "3Gi"}}

# A night ends at four in the morning in New York; its flights have landed by then. The first night has a
# whole window of four weeks before it, the last one has two weeks after it to be judged on.
NIGHTS = dg.DailyPartitionsDefinition(
    start_date="2013-01-29", end_date="2013-12-19", hour_offset=4, timezone="America/New_York"
)


def airline_delay_definitions(
    *,
    kubernetes: KubernetesResource,
    mlflow: MLflowResource,
    model_name: str = MODEL,
    image: str = IMAGE,
) -> dg.Definitions:
    """Train a night, gate it against the champion, follow what is in Production.

    Assets: ``airline_delay`` (a partition for each night, with the blocking check ``gate``) and
    ``airline_delay_production`` (external; the sensor ``airline_delay_production_changes`` observes it, so
    that assets downstream with ``AutomationCondition.eager()`` follow the stage).

    :param model_name: the registered model, and the MLflow experiment
    :param image: has Python with ``airline_delay`` and its requirements
    """
    name = "airline_delay"
    training = training_asset(
        name=name,
        model_name=model_name,
        spec=WorkloadSpec(
            image=image, cmds=["python", "-m", "airline_delay.train"], container_resources=RESOURCES
        ),
        arguments=_night,
        parameters=lambda context: {"night": context.partition_key},
        partitions_def=NIGHTS,
        group_name=name,
    )
    gate = model_gate_check(
        asset=training,
        model_name=model_name,
        spec=WorkloadSpec(
            image=image, cmds=["python", "-m", "airline_delay.evaluate"], container_resources=RESOURCES
        ),
        arguments=_night,
        rules=RULES,
    )
    production = dg.AssetSpec(
        f"{name}_production", group_name=name, description=f"The version of {model_name} in Production"
    )
    sensor = registered_model_sensor(
        name=f"{name}_production_changes",
        model_name=model_name,
        stage="Production",
        asset_key=production.key,
    )
    return dg.Definitions(
        assets=[training, production],
        asset_checks=[gate],
        sensors=[sensor],
        resources={"kubernetes": kubernetes, "mlflow": mlflow},
    )


def _night(context: Any) -> list[str]:
    return ["--as-of", context.partition_key]
