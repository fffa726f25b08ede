"""Every trigger: what a deferred task or an asset waits for in the triggerer.

A trigger's arguments are a wire format: they hold connection ids, names and plain values, never credentials,
and every wait can be started again from them (the state is in the cluster or in MLflow). Its path is one too:
Airflow's database holds ``nighttrain.sensors.triggers.<class>``, whichever module the class stands in.
"""

from __future__ import annotations

from nighttrain.sensors.triggers.endpoint import EndpointTrigger
from nighttrain.sensors.triggers.mlflow_answers import MLflowAnswersTrigger
from nighttrain.sensors.triggers.registry import ModelChangeTrigger, RegistryTrigger
from nighttrain.sensors.triggers.workload import WorkloadTrigger

__all__ = [
    "EndpointTrigger",
    "MLflowAnswersTrigger",
    "ModelChangeTrigger",
    "RegistryTrigger",
    "WorkloadTrigger",
]
