"""Whole rollouts on the embedded cluster: real pods, sockets and launcher; only the model is fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.polling import until_async
from helpers.serving_load import Load
from nighttrain.providers.errors import RolloutFailedError
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, PODS, SERVICES, Resource
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.spec import ServingSpec

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.base import EndpointStatus

Make = Callable[..., ServingSpec]
REQUESTS = 2_000
NAMESPACE = "default"


@pytest.fixture
def cluster(image: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": image}) as cluster:
        yield cluster


@pytest.fixture
def rollout(client: ClusterClient) -> Rollout:
    return Rollout(KubernetesDeployments(client))


async def test_no_request_is_lost_while_two_thousand_meet_a_rollout(
    store: Any, rollout: Rollout, serving_spec: Make
) -> None:
    status: EndpointStatus = await rollout.run(serving_spec("1", artifact_digest=store.add("1"), replicas=2))
    second = serving_spec("2", artifact_digest=store.add("2"), replicas=2)
    load = Load(status.cluster_ip_url)
    running = asyncio.create_task(load.run(pooled=4, fresh=4))
    try:
        await load.until(lambda: load.answers["version 1"] >= REQUESTS // 4)
        status = await rollout.run(second)
        await load.until(
            lambda: load.answers.total() >= REQUESTS and load.answers["version 2"] >= REQUESTS // 4
        )
    finally:
        load.enough.set()
        await running
    print(f"{load.answers.total()} requests: {dict(load.answers)}, {len(load.failures)} failed")
    assert load.failures == []
    assert set(load.answers) == {"version 1", "version 2"}
    assert (status.stable_version, status.previous_version) == ("2", "1")


async def test_pooled_clients_follow_a_rollback_and_survive_the_removal_of_old_versions(
    store: Any, client: ClusterClient, rollout: Rollout, serving_spec: Make
) -> None:
    specs = [
        serving_spec(str(n), artifact_digest=store.add(str(n)), connection_seconds=1.0) for n in (1, 2, 3)
    ]
    status = await rollout.run(specs[0])
    load = Load(status.cluster_ip_url)
    running = asyncio.create_task(load.run(pooled=4, fresh=1))
    try:
        await rollout.run(specs[1])
        await rollout.rollback("delay", NAMESPACE)
        seen = load.answers["version 1"]
        await load.until(lambda: load.answers["version 1"] >= seen + 50)
        status = await rollout.run(specs[2])
        await load.until(lambda: load.answers["version 3"] >= 200)
    finally:
        load.enough.set()
        await running
    assert load.failures == []
    assert (status.stable_version, status.previous_version) == ("3", "1")
    assert {version.version for version in status.versions} == {"1", "3"}


async def test_a_digest_that_differs_serves_nothing_and_leaves_the_stable_version(
    store: Any, client: ClusterClient, rollout: Rollout, serving_spec: Make
) -> None:
    status = await rollout.run(serving_spec("1", artifact_digest=store.add("1")))
    before = (await client.get(SERVICES, NAMESPACE, "delay"))["spec"]
    store.add("2", "broken")
    with pytest.raises(RolloutFailedError) as caught:
        await rollout.run(serving_spec("2", artifact_digest="a" * 64))
    assert "exit code 78" in str(caught.value)
    assert f"expected sha256 {'a' * 64}" in str(caught.value)
    assert "version 1 still serves" in str(caught.value)
    assert (await client.get(SERVICES, NAMESPACE, "delay"))["spec"] == before
    async with httpx.AsyncClient(trust_env=False) as web:
        assert (await web.post(f"{status.cluster_ip_url}/invocations")).text == "version 1"
    await gone(client, "2")


async def test_what_serves_gets_a_new_form_without_losing_a_request(
    store: Any, rollout: Rollout, serving_spec: Make
) -> None:
    digest = store.add("1")
    # The old pod goes on for a while after SIGTERM, as long as the cluster may need to stop sending.
    status = await rollout.run(serving_spec("1", artifact_digest=digest, drain_seconds=1.0))
    load = Load(status.cluster_ip_url)
    running = asyncio.create_task(load.run(pooled=2, fresh=2))
    try:
        form = serving_spec("1", artifact_digest=digest, connection_seconds=20.0, drain_seconds=1.0)
        status = await rollout.run(form)
        seen = load.answers.total()
        await load.until(lambda: load.answers.total() >= seen + 500)
    finally:
        load.enough.set()
        await running
    assert load.failures == []
    assert (status.stable_version, status.previous_version, status.ready_replicas) == ("1", None, 1)


async def test_what_was_scaled_to_zero_answers_again(
    store: Any, client: ClusterClient, rollout: Rollout, serving_spec: Make
) -> None:
    specs = [serving_spec(str(n), artifact_digest=store.add(str(n))) for n in (1, 2)]
    for spec in specs:
        status = await rollout.run(spec)
    nobody = {"spec": {"replicas": 0}}
    await client.patch(DEPLOYMENTS, NAMESPACE, "delay-v2", nobody)
    await gone(client, "2", PODS)
    assert (await rollout.run(specs[1])).answers
    assert await answer(status.cluster_ip_url) == "version 2"
    await client.patch(DEPLOYMENTS, NAMESPACE, "delay-v1", nobody)
    await gone(client, "1", PODS)
    assert (await rollout.rollback("delay", NAMESPACE)).answers

    # The proxy follows the Service within moments.
    async def version_1_answers() -> bool:
        return await answer(status.cluster_ip_url) == "version 1"

    await until_async(version_1_answers)


async def answer(url: str) -> str:
    """What the endpoint says over a connection of its own."""
    async with httpx.AsyncClient(trust_env=False) as web:
        return (await web.post(f"{url}/invocations")).raise_for_status().text


async def test_an_image_that_does_not_exist(
    client: ClusterClient, rollout: Rollout, serving_spec: Make
) -> None:
    with pytest.raises(RolloutFailedError, match=r"(?s)nothing serves yet.*no-such-image"):
        await rollout.run(serving_spec("1", image="no-such-image:1"))
    await gone(client, "1")


@pytest.mark.slow
async def test_a_model_that_cannot_be_loaded_ends_after_three_starts_with_its_last_lines(
    store: Any, client: ClusterClient, rollout: Rollout, serving_spec: Make
) -> None:
    spec = serving_spec("1", artifact_digest=store.add("1", "broken"))
    with pytest.raises(RolloutFailedError, match=r"(?s)exit code 1.*what_the_model_needs"):
        await rollout.run(spec)
    await gone(client, "1")


async def test_a_cancelled_rollout_leaves_no_candidate(
    store: Any, client: ClusterClient, rollout: Rollout, serving_spec: Make
) -> None:
    started = asyncio.Event()
    running = asyncio.create_task(
        rollout.run(serving_spec("1", artifact_digest=store.add("1")), on_progress=lambda _: started.set())
    )
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(client, "1")


async def test_a_conflict_ends_no_removal_of_a_candidate_that_is_still_there(
    store: Any, cluster: EmbeddedCluster, client: ClusterClient, rollout: Rollout, serving_spec: Make
) -> None:
    candidate = serving_spec("1", artifact_digest=store.add("1"))
    await rollout.start(candidate)
    refused = Fault.answer(409, verb="delete", resource="deployments", count=2)
    cluster.faults.add(refused)
    await rollout.abort(candidate)
    assert cluster.faults.struck(refused) == 2
    await gone(client, "1")


async def gone(client: ClusterClient, version: str, *kinds: Resource) -> None:
    """Wait until neither the Deployment nor a pod of the version is there."""
    selector = f"nighttrain.dev/version={version}"

    async def none_is_there() -> bool:
        lists = [
            await client.list(kind, NAMESPACE, label_selector=selector)
            for kind in kinds or (DEPLOYMENTS, PODS)
        ]
        return not any(listed["items"] for listed in lists)

    await until_async(none_is_there, 60)
