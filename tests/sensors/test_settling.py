"""A trigger's event is held back until Airflow knows that the task's process has ended; time is injected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.airflow_connections import connect_mlflow
from nighttrain.sensors.triggers import MLflowAnswersTrigger, mlflow_answers
from nighttrain.sensors.triggers.settling import REPORT_SECONDS, Settling

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer

SETTING = "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"


class Time:
    """Passes only when somebody sleeps, or a test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def settling(self) -> Settling:
        return Settling(clock=lambda: self.now, sleep=self.sleep)


@pytest.mark.parametrize(
    ("took", "waits"),
    [(0.0, 5.0), (1.5, 3.5), (5.0, 0.0), (3600.0, 0.0)],
    ids=["at once", "soon", "just", "late"],
)
async def test_an_end_that_comes_early_waits_for_the_report_and_a_late_one_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, took: float, waits: float
) -> None:
    monkeypatch.setenv(SETTING, "3")
    time = Time()
    settling = time.settling()
    time.now += took
    await settling.wait()
    assert time.slept == [waits]


async def test_how_long_is_said_by_airflows_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for interval in ("0", "5", "30"):
        monkeypatch.setenv(SETTING, interval)
        time = Time()
        await time.settling().wait()
        assert time.slept == [float(interval) + REPORT_SECONDS]


@pytest.mark.slow
@pytest.mark.mlflow
async def test_the_event_of_a_trigger_comes_after_the_wait_that_began_with_it(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_mlflow(monkeypatch, mlflow_server.uri)
    monkeypatch.setenv(SETTING, "3")
    time = Time()
    monkeypatch.setattr(mlflow_answers, "Settling", time.settling)
    events = MLflowAnswersTrigger(mlflow_conn_id="mlflow_default", event={"outcome": "kept"}).run()
    event = await anext(events)  # MLflow answers at once
    assert event.payload == {"outcome": "kept"}
    assert time.slept == [5.0]
    await events.aclose()  # type: ignore[attr-defined]
