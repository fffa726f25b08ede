"""What a training leaves in MLflow for people: a name, its data, its numbers, a version that leads back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from helpers.airflow_connections import connect_kubernetes
from helpers.training_task import Task
from nighttrain.operators.registry import RegisterModelOperator
from nighttrain.providers.errors import ApplicationError

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

LOGS = """
import json, os, time, urllib.request

def post(path, **body):
    url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}"
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)).close()

run = os.environ["MLFLOW_RUN_ID"]
for step, (mae, worst) in enumerate([(9.0, 1.0), (4.5, "NaN")]):
    values = {"val_mae": mae, "worst": worst, "system/cpu": 1.0}
    now = int(time.time() * 1000)
    post("runs/log-batch", run_id=run, metrics=[
        {"key": key, "value": value, "timestamp": now, "step": step} for key, value in values.items()
    ])
"""


@pytest.fixture(autouse=True)
def connected(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_kubernetes(monkeypatch, cluster)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com")


def training(monkeypatch: pytest.MonkeyPatch, server: MLflowServer, code: str = LOGS, **options: Any) -> Task:
    task = Task(monkeypatch, code, deferrable=False, infrastructure_retries=0, **options)
    task.mlflow_is(server.uri)
    day = datetime(2026, 11, 25, tzinfo=UTC)
    task.context["dag_run"] = SimpleNamespace(
        start_date=datetime.now(UTC),
        run_after=day.replace(day=26),
        data_interval_start=day,
        data_interval_end=day.replace(day=26),
    )
    return task


def run_of(server: MLflowServer, result: dict[str, Any] | None) -> dict[str, Any]:
    assert result is not None
    return dict(server.call("GET", "runs/get", run_id=result["run_id"])["run"])


def names(server: MLflowServer, experiment: str) -> list[str]:
    found = server.call("GET", "experiments/get-by-name", experiment_name=experiment)["experiment"]
    runs = server.call("POST", "runs/search", experiment_ids=[found["experiment_id"]])["runs"]
    return sorted(each["info"]["run_name"] for each in runs)


def test_the_result_has_the_last_metrics_and_the_run_its_data(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = training(monkeypatch, mlflow_server)
    result = task.execute()
    assert result is not None
    assert result["metrics"] == {"val_mae": 4.5, "worst": "NaN"}
    assert "map_index" not in result
    json.dumps(result, allow_nan=False)
    run = run_of(mlflow_server, result)
    assert run["info"]["run_name"] == "train 2026-11-25"
    (given,) = run["inputs"]["dataset_inputs"]
    assert given["dataset"]["name"] == f"{task.ti.dag_id} 2026-11-25"


def test_names_tell_map_indexes_nights_and_attempts_apart(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = training(monkeypatch, mlflow_server, "raise SystemExit(3)", parameters={"night": "2026-11-24"})
    task.ti.map_index = 3
    for number in range(2):
        task.ti.try_number = number + 1
        with pytest.raises(ApplicationError):
            task.execute()
    found = names(mlflow_server, task.ti.dag_id)
    assert [name for name in found if name.startswith("train")] == [
        "train[3] 2026-11-24",
        "train[3] 2026-11-24 #2",
    ]


def test_a_run_without_a_date_is_named_by_the_day_it_was_asked_for_and_a_given_name_stays(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = training(monkeypatch, mlflow_server, "print(1)")
    for name in ("data_interval_start", "data_interval_end"):
        setattr(task.context["dag_run"], name, None)
    assert run_of(mlflow_server, task.execute())["info"]["run_name"] == "train 2026-11-26"
    named = training(monkeypatch, mlflow_server, "print(1)", run_name="mine")
    assert run_of(mlflow_server, named.execute())["info"]["run_name"] == "mine"


def test_the_version_of_a_training_leads_back_and_says_so(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = training(monkeypatch, mlflow_server)
    result = task.execute()
    assert result is not None
    mlflow_server.logged_model(result["experiment_id"], result["run_id"])
    register = RegisterModelOperator(
        task_id="register", model_name=task.ti.dag_id, run_id=result["run_id"], description="Mine | too."
    )
    done = register.execute(task.context)
    (version,) = mlflow_server.versions(task.ti.dag_id)
    assert {tag["key"]: tag["value"] for tag in version["tags"]} == {
        "nighttrain.night": "2026-11-25",
        "nighttrain.dag_run": f"{task.ti.dag_id}/r",
        "nighttrain.job": result["job"],
        "nighttrain.artifact.sha256": done["artifact_digest"],
    }
    lines = version["description"].splitlines()
    assert "**Not judged yet.**" in lines
    assert "- Night 2026-11-25, data from 2026-11-25T00:00:00+00:00 to 2026-11-26T00:00:00+00:00" in lines
    assert f"](https://airflow.example.com/dags/{task.ti.dag_id}/runs/r)" in version["description"]
    assert f"- Job {result['job']}" in lines
    assert lines[-1] == "Mine | too."
    # Once more: nothing is written twice, and MLflow sees no update.
    register.execute(task.context)
    assert mlflow_server.versions(task.ti.dag_id) == [version]
