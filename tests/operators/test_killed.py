"""A user who cancels ends the training; a worker that dies does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout

from nighttrain.sensors.killed import cancelled_by_user, task_is_over

TI = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1)


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "removed", "restarting", None])
def test_a_task_that_a_person_ended_is_over(state: str | None) -> None:
    assert task_is_over({"r": {"t": state}}, run_id="r", task_id="t", map_index=-1)


@pytest.mark.parametrize("state", ["running", "deferred", "queued", "scheduled", "up_for_retry"])
def test_a_task_that_goes_on_elsewhere_keeps_its_workload(state: str) -> None:
    assert not task_is_over({"r": {"t_3": state}}, run_id="r", task_id="t", map_index=3)


def test_a_deleted_dag_run_is_over() -> None:
    assert task_is_over({}, run_id="r", task_id="t", map_index=-1)


def test_without_an_answer_the_workload_stays() -> None:
    assert not cancelled_by_user(TI, timeout_seconds=0.5)


def test_an_execution_timeout_ends_the_workload() -> None:
    try:
        raise AirflowTaskTimeout
    except AirflowTaskTimeout:
        assert cancelled_by_user(TI)
