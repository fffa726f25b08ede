"""While the API server is away a task waits, within bounds, and its retries stay."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import stamina

from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.dag_runs import dag_run
from helpers.mlflow_server import MLflowServer, unique
from nighttrain.operators.common import cluster_outages
from nighttrain.operators.common.cluster_outages import PAUSE_SECONDS, waiting_out
from nighttrain.operators.training import TrainingJobOperator
from nighttrain.providers.errors import ClusterError, ClusterRequestError, ClusterUnreachableError
from nighttrain.providers.local.cluster.faults.faults import Fault

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

LOG = logging.getLogger(__name__)
AWAY = ClusterUnreachableError("no answer")


class Cluster:
    """Answers at a time by its own clock."""

    def __init__(self, back_at: float, error: ClusterError = AWAY) -> None:
        self.now, self.back_at, self.error = 0.0, back_at, error
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def ask(self) -> str:
        if self.now < self.back_at:
            raise self.error
        return "done"

    def waited_out(self, seconds: float) -> str:
        return waiting_out(
            self.ask, seconds=seconds, warn=LOG.warning, sleep=self.sleep, clock=lambda: self.now
        )


def test_an_outage_within_the_bound_is_waited_out() -> None:
    cluster = Cluster(back_at=12)
    assert cluster.waited_out(300) == "done"
    assert cluster.pauses == [PAUSE_SECONDS] * 3


def test_the_last_try_is_at_the_bound() -> None:
    cluster = Cluster(back_at=1000)
    with pytest.raises(ClusterUnreachableError):
        cluster.waited_out(12)
    assert cluster.pauses == [5.0, 5.0, 2.0]


def test_zero_fails_at_once() -> None:
    cluster = Cluster(back_at=1)
    with pytest.raises(ClusterUnreachableError):
        cluster.waited_out(0)
    assert cluster.pauses == []


@pytest.mark.parametrize(
    ("status", "waits"), [(503, True), (500, True), (429, True), (422, False), (400, False), (413, False)]
)
def test_only_an_answer_that_may_change_is_asked_for_again(status: int, waits: bool) -> None:
    cluster = Cluster(back_at=1, error=ClusterRequestError("no", status=status))
    if waits:
        assert cluster.waited_out(300) == "done"
    else:
        with pytest.raises(ClusterRequestError):
            cluster.waited_out(300)


@pytest.mark.slow
@pytest.mark.mlflow
@pytest.mark.parametrize("verb", ["create", "patch"])
def test_a_training_starts_and_settles_once_through_an_outage(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    connect_kubernetes(monkeypatch, cluster)
    connect_mlflow(monkeypatch, mlflow_server.uri)
    monkeypatch.setattr(cluster_outages, "PAUSE_SECONDS", 0.01)
    dag_id = unique("outage")
    ti: Any = SimpleNamespace(
        dag_id=dag_id, run_id="r", task_id="train", map_index=-1, try_number=1, max_tries=0
    )
    ti.xcom_push = lambda key, value: json.dumps(value)
    task = TrainingJobOperator(
        task_id="train", image="py", cmds=["python", "-S", "-c", "print(1)"], deferrable=False
    )
    # Every call of the client's own five tries fails, twice over.
    away = Fault.answer(503, verb=verb, resource="jobs", count=12)
    cluster.faults.add(away)
    with stamina.set_testing(True, attempts=5, cap=True):
        result = task.execute({"ti": ti, "dag_run": dag_run(datetime.now(UTC))})  # type: ignore[typeddict-item]
    assert cluster.faults.struck(away) == 12
    assert result is not None
    assert result["attempt"] == 1
