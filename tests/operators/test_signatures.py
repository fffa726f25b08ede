"""An operator's parameters are written one by one, since Airflow applies ``default_args`` by the signature.

What is written of them elsewhere is held to it: the attributes and the workload's spec here, the reference
and the docstrings in ``tests/docs``.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, fields
from typing import Any

import pytest
from airflow.sdk import BaseOperator

import nighttrain.operators
import nighttrain.sensors
from nighttrain.operators.workload import WorkloadOperator
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

# Of a workload's spec: retries are Airflow's, and the rest nighttrain fills in itself.
NO_PARAMETERS = {"backoff_limit", "volatile_env", "files", "own_env", "known_secrets"}

OFFERED = [
    getattr(package, name)
    for package in (nighttrain.operators, nighttrain.sensors)
    for name in package.__all__
]
CLASSES = sorted(
    {
        base
        for offered in OFFERED
        if inspect.isclass(offered) and issubclass(offered, BaseOperator)
        for base in offered.__mro__
        if base.__module__.startswith("nighttrain") and "__init__" in vars(base)
    },
    key=lambda cls: cls.__name__,
)


def kept(cls: type) -> set[str]:
    """The parameters that ``__init__`` keeps as the attribute of that name, or gives to its base class."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__))).body  # type: ignore[misc]
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            found |= {node.targets[0].attr} & {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name)
            }
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Name) and node.arg == node.value.id:
            found.add(node.arg)
    return found


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_each_parameter_is_kept_under_its_name(cls: type) -> None:
    assert set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"} == kept(cls)  # type: ignore[misc]


def test_what_a_workload_can_be_given_is_a_parameter_with_the_same_default() -> None:
    known: dict[str, inspect.Parameter] = {}
    for base in WorkloadOperator.__mro__:
        if base in CLASSES:
            known.update(inspect.signature(base.__init__).parameters)
    spec = {field.name: None if field.default is MISSING else field.default for field in fields(WorkloadSpec)}
    assert set(spec) - set(known) == NO_PARAMETERS
    defaults: dict[str, Any] = {name: value for name, value in spec.items() if name in known}
    defaults["pod_security"] = None  # the connection decides
    assert {name: known[name].default for name in defaults} == defaults
