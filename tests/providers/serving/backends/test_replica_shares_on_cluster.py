"""Shares by replicas on the embedded cluster: real pods, real requests; only the model is fake."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.rollout_by_hand import Hand
from helpers.serving_load import Load
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, PODS, SERVICES
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.spec import ServingSpec

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

Make = Callable[..., ServingSpec]
NAMESPACE = "default"


@pytest.fixture
def cluster(image: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": image}) as cluster:
        yield cluster


async def short(_: float) -> None:
    """The proxy here follows at once, and pods go on answering after SIGTERM."""
    await asyncio.sleep(0.3)


@pytest.fixture
def hand(client: ClusterClient) -> Hand:
    return Hand(ReplicaShares(client, sleep=short))


async def replicas(client: ClusterClient) -> dict[str, int]:
    found = await client.list(DEPLOYMENTS, NAMESPACE)
    return {item["metadata"]["name"]: item["spec"]["replicas"] for item in found["items"]}


async def counted(url: str, requests: int) -> Counter[str]:
    """Who answers, each time over a connection of its own."""
    async with httpx.AsyncClient(trust_env=False) as web:
        headers = {"connection": "close"}
        answers = [await web.post(f"{url}/invocations", headers=headers) for _ in range(requests)]
    return Counter(answer.raise_for_status().text for answer in answers)


async def test_a_canary_by_replicas_loses_no_request_and_is_promoted(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    rollout = Rollout(KubernetesDeployments(client))
    for version in ("1", "2"):  # an endpoint that exists, with a version that is kept for a rollback
        status = await rollout.run(serving_spec(version, artifact_digest=store.add(version), replicas=3))
    load = Load(status.cluster_ip_url)
    running = asyncio.create_task(load.run(pooled=2, fresh=2))
    try:
        target = await hand.bring_up(serving_spec("3", artifact_digest=store.add("3")))
        assert (target.stable, target.candidate) == ("2", "3")
        assert await replicas(client) == {"delay-v1": 0, "delay-v2": 3, "delay-v3": 1}
        assert "delay-v1: scaled from 3 to zero replicas while this rollout lasts" in " ".join(hand.told)
        addresses = await hand.backend.addresses(target)
        assert addresses.stable is not None
        assert addresses.candidate is not None
        assert await counted(addresses.candidate.url, 5) == {"version 3": 5}
        assert await counted(addresses.stable.url, 5) == {"version 2": 5}
        await load.until(lambda: load.answers.total() >= 200)
        assert set(load.answers) == {"version 2"}
        assert (await hand.traffic(target, 10)).routed_percent == 25
        assert (await counted(addresses.route.url, 40))["version 3"] in range(5, 16)
        assert (await hand.traffic(target, 40)).routed_percent == 40
        assert (await hand.traffic(target, 100)).routed_percent == 100
        assert (await replicas(client))["delay-v3"] == 3
        done = await hand.promote(target)
        assert done.stable_ready, "the version before is kept warm"
        seen = load.answers["version 3"]
        await load.until(lambda: load.answers["version 3"] >= seen + 200)
    finally:
        load.enough.set()
        await running
    print(f"{load.answers.total()} requests: {dict(load.answers)}, {len(load.failures)} failed")
    assert load.failures == []
    assert set(load.answers) == {"version 2", "version 3"}
    after = await rollout.status("delay", NAMESPACE)
    assert after is not None
    assert (after.stable_version, after.previous_version, after.candidate_version) == ("3", "2", None)
    assert [version.version for version in after.versions] == ["2", "3"]
    assert after.describe() == "version 3 serves from 3/3 replicas"
    assert (await rollout.rollback("delay", NAMESPACE)).stable_version == "2"


async def test_a_canary_by_replicas_is_undone_and_what_was_kept_is_kept(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    rollout = Rollout(KubernetesDeployments(client))
    for version in ("1", "2"):
        status = await rollout.run(serving_spec(version, artifact_digest=store.add(version)))
    load = Load(status.cluster_ip_url)
    running = asyncio.create_task(load.run(pooled=2, fresh=2))
    try:
        target = await hand.bring_up(serving_spec("3", artifact_digest=store.add("3")))
        await hand.traffic(target, 20)
        await load.until(lambda: load.answers["version 3"] >= 50)
        assert (await hand.traffic(target, 0)).routed_percent == 0
        await hand.undo(target)
        seen = load.answers["version 2"]
        await load.until(lambda: load.answers["version 2"] >= seen + 200)
    finally:
        load.enough.set()
        await running
    assert load.failures == []
    after = await rollout.status("delay", NAMESPACE)
    assert after is not None
    assert (after.stable_version, after.previous_version, after.candidate_version) == ("2", "1", None)
    assert await replicas(client) == {"delay-v1": 1, "delay-v2": 1}
    services = {item["metadata"]["name"] for item in (await client.list(SERVICES, NAMESPACE))["items"]}
    assert "delay-v3" not in services
    assert (await rollout.rollback("delay", NAMESPACE)).stable_version == "1"


async def test_a_first_version_has_everything_or_nothing(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    bad = await hand.bring_up(serving_spec("1", artifact_digest=store.add("1"), replicas=2))
    assert bad.stable is None
    await hand.traffic(bad, 100)
    assert await counted((await hand.backend.addresses(bad)).route.url, 5) == {"version 1": 5}
    await hand.traffic(bad, 0)
    await hand.undo(bad)
    for kind in (SERVICES, DEPLOYMENTS, PODS):
        assert [each for each in (await client.list(kind, NAMESPACE))["items"] if "delay" in str(each)] == []
    good = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2"), replicas=2))
    await hand.traffic(good, 100)
    assert (await hand.promote(good)).promoted
    status = await Rollout(KubernetesDeployments(client)).status("delay", NAMESPACE)
    assert status is not None
    assert (status.stable_version, status.previous_version, status.ready_replicas) == ("2", None, 2)
