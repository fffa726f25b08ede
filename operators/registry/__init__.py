"""The model registry as tasks: register, gate, promote."""

from nighttrain.operators.registry.gate import ModelGateOperator
from nighttrain.operators.registry.promotion import PromoteModelOperator
from nighttrain.operators.registry.registration import RegisterModelOperator

__all__ = ["ModelGateOperator", "PromoteModelOperator", "RegisterModelOperator"]
