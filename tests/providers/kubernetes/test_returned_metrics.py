"""What a shipped function returns: numbers become metrics, and nothing that it returns fails a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.http_server import QuietHandler, serving
from nighttrain.providers.kubernetes.job.in_container.returned_metrics import metrics_of
from nighttrain.providers.kubernetes.job.shipped_code import ship

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer


def measured(returned: dict[str, Any]) -> dict[str, Any]:
    return returned


def opens_its_own_run(value: float) -> dict[str, float]:
    import mlflow

    with mlflow.start_run():
        mlflow.log_metric("inside", 1.0)
    return {"mae": value}


def returns_nan() -> dict[str, Any]:
    return {"mae": float("nan"), "worst": float("inf"), "best": -float("inf"), "rows": 10**400}


def run(folder: Path, files: dict[str, str], *options: str, **environment: str) -> list[str]:
    """As a pod does; ``-S``: without the packages that are installed here."""
    for name, content in files.items():
        (folder / name).write_text(content, "utf-8")
    done = subprocess.run(
        [sys.executable, *options, str(folder / "train.py")],
        env={"PATH": os.environ["PATH"], "MLFLOW_DISABLE_TELEMETRY": "true", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_numbers_are_metrics_and_everything_else_is_named() -> None:
    metrics, refused = metrics_of(
        {
            "int": 3,
            "float": 0.5,
            "fraction": Fraction(1, 4),
            "numpy": np.float32(0.5),
            "one": np.array([2.0]),
            "too great": 10**400,
            "flag": True,
            "numpy flag": np.bool_(True),
            "many": np.array([1.0, 2.0]),
            "text": "0.5",
            "none": None,
            "a|b": 1.0,
            "../up": 1.0,
            "/root": 1.0,
            "": 1.0,
            "n" * 251: 1.0,
            7: 1.0,
        }
    )
    assert metrics == {
        "int": 3.0,
        "float": 0.5,
        "fraction": 0.25,
        "numpy": 0.5,
        "one": 2.0,
        "too great": float("inf"),
    }
    assert len(refused) == 11
    assert "'flag' (a bool)" in refused
    assert "'a|b' (MLflow takes no such name)" in refused


@pytest.mark.slow
@pytest.mark.mlflow
def test_without_mlflow_in_the_image_they_are_logged_over_rest(
    mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    run_id = mlflow_server.run(mlflow_server.experiment())
    environment = {"MLFLOW_TRACKING_URI": mlflow_server.uri, "MLFLOW_RUN_ID": run_id}
    files = ship(measured, [{"mae": 12.5, "rows": 900, "note": "good"}], {})
    lines = run(tmp_path, files, "-S", **environment)
    assert lines == [
        "[nighttrain] returned metrics: of what the function returned, these are no metrics: 'note' (a str)",
        "[nighttrain] returned metrics: logged mae=12.5, rows=900",
    ]
    logged = mlflow_server.call("GET", "runs/get", run_id=run_id)["run"]["data"]["metrics"]
    assert {each["key"]: each["value"] for each in logged} == {"mae": 12.5, "rows": 900.0}
    lines = run(tmp_path, ship(returns_nan, [], {}), "-S", **environment)
    assert lines[-1].endswith("logged best=-inf, mae=nan, rows=inf, worst=inf")
    logged = mlflow_server.call("GET", "runs/get", run_id=run_id)["run"]["data"]["metrics"]
    assert {each["key"]: str(each["value"]) for each in logged}["mae"] == "NaN"


@pytest.mark.slow
@pytest.mark.mlflow
def test_with_mlflow_they_go_into_the_tasks_run_also_after_the_code_has_ended_it(
    mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    run_id = mlflow_server.run(mlflow_server.experiment())
    environment = {"MLFLOW_TRACKING_URI": mlflow_server.uri, "MLFLOW_RUN_ID": run_id}
    lines = run(tmp_path, ship(opens_its_own_run, [2.5], {}), **environment)
    assert "[nighttrain] returned metrics: logged mae=2.5" in lines
    logged = mlflow_server.call("GET", "runs/get", run_id=run_id)["run"]["data"]["metrics"]
    assert {each["key"]: each["value"] for each in logged} == {"inside": 1.0, "mae": 2.5}


@pytest.mark.slow
@pytest.mark.mlflow
def test_a_container_that_was_started_without_a_run_uses_the_one_that_its_code_opened(
    mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    experiment = mlflow_server.experiment()
    environment = {"MLFLOW_TRACKING_URI": mlflow_server.uri, "MLFLOW_EXPERIMENT_ID": experiment}
    run(tmp_path, ship(opens_its_own_run, [2.5], {}), **environment)
    (found,) = mlflow_server.call("POST", "runs/search", experiment_ids=[experiment])["runs"]
    assert {each["key"] for each in found["data"]["metrics"]} == {"inside", "mae"}


def test_by_hand_without_mlflow_they_are_shown(tmp_path: Path) -> None:
    (line,) = run(tmp_path, ship(measured, [{"mae": 12.5}], {}), "-S")
    assert line == "[nighttrain] returned metrics: no run to log them to; the function returned mae=12.5"
    # With the two files that the documents name.
    files = ship(measured, [{"mae": 12.5}], {})
    (tmp_path / "two").mkdir()
    del files["nighttrain_returned.py"]
    assert run(tmp_path / "two", files, "-S") == []


def test_an_mlflow_that_refuses_fails_no_training_and_credentials_come_from_mlflows_variables(
    tmp_path: Path,
) -> None:
    asked: list[tuple[str | None, str | None, dict[str, Any]]] = []

    class Refusing(QuietHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append((self.headers["authorization"], self.headers["x-mlflow-workspace"], body))
            self.send_response(403)
            self.end_headers()

    environment = {"MLFLOW_RUN_ID": "r", "MLFLOW_TRACKING_TOKEN": "token", "MLFLOW_WORKSPACE": "ml"}
    with serving(Refusing) as uri:
        files = ship(measured, [{"mae": 12.5}], {})
        (line,) = run(tmp_path, files, "-S", MLFLOW_TRACKING_URI=uri, **environment)
    assert "could not be logged (HTTPError: HTTP Error 403" in line
    assert line.endswith("the function returned mae=12.5")
    ((authorization, workspace, body),) = asked
    assert (authorization, workspace, body["run_id"]) == ("Bearer token", "ml", "r")
