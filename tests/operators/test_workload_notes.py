"""A note in Airflow's task state store tells what was lost, and never fails a task.

That the real store keeps it over a clear is in ``tests/pipeline/test_cancel.py``.
"""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.dag_runs import dag_run
from helpers.mlflow_server import MLflowServer, unique
from nighttrain.operators.common import workload_notes
from nighttrain.operators.training import TrainingJobOperator
from nighttrain.providers.attempts.attempt import StartedWorkload
from nighttrain.providers.errors import WorkloadFailedError
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.local.cluster.server import EmbeddedCluster

LOG = logging.getLogger("test").debug


class Store:
    """Airflow's accessor, with its values in memory."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


class Unreachable(Store):
    def get(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("no supervisor")

    def set(self, key: str, value: Any) -> None:
        raise ConnectionError("no supervisor")

    def delete(self, key: str) -> None:
        raise ConnectionError("no supervisor")


def context(store: Store | None) -> Any:
    return cast("Any", {} if store is None else {"task_state_store": store})


def started(uid: str, attempt: int) -> StartedWorkload:
    return StartedWorkload(Workload("ml", f"train-{attempt}", uid, attempt), workload_url="")


@pytest.mark.parametrize(
    ("uid", "attempt", "lost"),
    [
        pytest.param("a", 2, None, id="the noted one is adopted"),
        pytest.param("b", 3, None, id="the next after it"),
        pytest.param("b", 2, "ml/train-2", id="its number is free again"),
        pytest.param("b", 1, "ml/train-2", id="counted from the start again"),
    ],
)
def test_what_the_cluster_no_longer_knows_is_told(uid: str, attempt: int, lost: str | None) -> None:
    asked = context(Store())
    workload_notes.note(asked, started("a", 2), LOG)
    assert workload_notes.lost_workload(asked, started(uid, attempt), LOG) == lost


@pytest.mark.parametrize("store", [None, Store(), Unreachable()], ids=["absent", "empty", "unreachable"])
def test_nothing_is_told_where_nothing_is_known(store: Store | None) -> None:
    assert workload_notes.lost_workload(context(store), started("a", 1), LOG) is None


@pytest.mark.parametrize("store", [None, Unreachable()], ids=["absent", "unreachable"])
def test_a_note_that_cannot_be_made_fails_nothing(store: Store | None) -> None:
    workload_notes.note(context(store), started("a", 1), LOG)


@pytest.mark.parametrize("store", [None, Store(), Unreachable()], ids=["absent", "empty", "unreachable"])
def test_a_note_that_cannot_be_removed_fails_nothing(store: Store | None) -> None:
    workload_notes.forget(context(store), LOG)


def test_an_attempt_whose_end_was_told_is_not_told_as_lost() -> None:
    asked = context(Store())
    workload_notes.note(asked, started("a", 1), LOG)
    workload_notes.forget(asked, LOG)
    assert workload_notes.lost_workload(asked, started("b", 1), LOG) is None


@pytest.mark.parametrize("noted", ["train-1", 7, {}, {"attempt": "2", "job": "ml/train"}, {"attempt": None}])
def test_somebody_elses_note_is_no_hint(noted: object) -> None:
    store = Store()
    store.set(workload_notes.KEY, noted)
    assert workload_notes.lost_workload(context(store), started("a", 1), LOG) is None


@pytest.mark.slow
@pytest.mark.mlflow
def test_a_job_that_never_started_is_not_told_as_lost(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pod was removed for it, and the next try has a Job of its own."""
    ti = SimpleNamespace(dag_id=unique("nightly"), run_id="r", task_id="train", map_index=-1, max_tries=1)
    ti.xcom_push = lambda key, value: json.dumps(value)
    store = Store()
    asked: Any = {
        "ti": ti,
        "dag_run": dag_run(),
        "task_state_store": store,
    }
    with EmbeddedCluster(images={"py": sys.executable}) as cluster:
        connect_kubernetes(monkeypatch, cluster)
        connect_mlflow(monkeypatch, mlflow_server.uri)
        for ti.try_number in (1, 2):
            with pytest.raises(WorkloadFailedError):
                TrainingJobOperator(
                    task_id="train",
                    image="py",
                    container_resources={"requests": {"cpu": "4000"}},
                    startup_timeout_seconds=0.5,
                    infrastructure_retries=0,
                    get_logs=False,
                    deferrable=False,
                ).execute(asked)
    log = capsys.readouterr().out
    assert [log.count(f"(attempt {number})") for number in (1, 2)] == [1, 1]
    assert "which an earlier try started" not in log
