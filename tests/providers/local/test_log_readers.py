"""Whoever reads a log and leaves, leaves nothing open."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

PODS = "/api/v1/namespaces/default/pods"
LOG = f"{PODS}/talks/log"


def open_logs() -> int:
    """How many of this process's files, which the cluster's are too, are a container's log."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(entry).endswith("/main-0.log")
        except OSError:
            continue
    return found


def until_open(number: int) -> None:
    deadline = time.monotonic() + 20
    while open_logs() != number:
        assert time.monotonic() < deadline, f"{open_logs()} logs are open, not {number}"
        time.sleep(0.02)


@contextmanager
def talking(prints: str) -> Iterator[tuple[EmbeddedCluster, httpx.Client]]:
    """A pod that prints and goes on, and a client of its cluster. The address of its log is LOG."""
    with EmbeddedCluster(images={"py": sys.executable}) as cluster:
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        server, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        code = f"import time; {prints}; time.sleep(600)"
        container = {"name": "main", "image": "py", "command": ["python", "-S", "-c", code]}
        spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=server, headers=headers, timeout=30) as client:
            assert client.post(PODS, json={"metadata": {"name": "talks"}, "spec": spec}).status_code == 201
            while client.get(f"{PODS}/talks").json()["status"]["phase"] != "Running":
                time.sleep(0.02)
            yield cluster, client


@pytest.mark.parametrize("prints", ["print('a line', flush=True)", "pass"], ids=["a line", "nothing"])
def test_a_reader_that_leaves_closes_the_log(prints: str) -> None:
    with talking(prints) as (_, client):
        before = open_logs()
        for _ in range(3):
            with client.stream("GET", LOG, params={"follow": "true"}) as answer:
                lines = answer.iter_lines()
                if prints != "pass":
                    assert next(lines) == "a line"
                until_open(before + 1)
            until_open(before)


@pytest.mark.parametrize("prints", ["print('a line', flush=True)", "pass"], ids=["a line", "nothing"])
def test_a_server_that_stops_under_its_readers_closes_the_log(prints: str) -> None:
    with talking(prints) as (cluster, client):
        before = open_logs()
        with client.stream("GET", LOG, params={"follow": "true"}):
            until_open(before + 1)
            cluster.stop()
            assert open_logs() == 0
