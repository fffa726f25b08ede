"""The engine drives both plain backends on the embedded cluster: real pods, a registry in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from helpers.serving_load import Load
from helpers.simulated_serving import MemoryRegistrar, World
from nighttrain.providers.kubernetes.api.resources import HTTPROUTES, SERVICES
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.backends.plain.by_route import GatewayRoutes
from nighttrain.providers.serving.backends.plain.routes import RouteSettings
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.http_route import ask_route
from nighttrain.providers.serving.rollouts.state import Names, Order, Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.providers.serving.strategy import Approval, Strategy, Weight, canary

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.base import EndpointStatus
    from nighttrain.providers.serving.backends.traffic import TrafficBackend

Make = Callable[..., ServingSpec]
NAMESPACE = "default"
SHORT = canary(40, hold_seconds=0.5, watch_seconds=0.5)


@pytest.fixture
def cluster(image: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": image}, serving=Serving(status_lag=0.05, route_lag=0.5)) as cluster:
        yield cluster


async def shorter(seconds: float) -> None:
    await asyncio.sleep(seconds / 4)


@pytest.fixture(params=["replicas", "route"])
def backend(request: pytest.FixtureRequest, client: ClusterClient) -> TrafficBackend:
    if request.param == "replicas":
        return ReplicaShares(client, sleep=shorter)
    return GatewayRoutes(
        client, RouteSettings(gateway="nighttrain", hostnames=("delay.test",)), sleep=shorter
    )


class Driven:
    """One endpoint that serves version 1, and rollouts of it."""

    def __init__(self, client: ClusterClient, backend: TrafficBackend, store: Any, make: Make) -> None:
        self.client, self.backend, self.store, self.make = client, backend, store, make
        self.world, self.told = World(), list[str]()
        self.specs: dict[str, ServingSpec] = {}
        self.states = RolloutStore(client)
        self.engine = RolloutEngine(
            backend,
            self.states,
            MemoryRegistrar(self.world),
            sources={},
            check_metric=lambda field, metric, golden: None,
            ask_route=ask_route,
            sleep=shorter,
        )

    def spec(self, version: str, **given: Any) -> ServingSpec:
        if version not in self.specs:
            digest = self.store.add(version)
            self.specs[version] = self.make(version, artifact_digest=digest, drain_seconds=0, **given)
        return self.specs[version]

    async def serve(self, version: str) -> EndpointStatus:
        return await Rollout(KubernetesDeployments(self.client)).run(self.spec(version, replicas=2))

    async def begin(self, version: str, strategy: Strategy) -> None:
        begun = await self.engine.begin(
            self.spec(version),
            strategy,
            rollout_id=f"run-{version}",
            actor="deploy",
            names=Names(alias="champion"),
            tell=self.told.append,
        )
        assert begun is not None

    async def drive(self, version: str) -> State:
        async with asyncio.timeout(90):
            return await self.engine.drive("delay", NAMESPACE, spec=self.spec(version), tell=self.told.append)

    async def until(self, phase: Phase) -> None:
        async with asyncio.timeout(60):
            while True:
                kept = await self.states.read("delay", NAMESPACE)
                if kept is not None and kept.state.phase is phase:
                    return
                await asyncio.sleep(0.05)

    async def endpoint(self) -> tuple[str | None, str | None, str | None]:
        found = await Rollout(KubernetesDeployments(self.client)).status("delay", NAMESPACE)
        assert found is not None
        assert found.answers, found.describe()
        return found.stable_version, found.previous_version, found.candidate_version


@pytest.fixture
def driven(client: ClusterClient, backend: TrafficBackend, store: Any, serving_spec: Make) -> Driven:
    return Driven(client, backend, store, serving_spec)


@pytest.mark.sampled(2)
async def test_a_canary_is_promoted_and_loses_no_request(driven: Driven) -> None:
    status = await driven.serve("1")
    await driven.begin("2", SHORT)
    load = Load(status.cluster_ip_url)
    running = asyncio.create_task(load.run(pooled=1, fresh=2))
    try:
        state = await driven.drive("2")
        seen = load.answers["version 2"]
        await load.until(lambda: load.answers["version 2"] >= seen + 100)
    finally:
        load.enough.set()
        await running
    assert state.phase is Phase.PROMOTED, driven.told
    assert load.failures == []
    assert await driven.endpoint() == ("2", "1", None)
    assert driven.world.holders == {"champion": "2"}


@pytest.mark.sampled(2)
async def test_what_is_aborted_while_a_person_is_asked_is_undone_and_the_next_one_begins(
    driven: Driven,
) -> None:
    await driven.serve("1")
    steps = (Weight(percent=40, hold_seconds=0.2), Approval(reason="look at it"))
    await driven.begin("2", Strategy(steps=steps, watch_seconds=0.2))
    driving = asyncio.create_task(driven.drive("2"))
    await driven.until(Phase.WAITING)
    await driven.states.order("delay", NAMESPACE, Order.ABORT, by="somebody")
    assert (await driving).phase is Phase.UNDONE
    assert await driven.endpoint() == ("1", None, None)
    assert driven.world.holders == {"champion": "1"}
    # Again the same version, whose marks of before must not count.
    await driven.engine.take("delay", NAMESPACE, "run-2")
    await driven.begin("2", SHORT)
    assert (await driven.drive("2")).phase is Phase.PROMOTED, driven.told
    assert await driven.endpoint() == ("2", "1", None)


@pytest.mark.sampled(2)
async def test_a_candidate_that_never_becomes_ready_is_undone(driven: Driven) -> None:
    await driven.serve("1")
    driven.specs["2"] = driven.make("2", artifact_digest="a" * 64, drain_seconds=0)
    driven.store.add("2")
    await driven.begin("2", SHORT)
    state = await driven.drive("2")
    assert (state.phase, "exit code 78" in state.reason) == (Phase.UNDONE, True)
    assert await driven.endpoint() == ("1", None, None)


@pytest.mark.sampled(2)
async def test_another_hand_stops_the_rollout_and_the_next_one_goes_through(driven: Driven) -> None:
    await driven.serve("1")
    await driven.begin("2", canary(40, hold_seconds=3600, watch_seconds=0.2))
    driving = asyncio.create_task(driven.drive("2"))
    await driven.until(Phase.HOLDING)
    if isinstance(driven.backend, ReplicaShares):
        back = {"spec": {"selector": version_labels("delay", "1")}}
        await driven.client.patch(SERVICES, NAMESPACE, "delay", back)
    else:
        rules = [{"backendRefs": [{"name": "delay", "port": 8080}]}]
        await driven.client.patch(HTTPROUTES, NAMESPACE, "delay", {"spec": {"rules": rules}})
    state = await driving
    assert state.phase is Phase.STOPPED
    assert "somebody changed spec." in state.reason
    await driven.begin("3", SHORT)
    assert (await driven.drive("3")).phase is Phase.PROMOTED, driven.told
    assert await driven.endpoint() == ("3", "1", None)


@pytest.mark.sampled(2)
async def test_a_first_version_is_promoted_and_the_next_one_goes_back_to_it(driven: Driven) -> None:
    await driven.begin("1", SHORT)
    assert (await driven.drive("1")).phase is Phase.PROMOTED, driven.told
    assert await driven.endpoint() == ("1", None, None)
    await driven.begin("2", canary(40, hold_seconds=3600))
    driving = asyncio.create_task(driven.drive("2"))
    await driven.until(Phase.HOLDING)
    await driven.states.order("delay", NAMESPACE, Order.ABORT, by="somebody")
    assert (await driving).phase is Phase.UNDONE
    assert await driven.endpoint() == ("1", None, None)
