"""Before a task is deferred its log says that no triggerer is seen, where Airflow can be asked."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from airflow.api_fastapi.core_api.datamodels.monitor import HealthInfoResponse
from airflow.sdk.exceptions import TaskDeferred

from helpers.http_server import QuietHandler, serving
from helpers.mlflow_server import free_port
from nighttrain.sensors.common import triggerer_health
from nighttrain.sensors.common.triggerer_health import api_servers, warn_without_triggerer
from nighttrain.sensors.registry import ModelStageSensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEARD = "2026-11-26T04:00:00+00:00"


def health(status: str | None, heartbeat: str | None = HEARD, database: str = "healthy") -> bytes:
    """As Airflow's own page writes it."""
    well = {"status": "healthy"}
    page = HealthInfoResponse.model_validate(
        {
            "metadatabase": {"status": database},
            "scheduler": {**well, "latest_scheduler_heartbeat": HEARD},
            "dag_processor": {**well, "latest_dag_processor_heartbeat": HEARD},
            "triggerer": {"status": status, "latest_triggerer_heartbeat": heartbeat},
        }
    )
    return page.model_dump_json(exclude_unset=True).encode()


class Airflow:
    """An API server that says what a test wants it to say, and counts how often it was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, health("healthy"), 0
        self.hold = threading.Event()
        self.hold.set()
        airflow = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802
                airflow.asked += 1
                airflow.hold.wait(30)
                right = self.path == "/api/v2/monitor/health"
                with contextlib.suppress(ConnectionError):  # who asked may have gone
                    self.send_response(airflow.status if right else 404)
                    self.send_header("Content-Length", str(len(airflow.body)))
                    self.end_headers()
                    self.wfile.write(airflow.body)

        self.handler, self.url = Handler, ""


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    running = Airflow()
    with serving(running.handler) as running.url:
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", f"{running.url}/execution/")
        yield running
        running.hold.set()


def said() -> list[str]:
    words: list[str] = []
    warn_without_triggerer(words.append)
    return words


def test_a_healthy_triggerer_is_no_news(airflow: Airflow) -> None:
    assert said() == []
    assert airflow.asked == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param(health("unhealthy"), HEARD, id="gone"),
        pytest.param(health(None, None), "none has ever been heard of", id="there was none ever"),
        pytest.param(health("unhealthy", None), "none has ever been heard of", id="never a heartbeat"),
    ],
)
def test_a_missing_triggerer_is_told_with_what_to_do(airflow: Airflow, body: bytes, told: str) -> None:
    airflow.body = body
    (words,) = said()
    assert "no healthy triggerer" in words
    assert told in words
    assert "airflow triggerer" in words
    assert "deferrable=False" in words


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(404, b'{"detail": "Not Found"}', id="only the tasks' own API"),
        pytest.param(401, health("unhealthy"), id="behind a login"),
        pytest.param(503, health("unhealthy"), id="away"),
        pytest.param(200, b"<html>Welcome</html>", id="a page"),
        pytest.param(200, b"[]", id="a list"),
        pytest.param(200, b'{"triggerer": "unhealthy"}', id="another form"),
        pytest.param(200, json.dumps({"triggerer": {"status": "unhealthy"}}).encode(), id="half of it"),
        pytest.param(200, health("unhealthy", database="unhealthy"), id="Airflow without its database"),
    ],
)
def test_where_airflow_does_not_say_nothing_is_told(airflow: Airflow, status: int, body: bytes) -> None:
    airflow.status, airflow.body = status, body
    assert said() == []
    assert airflow.asked >= 1


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL", f"http://127.0.0.1:{free_port()}/execution/"
    )
    assert said() == []


def test_a_server_that_does_not_answer_holds_nobody_up(
    airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.hold.clear()
    monkeypatch.setattr(triggerer_health.triggerer_health, "__kwdefaults__", {"seconds": 0.2})
    began = time.monotonic()
    assert said() == []
    assert time.monotonic() - began < triggerer_health.SECONDS


@pytest.mark.parametrize(
    ("execution", "base", "expected"),
    [
        ("http://api:8080/execution/", "/", ["http://api:8080", "http://localhost:8080"]),
        ("https://inside/af/execution", "https://outside/af", ["https://inside/af", "https://outside/af"]),
        ("", "https://outside/af/", ["https://outside/af"]),
        ("", "/af", ["http://localhost:8080/af"]),
    ],
)
def test_the_addresses_are_those_that_airflow_is_told(
    monkeypatch: pytest.MonkeyPatch, execution: str, base: str, expected: list[str]
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", execution)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base)
    assert api_servers() == expected


def test_a_sensor_says_so_before_it_is_deferred(
    airflow: Airflow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    airflow.body = health("unhealthy")
    monkeypatch.setattr(ModelStageSensor, "poke", lambda self, context: None)
    sensor: Callable[..., Any] = ModelStageSensor(task_id="s", model_name="m", stage="Production").execute
    with pytest.raises(TaskDeferred):
        sensor({})
    assert "no healthy triggerer" in capsys.readouterr().out
