"""Every trigger: what a deferred task or an asset waits for in the triggerer.

A trigger's arguments are a wire format: they hold connection ids, names and plain values, never credentials,
and every wait can be started again from them (the state is in the cluster or in MLflow). Its path is one too:
Airflow's database holds ``nighttrain.sensors.triggers.<class>``, whichever module the class stands in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.public_names import public_names

__all__ = [
    "EndpointTrigger",
    "MLflowAnswersTrigger",
    "ModelChangeTrigger",
    "RegistryTrigger",
    "RolloutEndTrigger",
    "RolloutTrigger",
    "WorkloadTrigger",
]

if TYPE_CHECKING:
    from nighttrain.sensors.triggers.endpoint import EndpointTrigger
    from nighttrain.sensors.triggers.mlflow_answers import MLflowAnswersTrigger
    from nighttrain.sensors.triggers.model_changes import ModelChangeTrigger
    from nighttrain.sensors.triggers.registry import RegistryTrigger
    from nighttrain.sensors.triggers.rollout import RolloutEndTrigger, RolloutTrigger
    from nighttrain.sensors.triggers.workload import WorkloadTrigger
else:
    __getattr__, __dir__ = public_names(
        __name__,
        {
            "EndpointTrigger": "nighttrain.sensors.triggers.endpoint",
            "MLflowAnswersTrigger": "nighttrain.sensors.triggers.mlflow_answers",
            "ModelChangeTrigger": "nighttrain.sensors.triggers.model_changes",
            "RegistryTrigger": "nighttrain.sensors.triggers.registry",
            "RolloutEndTrigger": "nighttrain.sensors.triggers.rollout",
            "RolloutTrigger": "nighttrain.sensors.triggers.rollout",
            "WorkloadTrigger": "nighttrain.sensors.triggers.workload",
        },
    )
