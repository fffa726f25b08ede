"""The engine on the embedded cluster: real pods, real requests, a state that lives in the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from helpers.serving_load import Load
from helpers.simulated_serving import MemoryRegistrar, World
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.analysis.sources.choice import check_source
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.http_route import ask_route
from nighttrain.providers.serving.rollouts.state import Names, Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import Strategy, canary

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.spec import ServingSpec

NAMESPACE = "default"


@pytest.fixture
def cluster(image: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": image}) as cluster:
        yield cluster


async def short(seconds: float) -> None:
    """Ten times as fast: the proxy here follows at once."""
    await asyncio.sleep(seconds / 10)


class Steps:
    """Rollouts of the endpoint by one engine after the other, all on the same cluster."""

    def __init__(self, client: ClusterClient) -> None:
        self.client = client
        self.world = World()
        self.told: list[str] = []

    def engine(self) -> RolloutEngine:
        return RolloutEngine(
            ReplicaShares(self.client, sleep=short),
            RolloutStore(self.client),
            MemoryRegistrar(self.world),
            sources={},
            check_metric=check_source,
            ask_route=ask_route,
            sleep=short,
        )

    async def run(self, spec: ServingSpec, strategy: Strategy) -> State:
        begun = await self.engine().begin(
            spec,
            strategy,
            rollout_id=f"run-{spec.version}",
            actor="test",
            names=Names(alias="champion"),
            tell=self.told.append,
        )
        assert begun is not None
        return await self.engine().drive(spec.endpoint, NAMESPACE, spec=spec, tell=self.told.append)


async def test_a_first_version_and_a_canary_lose_no_request(
    store: Any, client: ClusterClient, serving_spec: Callable[..., ServingSpec]
) -> None:
    steps = Steps(client)
    steps.world.holders = {}
    first = serving_spec("1", artifact_digest=store.add("1"), replicas=2)
    strategy = canary(30, 50, hold_seconds=0.2, watch_seconds=0.5)
    assert (await steps.run(first, strategy)).phase is Phase.PROMOTED
    assert steps.world.holders["champion"] == "1"
    status = await Rollout(KubernetesDeployments(client)).status("delay", NAMESPACE)
    assert status is not None
    load = Load(status.cluster_ip_url)
    running = asyncio.create_task(load.run(pooled=2, fresh=2))
    try:
        await load.until(lambda: load.answers["version 1"] >= 50)
        second = serving_spec("2", artifact_digest=store.add("2"))
        end = await steps.run(second, strategy)
        assert end.phase is Phase.PROMOTED, steps.told
        await load.until(lambda: load.answers["version 2"] >= 200)
    finally:
        load.enough.set()
        await running
    assert load.failures == []
    assert steps.world.holders["champion"] == "2"
    assert [event.text for event in end.events][1:5] == [
        "ready; 30 percent of the requests to the candidate",
        "33.3333 percent of the requests go to the candidate",
        "held; 50 percent of the requests to the candidate",
        "50 percent of the requests go to the candidate",
    ]


async def test_what_never_becomes_ready_is_undone(
    store: Any, client: ClusterClient, serving_spec: Callable[..., ServingSpec]
) -> None:
    steps = Steps(client)
    first = serving_spec("1", artifact_digest=store.add("1"))
    strategy = canary(50, hold_seconds=0.2, watch_seconds=0.5)
    assert (await steps.run(first, strategy)).phase is Phase.PROMOTED
    broken = serving_spec("2", artifact_digest=store.add("2", "broken"))
    end = await steps.run(broken, strategy)
    assert end.phase is Phase.UNDONE
    assert "what_the_model_needs" in end.reason
    assert steps.world.holders["champion"] == "1"
    status = await Rollout(KubernetesDeployments(client)).status("delay", NAMESPACE)
    assert status is not None
    assert status.describe() == "version 1 serves from 1/1 replicas"
    assert [version.version for version in status.versions] == ["1"]
