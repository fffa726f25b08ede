"""Airflow sensors, triggers, connections and assets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.public_names import public_names, require

__all__ = [
    "EndpointReadySensor",
    "MLflowHook",
    "ModelAliasSensor",
    "ModelStageSensor",
    "ModelTagSensor",
    "ModelVersionSensor",
    "RolloutSensor",
    "registered_model",
]

require("airflow.sdk", extra="airflow")

if TYPE_CHECKING:
    from nighttrain.sensors.assets import registered_model
    from nighttrain.sensors.common.hooks import MLflowHook
    from nighttrain.sensors.registry import (
        ModelAliasSensor,
        ModelStageSensor,
        ModelTagSensor,
        ModelVersionSensor,
    )
    from nighttrain.sensors.serving import EndpointReadySensor, RolloutSensor
else:
    __getattr__, __dir__ = public_names(
        __name__,
        {
            "EndpointReadySensor": "nighttrain.sensors.serving",
            "MLflowHook": "nighttrain.sensors.common.hooks",
            "ModelAliasSensor": "nighttrain.sensors.registry",
            "ModelStageSensor": "nighttrain.sensors.registry",
            "ModelTagSensor": "nighttrain.sensors.registry",
            "ModelVersionSensor": "nighttrain.sensors.registry",
            "RolloutSensor": "nighttrain.sensors.serving",
            "registered_model": "nighttrain.sensors.assets",
        },
    )
