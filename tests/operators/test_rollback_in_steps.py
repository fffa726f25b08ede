"""The way back on KServe: a real MLflow, real pods behind the embedded cluster's stand-ins, a fake server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow.sdk.exceptions import AirflowFailException

from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.clusters import connected
from helpers.mlflow_server import MakeModel, MLflowServer, unique
from helpers.polling import until_async
from helpers.serving_replay import SERVER, container
from nighttrain.operators.serving import RollbackModelOperator, RolloutModelOperator
from nighttrain.providers.deployment_target.deployments import Deployments
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HTTPROUTES,
    INFERENCE_SERVICES,
    SERVICES,
)
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.strategy import canary

if TYPE_CHECKING:
    from airflow.sdk import Context

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

GATEWAY = "/apis/gateway.networking.k8s.io/v1/namespaces/default/gateways/nighttrain"
RUNTIMES = "/apis/serving.kserve.io/v1alpha1/namespaces/default/servingruntimes"
QUICK = canary(50, hold_seconds=0.2, watch_seconds=0.2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"localhost/python": sys.executable}, serving=Serving(seed=7)) as running:
        server = {**container(), "command": ["python3", "-S", "-E", "-u", "-c", _server()]}
        runtime = {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {"name": "fake"},
            "spec": {
                "supportedModelFormats": [{"name": "mlflow", "autoSelect": True}],
                "containers": [server],
            },
        }
        httpx.post(running.url + RUNTIMES, json=runtime, headers=_headers(running)).raise_for_status()
        yield running


def _server() -> str:
    """It names its version; where its storage is lost it is never ready."""
    named = SERVER.replace("os.environ['V']", "os.environ['NIGHTTRAIN_MODEL_VERSION']")
    return named.replace("os.environ.get('BAD')", "os.path.exists(os.environ['LOST']) and 'unready'")


def _headers(cluster: EmbeddedCluster) -> dict[str, str]:
    return {"Authorization": f"Bearer {cluster.token}"}


class Night:
    """A model, an endpoint on KServe, and tasks."""

    def __init__(self, cluster: EmbeddedCluster, server: MLflowServer, make: MakeModel, lost: str) -> None:
        self.cluster, self.server, self.make, self.lost = cluster, server, make, lost
        self.model, self.endpoint = unique("model"), unique("delay")[:20].rstrip("-")
        found = httpx.get(cluster.url + GATEWAY, headers=_headers(cluster)).json()
        self.gateway = f"http://{found['status']['addresses'][0]['value']}:8080"

    def version(self, text: str) -> str:
        return str(self.make(self.model, files={"MLmodel": b"flavors: {}\n", "t": text.encode()}).version)

    def context(self, task_id: str, run: str = "r") -> Context:
        ti: Any = SimpleNamespace(
            dag_id="deploy", run_id=run, task_id=task_id, map_index=-1, try_number=1, max_tries=1
        )
        ti.xcom_push, ti.xcom_pull = (lambda key, value: None), (lambda key, **_: None)
        return {"ti": ti, "dag_run": SimpleNamespace(start_date=datetime(2026, 1, 1, tzinfo=UTC))}  # type: ignore[typeddict-item]

    def roll_out(self, version: str) -> dict[str, Any] | None:
        backend = {
            "type": "kserve",
            "storage_uri": "s3://models/{model}/{version}",
            "gateway_url": self.gateway,
        }
        operator = RolloutModelOperator(
            task_id="rollout",
            endpoint=self.endpoint,
            model_name=self.model,
            image="unused",
            version=version,
            strategy=QUICK,
            backend=backend,
            env_vars={"LOST": f"{self.lost}-{version}"},
            moves_alias="champion",
            startup_timeout_seconds=8.0,
            deferrable=False,
        )
        return operator.execute(self.context("rollout", f"r{version}"))

    def roll_back(self, run: str = "r") -> dict[str, Any]:
        operator = RollbackModelOperator(task_id="back", endpoint=self.endpoint, reason="wrong since noon")
        return operator.execute(self.context("back", run))

    def champion(self) -> str:
        found = self.server.call("GET", "registered-models/alias", name=self.model, alias="champion")
        return str(found["model_version"]["version"])

    def answers(self) -> set[str]:
        """Which versions answer twenty requests through the gateway."""
        host = f"{self.endpoint}-default.example.com"
        asked = [httpx.get(f"{self.gateway}/predict", headers={"Host": host}) for _ in range(20)]
        return {str(each.raise_for_status().headers["x-model-version"]) for each in asked}

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nighttrain.providers.commands", "rollout", *words, self.endpoint]
        where = ["--kubeconfig", str(self.cluster.kubeconfig), "--mlflow-uri", self.server.uri]
        return subprocess.run([*command, *where], capture_output=True, text=True, timeout=200)


@pytest.fixture
def night(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    make_model: MakeModel,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Night:
    connect_kubernetes(monkeypatch, cluster)
    connect_mlflow(monkeypatch, mlflow_server.uri)
    return Night(cluster, mlflow_server, make_model, str(tmp_path / "lost"))


@pytest.mark.timeout(600)
def test_a_promoted_version_is_taken_back_with_its_alias_and_forward_again(night: Night) -> None:
    first, second = night.version("one"), night.version("two")
    for version in (first, second):
        night.roll_out(version)
    assert (night.champion(), night.answers()) == (second, {second})
    told = night.roll_back()
    assert (told["version"], told["previous_version"]) == (first, second)
    assert (night.champion(), night.answers()) == (first, {first})
    assert night.roll_back("r2")["version"] == second, "once more goes forward, as with plain Deployments"
    assert (night.champion(), night.answers()) == (second, {second})
    done = night.command("back")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"promoted: version {first} serves" in done.stdout
    assert (night.champion(), night.answers()) == (first, {first})


@pytest.mark.thorough
def test_what_does_not_come_up_any_more_moves_nothing(night: Night) -> None:
    first, second = night.version("one"), night.version("two")
    for version in (first, second):
        night.roll_out(version)
    open(f"{night.lost}-{first}", "w").close()
    with pytest.raises(AirflowFailException, match=r"(?s)RolloutUndoneError.*not ready within"):
        night.roll_back()
    assert (night.champion(), night.answers()) == (second, {second})
    os.unlink(f"{night.lost}-{first}")
    assert night.roll_back("r2")["version"] == first, "it is known still"


async def test_mlflow_deployments_delete_leaves_nothing_of_it(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asyncio import to_thread

    await to_thread(night.roll_out, night.version("one"))
    monkeypatch.setenv("KUBECONFIG", str(night.cluster.kubeconfig))
    told: list[str] = []
    target = Deployments("kubernetes:/default", night.server.uri, actor="ann", tell=told.append)
    async with connected(night.cluster) as client:

        async def left() -> list[str]:
            kinds = (INFERENCE_SERVICES, DEPLOYMENTS, SERVICES, HTTPROUTES, CONFIGMAPS)
            listed = [(await client.list(kind, "default"))["items"] for kind in kinds]
            names = [each["metadata"]["name"] for items in listed for each in items]
            return [name for name in names if name.startswith(night.endpoint)]

        assert len(await left()) >= 5
        await target.delete(night.endpoint)

        async def gone() -> bool:
            return not await left()

        await until_async(gone, 30)
        told.clear()
        await target.delete(night.endpoint)
        assert told == [f"there was no endpoint {night.endpoint} in namespace default"]


def test_a_plain_endpoint_is_not_this_commands(night: Night) -> None:
    done = night.command("back")
    assert done.returncode != 0
    assert "RollbackModelOperator switches to it" in done.stderr
    with pytest.raises(ConfigurationError):
        RollbackModelOperator(task_id="back", endpoint="delay", to="1")
