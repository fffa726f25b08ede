"""How fast the embedded cluster starts, and how many pods it runs per second.

Start-up. Measured: from the start of ``python -m nighttrain.providers.local cluster`` to its line that says
it is ready (7 starts); ``EmbeddedCluster().start()`` inside a running Python, the first time (it imports the
server) and 7 times after that; beside them ``python -c pass``, which every process start contains. Medians.

Pods. Measured: 200 and 1,000 pods that run ``true``, each time in a cluster of its own, which is another
process. They are created over HTTP by 8 clients at once; one watch sees them succeed. Created per second:
over the time of the creations. Completed per second: from the first creation to the last pod's Succeeded.
Server CPU: processor seconds of the server process (its containers count apart) for all the pods. Memory: the
server's peak resident set. 5 turns, the two numbers of pods in turn; medians, and the range, which is wide
where the machine does other things. That the containers are real is checked by the kernel's own count of
processes started. Beside them, how fast this Python starts ``true`` one after another.
Command: ``./run bench -k cluster_startup``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(600)]

STARTS = 7
TURNS = 5
CLIENTS = 8
PODS = "/api/v1/namespaces/default/pods"


def test_start_up(show: Any, start_cluster: Any, tmp_path: Path) -> None:
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

    interpreter, process, inside = [], [], []
    for number in range(STARTS + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        interpreter.append(time.perf_counter() - began)
        with start_cluster(tmp_path / f"cluster-{number}") as cluster:
            process.append(cluster.seconds)
        began = time.perf_counter()
        with EmbeddedCluster():
            inside.append(time.perf_counter() - began)

    def row(name: str, seconds: list[float]) -> tuple[str, ...]:
        return name, f"{median(seconds):.3f}", f"{min(seconds):.3f}", f"{max(seconds):.3f}"

    show(
        "Start of the embedded cluster until its API answers",
        ("start", "s (median)", "least", "most"),
        [
            row("python -c pass, for comparison", interpreter[1:]),
            row("python -m nighttrain.providers.local cluster", process[1:]),
            row("EmbeddedCluster().start(), the first (one value)", inside[:1]),
            row("EmbeddedCluster().start(), later ones", inside[1:]),
        ],
        f"{STARTS} starts each; one start before them is not counted",
    )


@dataclass(frozen=True)
class Run:
    pods: int
    created_seconds: float
    completed_seconds: float
    server_cpu: float
    memory: float


def test_pods_per_second(show: Any, start_cluster: Any, tmp_path: Path) -> None:
    runs: dict[int, list[Run]] = {200: [], 1000: []}
    for turn in range(TURNS):
        for pods, found in runs.items():
            with start_cluster(tmp_path / f"cluster-{turn}-{pods}") as cluster:
                forks, cpu = processes_started(), server_cpu(cluster.pid)
                created, completed = asyncio.run(run_pods(cluster, pods))
                assert processes_started() - forks >= pods, "a pod succeeded that no process ran"
                cpu = server_cpu(cluster.pid) - cpu
                found.append(Run(pods, created, completed, cpu, cluster.memory()[1]))
    began = time.perf_counter()
    for _ in range(100):
        subprocess.run(["true"], check=True)
    processes = 100 / (time.perf_counter() - began)
    show(
        "Pods of the embedded cluster (medians)",
        ("pods running `true`", "created/s", "completed/s", "range", "s in all", "server CPU s", "MiB peak"),
        [row(found) for found in runs.values()],
        f"{TURNS} turns; beside it, subprocess.run(['true']) one after another: {processes:.0f} per second",
    )


def row(runs: list[Run]) -> tuple[str, ...]:
    completed = [run.pods / run.completed_seconds for run in runs]
    return (
        f"{runs[0].pods:,}",
        f"{median(run.pods / run.created_seconds for run in runs):.0f}",
        f"{median(completed):.0f}",
        f"{min(completed):.0f} - {max(completed):.0f}",
        f"{median(run.completed_seconds for run in runs):.1f}",
        f"{median(run.server_cpu for run in runs):.1f}",
        f"{median(run.memory for run in runs):.0f}",
    )


def processes_started() -> int:
    """Since the machine's boot, by everybody."""
    lines = Path("/proc/stat").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("processes ")).split()[1])


def server_cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def run_pods(cluster: Any, number: int) -> tuple[float, float]:
    """Seconds until all were created, and until all had succeeded."""
    async with cluster.client() as client:
        listed = (await client.get(PODS)).json()
        succeeded = asyncio.create_task(
            watch_successes(client, listed["metadata"]["resourceVersion"], number)
        )
        numbers = count()
        began = time.perf_counter()

        async def create() -> None:
            while (mine := next(numbers)) < number:
                answer = await client.post(PODS, json=pod(f"bench-{mine}"))
                assert answer.status_code == 201, answer.text

        await asyncio.gather(*(create() for _ in range(CLIENTS)))
        created = time.perf_counter() - began
        async with asyncio.timeout(300):
            await succeeded
        return created, time.perf_counter() - began


async def watch_successes(client: Any, resource_version: str, number: int) -> None:
    names: set[str] = set()
    query = {"watch": "true", "resourceVersion": resource_version}
    async with client.stream("GET", PODS, params=query, timeout=None) as answer:
        async for line in answer.aiter_lines():
            event = json.loads(line)
            phase = event["object"].get("status", {}).get("phase")
            assert phase != "Failed", event["object"]["status"]
            if phase == "Succeeded":
                names.add(event["object"]["metadata"]["name"])
                if len(names) == number:
                    return


def pod(name: str) -> dict[str, Any]:
    container = {"name": "main", "image": "localhost/python:3.11", "command": ["true"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
