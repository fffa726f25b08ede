"""Faults strike the calls they are aimed at, and ordinary clients see what they would see of a real one."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.random_faults import random_plan
from nighttrain.providers.local.cluster.faults.faults import Call, Effect, Fault, FaultPlan
from nighttrain.providers.local.cluster.faults.layer import call_of
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = "/apis/batch/v1/namespaces/default/jobs"
MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
def faults(api_cluster: EmbeddedCluster) -> Iterator[FaultPlan]:
    """The shared cluster's plan, empty before and after."""
    plan = api_cluster.faults
    plan.clear()
    plan.hits.clear()
    yield plan
    plan.clear()


def config_map(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": {"key": "value"}}


@pytest.mark.parametrize("code", [401, 403, 404, 409, 429, 500, 503])
def test_any_call_is_answered_as_asked(http: httpx.Client, faults: FaultPlan, code: int) -> None:
    fault = Fault.answer(code, retry_after=7 if code == 429 else None, verb="create", resource="configmaps")
    faults.add(fault)
    answer = http.post(MAPS, json=config_map(f"refused-{code}"))
    assert (answer.status_code, answer.json()["kind"], answer.json()["code"]) == (code, "Status", code)
    assert answer.headers.get("retry-after") == ("7" if code == 429 else None)
    assert faults.struck(fault) == 1
    assert http.get(f"{MAPS}/refused-{code}").status_code == 404
    assert http.post(MAPS, json=config_map(f"refused-{code}")).status_code == 201


def test_the_nth_matching_call_is_hit_and_no_other(http: httpx.Client, faults: FaultPlan) -> None:
    fault = Fault.answer(503, verb="get", resource="configmaps", name="aimed*", nth=2, count=2)
    faults.add(fault)
    http.post(MAPS, json=config_map("aimed-at"))
    http.post(MAPS, json=config_map("beside"))
    codes = []
    for _ in range(5):
        codes.append(http.get(f"{MAPS}/aimed-at").status_code)
        assert http.get(f"{MAPS}/beside").status_code == 200
        assert http.get(MAPS).status_code == 200
    assert codes == [200, 503, 503, 200, 200]
    assert [hit.call for hit in faults.hits] == [Call("get", "configmaps", "default", "aimed-at")] * 2
    assert faults.idle


def test_a_creation_is_aimed_at_by_the_name_in_its_body(http: httpx.Client, faults: FaultPlan) -> None:
    faults.add(Fault.answer(500, verb="create", name="second", count=None))
    assert http.post(MAPS, json=config_map("first")).status_code == 201
    assert http.post(MAPS, json=config_map("second")).status_code == 500
    assert http.post(MAPS, content=b"no json").status_code == 400
    assert http.post(MAPS, json=config_map("second")).status_code == 500
    assert faults.struck() == 2


def test_a_list_of_faults_strikes_one_call_after_another(http: httpx.Client, faults: FaultPlan) -> None:
    aim: dict[str, Any] = {"verb": "list", "resource": "configmaps"}
    faults.add(Fault.answer(429, **aim), Fault.answer(500, **aim), Fault.answer(401, **aim))
    assert [http.get(MAPS).status_code for _ in range(4)] == [429, 500, 401, 200]


def test_a_dropped_reply_is_work_done(http: httpx.Client, faults: FaultPlan) -> None:
    faults.add(Fault.drop_reply(verb="create", resource="configmaps"))
    with pytest.raises(httpx.RemoteProtocolError):
        http.post(MAPS, json=config_map("unanswered"))
    assert http.get(f"{MAPS}/unanswered").status_code == 200


def test_a_reset_is_work_not_done(http: httpx.Client, faults: FaultPlan) -> None:
    faults.add(Fault.reset(verb="create", resource="configmaps"))
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        http.post(MAPS, json=config_map("reset"))
    assert http.get(f"{MAPS}/reset").status_code == 404


def test_a_stall_takes_as_long_as_the_test_wants(
    http: httpx.Client, faults: FaultPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled: list[float] = []
    released = threading.Event()

    async def sleep(seconds: float) -> None:
        stalled.append(seconds)
        await asyncio.to_thread(released.wait, 10)

    monkeypatch.setattr(faults, "sleep", sleep)
    fault = Fault.stall(3600, verb="get", resource="configmaps")
    faults.add(fault)
    http.post(MAPS, json=config_map("slow"))
    with pytest.raises(httpx.ReadTimeout):
        http.get(f"{MAPS}/slow", timeout=0.2)
    assert faults.wait_for(fault)
    assert http.get(f"{MAPS}/slow").status_code == 200
    released.set()
    assert stalled == [3600]


def lines_of(http: httpx.Client, path: str, **query: str) -> tuple[list[Any], bool]:
    """The complete lines of a watch, and whether it ended in order."""
    text = ""
    try:
        with http.stream("GET", path, params={"watch": "true", **query}) as stream:
            for piece in stream.iter_text():
                text += piece
    except httpx.RemoteProtocolError:
        pass
    else:
        return [json.loads(line) for line in text.splitlines()], True
    *complete, torn = text.split("\n")
    return [json.loads(line) for line in complete] + ([torn] if torn else []), False


def test_a_watch_is_cut_after_so_many_events(http: httpx.Client, faults: FaultPlan, space: str) -> None:
    maps = f"/api/v1/namespaces/{space}/configmaps"
    for number in range(3):
        http.post(maps, json=config_map(f"seen-{number}"))
    aim: dict[str, Any] = {"verb": "watch", "resource": "configmaps"}
    faults.add(Fault.cut(after=2, **aim), Fault.cut(after=1, torn=True, **aim), Fault.cut(**aim))
    events, in_order = lines_of(http, maps)
    assert ([event["object"]["metadata"]["name"] for event in events], in_order) == (
        ["seen-0", "seen-1"],
        False,
    )
    [whole, torn], in_order = lines_of(http, maps)
    assert (whole["object"]["metadata"]["name"], in_order) == ("seen-0", False)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(torn)
    assert lines_of(http, maps) == ([], False)
    events, in_order = lines_of(http, maps, timeoutSeconds="1")
    assert (len(events), in_order) == (3, True)


def test_a_watch_expires_in_its_stream(http: httpx.Client, faults: FaultPlan, space: str) -> None:
    maps = f"/api/v1/namespaces/{space}/configmaps"
    http.post(maps, json=config_map("seen"))
    faults.add(Fault.expire(after=1))
    [first, last], in_order = lines_of(http, maps)
    assert (first["type"], in_order) == ("ADDED", True)
    assert (last["type"], last["object"]["code"], last["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_a_compacted_history_is_gone_for_old_watches(
    http: httpx.Client, faults: FaultPlan, space: str
) -> None:
    maps = f"/api/v1/namespaces/{space}/configmaps"
    old = http.get(maps).json()["metadata"]["resourceVersion"]
    for name in ("one", "two"):
        http.post(maps, json=config_map(name))
    events, _ = lines_of(http, maps, resourceVersion=old, timeoutSeconds="1")
    assert [event["type"] for event in events] == ["ADDED", "ADDED"]
    faults.add(Fault.compact(verb="list", resource="configmaps"))
    current = http.get(maps).json()["metadata"]["resourceVersion"]
    [error], _ = lines_of(http, maps, resourceVersion=old)
    assert (error["type"], error["object"]["code"]) == ("ERROR", 410)
    assert lines_of(http, maps, resourceVersion=current, timeoutSeconds="1") == ([], True)


def test_the_official_watch_goes_on_after_a_cut_and_an_expired_history(
    api_cluster: EmbeddedCluster, http: httpx.Client, faults: FaultPlan, space: str
) -> None:
    from kubernetes import client, config, watch
    from urllib3.exceptions import ProtocolError

    maps = f"/api/v1/namespaces/{space}/configmaps"
    cut = Fault.cut(after=1, verb="watch", resource="configmaps")
    faults.add(cut)
    names: list[str] = []
    with config.new_client_from_config(str(api_cluster.kubeconfig)) as api:
        stream = watch.Watch()
        list_maps = client.CoreV1Api(api).list_namespaced_config_map
        for number in range(3):
            http.post(maps, json=config_map(f"official-{number}"))
        # A torn connection is the client's user's to deal with; the generator says so by urllib3's error.
        with pytest.raises(ProtocolError):
            names.extend(event["object"].metadata.name for event in stream.stream(list_maps, space))
        faults.add(Fault.expire())
        with pytest.raises(client.ApiException) as gone:
            next(stream.stream(list_maps, space, resource_version="1"))
        assert gone.value.status == 410
        names = []
        for event in stream.stream(list_maps, space, timeout_seconds=20):
            names.append(event["object"].metadata.name)
            if len(names) == 3:
                stream.stop()
    assert names == ["official-0", "official-1", "official-2"]
    assert faults.struck(cut) == 1


def test_calls_are_told_apart_by_method_and_path() -> None:
    def call(method: str, path: str, query: bytes = b"") -> Call:
        return call_of({"method": method, "path": path, "query_string": query})

    assert call("GET", JOBS) == Call("list", "jobs", "default")
    assert call("GET", f"{JOBS}/one", b"watch=1") == Call("watch", "jobs", "default", "one")
    assert call("DELETE", JOBS) == Call("deletecollection", "jobs", "default")
    assert call("GET", "/api/v1/namespaces/default/pods/one/log") == Call("get", "pods/log", "default", "one")
    assert call("PATCH", "/api/v1/namespaces/one") == Call("patch", "namespaces", "", "one")
    assert call("PUT", "/api/v1/namespaces/one/status") == Call("update", "namespaces/status", "", "one")
    assert call("GET", "/version") == Call("get", "/version")
    assert call("GET", "/") == Call("get", "/")


def test_a_seed_makes_one_plan() -> None:
    plans = [random_plan(seed, 40).pending for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    # A fault's repr is the expression that makes it: a failing plan can be pasted into a test.
    assert [eval(repr(fault)) for fault in plans[0]] == plans[0]  # noqa: S307
    assert {fault.effect for fault in plans[0]} >= {Effect.ANSWER, Effect.CUT, Effect.RESET}


@pytest.mark.parametrize("wrong", [{"nth": 0}, {"count": 0}])
def test_an_aim_that_can_hit_nothing_is_an_error(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        Fault.reset(**wrong)
    with pytest.raises(ValueError, match="400 to 599"):
        Fault.answer(200)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}) as running:
        yield running


def test_a_log_is_cut(cluster: EmbeddedCluster) -> None:
    container = {"name": "main", "image": "py", "command": ["sh", "-c", "echo one; echo two; echo three"]}
    body = {"metadata": {"name": "talks"}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(base_url=cluster.url, headers=headers, timeout=20) as http:
        http.post("/api/v1/namespaces/default/pods", json=body).raise_for_status()
        query = "/api/v1/namespaces/default/pods?watch=true&fieldSelector=metadata.name=talks"
        with http.stream("GET", query) as stream:
            phases = (json.loads(line)["object"]["status"].get("phase") for line in stream.iter_lines())
            assert next(phase for phase in phases if phase in ("Succeeded", "Failed")) == "Succeeded"
        log = "/api/v1/namespaces/default/pods/talks/log"
        assert http.get(log).text == "one\ntwo\nthree\n"
        cluster.faults.add(Fault.cut(after=1, torn=True, resource="pods/log"))
        got: list[bytes] = []
        with pytest.raises(httpx.RemoteProtocolError), http.stream("GET", log) as stream:
            got.extend(stream.iter_bytes())
        assert b"".join(got) == b"one\nt"
