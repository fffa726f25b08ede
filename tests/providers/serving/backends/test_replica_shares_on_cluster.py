"""Shares by replicas on the embedded cluster: real pods, real requests; only the model is fake."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.rollout_by_hand import Hand
from helpers.serving_load import Load
from nighttrain.providers.errors import ObjectConflictError, RolloutFailedError
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, PODS, SERVICES
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.spec import SHARE_REPLICAS_ANNOTATION, ServingSpec

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import Target

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


async def described(rollout: Rollout) -> str:
    """What people read of the endpoint."""
    status = await rollout.status("delay", NAMESPACE)
    assert status is not None
    return status.describe()


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
        assert await described(rollout) == "version 2 serves from 3/3 replicas"
        # Connections go to each pod in turn, those of the load in between.
        assert 0 < (await counted(addresses.route.url, 40))["version 3"] < 30
        assert (await hand.traffic(target, 40)).routed_percent == 40
        assert (await hand.traffic(target, 100)).routed_percent == 100
        kept = "version 2 is kept ready while a rollout sends all to version 3"
        assert await described(rollout) == kept
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


# Other hands. The stable version of these endpoints has two pods, so that a share of 50 percent has two, too.


async def begun(store: Any, client: ClusterClient, hand: Hand, make: Make, percent: int) -> Target:
    """A rollout from version 1 to 2 that has come to a share."""
    await Rollout(KubernetesDeployments(client)).run(
        make("1", artifact_digest=store.add("1"), replicas=2, drain_seconds=0)
    )
    target = await hand.bring_up(make("2", artifact_digest=store.add("2"), drain_seconds=0))
    await hand.traffic(target, percent)
    return target


async def test_who_decided_by_an_older_look_changes_nothing(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    target = await begun(store, client, hand, serving_spec, 30)
    backend, old = hand.backend, await hand.backend.look(target)
    await hand.traffic(target, 30)  # somebody else's: the same share, and another fence
    before = await client.get(SERVICES, NAMESPACE, "delay"), await replicas(client)
    for percent in (0, 30, 60, 100):
        with pytest.raises(ObjectConflictError):
            await backend.set_traffic(target, old, 99, percent=percent)
    await hand.traffic(target, 100)
    with pytest.raises(ObjectConflictError):
        await backend.promote(target, old, 99)
    await hand.traffic(target, 0)
    with pytest.raises(ObjectConflictError):
        await backend.undo(target, replace(old, routed_percent=0.0), 99)
    assert (await backend.look(target)).fence == hand.fence
    assert (await replicas(client)).keys() == before[1].keys()
    with pytest.raises(RolloutFailedError, match="does not have 100 percent"):
        await backend.promote(target, await backend.look(target), 99)


async def test_what_is_put_back_by_another_hand_is_said(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    target = await begun(store, client, hand, serving_spec, 30)
    back = {"spec": {"selector": version_labels("delay", "1")}}
    await client.patch(SERVICES, NAMESPACE, "delay", back)
    look = await hand.backend.look(target)
    assert (look.asked_percent, look.fence) == (0, hand.fence)
    assert "somebody changed spec.selector of Service delay" in (look.strayed or "")
    # The next rollout of that endpoint begins from where it is.
    again = Hand(hand.backend)
    found = await client.get(DEPLOYMENTS, NAMESPACE, "delay-v2")
    digest = found["metadata"]["annotations"]["nighttrain.dev/artifact-sha256"]
    target = await again.bring_up(serving_spec("2", artifact_digest=digest, drain_seconds=0))
    assert (await again.traffic(target, 0)).strayed is None


async def test_the_next_rollout_takes_back_what_a_stopped_one_left(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    await begun(store, client, hand, serving_spec, 50)
    after = Hand(hand.backend)
    target = await after.bring_up(serving_spec("3", artifact_digest=store.add("3"), drain_seconds=0))
    assert "an earlier rollout stopped; requests go back to version 1" in " ".join(after.told)
    assert await replicas(client) == {"delay-v1": 2, "delay-v2": 0, "delay-v3": 1}
    assert (await after.traffic(target, 30)).routed_percent == pytest.approx(100 / 3)
    await after.traffic(target, 100)
    await after.promote(target)
    assert (await replicas(client)).keys() == {"delay-v1", "delay-v3"}


async def test_an_autoscaler_has_the_say_about_the_stable_version(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    target = await begun(store, client, hand, serving_spec, 50)
    assert await replicas(client) == {"delay-v1": 2, "delay-v2": 2}
    await client.patch(DEPLOYMENTS, NAMESPACE, "delay-v1", {"spec": {"replicas": 3}})
    look = await hand.until(target, lambda look: look.routed_percent == 40)
    assert look.strayed is None, "an autoscaler's replicas are its own"
    await hand.traffic(target, 50)
    await hand.until(target, lambda look: look.routed_percent == 50)
    assert await replicas(client) == {"delay-v1": 3, "delay-v2": 3}
    await hand.traffic(target, 100)
    await hand.promote(target)
    assert await replicas(client) == {"delay-v1": 3, "delay-v2": 3}
    promoted = await client.get(DEPLOYMENTS, NAMESPACE, "delay-v2")
    assert SHARE_REPLICAS_ANNOTATION not in promoted["metadata"]["annotations"], "the next rollout's own"


async def test_pods_that_only_a_share_needed_go_with_the_promotion(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    target = await begun(store, client, hand, serving_spec, 67)
    assert (await replicas(client))["delay-v2"] == 4
    await hand.traffic(target, 100)
    await hand.promote(target)
    assert await replicas(client) == {"delay-v1": 2, "delay-v2": 2}


async def test_a_version_that_was_kept_is_a_candidate_again_and_kept_when_that_is_undone(
    store: Any, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    rollout, digest = Rollout(KubernetesDeployments(client)), store.add("1")
    await rollout.run(serving_spec("1", artifact_digest=digest, replicas=2, drain_seconds=0))
    await rollout.run(serving_spec("2", artifact_digest=store.add("2"), replicas=2, drain_seconds=0))
    before = await client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    target = await hand.bring_up(serving_spec("1", artifact_digest=digest, drain_seconds=0))
    assert (target.stable, target.candidate) == ("2", "1")
    await hand.traffic(target, 30)
    assert await replicas(client) == {"delay-v1": 1, "delay-v2": 2}
    await hand.traffic(target, 0)
    await hand.undo(target)
    status = await rollout.status("delay", NAMESPACE)
    assert status is not None
    assert (status.stable_version, status.previous_version, status.candidate_version) == ("2", "1", None)
    assert await replicas(client) == {"delay-v1": 2, "delay-v2": 2}
    after = await client.get(DEPLOYMENTS, NAMESPACE, "delay-v1")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


async def test_without_the_right_to_read_endpoint_slices_ready_pods_are_counted(
    store: Any, cluster: EmbeddedCluster, client: ClusterClient, hand: Hand, serving_spec: Make
) -> None:
    cluster.faults.add(Fault.answer(403, verb="list", resource="endpointslices", count=10_000))
    target = await begun(store, client, hand, serving_spec, 30)
    assert (await hand.backend.look(target)).routed_percent == pytest.approx(100 / 3)
