"""An endpoint behind a route, its rollouts, and what its clients see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.fake_serving import FakeStore, fake_spec
from helpers.simulated_serving import MemoryRegistrar, World
from nighttrain.providers.serving.analysis.sources.choice import Ways, check_source, make_sources
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.backends.plain.by_route import GatewayRoutes
from nighttrain.providers.serving.backends.plain.routes import RouteSettings
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.http_route import ask_route
from nighttrain.providers.serving.rollouts.state import Names, Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import Strategy, blue_green

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import TrafficBackend
    from nighttrain.providers.serving.spec import ServingSpec

NAMESPACE = "default"
GOOD = '{"predictions": [1.0]}'


class Clients:
    """An endpoint behind a route, its rollouts, and what its clients see."""

    def __init__(
        self, client: ClusterClient, store: FakeStore, *, gateway: bool = True, endpoint: str = "delay"
    ) -> None:
        self.client, self.store, self.gateway, self.endpoint = client, store, gateway, endpoint
        self.host = f"{endpoint}.test"
        self.world = World()
        self.told: list[str] = []

    def engine(self) -> RolloutEngine:
        settings = RouteSettings(gateway="nighttrain", hostnames=(self.host,))
        routes = GatewayRoutes(self.client, settings)
        backend: TrafficBackend = routes if self.gateway else ReplicaShares(self.client)
        return RolloutEngine(
            backend,
            RolloutStore(self.client),
            MemoryRegistrar(self.world),
            sources=make_sources(Ways(client=self.client, mlflow=None)),  # type: ignore[arg-type]
            check_metric=check_source,
            ask_route=ask_route,
        )

    async def run(self, version: str, text: str, strategy: Strategy, *, replicas: int = 2) -> State:
        digest = self.store.add(version, text)
        spec = fake_spec(
            self.store,
            version,
            endpoint=self.endpoint,
            artifact_digest=digest,
            replicas=replicas,
            startup_timeout_seconds=20,
            drain_seconds=1.5,
            # What such a server needs, and some twenty requests of one that leaks.
            container_resources={"limits": {"memory": "256Mi"}},
        )
        engine, told = self.engine(), self.told.append
        begun = await engine.begin(
            spec, strategy, rollout_id=f"run-{version}", actor="t", names=Names(alias="champion"), tell=told
        )
        assert begun is not None
        return await engine.drive(self.endpoint, NAMESPACE, spec=spec, tell=told)

    async def url(self) -> str:
        """Where the endpoint answers; with the first test it gets its first version."""
        target = await self.engine().target(self._first())
        if target.stable is None:
            first = await self.run("1", GOOD, blue_green(watch_seconds=0))
            assert first.phase is Phase.PROMOTED, self.told
            target = first.target
        return (await self.engine().addresses(target)).route.url

    async def service_url(self) -> str:
        """The endpoint's Service, beside the route."""
        plain = ReplicaShares(self.client)
        return (await plain.addresses(await plain.begin(self._first()))).route.url

    def _first(self) -> ServingSpec:
        return fake_spec(self.store, "1", endpoint=self.endpoint, artifact_digest="0" * 64)
