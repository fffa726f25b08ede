"""Watchers of the registry in a real Airflow whose triggerer is killed, and webhooks the whole way."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

import nighttrain
from helpers.airflow_in_parts import StackInParts
from helpers.mlflow_server import MLflowServer, running_mlflow
from helpers.polling import until
from helpers.webhook_deliveries import delivery
from nighttrain.providers import commands
from nighttrain.providers.registry.feed.webhooks import PATH, SECRET_VARIABLE
from nighttrain.sensors.common.nudges import NUDGE_VARIABLE

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(600)]

DAGS = ("follow_stage", "follow_versions", "follow_patiently")
PLUGIN = "from nighttrain.sensors.webhook_plugin import WebhookPlugin as Plugin\n"


class Following:
    """The servers, and what Airflow has been told."""

    def __init__(self, stack: StackInParts, mlflow: MLflowServer, secret: str) -> None:
        self.stack, self.mlflow, self.secret = stack, mlflow, secret

    def events(self, asset: str) -> list[dict[str, Any]]:
        """The payloads of an asset's events, in the order in which Airflow stored them."""

        def answer() -> Any:
            # Airflow 3.3.2 answers 500 while a DAG run that an event made has not started.
            found = self.stack.api("GET", "/assets/events", params={"limit": 100})
            return found if found.status_code == 200 else None

        told = until(answer, 60, "Airflow to list its events").json()["asset_events"]
        found = sorted(told, key=lambda event: int(event["id"]))
        return [each["extra"]["payload"] for each in found if each["name"] == asset]

    def wait(self, asset: str, version: str, seconds: float = 90) -> None:
        def arrived() -> bool:
            return any(event["version"] == version for event in self.events(asset))

        until(arrived, seconds, f"{asset} {version}; there are {self.events(asset)}")

    def version(self) -> str:
        experiment = self.mlflow.experiment()
        run_id = self.mlflow.run(experiment)
        return self.mlflow.version("m", run_id, self.mlflow.logged_model(experiment, run_id))

    def alias(self, version: str) -> None:
        self.mlflow.call("POST", "registered-models/alias", name="m", alias="champion", version=version)


@pytest.fixture
def following(tmp_path: Path) -> Iterator[Following]:
    dags, key, secret = tmp_path / "dags", secrets.token_hex(32), secrets.token_hex()
    shutil.copytree(Path(__file__).parent / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    settings = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    with running_mlflow(tmp_path / "mlflow", **settings) as mlflow:
        connection = {"conn_type": "mlflow", "host": mlflow.uri}
        stack = StackInParts(
            tmp_path / "stack",
            [dags],
            airflow_settings={
                "PYTHONPATH": os.pathsep.join(str(Path(each).parent) for each in nighttrain.__path__),
                "AIRFLOW__API_AUTH__JWT_SECRET": key,
                "AIRFLOW__API__SECRET_KEY": key,
                "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
                "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps(connection),
                # Another user, so another poll: a patient one.
                "AIRFLOW_CONN_MLFLOW_PATIENT": json.dumps(
                    {**connection, "login": "patient", "password": "x"}
                ),
                SECRET_VARIABLE: secret,
                **plugins(tmp_path / "plugins"),
            },
        )
        try:
            stack.start_airflow()
            stack.wait_airflow(DAGS)
            yield Following(stack, mlflow, secret)
        finally:
            stack.stop()


def plugins(folder: Path) -> dict[str, str]:
    """The plugin, as its entry point gives it where this checkout is what is installed."""
    if entry_points(group="airflow.plugins", name="nighttrain_webhooks"):
        return {}
    folder.mkdir()
    (folder / "webhooks.py").write_text(PLUGIN)
    return {"AIRFLOW__CORE__PLUGINS_FOLDER": str(folder)}


def numbers(events: list[dict[str, Any]]) -> list[int]:
    """The events' numbers, copies left out."""
    return list(dict.fromkeys(event["sequence"] for event in events))


def test_nothing_is_lost_and_a_webhook_is_enough(
    following: Following, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, mlflow = following.stack, following.mlflow
    first = following.version()
    following.alias(first)
    mlflow.stage("m", first, "Production")
    following.wait("m-stage-Production", first)
    following.wait("m-version-latest", first)

    # Killed in the middle of it all: what happens meanwhile, and just before, arrives.
    second = following.version()
    mlflow.stage("m", second, "Production", archive=True)
    stack.kill_part("triggerer")
    third = following.version()
    mlflow.stage("m", third, "Production", archive=True)
    stack.start_part("triggerer")
    following.wait("m-stage-Production", third)
    following.wait("m-version-latest", third)
    versions = following.events("m-version-latest")
    assert list(dict.fromkeys(event["version"] for event in versions)) == [first, second, third]
    for asset in ("m-version-latest", "m-stage-Production"):
        events = following.events(asset)
        told = numbers(events)
        assert told == list(range(1, len(told) + 1)), events

    # The watcher that looks once an hour: its first look told the first version, and the second look is a
    # webhook's.
    monkeypatch.setenv(SECRET_VARIABLE, following.secret)
    arguments = ["--airflow-url", stack.airflow_uri, "--mlflow-uri", mlflow.uri]
    assert commands.main(["webhooks", "register", *arguments]) == 0, capsys.readouterr()
    assert stack.api("GET", f"/variables/{NUDGE_VARIABLE}").status_code == 200
    following.alias(third)
    following.wait("m-alias-champion", third)

    # And nobody else can have it look.
    before = stack.api("GET", f"/variables/{NUDGE_VARIABLE}").json()["value"]
    forged = delivery("another secret", 0, {})
    answer = httpx.post(
        f"{stack.airflow_uri}{PATH}", content=forged.body, headers=forged.headers, trust_env=False
    )
    assert answer.status_code == 401
    assert stack.api("GET", f"/variables/{NUDGE_VARIABLE}").json()["value"] == before

    def runs(dag_id: str) -> int:
        return int(stack.api("GET", f"/dags/{dag_id}/dagRuns").json()["total_entries"])

    until(lambda: all(runs(dag_id) > 0 for dag_id in DAGS), 60, "each DAG to run")
