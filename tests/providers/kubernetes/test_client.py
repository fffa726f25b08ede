"""The client against a server that says what a test wants said, over real HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import stamina
import yaml

from helpers.scripted_api import Answer, ScriptedServer, refusal
from nighttrain.providers import errors
from nighttrain.providers.kubernetes.api import client as client_module
from nighttrain.providers.kubernetes.api.client import (
    CONFIGMAPS,
    JOBS,
    NAMESPACES,
    PODS,
    ClusterClient,
    ClusterConfig,
    shared_client,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

JOB = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}


@pytest.fixture(autouse=True)
def no_pauses_between_tries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=10, cap=True):
        yield


@asynccontextmanager
async def talking_to(*answers: Answer) -> AsyncIterator[tuple[ClusterClient, ScriptedServer]]:
    async with ScriptedServer(*answers) as server:
        config = ClusterConfig(kubeconfig_content=server.kubeconfig())
        client = await ClusterClient.open(config)
        async with client:
            yield client, server


async def test_create_sends_strict_validation_and_the_token() -> None:
    async with talking_to(Answer(201, JOB)) as (client, server):
        assert await client.create(JOBS, "team", JOB) == JOB
        assert client.namespace == "team"
        (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/apis/batch/v1/namespaces/team/jobs")
    assert request.query == {"fieldValidation": "Strict"}
    assert request.headers["Authorization"] == "Bearer t0ken-of-the-test"
    assert request.body == JOB


async def test_requests_are_what_the_api_expects() -> None:
    async with talking_to(Answer(200, {})) as (client, server):
        await client.create(JOBS, "n", JOB, dry_run=True)
        await client.get(PODS, "n", "a/b")
        await client.list(PODS, None, label_selector="a=b", field_selector="metadata.name=x", limit=5)
        await client.replace(CONFIGMAPS, "n", "c", {"metadata": {}})
        await client.patch(JOBS, "n", "j", {})
        await client.delete(JOBS, "n", "j", uid="u")
        await client.get(NAMESPACES, None, "n")
        dry, got, listed, put, patched, deleted, namespace = server.requests
    assert dry.query["dryRun"] == "All"
    assert got.path in ("/api/v1/namespaces/n/pods/a/b", "/api/v1/namespaces/n/pods/a%2Fb")
    assert listed.path == "/api/v1/pods"
    assert listed.query == {"labelSelector": "a=b", "fieldSelector": "metadata.name=x", "limit": "5"}
    assert (put.method, put.query) == ("PUT", {"fieldValidation": "Strict"})
    assert patched.headers["Content-Type"] == "application/merge-patch+json"
    assert patched.query["fieldManager"] == "nighttrain"
    assert deleted.body["preconditions"] == {"uid": "u"}
    assert namespace.path == "/api/v1/namespaces/n"


def recorded_refusals(recordings: Any) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for name in ("api-errors", "forbidden"):
        for record in recordings.records(name):
            response = record.get("response") or {}
            body = response.get("body")
            if isinstance(body, dict) and body.get("kind") == "Status" and body.get("status") == "Failure":
                found.append((response["status"], body))
    return found


async def test_each_recorded_refusal_becomes_its_error_with_the_servers_words(recordings: Any) -> None:
    expected = {401: errors.ClusterUnauthorizedError, 403: errors.ClusterForbiddenError}
    expected |= {404: errors.ObjectNotFoundError, 410: errors.WatchExpiredError}
    refusals = recorded_refusals(recordings)
    assert len(refusals) > 20
    for status, body in refusals:
        async with talking_to(Answer(status, body)) as (client, server):
            with pytest.raises(errors.ClusterError) as raised:
                await client.get(JOBS, "rec", "j")
            kind = expected.get(status, errors.ClusterRequestError)
            if status == 409:
                conflict = body["reason"] != "AlreadyExists"
                kind = errors.ObjectConflictError if conflict else errors.ObjectExistsError
            assert type(raised.value) is kind
            assert body["message"][:1000] in str(raised.value)
            assert server.url in str(raised.value)
            assert "t0ken" not in str(raised.value)


async def test_a_missing_right_is_named_with_the_remedy() -> None:
    said = 'jobs.batch is forbidden: User "alice" cannot create resource "jobs"'
    async with talking_to(refusal(403, "Forbidden", said)) as (client, _):
        with pytest.raises(errors.ClusterForbiddenError, match=r"Grant create on jobs in namespace x: docs/"):
            await client.create(JOBS, "x", JOB)
        with pytest.raises(
            errors.ClusterForbiddenError, match=r"Grant get on pods/log in namespace x: docs/"
        ):
            [line async for line in client.logs("x", "p")]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_busy_server_is_asked_again(status: int) -> None:
    busy = refusal(status, "Busy", "later")
    async with talking_to(busy, busy, Answer(201, JOB)) as (client, server):
        assert await client.create(JOBS, "n", JOB) == JOB
        assert len(server.requests) == 3


async def test_a_server_that_stays_busy_is_an_error_with_its_status() -> None:
    async with talking_to(refusal(503, "ServiceUnavailable", "down for a rest")) as (client, server):
        with pytest.raises(errors.ClusterRequestError, match="down for a rest") as raised:
            await client.get(JOBS, "n", "j")
        assert (raised.value.status, raised.value.reason) == (503, "ServiceUnavailable")
        assert len(server.requests) == client_module.ATTEMPTS


async def test_retry_after_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def remember(details: Any) -> None:
        waits.append(details.wait_for)

    stamina.instrumentation.set_on_retry_hooks([remember])
    busy = refusal(429, "TooManyRequests", "slow down")
    busy.headers["Retry-After"] = "1"
    try:
        with stamina.set_testing(False):
            async with talking_to(busy, Answer(200, JOB)) as (client, _):
                assert await client.get(JOBS, "n", "j") == JOB
    finally:
        stamina.instrumentation.set_on_retry_hooks(None)
    assert waits == [1.0]


async def test_a_create_without_a_name_is_not_repeated() -> None:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-"}}
    async with talking_to(refusal(500, "InternalError", "oops")) as (client, server):
        with pytest.raises(errors.ClusterRequestError, match="oops"):
            await client.create(PODS, "n", body)
        assert len(server.requests) == 1


async def test_a_lost_answer_is_followed_by_already_exists() -> None:
    cut = Answer(lines=["{"], cut=True)
    exists = refusal(409, "AlreadyExists", 'jobs.batch "j" already exists')
    async with talking_to(cut, exists) as (client, _):
        with pytest.raises(errors.ObjectExistsError):
            await client.create(JOBS, "n", JOB)


async def test_a_lost_answer_to_a_deletion_is_a_deletion() -> None:
    cut = Answer(lines=["{"], cut=True)
    async with talking_to(cut, refusal(404, "NotFound", "gone")) as (client, _):
        await client.delete(JOBS, "n", "j")
    async with talking_to(refusal(404, "NotFound", "gone")) as (client, _):
        with pytest.raises(errors.ObjectNotFoundError):
            await client.delete(JOBS, "n", "j")


async def test_an_unreachable_server_is_named_with_where_its_address_comes_from(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    async with ScriptedServer(Answer()) as server:
        config = server.kubeconfig("s3cret")
    config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{unused_tcp_port}"
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(path), context="c")) as client:
        with pytest.raises(errors.ClusterUnreachableError) as raised:
            await client.list(JOBS, "n")
    text = str(raised.value)
    for words in ("list jobs in namespace n", f"127.0.0.1:{unused_tcp_port}", str(path), "context 'c'"):
        assert words in text
    assert "s3cret" not in text
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ClusterConfig(kubeconfig="/no/such/file"), "no such file"),
        (ClusterConfig(kubeconfig_content={"apiVersion": "v1"}), "current-context"),
        (ClusterConfig(kubeconfig="/a", in_cluster=True), "give one of"),
        (ClusterConfig(in_cluster=True), "Only a pod"),
    ],
)
async def test_a_configuration_that_cannot_be_used_is_named(config: ClusterConfig, words: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=words):
        await ClusterClient.open(config)


async def test_a_kubeconfig_that_is_not_yaml_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("a: [1, 2")
    with pytest.raises(errors.ConfigurationError, match="not a kubeconfig"):
        await ClusterClient.open(ClusterConfig(kubeconfig=str(path)))


async def test_credentials_that_were_renewed_on_disk_are_picked_up(tmp_path: Path) -> None:
    path = tmp_path / "config"
    unauthorized = refusal(401, "Unauthorized", "Unauthorized")
    async with ScriptedServer(unauthorized, Answer(200, JOB), unauthorized) as server:
        path.write_text(yaml.safe_dump(server.kubeconfig("old")))
        async with await ClusterClient.open(ClusterConfig(kubeconfig=str(path))) as client:
            path.write_text(yaml.safe_dump(server.kubeconfig("new")))
            assert await client.get(JOBS, "n", "j") == JOB
            assert [seen.headers["Authorization"] for seen in server.requests] == ["Bearer old", "Bearer new"]
            with pytest.raises(errors.ClusterUnauthorizedError, match="renew the token"):
                await client.get(JOBS, "n", "j")


def event(kind: str, version: str, **extra: Any) -> str:
    obj = {"metadata": {"name": "j", "uid": "u", "resourceVersion": version}} | extra
    return json.dumps({"type": kind, "object": obj}) + "\n"


async def test_a_watch_yields_events_and_bookmarks_and_ends_with_the_stream() -> None:
    lines = [event("ADDED", "5")[:20], event("ADDED", "5")[20:], event("BOOKMARK", "9")]
    async with talking_to(Answer(lines=lines)) as (client, server):
        seen = [
            (item.type, item.object["metadata"]["resourceVersion"])
            async for item in client.watch(JOBS, "n", resource_version="3", label_selector="a=b")
        ]
        query = server.requests[0].query
    assert seen == [("ADDED", "5"), ("BOOKMARK", "9")]
    assert query["watch"] == query["allowWatchBookmarks"] == "true"
    assert (query["resourceVersion"], query["labelSelector"]) == ("3", "a=b")


async def test_a_watch_says_that_its_version_expired(recordings: Any) -> None:
    answers = [
        record["response"]["body"]
        for record in recordings.records("api-errors")
        if record.get("note") == "watch from a version long gone"
    ]
    line = json.dumps(answers[0]) + "\n"
    async with talking_to(Answer(lines=[line])) as (client, _):
        with pytest.raises(errors.WatchExpiredError, match="too old resource version"):
            [item async for item in client.watch(JOBS, "n", resource_version="1")]


async def test_a_watch_that_is_cut_says_so() -> None:
    async with talking_to(Answer(lines=[event("ADDED", "5"), '{"type": "MOD'], cut=True)) as (client, _):
        events = client.watch(JOBS, "n", resource_version="1")
        assert (await anext(events)).type == "ADDED"
        with pytest.raises(errors.ClusterUnreachableError):
            await anext(events)


async def test_a_silent_watch_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "WATCH_GRACE_SECONDS", 0.2)
    async with talking_to(Answer(lines=[event("ADDED", "5")], hold=30)) as (client, _):
        with pytest.raises(errors.ClusterUnreachableError):
            [item async for item in client.watch(JOBS, "n", resource_version="1", timeout_seconds=0)]


async def test_logs_keep_empty_lines_and_split_endless_ones() -> None:
    long = "x" * (client_module.LOG_LINE_LIMIT + 10)
    async with talking_to(Answer(lines=["a\n\nb", "c\n", long])) as (client, server):
        lines = [line async for line in client.logs("n", "p", container="main", follow=True, timestamps=True)]
        assert server.requests[0].query == {"container": "main", "follow": "true", "timestamps": "true"}
    assert lines[:3] == ["a", "", "bc"]
    assert "".join(lines[3:]) == long


async def test_one_client_is_shared_and_closed_after_its_last_user() -> None:
    async with ScriptedServer(Answer(200, JOB)) as server:
        config = ClusterConfig(kubeconfig_content=server.kubeconfig())
        same = ClusterConfig(kubeconfig_content=server.kubeconfig())
        async with shared_client(config) as first:
            async with shared_client(same) as second:
                assert first is second
            assert await first.get(JOBS, "n", "j") == JOB
        async with shared_client(config) as third:
            assert third is not first
        assert hash(config) == hash(same)
        assert "t0ken" not in repr(config)


async def test_an_answer_that_is_not_json_is_an_error_of_ours() -> None:
    page = Answer(lines=["<html>Sign in</html>"])
    async with talking_to(page) as (client, _):
        with pytest.raises(errors.ClusterRequestError, match="is not JSON"):
            await client.get(JOBS, "n", "j")
        with pytest.raises(errors.ClusterUnreachableError):
            [item async for item in client.watch(JOBS, "n", resource_version="1")]


@pytest.mark.parametrize(
    "module",
    [
        *("kubernetes.api.client", "kubernetes.api.connection", "kubernetes.job.job_manifest"),
        *("kubernetes.job.spec", "kubernetes.outcome.outcome", "kubernetes.logs.logs"),
        *("kubernetes.mirror.feed", "attempts.lifecycle", "attempts.tracked_workload"),
    ],
)
def test_importing_the_adapter_imports_no_client_library(module: str) -> None:
    heavy = ["kubernetes_asyncio", "kubernetes", "aiohttp", "stamina", "yaml", "httpx", "pydantic"]
    code = (
        f"import sys, nighttrain.providers.{module}\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


INVALID = (
    'Job.batch "j" is invalid: spec.template.spec.tolerations[0].operator: Unsupported value: "Nope"',
    "Invalid",
    422,
)
UNKNOWN_FIELD = (
    'Job in version "v1" cannot be handled as a Job: strict decoding error: unknown field "spec.x"',
    "BadRequest",
    400,
)


@pytest.mark.parametrize(("message", "reason", "code"), [INVALID, UNKNOWN_FIELD])
@pytest.mark.parametrize("call", ["create", "dry run", "replace", "patch"])
async def test_what_the_server_will_never_take_is_a_permanent_failure(
    message: str, reason: str, code: int, call: str
) -> None:
    async with talking_to(refusal(code, reason, message)) as (client, server):
        asking = {
            "create": lambda: client.create(JOBS, "n", JOB),
            "dry run": lambda: client.create(JOBS, "n", JOB, dry_run=True),
            "replace": lambda: client.replace(JOBS, "n", "j", JOB),
            "patch": lambda: client.patch(JOBS, "n", "j", {}),
        }[call]
        with pytest.raises(errors.ObjectInvalidError) as raised:
            await asking()
        assert len(server.requests) == 1
    assert message in str(raised.value)
    assert "refused however often it is sent" in str(raised.value)
    from nighttrain.sensors.common.failures import PERMANENT

    assert isinstance(raised.value, PERMANENT)


async def test_a_bad_request_that_is_no_verdict_on_an_object_is_none() -> None:
    """A log of a container that has not started, and what a proxy says: later it may be otherwise."""
    async with talking_to(refusal(400, "BadRequest", "container is waiting to start")) as (client, _):
        with pytest.raises(errors.ClusterRequestError) as raised:
            [line async for line in client.logs("n", "p")]
        assert not isinstance(raised.value, errors.ObjectInvalidError)
    async with talking_to(Answer(400, "<html>bad gateway configuration</html>")) as (client, _):
        with pytest.raises(errors.ClusterRequestError) as raised:
            await client.create(JOBS, "n", JOB)
        assert not isinstance(raised.value, errors.ObjectInvalidError)
