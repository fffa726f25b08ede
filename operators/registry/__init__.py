"""The model registry as tasks: select, register, gate, promote, and single steps."""

from nighttrain.operators.registry.gate import ModelGateOperator
from nighttrain.operators.registry.promotion import PromoteModelOperator
from nighttrain.operators.registry.registration import RegisterModelOperator
from nighttrain.operators.registry.selection import SelectBestModelOperator
from nighttrain.operators.registry.versions import (
    DeleteModelVersionOperator,
    GetModelVersionOperator,
    SetModelVersionTagsOperator,
)

__all__ = [
    "DeleteModelVersionOperator",
    "GetModelVersionOperator",
    "ModelGateOperator",
    "PromoteModelOperator",
    "RegisterModelOperator",
    "SelectBestModelOperator",
    "SetModelVersionTagsOperator",
]
