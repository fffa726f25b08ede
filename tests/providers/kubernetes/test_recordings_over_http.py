"""A lost node, a taint and a preemption as a real cluster showed them, served to the adapter's own client."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any, Self

import pytest
from aiohttp import web

from helpers.kubeconfigs import kubeconfig
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import Timeouts

Json = dict[str, Any]

# From one change to the next: the client gets to see most of the states between.
PAUSE_SECONDS = 0.02


class RecordedApi:
    """An API server that shows one Job of a scenario, its pods and the events, until the Job is deleted."""

    def __init__(self, records: list[Json], job: str | None) -> None:
        changes = [each for each in records if "object" in each]
        jobs = [each["object"] for each in changes if each["from"] == "jobs"]
        self.job = next(each for each in jobs if job in (None, each["metadata"]["name"]))
        shown = [each for each in changes if self._shows(each)]
        self._changes = list(itertools.takewhile(lambda each: not _deletes_job(each), shown))
        self._shown = 0
        self._more = asyncio.Event()
        self.written: list[str] = []

    def _shows(self, change: Json) -> bool:
        metadata, name = change["object"]["metadata"], self.job["metadata"]["name"]
        if change["from"] == "pods":
            return bool(metadata["labels"].get("job-name") == name)
        return change["from"] == "events" or (change["from"] == "jobs" and metadata["name"] == name)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.on_response_prepare.append(self._date)
        app.router.add_get("/{api:.*}/namespaces/rec/{kind}", self._listed)
        app.router.add_get("/{api:.*}/namespaces/rec/{kind}/{name}", self._read)
        for method in ("PATCH", "DELETE"):
            app.router.add_route(method, "/{api:.*}/namespaces/rec/{kind}/{name}", self._written)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def kubeconfig(self) -> Json:
        host, port = self._runner.addresses[0]
        return kubeconfig(f"http://{host}:{port}", namespace="rec", token="t")

    async def play(self, connected: asyncio.Event) -> None:
        """Show everything, one change after the other, from the first sight of the Job on."""
        first = next(at for at, each in enumerate(self._changes) if each["from"] == "jobs")
        self._shown = first + 1
        await connected.wait()
        while self._shown < len(self._changes):
            self._shown += 1
            self._more.set()
            self._more = asyncio.Event()
            await asyncio.sleep(PAUSE_SECONDS)

    def _now(self, kind: str) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for change in self._changes[: self._shown]:
            if change["from"] == kind:
                name = change["object"]["metadata"]["name"]
                found.pop(name, None)
                if change["type"] != "DELETED":
                    found[name] = change["object"]
        return found

    async def _date(self, _request: web.Request, answer: web.StreamResponse) -> None:
        """The recorded cluster's clock: what waits did not begin days ago."""
        born = datetime.fromisoformat(self.job["metadata"]["creationTimestamp"])
        first = next(each["t"] for each in self._changes if each["from"] == "jobs")
        now = born + timedelta(seconds=self._changes[self._shown - 1]["t"] - first)
        answer.headers["Date"] = format_datetime(now, usegmt=True)

    async def _listed(self, request: web.Request) -> web.StreamResponse:
        kind = request.match_info["kind"]
        if request.query.get("watch"):
            return await self._watched(request, kind)
        metadata = {"resourceVersion": str(self._shown)}
        return web.json_response({"metadata": metadata, "items": list(self._now(kind).values())})

    async def _watched(self, request: web.Request, kind: str) -> web.StreamResponse:
        told = int(request.query["resourceVersion"])
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        while True:
            more = self._more
            for change in self._changes[told : self._shown]:
                if change["from"] == kind:
                    event = {"type": change["type"], "object": change["object"]}
                    await answer.write(json.dumps(event).encode() + b"\n")
            told = self._shown
            await more.wait()

    async def _read(self, request: web.Request) -> web.Response:
        found = self._now(request.match_info["kind"]).get(request.match_info["name"])
        if found is None:
            body = {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
            return web.json_response(body, status=404)
        return web.json_response(found)

    async def _written(self, request: web.Request) -> web.Response:
        self.written.append(f"{request.method} {request.match_info['kind']}")
        return await self._read(request)


def _deletes_job(change: Json) -> bool:
    return change["from"] == "jobs" and change["type"] == "DELETED"


async def follow(recordings: Any, scenario: str, job: str | None = None) -> tuple[Outcome, list[Observation]]:
    """Wait for the scenario's Job as an operator does; the outcome, and what was told until then."""
    told: list[Observation] = []
    connected = asyncio.Event()

    def tell(observation: Observation) -> None:
        told.append(observation)
        connected.set()

    async with RecordedApi(recordings.records(scenario), job) as api:
        metadata = api.job["metadata"]
        config = ClusterConfig(kubeconfig_content=api.kubeconfig())
        workload = Workload("rec", metadata["name"], metadata["uid"], 1)
        async with asyncio.timeout(60), await ClusterClient.open(config) as client:
            playing = asyncio.create_task(api.play(connected))
            outcome = await lifecycle.wait(
                client, workload, timeouts=Timeouts(600, node_lost=1), on_observation=tell, narrow=True
            )
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
    return outcome, told


async def test_a_lost_node_over_http(recordings: Any) -> None:
    outcome, told = await follow(recordings, "node-lost")
    assert (outcome.kind, outcome.infrastructure) == (OutcomeKind.NODE_LOST, True)
    assert "kubectl delete node node1" in outcome.explain()
    assert any("node node1 has been silent" in each.detail for each in told)


@pytest.mark.parametrize(
    ("scenario", "job", "pods"), [("node-taint", None, 2), ("preempted", "low", 2), ("preempted", "high", 1)]
)
async def test_a_pod_that_has_to_go_is_not_the_end_over_http(
    recordings: Any, scenario: str, job: str | None, pods: int
) -> None:
    outcome, told = await follow(recordings, scenario, job)
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.SUCCEEDED, 0)
    assert len({each.pod_name for each in told if each.pod_name}) == pods
