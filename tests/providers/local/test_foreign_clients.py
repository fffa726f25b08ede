"""Clients nobody here wrote, unpatched, against the embedded cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kubernetes import client

SCRIPTS = Path(__file__).parent / "foreign"

MANIFESTS = """
apiVersion: v1
kind: Namespace
metadata: {name: from-yaml}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: from-yaml}
data: {rows: "7"}
---
apiVersion: batch/v1
kind: Job
metadata: {name: trains, namespace: from-yaml}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: py, command: [python, -c, "print('trained')"]}]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}) as running:
        yield running


@pytest.fixture
def api(cluster: EmbeddedCluster) -> Iterator[client.ApiClient]:
    from kubernetes import config

    with config.new_client_from_config(str(cluster.kubeconfig)) as connection:
        yield connection


def test_create_from_yaml_and_watch(api: client.ApiClient, tmp_path: Path) -> None:
    from kubernetes import client, utils, watch

    path = tmp_path / "manifests.yaml"
    path.write_text(MANIFESTS)
    created = utils.create_from_yaml(api, str(path))
    assert [each.kind for [each] in created] == ["Namespace", "ConfigMap", "Job"]
    with pytest.raises(utils.FailToCreateError) as again:
        utils.create_from_yaml(api, str(path))
    assert {each.status for each in again.value.api_exceptions} == {409}
    stream = watch.Watch()
    seen = []
    for event in stream.stream(client.BatchV1Api(api).list_namespaced_job, "from-yaml", timeout_seconds=30):
        seen.append(event["type"])
        if event["object"].status.succeeded == 1:
            stream.stop()
    assert seen[0] == "ADDED"
    assert set(seen[1:]) == {"MODIFIED"}


def test_the_dynamic_client(api: client.ApiClient) -> None:
    from kubernetes.dynamic import DynamicClient
    from kubernetes.dynamic.exceptions import NotFoundError

    dynamic = DynamicClient(api)
    maps = dynamic.resources.get(api_version="v1", kind="ConfigMap")
    made = maps.create(namespace="default", body={"metadata": {"name": "dynamic"}, "data": {"a": "b"}})
    patched = maps.patch(
        namespace="default",
        name="dynamic",
        body={"data": {"c": "d"}},
        content_type="application/merge-patch+json",
    )
    assert patched.data.to_dict() == {"a": "b", "c": "d"}
    names = [each.metadata.name for each in maps.get(namespace="default").items]
    assert "dynamic" in names
    for event in maps.watch(namespace="default", name="dynamic", timeout=20):
        assert event["object"].metadata.uid == made.metadata.uid
        break
    maps.delete(namespace="default", name="dynamic")
    with pytest.raises(NotFoundError):
        maps.get(namespace="default", name="dynamic")
    deployments = dynamic.resources.get(api_version="apps/v1", kind="Deployment")
    assert deployments.subresources["scale"]


async def test_the_asynchronous_client_follows_a_job_and_its_log(cluster: EmbeddedCluster) -> None:
    from kubernetes_asyncio import client, config, watch

    container = {"name": "main", "image": "py", "command": ["python", "-c", "print('trained')"]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    body = {"metadata": {"name": "asynchronous"}, "spec": {"template": template}}
    async with await config.new_client_from_config(str(cluster.kubeconfig)) as api:
        core, batch = client.CoreV1Api(api), client.BatchV1Api(api)
        await batch.create_namespaced_job("default", body)
        async with watch.Watch() as stream:
            async for event in stream.stream(
                core.list_namespaced_pod,
                "default",
                label_selector="batch.kubernetes.io/job-name=asynchronous",
                timeout_seconds=30,
            ):
                if event["object"].status.phase == "Succeeded":
                    break
        name = event["object"].metadata.name
        assert await core.read_namespaced_pod_log(name, "default") == "trained\n"


def run(script: str, home: Path, *arguments: str) -> dict[str, Any]:
    """What the script found, in a process of its own."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "DAGSTER_HOME": "",
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }
    environment |= {"AIRFLOW__CORE__LOAD_EXAMPLES": "False", "NO_PROXY": "127.0.0.1"}
    environment.pop("KUBECONFIG", None)
    environment.pop("DAGSTER_HOME", None)
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, cwd=home)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    found: dict[str, Any] = json.loads(results[-1].removeprefix("RESULT "))
    return found


def pods(api: client.ApiClient) -> dict[str, str]:
    from kubernetes import client

    listed = client.CoreV1Api(api).list_namespaced_pod("default").items
    return {pod.metadata.name: pod.status.phase for pod in listed}


@pytest.mark.airflow
@pytest.mark.slow
def test_airflows_pod_operator(cluster: EmbeddedCluster, api: client.ApiClient, tmp_path: Path) -> None:
    pytest.importorskip("airflow.providers.cncf.kubernetes")
    found = run("airflow_operators.py", tmp_path, str(cluster.kubeconfig), "pod")
    assert pods(api)[found["works"]] == "Succeeded"
    assert "Failed" in found["breaks"] or "Exception" in found["breaks"]


@pytest.mark.thorough
@pytest.mark.airflow
@pytest.mark.slow
def test_airflows_deferrable_pod_operator(
    cluster: EmbeddedCluster, api: client.ApiClient, tmp_path: Path
) -> None:
    pytest.importorskip("airflow.providers.cncf.kubernetes")
    found = run("airflow_operators.py", tmp_path, str(cluster.kubeconfig), "deferred")
    assert found["events"][-1] == "success"
    assert "Succeeded" in {phase for name, phase in pods(api).items() if name.startswith("pod-defers")}


@pytest.mark.airflow
@pytest.mark.slow
def test_airflows_job_operator(cluster: EmbeddedCluster, api: client.ApiClient, tmp_path: Path) -> None:
    pytest.importorskip("airflow.providers.cncf.kubernetes")
    found = run("airflow_operators.py", tmp_path, str(cluster.kubeconfig), "job")
    from kubernetes import client

    assert client.BatchV1Api(api).read_namespaced_job_status(found["job"], "default").status.succeeded == 1


@pytest.mark.thorough
@pytest.mark.slow
def test_dagsters_clients(cluster: EmbeddedCluster, api: client.ApiClient, tmp_path: Path) -> None:
    pytest.importorskip("dagster_k8s")
    found = run("dagster_clients.py", tmp_path, str(cluster.kubeconfig))
    assert found == {"pipes": [7], "job": True}
    from kubernetes import client

    assert client.BatchV1Api(api).read_namespaced_job_status("dagster-job", "default").status.succeeded == 1
