"""Airflow operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.public_names import public_names, require

__all__ = [
    "ApproveModelOperator",
    "DeleteModelVersionOperator",
    "EvaluateModelOperator",
    "GetModelVersionOperator",
    "ModelGateOperator",
    "PromoteModelOperator",
    "ReapWorkloadsOperator",
    "RegisterModelOperator",
    "RollbackModelOperator",
    "RolloutModelOperator",
    "SelectBestModelOperator",
    "SetModelVersionTagsOperator",
    "TrainingJobOperator",
    "WorkloadOperator",
    "rollout_task_group",
    "train_task",
]

require("airflow.sdk", extra="airflow")

if TYPE_CHECKING:
    from nighttrain.operators.maintenance import ReapWorkloadsOperator
    from nighttrain.operators.registry import (
        DeleteModelVersionOperator,
        GetModelVersionOperator,
        ModelGateOperator,
        PromoteModelOperator,
        RegisterModelOperator,
        SelectBestModelOperator,
        SetModelVersionTagsOperator,
    )
    from nighttrain.operators.registry.approval import ApproveModelOperator
    from nighttrain.operators.serving import (
        RollbackModelOperator,
        RolloutModelOperator,
        rollout_task_group,
    )
    from nighttrain.operators.train_function import train_task
    from nighttrain.operators.training import EvaluateModelOperator, TrainingJobOperator
    from nighttrain.operators.workload import WorkloadOperator
else:
    __getattr__, __dir__ = public_names(
        __name__,
        {
            "ApproveModelOperator": "nighttrain.operators.registry.approval",
            "DeleteModelVersionOperator": "nighttrain.operators.registry",
            "EvaluateModelOperator": "nighttrain.operators.training",
            "GetModelVersionOperator": "nighttrain.operators.registry",
            "ModelGateOperator": "nighttrain.operators.registry",
            "PromoteModelOperator": "nighttrain.operators.registry",
            "ReapWorkloadsOperator": "nighttrain.operators.maintenance",
            "RegisterModelOperator": "nighttrain.operators.registry",
            "RollbackModelOperator": "nighttrain.operators.serving",
            "RolloutModelOperator": "nighttrain.operators.serving",
            "SelectBestModelOperator": "nighttrain.operators.registry",
            "SetModelVersionTagsOperator": "nighttrain.operators.registry",
            "TrainingJobOperator": "nighttrain.operators.training",
            "WorkloadOperator": "nighttrain.operators.workload",
            "rollout_task_group": "nighttrain.operators.serving",
            "train_task": "nighttrain.operators.train_function",
        },
    )
