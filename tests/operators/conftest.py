"""A task's context as operators at the model registry need it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from helpers.airflow_connections import connect_mlflow

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer


@pytest.fixture
def context(mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a running task whose connection ``mlflow_default`` is the session's server."""
    connect_mlflow(monkeypatch, mlflow_server.uri)
    ti = SimpleNamespace(dag_id="nightly", run_id="r", task_id="t", map_index=-1, xcoms={})
    ti.xcom_push = lambda key, value: ti.xcoms.update({key: json.loads(json.dumps(value))})
    return {"ti": ti}
