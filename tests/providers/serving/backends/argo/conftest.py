"""A cluster with upstream's definitions, and who plays Argo Rollouts there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from helpers import upstream_definitions
from helpers.clusters import connected
from helpers.played_argo import NAMESPACE, PlayedArgo, make_route
from helpers.rollout_by_hand import Hand
from helpers.upstream_definitions import define, needs
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    HTTPROUTES,
    REPLICASETS,
    ROLLOUTS,
    SERVICES,
)
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.choice import make_backend

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import Target
    from nighttrain.providers.serving.spec import ServingSpec

Make = Callable[..., "ServingSpec"]
NEEDED = ("rollouts.argoproj.io", "httproutes.gateway.networking.k8s.io")
SHARES = (25, 50)

needs_definitions = needs(*NEEDED)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as running:
        asyncio.run(define(running, NEEDED))
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with connected(cluster) as opened:
        yield opened
        await emptied(opened)


async def emptied(client: ClusterClient) -> None:
    """Nothing is left of an endpoint."""
    await upstream_definitions.emptied(client, (ROLLOUTS, REPLICASETS, SERVICES, HTTPROUTES, CONFIGMAPS))


@pytest.fixture
def argo(client: ClusterClient) -> PlayedArgo:
    return PlayedArgo(client)


def settings(mode: str) -> dict[str, Any]:
    return {"http_route": "delay-route"} if mode == "route" else {}


class HandWithShares(Hand):
    """Says what the strategy will ask for, as the engine does."""

    async def bring_up(self, spec: ServingSpec) -> Target:
        begun = self.backend.begin

        async def begin(spec: ServingSpec) -> Target:
            return replace(await begun(spec), shares=SHARES)

        self.backend.begin = begin  # type: ignore[method-assign]
        try:
            return await super().bring_up(spec)
        finally:
            self.backend.begin = begun  # type: ignore[method-assign]


def hand_of(argo: PlayedArgo, mode: str = "replicas", **given: Any) -> HandWithShares:
    backend = make_backend(argo.client, {"type": "argo_rollouts", **settings(mode), **given})
    return HandWithShares(backend, sleep=argo.sleep, looks=40)


async def served(hand: Hand, argo: PlayedArgo, make: Make, mode: str, version: str = "1") -> None:
    """An endpoint whose first version serves from four pods."""
    if mode == "route":
        await make_route(argo.client)
    spec = make(version, replicas=4)
    target = await hand.backend.begin(spec)
    assert target.stable is None
    await hand.backend.bring_up(spec, target, 1, hand.told.append)
    hand.fence = 1
    await hand.traffic(target, 100)
    await hand.promote(target)
    assert await argo.sizes() == {version: 4}


async def selector(client: ClusterClient) -> dict[str, str]:
    held = await client.get(SERVICES, NAMESPACE, "delay")
    return {key.rpartition("/")[2]: value for key, value in held["spec"]["selector"].items()}
