"""The cluster as a whole: starting, stopping, what it writes and what it leaves."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from nighttrain.providers.local.cluster.server import ClusterStartError, EmbeddedCluster

if TYPE_CHECKING:
    from pathlib import Path

    from nighttrain.providers.local.cluster.store.store import Store


def test_nothing_is_left_after_the_stop() -> None:
    with EmbeddedCluster(containers=False) as cluster:
        directory, url = cluster.directory, cluster.url
        assert stat.S_IMODE(cluster.kubeconfig.stat().st_mode) == 0o600
        config = json.loads(cluster.kubeconfig.read_text())
        assert config["clusters"][0]["cluster"]["server"] == url
    assert not directory.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_two_clusters_know_nothing_of_one_another() -> None:
    with EmbeddedCluster(containers=False) as one, EmbeddedCluster(containers=False) as other:
        headers = {"Authorization": f"Bearer {one.token}"}
        assert httpx.get(f"{one.url}/version", headers=headers).status_code == 200
        assert httpx.get(f"{other.url}/version", headers=headers).status_code == 401


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterStartError, match=f"port {port} on 127.0.0.1 is in use"):
            EmbeddedCluster(containers=False, port=port).start()


def test_somebodys_kubeconfig_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("apiVersion: v1\ncurrent-context: production\n")
    with pytest.raises(ClusterStartError, match="is not an embedded cluster's"):
        EmbeddedCluster(containers=False, kubeconfig=path).start()
    assert "production" in path.read_text()


def test_open_watches_end_with_the_server() -> None:
    cluster = EmbeddedCluster(containers=False)
    cluster.start()
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.stream("GET", f"{cluster.url}/api/v1/pods?watch=true", headers=headers) as stream:
        cluster.stop()
        assert list(stream.iter_lines()) == []
    cluster.stop()


def test_a_client_that_leaves_is_forgotten() -> None:
    def watchers(store: Store) -> int:
        return sum(map(len, store._history._watchers.values()))

    with EmbeddedCluster(containers=False) as cluster:
        headers = {"Authorization": f"Bearer {cluster.token}"}
        before = cluster.call(watchers)
        with httpx.stream("GET", f"{cluster.url}/api/v1/pods?watch=true", headers=headers):
            assert cluster.call(watchers) == before + 1
        deadline = time.monotonic() + 10
        while cluster.call(watchers) > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert cluster.call(watchers) == before


def test_an_unexpected_failure_is_a_status_object(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedCluster(containers=False) as cluster:

        def broken(*_args: object, **_options: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(cluster.store, "records", broken)
        headers = {"Authorization": f"Bearer {cluster.token}"}
        answer = httpx.get(f"{cluster.url}/api/v1/pods", headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (500, "InternalError")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_when_it_is_ready_and_stops_on_a_signal(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "nighttrain.providers.local", "cluster", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("cluster ready: http://127.0.0.1:")
            assert (tmp_path / "kubeconfig").exists()
        finally:
            process.send_signal(number)
        assert process.wait(20) == 0
    assert not (tmp_path / "kubeconfig").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "trainer"], "write NAME=PYTHON"),
        (["--port", "seventy"], "is not a port"),
        (["--image", "trainer=/absent/python"], "/absent/python"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "nighttrain.providers.local", "cluster", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
