"""The whole cluster over HTTP, with the ordinary client, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from kubernetes import client, config, watch

from helpers.cluster_without_http import job, script
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"localhost/python": sys.executable}) as running:
        yield running


@pytest.fixture(scope="module")
def api(cluster: EmbeddedCluster) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(str(cluster.kubeconfig)) as connection:
        yield connection


def finish(api: client.ApiClient, name: str) -> client.V1Job:
    watching = watch.Watch()
    listing = client.BatchV1Api(api).list_namespaced_job
    for event in watching.stream(
        listing, "default", field_selector=f"metadata.name={name}", timeout_seconds=20
    ):
        conditions = {each.type for each in event["object"].status.conditions or []}
        if conditions & {"Complete", "Failed"}:
            watching.stop()
            return event["object"]
    raise AssertionError(f"{name} did not end")


def test_jobs_succeed_and_fail_for_the_ordinary_client(api: client.ApiClient) -> None:
    batch, core = client.BatchV1Api(api), client.CoreV1Api(api)
    batch.create_namespaced_job("default", job("works", "print('hello')"))
    batch.create_namespaced_job("default", job("breaks", "print('boom'); raise SystemExit(3)"))
    assert finish(api, "works").status.succeeded == 1
    assert finish(api, "breaks").status.failed == 1
    [works] = core.list_namespaced_pod("default", label_selector="job-name=works").items
    [breaks] = core.list_namespaced_pod("default", label_selector="job-name=breaks").items
    assert log_of(core, works.metadata.name) == "hello\n"
    terminated = breaks.status.container_statuses[0].state.terminated
    assert (terminated.exit_code, terminated.reason, terminated.message) == (3, "Error", "boom\n")
    batch.delete_namespaced_job("works", "default", propagation_policy="Foreground")
    batch.delete_namespaced_job("breaks", "default", propagation_policy="Background")


def test_log_is_followed(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    code = "import time\nfor i in range(3): print('line', i, flush=True); time.sleep(0.1)"
    core.create_namespaced_pod("default", script("talks", code))
    while core.read_namespaced_pod("talks", "default").status.phase == "Pending":
        time.sleep(0.01)
    stream = core.read_namespaced_pod_log("talks", "default", follow=True, _preload_content=False)
    assert b"".join(stream.stream()) == b"line 0\nline 1\nline 2\n"
    core.delete_namespaced_pod("talks", "default")


def test_stop_is_quick_and_leaves_nothing() -> None:
    with EmbeddedCluster(images={"localhost/python": sys.executable}) as running:
        directory = running.directory
        with config.new_client_from_config(str(running.kubeconfig)) as connection:
            core = client.CoreV1Api(connection)
            core.create_namespaced_pod(
                "default",
                script("stays", "import os, time; print(os.getpid(), flush=True); time.sleep(60)", grace=60),
            )
            while not (text := log_of(core, "stays")):
                time.sleep(0.01)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert not os.path.exists(f"/proc/{int(text)}")
    assert not directory.exists()


def log_of(core: client.CoreV1Api, name: str) -> str:
    """What the pod has written; nothing while it has not started."""
    # The raw answer: this client's own decoding turns an empty log into the text "b''".
    try:
        answer = core.read_namespaced_pod_log(name, "default", _preload_content=False)
    except client.ApiException as error:
        if error.status != 400:
            raise
        return ""
    return str(answer.data.decode())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nighttrain.providers.local", "cluster"]
    arguments = ["--directory", str(tmp_path), "--image", f"localhost/python={sys.executable}"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with config.new_client_from_config(str(tmp_path / "kubeconfig")) as connection:
            core = client.CoreV1Api(connection)
            code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
            core.create_namespaced_pod("default", script("stays", code, grace=60))
            while not (text := log_of(core, "stays")):
                time.sleep(0.01)
        server.send_signal(how)
        server.wait(10)
    end = time.monotonic() + 10
    while os.path.exists(f"/proc/{int(text)}") and time.monotonic() < end:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{int(text)}")
