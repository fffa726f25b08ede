"""Many watches at once, and what keeping state costs.

Watches. 1,000 ConfigMaps and 200 watches on all of them (200 open streams of one asynchronous client); then
every object is changed once, one after another. Measured: the time from just before a change is sent to the
moment a watch has its line, over all 200 x 1,000 deliveries; the server's resident memory before the watches,
with them, and at the peak. The readers share the machine with the server: their work is part of each latency.

State. 500 ConfigMaps created one after another by one client, with and without a state file, in turn; 3 turns
each, medians.
Command: ``./run bench -k cluster_load``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(600)]

OBJECTS = 1000
WATCHES = 200
MAPS = "/api/v1/namespaces/default/configmaps"


def test_many_watches(show: Any, start_cluster: Any, tmp_path: Path) -> None:
    with start_cluster(tmp_path) as cluster:
        latencies, seconds, memory = asyncio.run(load(cluster))
        peak = cluster.memory()[1]
    assert len(latencies) == OBJECTS * WATCHES
    cuts = quantiles(latencies, n=100)
    show(
        f"{WATCHES} watches on {OBJECTS:,} changing objects",
        ("deliveries", "changes/s", "p50 ms", "p95 ms", "p99 ms", "MiB idle", "MiB watched", "MiB peak"),
        [
            (
                f"{len(latencies):,}",
                f"{OBJECTS / seconds:.0f}",
                *(f"{cuts[number - 1] * 1000:.1f}" for number in (50, 95, 99)),
                f"{memory[0]:.0f}",
                f"{memory[1]:.0f}",
                f"{peak:.0f}",
            )
        ],
        "memory of the server process; latency from before the change is sent to its line read by a watch",
    )


async def load(cluster: Any) -> tuple[list[float], float, tuple[float, float]]:
    import httpx

    sent: list[float] = [0.0] * OBJECTS
    latencies: list[float] = []
    ready = asyncio.Semaphore(0)
    async with cluster.client() as writer:
        for number in range(OBJECTS):
            body = {"metadata": {"name": f"object-{number:04}"}, "data": {"value": "x" * 200}}
            (await writer.post(MAPS, json=body)).raise_for_status()
        revision = (await writer.get(MAPS, params={"limit": "1"})).json()["metadata"]["resourceVersion"]
        idle = cluster.memory()[0]

        async def watch(client: Any) -> None:
            query = {"watch": "true", "resourceVersion": revision}
            async with client.stream("GET", MAPS, params=query) as stream:
                ready.release()
                seen = 0
                async for line in stream.aiter_lines():
                    now = time.perf_counter()
                    name = json.loads(line)["object"]["metadata"]["name"]
                    if name.startswith("object-"):
                        latencies.append(now - sent[int(name[-4:])])
                        seen += 1
                    if seen == OBJECTS:
                        return

        limits = httpx.Limits(max_connections=WATCHES)
        # A watch may be quiet for as long as it likes.
        timeout = httpx.Timeout(60, read=None, pool=None)
        async with (
            httpx.AsyncClient(
                base_url=cluster.url, headers=writer.headers, timeout=timeout, limits=limits, trust_env=False
            ) as reader,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(WATCHES):
                group.create_task(watch(reader))
            for _ in range(WATCHES):
                await ready.acquire()
            watched = cluster.memory()[0]
            began = time.perf_counter()
            for number in range(OBJECTS):
                sent[number] = time.perf_counter()
                patch = {"data": {"value": str(number)}}
                headers = {"Content-Type": "application/merge-patch+json"}
                path = f"{MAPS}/object-{number:04}"
                (await writer.patch(path, json=patch, headers=headers)).raise_for_status()
            seconds = time.perf_counter() - began
    return latencies, seconds, (idle, watched)


def test_state_on_disk(show: Any, tmp_path: Path) -> None:
    import httpx

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

    found: dict[str, list[float]] = {"in memory": [], "in a state file": []}
    for turn in range(3):
        for name, times in found.items():
            with contextlib.ExitStack() as stack:
                state = tmp_path / f"state-{turn}" if "file" in name else None
                cluster = stack.enter_context(EmbeddedCluster(containers=False, state=state))
                headers = {"Authorization": f"Bearer {cluster.token}"}
                http = stack.enter_context(
                    httpx.Client(base_url=cluster.url, headers=headers, trust_env=False)
                )
                for number in range(500):
                    began = time.perf_counter()
                    body = {"metadata": {"name": f"object-{number}"}, "data": {"value": "x" * 200}}
                    http.post(MAPS, json=body).raise_for_status()
                    times.append(time.perf_counter() - began)
    show(
        "One creation, answered",
        ("objects", "p50 ms", "p95 ms", "per second"),
        [
            (
                name,
                f"{median(times) * 1000:.2f}",
                f"{quantiles(times, n=20)[-1] * 1000:.2f}",
                f"{1 / (sum(times) / len(times)):.0f}",
            )
            for name, times in found.items()
        ],
        "500 creations in turn, 3 turns each; durable against the end of the process before each answer",
    )
