"""With the switch on, the Job controller takes as long as a real one: 20 writes a second, after a second."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import selectors
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from nighttrain.providers.local.cluster.controllers.controllers import Controllers
from nighttrain.providers.local.cluster.controllers.pace import REAL_PACE, Pace
from nighttrain.providers.local.cluster.machine.network import ClusterNetwork
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import JOBS, NAMESPACES, PODS
from nighttrain.providers.local.cluster.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

# What the end of a Job of one pod takes: its status, its pod's finalizer, an event, its status again.
WRITES = 4


class VirtualLoop(asyncio.SelectorEventLoop):
    """Where nothing is left to do but to wait, the time has come."""

    def __init__(self) -> None:
        selector = selectors.DefaultSelector()
        really, self._now = selector.select, 0.0

        def select(timeout: float | None = None) -> Any:
            ready = really(0)
            if not ready and timeout:
                self._now += timeout
            return ready

        selector.select = select  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return self._now


def at_once(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


class Jobs:
    """Controllers and no kubelet: the test says when pods end."""

    def __init__(self, directory: Path, pace: Pace | None) -> None:
        self.store = Store()
        self.store.create(NAMESPACES, {"metadata": {"name": "default"}})
        self._network = ClusterNetwork()
        self._controllers = Controllers(self.store, self._network, job_pace=pace)

    async def __aenter__(self) -> Jobs:
        await self._controllers.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._controllers.stop()
        await self._network.close()

    async def run(self, number: int) -> None:
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]}}
        for each in range(number):
            meta = {"name": f"job-{each:03}", "namespace": "default"}
            self.store.create(JOBS, {"metadata": meta, "spec": {"template": template}})
        await asyncio.sleep(600)  # whatever was gathered is written, and the client has rested
        assert len(self.pods()) == number

    def pods(self) -> list[dict[str, Any]]:
        return self.store.list(PODS)[0]

    def end(self, pod: dict[str, Any]) -> None:
        def write(new: dict[str, Any]) -> None:
            new["status"] = {**new.get("status", {}), "phase": "Succeeded"}

        self.store.mutate(PODS, "default", pod["metadata"]["name"], write)

    async def ends(self, number: int) -> list[float]:
        """When so many Jobs became Complete, in seconds from now, at which their pods end."""
        loop, found = asyncio.get_running_loop(), dict[str, float]()
        began = loop.time()
        with self.store.watch(JOBS, since_revision=self.store.revision) as watcher:
            for pod in self.pods():
                self.end(pod)
            async for _, job in watcher:
                conditions = job["status"].get("conditions") or []
                if any(each["type"] == "Complete" for each in conditions):
                    found.setdefault(job["metadata"]["name"], loop.time() - began)
                if len(found) == number:
                    break
        return sorted(found.values())


def test_many_that_end_together_are_marked_at_the_pace_of_the_controllers_client(tmp_path: Path) -> None:
    async def measure() -> None:
        async with Jobs(tmp_path, REAL_PACE) as running:
            await running.run(60)
            before = running.store.revision
            ends = await running.ends(60)
            # The pods' ends are the test's own writes.
            assert running.store.revision - before - 60 == 60 * WRITES
        # A second of gathering, then what the client has saved up, then twenty requests a second.
        saved = math.ceil(REAL_PACE.burst / WRITES)
        assert all(1.0 <= end <= 1.01 for end in ends[:saved])
        gaps = [after - before for before, after in itertools.pairwise(ends[saved:])]
        assert all(0.19 <= gap <= 0.21 for gap in gaps), gaps
        assert ends[-1] == pytest.approx(1 + (60 * WRITES - REAL_PACE.burst) / 20, abs=0.3)

    at_once(measure())


def test_one_that_ends_alone_is_marked_a_second_later(tmp_path: Path) -> None:
    async def measure() -> None:
        async with Jobs(tmp_path, REAL_PACE) as running:
            await running.run(1)
            assert await running.ends(1) == [pytest.approx(1.0, abs=0.01)]

    at_once(measure())


@pytest.mark.parametrize("number", [1, 60])
def test_without_the_switch_it_takes_no_time(tmp_path: Path, number: int) -> None:
    async def measure() -> None:
        async with Jobs(tmp_path, None) as running:
            await running.run(number)
            assert max(await running.ends(number)) <= 0.01

    at_once(measure())


def test_another_spec_is_looked_at_at_once(tmp_path: Path) -> None:
    async def measure() -> None:
        async with Jobs(tmp_path, REAL_PACE) as running:
            await running.run(1)
            loop = asyncio.get_running_loop()
            began = loop.time()
            with running.store.watch(PODS, since_revision=running.store.revision) as watcher:
                job = running.store.get(JOBS, "default", "job-000")
                running.store.update(JOBS, {**job, "spec": {**job["spec"], "suspend": True}})
                await anext(aiter(watcher))  # its pod goes
            assert loop.time() - began <= 0.01

    at_once(measure())


def test_a_cluster_of_real_pace_over_http() -> None:
    """From the pod's last word to the Job's. It runs until what its start brought is gathered and written."""
    code = "import time; time.sleep(2.5)"
    with EmbeddedCluster(images={"py": sys.executable}, job_pace=REAL_PACE) as cluster:
        headers = {"Authorization": f"Bearer {cluster.token}"}
        with httpx.Client(base_url=cluster.url, headers=headers, trust_env=False) as http:
            container = {"name": "main", "image": "py", "command": ["python", "-S", "-c", code]}
            template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
            job = {"metadata": {"name": "one"}, "spec": {"template": template}}
            http.post("/apis/batch/v1/namespaces/default/jobs", json=job).raise_for_status()
            ended = _until(http, "/api/v1/namespaces/default/pods", lambda pod: pod["phase"] == "Succeeded")
            done = _until(http, "/apis/batch/v1/namespaces/default/jobs", lambda job: job.get("succeeded"))
    assert 0.9 <= done - ended <= 5


def _until(http: httpx.Client, path: str, holds: Any) -> float:
    with http.stream("GET", path, params={"watch": "true", "timeoutSeconds": "30"}, timeout=30) as stream:
        for line in stream.iter_lines():
            status = json.loads(line)["object"].get("status") or {}
            if ("phase" in status or "startTime" in status) and holds(status):
                return time.monotonic()
    raise AssertionError("never so")
