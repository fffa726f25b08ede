"""What a training's container gets to reach MLflow: seen from inside it, and in the cluster's objects."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from front import Authority, Front
from one_task import Task

from nighttrain.providers.local.resources import CONFIGMAPS, PODS
from nighttrain.providers.local.server import EmbeddedCluster

if TYPE_CHECKING:
    from mlflow_server import MLflowServer

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

# Logs one metric as MLflow's client would: over TLS, with the certificate that the variable names.
TRAINING = """
import json, os, ssl, time, urllib.request
context = ssl.create_default_context(cafile=os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"])
now = int(time.time() * 1000)
body = {"run_id": os.environ["MLFLOW_RUN_ID"], "key": "rmse", "value": 1.5, "timestamp": now}
address = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric"
request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
urllib.request.urlopen(request, timeout=20, context=context).close()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}) as running:
        yield running


@pytest.fixture(autouse=True)
def kubernetes(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(cluster.kubeconfig)}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))


async def test_a_training_reaches_mlflow_behind_a_companys_certificate(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority("company")
    pair = authority.issue("mlflow")
    # People keep key and certificate in one file: only the certificate may leave this machine.
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pair.key + b"# the company's\n" + authority.pem)
    async with Front(mlflow_server.uri, "none", server=pair) as front:
        task = Task(monkeypatch, TRAINING, deferrable=False)
        task.mlflow_is(front.url, extra={"ca_certificate": str(ca)})
        result = await asyncio.to_thread(task.execute)
    assert result is not None
    run = mlflow_server.call("GET", "runs/get", run_id=result["run_id"])["run"]
    assert [metric["key"] for metric in run["data"]["metrics"]] == ["rmse"]
    name = result["job"].partition("/")[2]
    (config_map,) = _named(cluster, CONFIGMAPS, name)
    assert config_map["data"] == {"mlflow-ca.pem": authority.pem.decode()}
    (owner,) = config_map["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Job", name)


@pytest.mark.parametrize(
    ("extra", "env_vars", "expected"),
    [
        ({"disable_verify_ssl": True}, None, {"MLFLOW_TRACKING_INSECURE_TLS": "true"}),
        (
            {"disable_verify_ssl": True},
            {"MLFLOW_TRACKING_SERVER_CERT_PATH": "/etc/ca.pem"},
            {"MLFLOW_TRACKING_SERVER_CERT_PATH": "/etc/ca.pem"},
        ),
        ({"disable_verify_ssl": True, "cluster_uri": "http://mlflow.ml.svc:5000"}, None, {}),
    ],
)
async def test_a_server_whose_certificate_is_not_checked(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    extra: dict[str, Any],
    env_vars: dict[str, str] | None,
    expected: dict[str, str],
) -> None:
    async with Front(mlflow_server.uri, "none", server=Authority("nobody").issue("mlflow")) as front:
        task = Task(monkeypatch, "print(1)", deferrable=False, env_vars=env_vars)
        task.mlflow_is(front.url, extra=extra)
        result = await asyncio.to_thread(task.execute)
    assert result is not None
    (pod,) = _named(cluster, PODS, result["job"].partition("/")[2])
    environment = {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]}
    assert {name: value for name, value in environment.items() if "TLS" in name or "CERT" in name} == expected


def _named(cluster: EmbeddedCluster, resource: Any, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.call(lambda store: store.list(resource)[0])
    return [each for each in found if each["metadata"]["name"].startswith(name)]
