"""The button "Test" of an ``mlflow`` connection: it asks a server, and says what is wrong in a sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.module_loading import import_string

from helpers.mlflow_server import MLflowServer, free_port
from nighttrain.sensors.common.hooks import MLflowHook

if TYPE_CHECKING:
    from helpers.scripted_http import Scripted


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hook on a connection with the given fields, found as Airflow finds connections."""

    def hook(**fields: Any) -> MLflowHook:
        monkeypatch.setenv("AIRFLOW_CONN_TRACKING", json.dumps({"conn_type": "mlflow", **fields}))
        return MLflowHook("tracking")

    return hook


@pytest.mark.slow
@pytest.mark.mlflow
def test_a_server_that_answers(hook: Any, mlflow_server: MLflowServer) -> None:
    assert hook(host=mlflow_server.uri).test_connection() == (True, f"MLflow answers at {mlflow_server.uri}")


@pytest.mark.slow
@pytest.mark.mlflow
def test_a_registry_elsewhere_is_asked_too(hook: Any, mlflow_server: MLflowServer) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    works, message = hook(host=mlflow_server.uri, extra={"registry_uri": dead}).test_connection()
    assert not works
    assert dead in message


@pytest.mark.slow
@pytest.mark.mlflow
async def test_the_client_of_the_hook(hook: Any, mlflow_server: MLflowServer) -> None:
    async with hook(host=mlflow_server.uri).get_conn() as client:
        await client.ping()


@pytest.mark.slow
@pytest.mark.mlflow
async def test_a_click_while_an_event_loop_runs(hook: Any, mlflow_server: MLflowServer) -> None:
    """Airflow's API server is one: a hook that needs a loop of its own must not need this thread's."""
    assert hook(host=mlflow_server.uri).test_connection()[0] is True


def test_nobody_listens(hook: Any) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    works, message = hook(host=uri, login="me", password="mlflow-secret").test_connection()
    assert works is False
    assert uri in message
    assert "mlflow-secret" not in message


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_refused(hook: Any, scripted: Scripted, status: int) -> None:
    scripted.says(status, "You are not authenticated.")
    works, message = hook(host=scripted.uri, login="me", password="mlflow-secret").test_connection()
    assert works is False
    assert str(status) in message
    assert "mlflow-secret" not in message
    assert len(scripted.requests) == 1, "a person waits: it is asked once"


def test_the_credentials_are_sent(hook: Any, scripted: Scripted) -> None:
    scripted.says(200)
    assert hook(host=scripted.uri, login="me", password="mlflow-secret").test_connection()[0] is True
    assert hook(host=scripted.uri, extra={"token": "mlflow-secret"}).test_connection()[0] is True
    sent = [headers.get("authorization") for _method, _path, headers in scripted.requests]
    assert sent == ["Basic bWU6bWxmbG93LXNlY3JldA==", "Bearer mlflow-secret"]


def test_something_else_that_answers(hook: Any, scripted: Scripted) -> None:
    scripted.says(200, "<html>welcome</html>")
    works, message = hook(host=scripted.uri).test_connection()
    assert works is False
    assert "does not answer like MLflow" in message


def test_a_connection_without_a_host(hook: Any) -> None:
    works, message = hook().test_connection()
    assert works is False
    assert "must be MLflow's tracking URI" in message


def test_a_connection_that_is_not_there() -> None:
    works, message = MLflowHook("nobody_made_this").test_connection()
    assert works is False
    assert "airflow connections add nobody_made_this --conn-type mlflow" in message


def test_the_hooks_former_path_leads_to_it() -> None:
    assert import_string("nighttrain.sensors.hooks.MLflowHook") is MLflowHook
