"""Iterations of Airflow 3.4's task loops are tasks of their own; without loops everything is named as before.

The task instances have the shapes of Airflow's own: before 3.4 without regions, since then with the zero UUID
outside of them. Real loops run in tests/pipeline/test_task_loops.py.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from helpers.dag_runs import dag_run
from nighttrain.operators.common import task_context
from nighttrain.operators.maintenance import _OwnTasks
from nighttrain.providers.airflow_regions import as_parameters, region_of
from nighttrain.providers.attempts.reaper import TaskState
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.tracking.runs import RunKey

LOOP = UUID("019b0f5e-0a84-7c6c-a3a5-3a6b30d5a1d0")
REPLACED = UUID("019b0f5e-9d02-7f40-8a11-0d7a8f1c2b3e")


def run_key(context: Any) -> RunKey:
    return RunKey(**asdict(task_context.workload_identity(context)))


def context(ti: dict[str, Any], **more: Any) -> Any:
    known = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "try_number": 1, "max_tries": 0}
    return {
        "ti": SimpleNamespace(**(known | ti)),
        "dag_run": dag_run(datetime(2026, 1, 1, tzinfo=UTC)),
        **more,
    }


def looped(index: int, region_id: UUID = LOOP, **ti: Any) -> Any:
    return context({"region_id": region_id, "region_index": index, **ti}, loop=SimpleNamespace(index=index))


OUTSIDE = [
    pytest.param(context({}), id="3.3"),
    pytest.param(context({"region_id": UUID(int=0), "region_index": -1}), id="3.4"),
    pytest.param(context({"region_id": None, "region_index": None}), id="3.4, from a server of 3.3"),
]


@pytest.mark.parametrize("task", OUTSIDE)
def test_a_task_outside_of_loops_is_named_as_before(task: Any) -> None:
    identity = task_context.workload_identity(task)
    assert identity == WorkloadIdentity(orchestrator="airflow", dag_id="d", run_id="r", task_id="t")
    assert run_key(task).value == "airflow/d/r/t"
    assert "nighttrain.region" not in task_context.lineage(task).tags()


def test_a_mapped_task_outside_of_loops_is_named_as_before() -> None:
    """Since 3.4 its expansion is a region, too."""
    before = task_context.workload_identity(context({"map_index": 2}))
    now = context({"map_index": 2, "region_id": LOOP, "region_index": 2})
    assert task_context.workload_identity(now) == before
    assert run_key(now).value == "airflow/d/r/t/2"


def test_every_iteration_has_an_identity_a_run_and_a_lineage_of_its_own() -> None:
    tasks = [
        *(looped(index) for index in range(3)),
        looped(1, REPLACED),
        *(looped(index, map_index=index) for index in range(2)),
        context({"region_id": REPLACED, "region_index": 2}),  # taken out of the loop meanwhile
        context({}),
    ]
    assert len({task_context.workload_identity(task).key for task in tasks}) == len(tasks)
    assert len({run_key(task).value for task in tasks}) == len(tasks)
    assert len({run_key(task).parent.value for task in tasks}) == 1, "one parent"
    assert task_context.lineage(tasks[1]).tags()["nighttrain.region"] == f"{LOOP}:1"


def test_a_region_is_the_same_however_its_id_is_given() -> None:
    """A worker has a UUID, JSON a text."""
    told = SimpleNamespace(region_id=str(LOOP), region_index=4)
    assert region_of(told) == task_context.workload_identity(looped(4)).region == f"{LOOP}:4"
    assert as_parameters(f"{LOOP}:4") == {"region_id": str(LOOP), "region_index": "4"}
    assert as_parameters("") == {}


class Supervisor:
    """What Airflow 3.4 answers a task: of a loop the state of its latest iteration, and what has ended."""

    def __init__(self, states: dict[str, Any], ended: list[tuple[UUID, int]], run: str = "running") -> None:
        self.states, self.ended, self.run = states, ended, run

    def get_task_states(self, **_: Any) -> dict[str, Any]:
        return self.states

    def get_task_breadcrumbs(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        told = [
            {"task_id": "t", "map_index": -1, "state": "success", "region_id": str(id), "region_index": index}
            for id, index in self.ended  # noqa: A001
        ]
        return [{"task_id": "other", "map_index": -1, "state": "failed"}, *told]

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        return self.run


@pytest.mark.parametrize(
    ("supervisor", "expected"),
    [
        (Supervisor({"r": {"t": "deferred"}}, [(LOOP, 0)]), TaskState.ALIVE),
        (Supervisor({"r": {"t": "success"}}, [(LOOP, 2)]), TaskState.ALIVE),  # cleared, and runs again
        (Supervisor({"r": {"t": "success"}}, [(REPLACED, 1)]), TaskState.ALIVE),
        (Supervisor({"r": {"t": "running"}}, [(LOOP, 1)]), TaskState.OVER),
        (Supervisor({"r": {"t": "success"}}, [(REPLACED, 1)], run="success"), TaskState.OVER),
        (Supervisor({}, []), TaskState.GONE),
    ],
)
async def test_the_reaper_asks_for_the_iteration_and_not_for_the_latest_one(
    supervisor: Supervisor, expected: TaskState
) -> None:
    identity = task_context.workload_identity(looped(1))
    assert await _OwnTasks(supervisor).state(identity) is expected
