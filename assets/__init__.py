"""Dagster resources, assets, checks and sensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.public_names import public_names, require

__all__ = [
    "KubernetesResource",
    "MLflowResource",
    "WorkloadSpec",
    "airline_delay_definitions",
    "best_training_asset",
    "model_gate_check",
    "promotion_job",
    "registered_model_sensor",
    "rollback_job",
    "training_asset",
]

require("dagster", extra="dagster")

if TYPE_CHECKING:
    from nighttrain.assets.flights import airline_delay_definitions
    from nighttrain.assets.gates import model_gate_check
    from nighttrain.assets.promotion import promotion_job, rollback_job
    from nighttrain.assets.registry import registered_model_sensor
    from nighttrain.assets.resources import KubernetesResource, MLflowResource
    from nighttrain.assets.selection import best_training_asset
    from nighttrain.assets.training import training_asset
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
else:
    __getattr__, __dir__ = public_names(
        __name__,
        {
            "KubernetesResource": "nighttrain.assets.resources",
            "MLflowResource": "nighttrain.assets.resources",
            "WorkloadSpec": "nighttrain.providers.kubernetes.job.spec",
            "airline_delay_definitions": "nighttrain.assets.flights",
            "best_training_asset": "nighttrain.assets.selection",
            "model_gate_check": "nighttrain.assets.gates",
            "promotion_job": "nighttrain.assets.promotion",
            "rollback_job": "nighttrain.assets.promotion",
            "registered_model_sensor": "nighttrain.assets.registry",
            "training_asset": "nighttrain.assets.training",
        },
    )
