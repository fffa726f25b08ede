"""What a training's container gets to reach MLflow: seen from inside it, and in the cluster's objects."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from helpers.airflow_connections import connect_kubernetes
from helpers.certificates import Authority
from helpers.server_proxy import ServerProxy
from helpers.training_task import Task
from nighttrain.providers.errors import ApplicationError
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.api.resources import SECRETS
from nighttrain.providers.kubernetes.job.plain_secrets import known_forms
from nighttrain.providers.local.cluster.store.resources import CONFIGMAPS, EVENTS, JOBS, PODS

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

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


@pytest.fixture(autouse=True)
def kubernetes(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_kubernetes(monkeypatch, cluster)


async def test_a_training_reaches_mlflow_behind_a_companys_certificate(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority("company")
    pair = authority.issue("mlflow")
    # People keep key and certificate in one file: only the certificate may leave this machine.
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pair.key + b"# the company's\n" + authority.pem)
    async with ServerProxy(mlflow_server.uri, "none", server=pair) as proxy:
        task = Task(monkeypatch, TRAINING, deferrable=False)
        task.mlflow_is(proxy.url, extra={"ca_certificate": str(ca)})
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
    async with ServerProxy(mlflow_server.uri, "none", server=Authority("nobody").issue("mlflow")) as proxy:
        task = Task(monkeypatch, "print(1)", deferrable=False, env_vars=env_vars)
        task.mlflow_is(proxy.url, extra=extra)
        result = await asyncio.to_thread(task.execute)
    assert result is not None
    (pod,) = _named(cluster, PODS, result["job"].partition("/")[2])
    environment = {each["name"]: each.get("value") for each in pod["spec"]["containers"][0]["env"]}
    assert {name: value for name, value in environment.items() if "TLS" in name or "CERT" in name} == expected


def _all(cluster: EmbeddedCluster, resource: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.call(lambda store: store.list(resource)[0])
    return found


def _named(cluster: EmbeddedCluster, resource: Any, name: str) -> list[dict[str, Any]]:
    return [each for each in _all(cluster, resource) if each["metadata"]["name"].startswith(name)]


OF_THE_WORKER, OF_THE_POD = "w0rker-s3cret", "p0d-s3cret"


async def test_no_secret_in_any_object_xcom_template_or_tag(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "credentials", "namespace": "default"},
        "stringData": {"MLFLOW_TRACKING_USERNAME": "pod", "MLFLOW_TRACKING_PASSWORD": OF_THE_POD},
    }
    config = ClusterConfig(kubeconfig=str(cluster.kubeconfig))
    async with await ClusterClient.open(config) as client:
        await client.create(SECRETS, "default", secret)
    code = "import os; raise SystemExit(os.environ['MLFLOW_TRACKING_PASSWORD'][:4] != 'p0d-')"
    authority = Authority("company")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    async with ServerProxy(mlflow_server.uri, "none", server=authority.issue("mlflow")) as proxy:

        def task(*, deferrable: bool) -> Task:
            made = Task(monkeypatch, code, deferrable=deferrable, mlflow_secret="credentials")
            extra = {"token": OF_THE_WORKER, "ca_certificate": str(ca)}
            made.mlflow_is(proxy.url, login="me", password=OF_THE_WORKER, extra=extra)
            return made

        waiting = task(deferrable=False)
        result = await asyncio.to_thread(waiting.execute)
        deferred = task(deferrable=True)
        with pytest.raises(TaskDeferred) as caught:
            await asyncio.to_thread(deferred.execute)
        trigger: Any = caught.value.trigger
        outcome = await asyncio.wait_for(anext(trigger.run()), 60)
    assert result is not None
    shown = [
        _named(cluster, each, result["job"].partition("/")[2]) for each in (JOBS, PODS, CONFIGMAPS, EVENTS)
    ]
    assert all(shown), "something of each kind was looked at"
    objects = [each for resource in (JOBS, PODS, CONFIGMAPS, EVENTS) for each in _all(cluster, resource)]
    run = mlflow_server.call("GET", "runs/get", run_id=result["run_id"])
    fields = [getattr(waiting.operator, field) for field in waiting.operator.template_fields]
    of_airflow = [waiting.xcoms, deferred.xcoms, trigger.serialize(), outcome.payload, caught.value.kwargs]
    for text in map(repr, (objects, of_airflow, fields, run)):
        for secret, user in ((OF_THE_WORKER, "me"), (OF_THE_POD, "pod")):
            for form in (*known_forms([secret], user), base64.b64encode(secret.encode()).decode()):
                assert form not in text


@pytest.mark.parametrize(
    "given",
    [
        {"env_vars": {"MLFLOW_TRACKING_PASSWORD": "x"}},
        {"env_vars": {"SETTING": OF_THE_WORKER}},
        {"cmds": ["env", f"MLFLOW_TRACKING_PASSWORD={OF_THE_WORKER[1:]}", "python"]},
        {"annotations": {"note": f"https://me:{OF_THE_WORKER[1:]}@host"}},
        {"arguments": [f"--password={OF_THE_WORKER}"]},
        {"run_name": f"as {OF_THE_WORKER}"},
        {"init_containers": [{"name": "i", "image": "py", "env": [{"name": "HF_TOKEN", "value": "x"}]}]},
    ],
)
def test_a_secret_that_would_be_shown_is_refused_before_anything_is_made(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    task = Task(monkeypatch, "print(1)", deferrable=False, **given)
    task.mlflow_is(mlflow_server.uri, login="me", password=OF_THE_WORKER)
    with pytest.raises(AirflowFailException, match="Secret") as caught:
        task.execute()
    assert OF_THE_WORKER[1:] not in str(caught.value)
    assert task.jobs(cluster) == []
    found = mlflow_server.call("POST", "experiments/search", max_results=1000)["experiments"]
    assert task.ti.dag_id not in [experiment["name"] for experiment in found]


def test_a_variable_that_refers_to_the_run_is_replaced(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os; raise SystemExit(os.environ['OUT'] != '/out/' + os.environ['MLFLOW_RUN_ID'])"
    task = Task(monkeypatch, code, deferrable=False, env_vars={"OUT": "/out/$(MLFLOW_RUN_ID)"})
    task.mlflow_is(mlflow_server.uri)
    assert task.execute()


@pytest.mark.parametrize("experiment_name", [None, "the team's"])
def test_training_code_that_sets_its_experiment(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    experiment_name: str | None,
) -> None:
    """MLflow's own client, in plain code: it works where the operator has the same name, else it is told."""
    code = 'import mlflow; mlflow.set_experiment("the team\'s"); mlflow.log_metric("rmse", 1.5)'
    given: dict[str, Any] = {"cmds": ["python", "-c", code], "experiment_name": experiment_name}
    task = Task(monkeypatch, code, deferrable=False, **given)
    task.mlflow_is(mlflow_server.uri)
    if experiment_name:
        assert task.execute()
        return
    with pytest.raises(ApplicationError, match=r"calls mlflow\.set_experiment") as caught:
        task.execute()
    assert repr(task.ti.dag_id) in str(caught.value)
    assert "give experiment_name" in str(caught.value)
