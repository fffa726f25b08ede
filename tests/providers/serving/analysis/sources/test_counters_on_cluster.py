"""Counters of real pods with the real scoring server, while clients ask both versions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.measured_metric import Measured, a_metric, numbers
from helpers.polling import until_async
from helpers.rollout_by_hand import Hand
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources.choice import Ways, make_sources
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.spec import ServingSpec

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.analysis.sources.base import Window

Make = Callable[..., ServingSpec]


@pytest.fixture
def cluster(image: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": image}) as cluster:
        yield cluster


async def test_what_clients_got_is_what_the_pods_tell(
    store: Any, client: ClusterClient, serving_spec: Make, window: Callable[..., Window]
) -> None:
    status = await Rollout(KubernetesDeployments(client)).run(
        serving_spec("1", artifact_digest=store.add("1"), replicas=2)
    )
    hand = Hand(ReplicaShares(client))
    target = await hand.bring_up(serving_spec("2", artifact_digest=store.add("2")))
    addresses = await hand.backend.addresses(target)
    assert addresses.candidate is not None
    sources = make_sources(Ways(client, None))  # type: ignore[arg-type]
    made = window(addresses=addresses)
    errors, slow = (
        Measured(sources["counters"], a_metric(kind, "counters", quantile=0.5), made)
        for kind in (Kind.ERRORS, Kind.LATENCY)
    )
    fresh = httpx.AsyncClient(trust_env=False, headers={"connection": "close"}, timeout=10)
    async with fresh as web:

        async def ask(url: str, *bodies: str) -> None:
            for body in bodies:
                await web.post(f"{url}/invocations", content=body)

        candidate, stable = addresses.candidate.url, status.cluster_ip_url
        await ask(stable, *["0.001"] * 20)
        for metric in (errors, slow):
            assert (await metric.baseline()).error is None
        await ask(candidate, *["0.001"] * 6, "status 503", "model raises", "status 404", "0.3")
        await ask(stable, *["0.001"] * 12, "status 500")
        sample = await errors.after(30)
        assert (numbers(sample.candidate), numbers(sample.stable)) == ((10, 2), (13, 1))
        sample = await slow.after(30)
        assert sample.candidate is not None
        assert sample.candidate.requests == 10
        assert 1 <= sample.candidate.bad < 10

        # A client that gives up is a failure of whom it had asked, and a killed server starts anew.
        with pytest.raises(httpx.ReadTimeout):
            await web.post(f"{candidate}/invocations", content="5", timeout=0.3)

        async def is_counted() -> bool:
            found = await errors.after(1)
            return numbers(found.candidate) == (1, 1)

        await until_async(is_counted)
        with pytest.raises(httpx.TransportError):
            await ask(candidate, "dies")

        async def started_again() -> bool:
            listed = await client.list(PODS, "default", label_selector="nighttrain.dev/version=2")
            (status,) = listed["items"][0]["status"]["containerStatuses"]
            return bool(status["restartCount"] == 1 and status["ready"])

        await until_async(started_again)
        await asyncio.gather(*(ask(candidate, "0.001") for _ in range(3)))
        assert numbers((await errors.after(30)).candidate) == (3, 0)
