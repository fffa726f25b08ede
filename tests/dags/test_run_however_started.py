"""The shipped DAGs' templates render however a run is started, and the nightly one is about the right night.

That Airflow starts such runs is in ``tests/pipeline/test_manual_runs.py``.
"""

from __future__ import annotations

import importlib
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, XComArg
from airflow.sdk.api.datamodels._generated import DagRun, TaskInstance, TIRunContext
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

DAGS = ("nightly_retraining", "deploy_on_stage_transition", "reap_workloads")


def at(*moment: int) -> datetime:
    return datetime(*moment, tzinfo=UTC)  # type: ignore[arg-type, misc]


def dag(name: str) -> DAG:
    made = importlib.import_module(f"nighttrain.dags.{name}").dag
    assert isinstance(made, DAG)
    return made


def rendered(task: Any, run: dict[str, Any], **params: Any) -> Any:
    """The task as its process has it, with the context that Airflow makes of what its API sends."""
    given = {"logical_date": None, "data_interval_start": None, "data_interval_end": None, **run}
    dag_run = DagRun.model_validate(
        {
            "dag_id": task.dag_id,
            "run_id": "r",
            "start_date": given["run_after"],
            "end_date": None,
            "state": "running",
            "consumed_asset_events": [],
            "partition_key": None,
            "conf": params,
            **given,
        }
    )
    ti = RuntimeTaskInstance.model_construct(
        **TaskInstance(
            id=uuid.uuid4(),
            task_id=task.task_id,
            dag_id=task.dag_id,
            run_id="r",
            try_number=1,
            dag_version_id=uuid.uuid4(),
            pool_slots=1,
            queue="default",
            priority_weight=1,
        ).model_dump(),
        task=task,
        max_tries=1,
        _ti_context_from_server=TIRunContext(dag_run=dag_run, max_tries=1),
        start_date=given["run_after"],
        state="running",
        is_mapped=False,
    )
    context = ti.get_template_context()
    task = task.prepare_for_execution()
    for field in task.template_fields:
        if isinstance(getattr(task, field), XComArg):
            setattr(task, field, "from another task")
    task.render_template_fields(context)
    return task


# What Airflow 3.3 sends for each way to start a run.
WITHOUT_A_DATE = {"run_type": "manual", "run_after": at(2026, 11, 26, 4)}
BY_AN_ASSET = {"run_type": "asset_triggered", "run_after": at(2013, 9, 5, 12)}


def dated(run_type: str, start: datetime, end: datetime) -> dict[str, Any]:
    interval = {"data_interval_start": start, "data_interval_end": end}
    return {"run_type": run_type, "run_after": end, "logical_date": start, **interval}


NOW, NIGHTS_END = at(2026, 11, 26, 4), at(2013, 9, 5, 8)
WITH_TODAYS_DATE = dated("manual", NOW, NOW)
SCHEDULED = dated("scheduled", NIGHTS_END, NIGHTS_END)
BACKFILLED = dated("backfill", NIGHTS_END, NIGHTS_END)
WITH_A_DATE = dated("manual", at(2013, 9, 5, 20), at(2013, 9, 5, 20))
# As a copy with a cron expression for data intervals has it.
OF_AN_INTERVAL = dated("scheduled", at(2013, 9, 4, 8), NIGHTS_END)
EVERY_WAY = [
    WITHOUT_A_DATE,
    WITH_TODAYS_DATE,
    BY_AN_ASSET,
    SCHEDULED,
    BACKFILLED,
    WITH_A_DATE,
    OF_AN_INTERVAL,
]


@pytest.fixture(autouse=True)
def _image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_AIRLINE_DELAY_IMAGE", "registry.example.com/airline-delay:2")


@pytest.mark.parametrize("run", EVERY_WAY, ids=lambda run: f"{run['run_type']} {run.get('logical_date')}")
@pytest.mark.parametrize("name", DAGS)
def test_every_template_of_a_shipped_dag_renders(name: str, run: dict[str, Any]) -> None:
    for task in dag(name).tasks:
        fields = [getattr(rendered(task, run), field) for field in task.template_fields]
        assert "{{" not in str(fields)


