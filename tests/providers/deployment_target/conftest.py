"""A cluster that runs the real scoring server, models for it, and MLflow's command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.deployment_target.deployments import Deployments
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.mlflow_server import MadeModel, MakeModel, MLflowServer

TARGET = "kubernetes:/default"
ENV = json.dumps({"MLFLOW_DISABLE_TELEMETRY": "true"})

CODE = """
class Model:
    def __init__(self, delay):
        self.delay = delay
    def predict(self, frame, params=None):
        return [self.delay + value for value in frame["dep_delay"]]

def _load_pyfunc(path):
    with open(path) as file:
        return Model(float(file.read()))
"""


def model_files(delay: str) -> dict[str, bytes]:
    """A model that adds a number; one that is no number cannot be loaded."""
    flavor = (
        "flavors:\n  python_function:\n    loader_module: the_model\n    code: code\n    data: delay.txt\n"
    )
    return {
        "MLmodel": flavor.encode(),
        "requirements.txt": b"mlflow\n",
        "code/the_model.py": CODE.encode(),
        "delay.txt": delay.encode(),
    }


@dataclass(frozen=True)
class Commands:
    """``mlflow deployments``, as a person runs it."""

    kubeconfig: str
    mlflow_uri: str
    folder: Path

    def run(self, verb: str, *options: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlflow", "deployments", verb, "-t", TARGET, *options]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=200, cwd=self.folder, env=self.environment()
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "KUBECONFIG": self.kubeconfig,
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def write(self, name: str, content: object) -> str:
        (self.folder / name).write_text(json.dumps(content))
        return name


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"scoring": sys.executable}) as cluster:
        yield cluster


@pytest.fixture
def commands(cluster: EmbeddedCluster, mlflow_server: MLflowServer, tmp_path: Path) -> Commands:
    return Commands(str(cluster.kubeconfig), mlflow_server.uri, tmp_path)


@pytest.fixture
def deployments(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> tuple[Deployments, list[str]]:
    """The same without MLflow's command line before it, and what it tells."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    told: list[str] = []
    return Deployments(TARGET, mlflow_server.uri, actor="ann", tell=told.append), told


@pytest.fixture
def three_versions(mlflow_server: MLflowServer, make_model: MakeModel) -> MadeModel:
    """Version 1 adds 10, version 2 adds 20, version 3 cannot be loaded."""
    made = make_model(files=model_files("10"))
    for delay in ("20", "many"):
        model_id = mlflow_server.logged_model(
            made.experiment_id, made.run_id, name=f"adds-{delay}", files=model_files(delay)
        )
        mlflow_server.version(made.name, made.run_id, model_id)
    return made
