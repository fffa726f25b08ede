"""Clients that nobody here wrote."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: NAME}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: trainer, command: [train]}]
"""


def job(name: str) -> dict[str, Any]:
    import yaml

    parsed: dict[str, Any] = yaml.safe_load(JOB.replace("NAME", name))
    return parsed


def test_the_official_client(api_cluster: EmbeddedCluster) -> None:
    from kubernetes import client, config, watch

    with config.new_client_from_config(str(api_cluster.kubeconfig)) as api:
        core, batch = client.CoreV1Api(api), client.BatchV1Api(api)
        created = batch.create_namespaced_job("default", job("official"), field_validation="Strict")
        assert created.spec.backoff_limit == 6
        listed = batch.list_namespaced_job("default", label_selector="job-name=official")
        assert [each.metadata.name for each in listed.items] == ["official"]
        pod = client.V1Pod(
            metadata=client.V1ObjectMeta(generate_name="official-"),
            spec=client.V1PodSpec(containers=[client.V1Container(name="main", image="trainer")]),
        )
        name = core.create_namespaced_pod("default", pod).metadata.name
        core.patch_namespaced_pod_status(name, "default", {"status": {"phase": "Running"}})
        stream = watch.Watch()
        for event in stream.stream(
            core.list_namespaced_pod, "default", field_selector=f"metadata.name={name}"
        ):
            assert event["object"].status.phase == "Running"
            stream.stop()
        core.delete_namespaced_pod(name, "default")
        with pytest.raises(client.ApiException) as gone:
            core.read_namespaced_pod(name, "default")
        assert gone.value.status == 404


async def test_the_asynchronous_client(api_cluster: EmbeddedCluster) -> None:
    from kubernetes_asyncio import client, config, watch

    async with await config.new_client_from_config(str(api_cluster.kubeconfig)) as api:
        core, batch = client.CoreV1Api(api), client.BatchV1Api(api)
        await batch.create_namespaced_job("default", job("asynchronous"))
        seen: list[str] = []

        async def follow() -> None:
            async with watch.Watch() as stream:
                async for event in stream.stream(
                    core.list_namespaced_config_map, "default", timeout_seconds=20
                ):
                    seen.append(f"{event['type']} {event['object'].metadata.name}")
                    if event["type"] == "DELETED":
                        break

        task = asyncio.create_task(follow())
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="async"), data={"a": "b"})
        await core.create_namespaced_config_map("default", body)
        await core.delete_namespaced_config_map("async", "default")
        # Both may be over before the watch begins: what follows it sees in any case.
        while not task.done():
            await core.create_namespaced_config_map("default", body)
            await core.delete_namespaced_config_map("async", "default")
        await task
        assert "DELETED async" in seen


@pytest.fixture
def kubectl(api_cluster: EmbeddedCluster, tmp_path: Path) -> Any:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed")

    def run(*arguments: str, stdin: str = "") -> str:
        command = [program, "--kubeconfig", str(api_cluster.kubeconfig), "--cache-dir", str(tmp_path)]
        done = subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.kubectl
def test_kubectl(kubectl: Any) -> None:
    assert "created" in kubectl("apply", "-f", "-", stdin=JOB.replace("NAME", "by-hand"))
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=JOB.replace("NAME", "by-hand"))
    header, row = kubectl("get", "job", "by-hand").splitlines()
    assert header.split() == ["NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE"]
    assert row.split()[:3] == ["by-hand", "Running", "0/1"]
    assert "Backoff Limit:    6" in kubectl("describe", "job", "by-hand")
    kubectl("label", "job", "by-hand", "colour=red")
    assert kubectl("get", "jobs", "-l", "colour=red", "-o", "name").strip() == "job.batch/by-hand"
    assert "deployments" in kubectl("api-resources")
    assert "deleted" in kubectl("delete", "job", "by-hand", "--wait=true", "--timeout=20s")


def test_airflows_hook_lists_pods(api_cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = pytest.importorskip("airflow.providers.cncf.kubernetes.hooks.kubernetes")
    from kubernetes import client, config

    with config.new_client_from_config(str(api_cluster.kubeconfig)) as api:
        spec = client.V1PodSpec(containers=[client.V1Container(name="main", image="trainer")])
        body = client.V1Pod(metadata=client.V1ObjectMeta(name="hooked"), spec=spec)
        client.CoreV1Api(api).create_namespaced_pod("default", body)
    hook = hooks.KubernetesHook(conn_id=None, config_file=str(api_cluster.kubeconfig))
    names = [pod.metadata.name for pod in hook.core_v1_client.list_namespaced_pod("default").items]
    assert "hooked" in names
