"""Keeping a list current through disconnects, expired versions and outages, in virtual time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import stamina

from helpers.scripted_api import Answer, ScriptedServer, refusal
from nighttrain.providers import errors
from nighttrain.providers.kubernetes.api import client as client_module
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.mirror import feed as feed_module


def job(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": version}}


def listed(version: str, *objects: dict[str, Any], more: str = "") -> Answer:
    return Answer(200, {"metadata": {"resourceVersion": version, "continue": more}, "items": list(objects)})


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


class Mirror:
    """The objects as last seen, and those that are gone."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.lists: list[set[str]] = []

    def reset(self, listed: list[dict[str, Any]], began: float) -> None:
        self.objects = {each["metadata"]["uid"]: each for each in listed}
        self.lists.append(set(self.objects))

    def apply(self, kind: str, obj: dict[str, Any]) -> None:
        if kind == "DELETED":
            self.objects.pop(obj["metadata"]["uid"])
        else:
            self.objects[obj["metadata"]["uid"]] = obj


async def run_until(
    script: list[Answer], requests: int, health: list[bool] | None = None
) -> tuple[Mirror, ScriptedServer, Virtual]:
    """Keep a mirror current until the server has been asked so many times."""
    virtual, told = Virtual(), [] if health is None else health
    async with ScriptedServer(*script, Answer(lines=[], hold=30)) as server:
        mirror = Mirror()
        config = ClusterConfig(kubeconfig_content=server.kubeconfig())
        async with await ClusterClient.open(config, attempts=1) as client:
            feed = feed_module.Feed(
                client,
                feed_module.Selection(JOBS, "n", label_selector="a=b"),
                mirror,
                on_health=lambda error: told.append(error is None),
                sleep=virtual.sleep,
            )
            task = asyncio.create_task(feed.run())
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
    assert mirror.objects["uid-a"]["metadata"]["resourceVersion"] == "11"


async def test_a_long_list_comes_in_pages_and_is_taken_over_whole() -> None:
    mirror, server, _ = await run_until(
        [listed("10", job("a", "5"), more="next"), listed("10", job("b", "6"))], 3
    )
    assert [request.query.get("continue") for request in server.requests] == [None, "next", None]
    assert mirror.lists == [{"uid-a", "uid-b"}]


async def test_a_list_whose_rest_expired_begins_anew() -> None:
    gone = refusal(410, "Expired", "The provided continue parameter is too old")
    first = listed("10", job("a", "5"), more="next")
    mirror, server, _ = await run_until([first, gone, first, listed("10", job("b", "6"))], 5)
    assert [request.query.get("continue") for request in server.requests] == [
        None,
        "next",
        None,
        "next",
        None,
    ]
    assert mirror.lists == [{"uid-a", "uid-b"}], "half a list is never taken over"


async def test_an_expired_version_lists_again() -> None:
    script = [
        listed("10", job("a", "5"), job("b", "6")),
        Answer(lines=[EXPIRED]),
        listed("50", job("a", "44")),
    ]
    mirror, server, _ = await run_until(script, 4)
    assert [request.query.get("resourceVersion") for request in server.requests] == [None, "10", None, "50"]
    assert set(mirror.objects) == {"uid-a"}


async def test_an_outage_is_survived_with_growing_pauses_and_told_of() -> None:
    down = refusal(503, "ServiceUnavailable", "down")
    health: list[bool] = []
    mirror, _, virtual = await run_until([down, down, down, listed("10", job("a", "5"))], 5, health)
    assert set(mirror.objects) == {"uid-a"}
    assert all(pause <= most for pause, most in zip(virtual.slept, [0.5, 1.0, 2.0], strict=True))
    assert health == [False, False, False, True]


async def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    busy = refusal(429, "TooManyRequests", "busy")
    busy.headers["Retry-After"] = "7"
    _, server, virtual = await run_until([listed("10"), busy, busy], 4)
    assert virtual.slept == [7.0, 7.0]
    # It was busy, and has lost nothing: no list is asked for again.
    assert [request.query.get("resourceVersion") for request in server.requests] == [None, "10", "10", "10"]


async def test_an_outage_of_an_hour_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "OUTAGE_SECONDS", 0.05)
    with pytest.raises(errors.ClusterRequestError, match="down"):
        await run_until([refusal(503, "ServiceUnavailable", "down")] * 4000, 4000)


@pytest.mark.parametrize(("code", "reason"), [(403, "Forbidden"), (401, "Unauthorized")])
async def test_a_refusal_that_passes_is_survived_and_one_that_persists_is_an_error(
    code: int, reason: str
) -> None:
    refused = refusal(code, reason, "no")
    mirror, _, _ = await run_until([refused] * 3 + [listed("10", job("a", "5"))], 5)
    assert set(mirror.objects) == {"uid-a"}
    with pytest.raises((errors.ClusterForbiddenError, errors.ClusterUnauthorizedError)):
        await run_until([refused] * 40, 40)


async def test_a_server_that_closes_every_watch_at_once_is_not_flooded() -> None:
    _, _, virtual = await run_until([listed("10"), *[Answer(lines=[])] * 5], 7)
    assert len(virtual.slept) == 5
    assert all(
        most / 2 <= pause <= most for pause, most in zip(virtual.slept, [0.5, 1, 2, 4, 8], strict=True)
    )


async def test_a_stream_that_has_died_silently_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "WATCH_SECONDS", 0)
    monkeypatch.setattr(client_module, "WATCH_GRACE_SECONDS", 0.2)
    _, server, _ = await run_until([listed("10"), Answer(lines=[], hold=10)], 3)
    assert [request.query.get("resourceVersion") for request in server.requests] == [None, "10", "10"]


@pytest.fixture(autouse=True)
def no_retries_of_single_calls() -> Any:
    with stamina.set_testing(True):
        yield
