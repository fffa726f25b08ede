"""The migration page names every parameter of KubernetesPodOperator, and its DAGs are what it says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator

from nighttrain.operators.training import TrainingJobOperator
from nighttrain.operators.workload import WorkloadOperator

pod = pytest.importorskip("airflow.providers.cncf.kubernetes.operators.pod")

PAGE = Path(__file__).parents[2] / "docs/how-to/migrate-from-kubernetes-pod-operator.md"
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
OURS = {
    name
    for operator in (TrainingJobOperator, WorkloadOperator)
    for name in inspect.signature(operator.__init__).parameters
} - {"self", "kwargs"}
THEIRS = set(inspect.signature(pod.KubernetesPodOperator.__init__).parameters) - {"self", "kwargs"}


def test_every_parameter_of_kubernetes_pod_operator_has_a_row() -> None:
    assert set(ROWS) == THEIRS


def test_a_parameter_is_called_the_same_exactly_when_it_exists_here() -> None:
    assert {name for name, text in ROWS.items() if re.match("same($|[;,])", text)} == OURS & set(ROWS)


@pytest.mark.parametrize("name", sorted(set(ROWS) - OURS))
def test_what_is_not_there_has_a_reason_or_another_name(name: str) -> None:
    kind, _, why = ROWS[name].partition(": ")
    if kind == "other name":
        assert re.match(r"`(\w+)`", why)[1] in OURS  # type: ignore[index]
    elif name != "do_xcom_push":  # of every operator of Airflow's
        assert kind in ("by design not there", "not there")
        assert len(why.split()) >= 2


@pytest.fixture(scope="module")
def halves() -> tuple[Any, Any]:
    """The task of the first DAG on the page, and that of the second."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, PAGE.name, "exec"), names)  # noqa: S102
    dags = [value for value in names.values() if isinstance(value, DAG)]
    (before,), (after,) = (dag.tasks for dag in dags)
    return before, after


def written(task: BaseOperator) -> set[str]:
    """The arguments that the page gives this task."""
    given = re.search(
        rf"    {type(task).__name__}\(\n(.*?)^    \)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert given is not None
    return set(re.findall(r"^        (\w+)=", given[1], re.MULTILINE))


def test_both_dags_on_the_page_can_be_built(halves: tuple[Any, Any]) -> None:
    before, after = halves
    assert type(before) is pod.KubernetesPodOperator
    assert type(after) is TrainingJobOperator
    assert before.task_id == after.task_id


def test_the_second_dag_keeps_what_is_called_the_same_and_leaves_out_the_rest(
    halves: tuple[Any, Any],
) -> None:
    before, after = (written(task) for task in halves)
    airflows = before - THEIRS
    same = {name for name in before & THEIRS if ROWS[name].startswith("same")}
    assert len(same) > 10
    assert after & before == same | airflows
    assert after - before <= OURS
    # The one has defaults of its own in the place of None, and keeps exit codes as another collection.
    for name in sorted(same - {"skip_on_exit_code"}):
        assert getattr(halves[1], name) == getattr(halves[0], name), name
