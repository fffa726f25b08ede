"""Keeping a list current through disconnects, expired versions and outages, in virtual time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import stamina
from scripted_api import Answer, ScriptedServer, refusal

from nighttrain.providers import errors
from nighttrain.providers.kubernetes import watch
from nighttrain.providers.kubernetes.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.outcome import Observation, OutcomeKind, Phase
from nighttrain.providers.kubernetes.workload import _StartupBudget


def job(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": version}}


def listed(version: str, *objects: dict[str, Any]) -> Answer:
    return Answer(200, {"metadata": {"resourceVersion": version}, "items": list(objects)})


def line(kind: str, obj: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "object": obj}) + "\n"


EXPIRED = line("ERROR", {"code": 410, "reason": "Expired", "message": "too old"})


class Virtual:
    """A sleep that takes no time and remembers."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


async def run_until(script: list[Answer], requests: int) -> tuple[watch.Mirror, ScriptedServer, Virtual]:
    """Keep a mirror current until the server has been asked so many times."""
    virtual = Virtual()
    async with ScriptedServer(*script, Answer(lines=[], hold=30)) as server:
        mirror = watch.Mirror(lambda: None)
        config = ClusterConfig(kubeconfig_content=server.kubeconfig())
        async with await ClusterClient.open(config, attempts=1) as client:
            selection = watch.Selection(JOBS, "n", label_selector="a=b")
            task = asyncio.create_task(watch.keep_current(client, selection, mirror, sleep=virtual.sleep))
            reached = asyncio.create_task(server.asked(requests))
            await asyncio.wait({task, reached}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            failed = task.done()
            for pending in (task, reached):
                pending.cancel()
            await asyncio.gather(task, reached, return_exceptions=True)
            if failed:
                task.result()
    return mirror, server, virtual


async def test_a_watch_resumes_where_the_stream_was_cut() -> None:
    script = [
        listed("10", job("a", "5")),
        Answer(lines=[line("MODIFIED", job("a", "11")), line("ADDED", job("b", "12"))], cut=True),
        Answer(lines=[line("BOOKMARK", job("", "20"))]),
        Answer(lines=[line("DELETED", job("b", "21"))]),
    ]
    mirror, server, _ = await run_until(script, 5)
    versions = [request.query.get("resourceVersion") for request in server.requests]
    assert versions == [None, "10", "12", "20", "21"]
    assert all(request.query["labelSelector"] == "a=b" for request in server.requests)
    assert set(mirror.objects) == {"uid-a"}
    assert set(mirror.deleted) == {"uid-b"}
    assert mirror.objects["uid-a"]["metadata"]["resourceVersion"] == "11"


async def test_an_expired_version_lists_again_and_what_is_missing_is_remembered_as_deleted() -> None:
    script = [
        listed("10", job("a", "5"), job("b", "6")),
        Answer(lines=[EXPIRED]),
        listed("50", job("a", "44")),
    ]
    mirror, server, _ = await run_until(script, 4)
    assert [request.query.get("resourceVersion") for request in server.requests] == [None, "10", None, "50"]
    assert set(mirror.objects) == {"uid-a"}
    assert set(mirror.deleted) == {"uid-b"}


async def test_an_outage_is_survived_with_growing_pauses() -> None:
    down = refusal(503, "ServiceUnavailable", "down")
    script = [down, down, down, listed("10", job("a", "5"))]
    mirror, _, virtual = await run_until(script, 5)
    assert mirror.synced
    assert len(virtual.slept) == 3
    assert all(pause <= ceiling for pause, ceiling in zip(virtual.slept, [1.0, 2.0, 4.0], strict=True))


async def test_an_endless_outage_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(errors.ClusterRequestError, match="down"):
        await run_until([refusal(503, "ServiceUnavailable", "down")] * 40, 40)


async def test_a_refusal_is_an_error_at_once() -> None:
    with pytest.raises(errors.ClusterForbiddenError):
        await run_until([refusal(403, "Forbidden", "no")] * 2, 3)


async def test_a_server_that_closes_every_watch_at_once_is_not_flooded() -> None:
    script = [listed("10"), Answer(lines=[]), Answer(lines=[]), Answer(lines=[])]
    _, _, virtual = await run_until(script, 5)
    assert virtual.slept == [watch.EMPTY_WATCH_PAUSE_SECONDS] * 3


def observation(kind: OutcomeKind | None, grace: int = 0) -> Observation:
    return Observation(Phase.WAITING, permanent_wait=kind, grace_seconds=grace)


def test_the_start_up_budget_counts_only_time_without_progress() -> None:
    budget = _StartupBudget(100)
    stuck = observation(OutcomeKind.IMAGE_PULL)
    assert budget.left(stuck, 0) == 100
    assert budget.left(observation(OutcomeKind.UNKNOWN), 60) == 40  # reasons come and go: still not started
    assert budget.left(observation(None), 90) is None  # a queue: healthy
    assert budget.left(stuck, 1000) == 100
    assert budget.left(stuck, 1100) == 0
    assert budget.left(observation(OutcomeKind.EVICTED, grace=30), 1100) == 30


@pytest.fixture(autouse=True)
def no_retries_of_single_calls() -> Any:
    with stamina.set_testing(True):
        yield
