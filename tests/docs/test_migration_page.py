"""The migration page names every parameter of KubernetesPodOperator."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from nighttrain.operators.training import TrainingJobOperator
from nighttrain.operators.workload import WorkloadOperator

PAGE = Path(__file__).parents[2] / "docs/how-to/migrate-from-kubernetes-pod-operator.md"
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE))


def test_every_parameter_of_kubernetes_pod_operator_has_a_row() -> None:
    pod = pytest.importorskip("airflow.providers.cncf.kubernetes.operators.pod")
    theirs = set(inspect.signature(pod.KubernetesPodOperator.__init__).parameters) - {"self", "kwargs"}
    assert theirs == set(ROWS)


def test_a_parameter_is_called_the_same_exactly_when_it_exists_here() -> None:
    ours = {
        name
        for op in (TrainingJobOperator, WorkloadOperator)
        for name in inspect.signature(op.__init__).parameters
    }
    assert {name for name, text in ROWS.items() if text == "same"} == ours & set(ROWS)
