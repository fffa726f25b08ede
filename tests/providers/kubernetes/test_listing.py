"""A listing is read to its end, whoever divides it into pages, and also where its rest expires."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import stamina
from aiohttp import web

from helpers.scripted_api import Answer, ScriptedServer
from helpers.server_proxy import Judge, SeenRequest, ServerProxy
from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle, wait_for_end
from nighttrain.providers.attempts.reaper import TaskState, find
from nighttrain.providers.kubernetes.api.client import (
    CONFIGMAPS,
    EVENTS,
    JOBS,
    LIST_ROUNDS,
    NAMESPACES,
    PODS,
    ClusterClient,
    ClusterConfig,
)
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store import resources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

NAMES = ["a", "b", "c", "d", "e"]
SPEC = WorkloadSpec(image="i")
_numbers = count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    """Objects are stored and nothing runs."""
    with EmbeddedCluster(containers=False) as running:
        yield running


@asynccontextmanager
async def connected(
    cluster: EmbeddedCluster, judge: Judge = lambda _: None, page: int | None = None
) -> AsyncIterator[tuple[ClusterClient, ServerProxy]]:
    async with ServerProxy(cluster.url, cluster.token, judge=judge, page=page) as proxy:
        config = ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="t"))
        with stamina.set_testing(True):
            async with await ClusterClient.open(config) as client:
                yield client, proxy


@pytest.fixture
async def space(cluster: EmbeddedCluster) -> str:
    """A namespace with five ConfigMaps."""
    name = f"space-{next(_numbers)}"
    async with connected(cluster) as (client, _):
        await client.create(NAMESPACES, None, {"metadata": {"name": name}})
        for each in NAMES:
            await client.create(CONFIGMAPS, name, {"metadata": {"name": each}})
    return name


def names(listed: dict[str, Any]) -> list[str]:
    return [each["metadata"]["name"] for each in listed["items"]]


@pytest.mark.parametrize("page", [None, 1, 2])
@pytest.mark.parametrize("limit", [None, 2, 5, 100])
async def test_a_listing_is_complete_whoever_divides_it(
    cluster: EmbeddedCluster, space: str, limit: int | None, page: int | None
) -> None:
    async with connected(cluster, page=page) as (client, proxy):
        listed = await client.list(CONFIGMAPS, space, limit=limit)
        asked = [seen.query for seen in proxy.seen]
    assert names(listed) == NAMES
    assert listed["metadata"]["resourceVersion"]
    assert not {"continue", "remainingItemCount"} & set(listed["metadata"])
    assert {query.get("limit") for query in asked} == {None if limit is None else str(limit)}
    assert len(asked) == -(-len(NAMES) // min(limit or 100, page or 100))


def refusing(times: int, body: dict[str, Any]) -> Callable[[SeenRequest], web.Response | None]:
    """410 for so many rests of a list."""
    left = iter(range(times))

    def judge(seen: SeenRequest) -> web.Response | None:
        if "continue" not in seen.query or next(left, None) is None:
            return None
        return web.json_response(body, status=410)

    return judge


EXPIRED = {"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"}
BEGIN_ANEW = [
    pytest.param(EXPIRED, id="without a new token"),
    pytest.param({**EXPIRED, "metadata": {"continue": "inconsistent"}}, id="with a new token"),
]


@pytest.mark.parametrize("body", BEGIN_ANEW)
@pytest.mark.parametrize("page", [None, 2])
async def test_a_listing_whose_rest_expired_begins_anew(
    cluster: EmbeddedCluster, space: str, body: dict[str, Any], page: int | None
) -> None:
    async with connected(cluster, judge=refusing(1, body), page=page) as (client, proxy):
        listed = await client.list(CONFIGMAPS, space, limit=2)
        asked = [seen.query for seen in proxy.seen]
    assert names(listed) == NAMES, "each object once"
    assert [("continue" in query, query.get("limit")) for query in asked[:3]] == [
        (False, "2"),
        (True, "2"),
        (False, None),
    ]
    assert "inconsistent" not in {query.get("continue") for query in asked}


async def test_a_listing_that_expires_time_and_again_is_an_error_and_no_half_list(
    cluster: EmbeddedCluster, space: str
) -> None:
    async with connected(cluster, judge=refusing(99, EXPIRED), page=2) as (client, proxy):
        with pytest.raises(errors.WatchExpiredError, match="list configmaps"):
            await client.list(CONFIGMAPS, space)
        assert len(proxy.seen) == 2 * LIST_ROUNDS


async def test_a_history_that_is_compacted_between_two_pages(cluster: EmbeddedCluster, space: str) -> None:
    def judge(seen: SeenRequest) -> None:
        if "continue" in seen.query and judged == []:
            judged.append(seen)
            made = {"metadata": {"name": "f", "namespace": space}}
            cluster.call(lambda store: store.create(resources.CONFIGMAPS, made))
            cluster.call(lambda store: store.compact())

    judged: list[SeenRequest] = []
    async with connected(cluster, judge=judge) as (client, _):
        listed = await client.list(CONFIGMAPS, space, limit=2)
    assert names(listed) == [*NAMES, "f"], "one moment, not two"


async def test_a_server_that_never_ends_a_list_is_an_error_and_no_hang() -> None:
    page = Answer(body={"items": [{"metadata": {"name": "a"}}], "metadata": {"continue": "same"}})
    async with ScriptedServer(page) as server:
        config = ClusterConfig(kubeconfig_content=server.kubeconfig())
        async with await ClusterClient.open(config) as client:
            with pytest.raises(errors.ClusterRequestError, match="same continue token"):
                await client.list(PODS, "n")


# The looks that decide something, at a server that sends one object at a time.


def who() -> WorkloadIdentity:
    return WorkloadIdentity(
        orchestrator="airflow", dag_id="nightly", run_id=f"list-{next(_numbers)}", task_id="train"
    )


async def test_the_newest_attempt_is_found_on_the_last_page(cluster: EmbeddedCluster) -> None:
    identity = who()
    async with connected(cluster, page=1) as (client, _):
        for attempt in (1, 2, 3):
            await client.create(JOBS, "default", build_job(check_workload(SPEC), identity, attempt))
        job = await lifecycle.submit(client, check_workload(SPEC), identity, namespace="default")
    assert (job.adopted, job.attempt) == (True, 3)


async def test_the_reaper_sees_what_is_on_the_last_page(cluster: EmbeddedCluster) -> None:
    class Over:
        async def state(self, identity: WorkloadIdentity) -> TaskState:
            return TaskState.OVER

    async with connected(cluster, page=1) as (client, _):
        made = {
            (await client.create(JOBS, "default", build_job(check_workload(SPEC), who(), 1)))["metadata"][
                "name"
            ]
            for _ in range(3)
        }
        findings = await find(client, "default", Over(), minimum_age_seconds=0)
    assert made <= {finding.workload.name for finding in findings}


async def test_events_and_pods_are_read_to_the_last_page(cluster: EmbeddedCluster) -> None:
    async with connected(cluster, page=1) as (client, _):
        made = await client.create(JOBS, "default", build_job(check_workload(SPEC), who(), 1))
        name, uid = made["metadata"]["name"], made["metadata"]["uid"]
        job = lifecycle.Workload("default", name, uid, 1)
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
        for number in range(3):
            meta = {"name": f"{name}-{number}", "ownerReferences": [owner]}
            meta["labels"] = dict(made["spec"]["template"]["metadata"]["labels"])
            spec = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]}
            await client.create(PODS, "default", {"metadata": meta, "spec": spec})
            about = {"kind": "Pod", "namespace": "default", "name": f"{name}-{number}", "uid": uid}
            event = {"metadata": {"name": f"{name}.{number}"}, "involvedObject": about, "reason": "Killing"}
            await client.create(EVENTS, "default", event)
        assert len(await wait_for_end.list_pods(client, job)) == 3
        assert len(await wait_for_end.kills(client, job)) == 3
        events, _ = await wait_for_end.explanations(client, job, made)
        assert len(events) == 3
