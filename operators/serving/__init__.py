"""Rollouts and rollbacks as tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.public_names import public_names

__all__ = ["RollbackModelOperator", "RolloutModelOperator", "rollout_task_group"]

if TYPE_CHECKING:
    from nighttrain.operators.serving.rollback import RollbackModelOperator
    from nighttrain.operators.serving.rollout import RolloutModelOperator
    from nighttrain.operators.serving.task_group import rollout_task_group
else:
    __getattr__, __dir__ = public_names(
        __name__,
        {
            "RollbackModelOperator": "nighttrain.operators.serving.rollback",
            "RolloutModelOperator": "nighttrain.operators.serving.rollout",
            "rollout_task_group": "nighttrain.operators.serving.task_group",
        },
    )
