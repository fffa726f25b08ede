"""MLflow with webhooks and an Airflow in parts whose DAGs follow its registry."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from cryptography.fernet import Fernet

import nighttrain
from helpers.airflow_in_parts import StackInParts
from helpers.mlflow_server import MLflowServer, running_mlflow
from helpers.polling import until
from nighttrain.providers.registry.feed.webhooks import SECRET_VARIABLE

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


@contextlib.contextmanager
def following_registry(directory: Path, dags: Path, dag_ids: Sequence[str]) -> Iterator[Following]:
    """The servers, until the end of the block. ``mlflow_patient`` is a connection of another user, with
    another poll."""
    key, secret = secrets.token_hex(32), secrets.token_hex()
    settings = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    with running_mlflow(directory / "mlflow", **settings) as mlflow:
        connection = {"conn_type": "mlflow", "host": mlflow.uri}
        stack = StackInParts(
            directory / "stack",
            [dags],
            airflow_settings={
                "PYTHONPATH": os.pathsep.join(str(Path(each).parent) for each in nighttrain.__path__),
                "AIRFLOW__API_AUTH__JWT_SECRET": key,
                "AIRFLOW__API__SECRET_KEY": key,
                "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
                "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps(connection),
                "AIRFLOW_CONN_MLFLOW_PATIENT": json.dumps(
                    {**connection, "login": "patient", "password": "x"}
                ),
                SECRET_VARIABLE: secret,
                **_plugins(directory / "plugins"),
            },
        )
        try:
            stack.start_airflow()
            stack.wait_airflow(dag_ids)
            yield Following(stack, mlflow, secret)
        finally:
            stack.stop()


def _plugins(folder: Path) -> dict[str, str]:
    """The plugin, as its entry point gives it where this checkout is what is installed."""
    if entry_points(group="airflow.plugins", name="nighttrain_webhooks"):
        return {}
    folder.mkdir()
    (folder / "webhooks.py").write_text(PLUGIN)
    return {"AIRFLOW__CORE__PLUGINS_FOLDER": str(folder)}