@pytest.mark.parametrize(
    ("run", "night"),
    [
        pytest.param(SCHEDULED, "2013-09-04", id="scheduled"),
        pytest.param(BACKFILLED, "2013-09-04", id="backfill"),
        pytest.param(OF_AN_INTERVAL, "2013-09-04", id="a copy's interval"),
        pytest.param(WITH_A_DATE, "2013-09-04", id="manual with a date"),
        pytest.param(WITH_TODAYS_DATE, "2013-12-17", id="manual with today's date, after the data's end"),
        pytest.param(WITHOUT_A_DATE, "2013-12-17", id="manual without a date, after the data's end"),
        pytest.param(BY_AN_ASSET, "2013-09-04", id="asset"),
        pytest.param(
            {"run_type": "manual", "run_after": at(2013, 9, 5, 7, 59)}, "2013-09-03", id="before it is over"
        ),
        pytest.param({"run_type": "manual", "run_after": at(2013, 9, 5, 8)}, "2013-09-04", id="once it is"),
        pytest.param({"run_type": "manual", "run_after": at(2013, 3, 10, 8)}, "2013-03-09", id="summer time"),
        pytest.param({"run_type": "manual", "run_after": at(2013, 3, 10, 7, 59)}, "2013-03-08", id="not yet"),
        pytest.param({"run_type": "manual", "run_after": at(2013, 11, 3, 9)}, "2013-11-02", id="winter time"),
        pytest.param(
            {"run_type": "manual", "run_after": at(2013, 11, 3, 8, 59)}, "2013-11-01", id="too soon"
        ),
    ],
)
def test_which_night_a_run_is_about(run: dict[str, Any], night: str) -> None:
    task = rendered(dag("nightly_retraining").get_task("train"), run)
    assert task.arguments == ["--as-of", night, "--no-shuffle-labels"]
    assert task.parameters == {"night": night}


@pytest.mark.parametrize("run", EVERY_WAY, ids=lambda run: f"{run['run_type']} {run.get('logical_date')}")
def test_a_run_that_names_its_night_is_about_that_one(run: dict[str, Any]) -> None:
    task = rendered(dag("nightly_retraining").get_task("train"), run, night="2013-07-04")
    assert task.arguments == ["--as-of", "2013-07-04", "--no-shuffle-labels"]


def test_a_run_may_shuffle_the_labels_and_tell_the_gate_why_it_lets_that_through() -> None:
    nightly, params = dag("nightly_retraining"), {"shuffle_labels": True, "let_through": "to try it"}
    assert not rendered(nightly.get_task("gate"), WITHOUT_A_DATE).let_through
    task = rendered(nightly.get_task("train"), WITHOUT_A_DATE, **params)
    assert task.arguments[-1] == "--shuffle-labels"
    assert rendered(nightly.get_task("gate"), WITHOUT_A_DATE, **params).let_through == "to try it"
    # A run's parameters stay in the DAG of this process.
    nightly.params["shuffle_labels"], nightly.params["let_through"] = False, None


def test_a_night_that_is_no_date_is_refused() -> None:
    params = dag("nightly_retraining").params
    params["night"] = "2013-07-04"
    with pytest.raises(Exception, match="is not a 'date'"):
        params["night"] = "last night"
    params["night"] = None


def test_the_schedule_has_an_end_for_each_night_and_no_task_has_a_last_date() -> None:
    """Airflow leaves a task out of a run whose date is after the task's end date."""
    nightly = importlib.import_module("nighttrain.dags.nightly_retraining")
    moments = [moment.astimezone(UTC) for moment in nightly.ENDS]
    nights = [nightly.night(DagRunOf(moment), {"night": None}) for moment in moments]
    first = nightly.FIRST_NIGHT
    assert nights == [(first + timedelta(days=days)).isoformat() for days in range(len(moments))]
    assert (nights[0], nights[-1]) == ("2013-01-29", "2013-12-17")
    for name in DAGS:
        assert [task.end_date for task in dag(name).tasks if task.end_date] == []
        assert dag(name).end_date is None


@pytest.mark.parametrize("name", DAGS)
def test_airflow_can_store_a_shipped_dag_and_read_it_again(name: str) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag(name)))
    assert {task.task_id: task.end_date for task in stored.tasks} == dict.fromkeys(dag(name).task_ids)


class DagRunOf(SimpleNamespace):
    def __init__(self, moment: datetime) -> None:
        super().__init__(data_interval_end=moment, run_after=moment)
