"""A cluster with upstream's definitions, and who plays KServe there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from helpers import upstream_definitions
from helpers.clusters import connected
from helpers.played_kserve import NAMESPACE, REVISIONS_DEFINITION, PlayedKServe
from helpers.rollout_by_hand import Hand
from helpers.upstream_definitions import define, needs
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HTTPROUTES,
    INFERENCE_SERVICES,
    KNATIVE_REVISIONS,
)
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kserve.backend import KServe

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.spec import ServingSpec

Make = Callable[..., "ServingSpec"]
NEEDED = ("inferenceservices.serving.kserve.io", "httproutes.gateway.networking.k8s.io")

needs_definitions = needs(*NEEDED)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as running:
        asyncio.run(define(running, NEEDED, REVISIONS_DEFINITION))
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with connected(cluster) as opened:
        yield opened
        await emptied(opened)


async def emptied(client: ClusterClient) -> None:
    """Nothing is left of an endpoint."""
    await upstream_definitions.emptied(
        client, (INFERENCE_SERVICES, DEPLOYMENTS, HTTPROUTES, KNATIVE_REVISIONS, CONFIGMAPS)
    )


@pytest.fixture
def kserve(client: ClusterClient) -> PlayedKServe:
    return PlayedKServe(client)


@pytest.fixture
def spec(serving_spec: Make) -> Make:
    def make(version: str = "1", **given: Any) -> ServingSpec:
        return serving_spec(version, source=f"s3://models/{version}", **given)

    return make


def hand_of(kserve: PlayedKServe, mode: str = "Standard") -> Hand:
    backend = KServe(kserve.client, mode=mode, sleep=kserve.sleep)
    return Hand(backend, sleep=kserve.sleep, looks=30)


async def served(hand: Hand, make: Make, version: str = "1", **given: Any) -> None:
    """An endpoint whose first version serves."""
    target = await hand.backend.begin(make(version, **given))
    assert target.stable is None
    await hand.backend.bring_up(make(version, **given), target, 1, hand.told.append)
    hand.fence = 1
    await hand.traffic(target, 100)
    await hand.promote(target)


async def deployments(client: ClusterClient) -> dict[str, int]:
    found = await client.list(DEPLOYMENTS, NAMESPACE)
    return {item["metadata"]["name"]: item["spec"]["replicas"] for item in found["items"]}
