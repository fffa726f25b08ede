"""A user who cancels ends the training; a worker that dies does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

from nighttrain.sensors.common.killed_tasks import cancelled_by_user, task_is_over

REGION = "019b0f5e-0a84-7c6c-a3a5-3a6b30d5a1d0"
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


@pytest.mark.parametrize(
    ("latest", "ended", "over"),
    [
        ("running", [], False),
        ("success", [2], False),  # it was cleared alone: a later iteration ended long ago
        ("running", [0, 1], True),  # somebody marked it, and the next one runs already
        ("restarting", [0], True),
        (None, [0], False),  # the next one was just made
    ],
)
def test_of_a_loop_it_is_the_own_iteration_that_counts(
    monkeypatch: pytest.MonkeyPatch, latest: str | None, ended: list[int], over: bool
) -> None:
    """Airflow 3.4 tells the states of a loop's latest iteration, and which iterations have ended."""
    told = [{"task_id": "t", "state": "success", "region_id": REGION, "region_index": i} for i in ended]
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", lambda **_: {"r": {"t": latest}})
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_breadcrumbs", lambda dag_id, run_id: told)
    ti = SimpleNamespace(**vars(TI), region_id=REGION, region_index=1)
    assert cancelled_by_user(ti) is over


def test_a_deleted_dag_run_ends_its_loops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", lambda **_: {})
    assert cancelled_by_user(SimpleNamespace(**vars(TI), region_id=REGION, region_index=1))
