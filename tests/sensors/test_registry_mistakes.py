"""A sensor waits through an outage of MLflow, and does not wait for a mistake to mend itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import stamina
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from helpers.airflow_connections import connect_mlflow
from nighttrain.sensors.registry import ModelStageSensor, ModelTagSensor

if TYPE_CHECKING:
    from helpers.scripted_http import Scripted


@pytest.mark.parametrize(
    ("status", "ends_as"), [(401, AirflowFailException), (404, AirflowFailException), (503, TaskDeferred)]
)
def test_what_the_first_look_meets(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch, status: int, ends_as: type[BaseException]
) -> None:
    scripted.says(status, "<html>")
    connect_mlflow(monkeypatch, scripted.uri)
    sensor = ModelStageSensor(task_id="wait", model_name="model", stage="Production")
    context: Any = {}
    with stamina.set_testing(True, attempts=1), pytest.raises(ends_as):
        sensor.execute(context)


def test_what_cannot_be_followed_fails_before_it_waits(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.says(503, "<html>")
    connect_mlflow(monkeypatch, scripted.uri)
    context: Any = {}
    for sensor in (
        ModelStageSensor(task_id="stage", model_name="model", stage="None"),
        ModelTagSensor(task_id="tag", model_name="model", tag="k", value="'\""),
    ):
        with stamina.set_testing(True, attempts=1), pytest.raises(AirflowFailException):
            sensor.execute(context)
