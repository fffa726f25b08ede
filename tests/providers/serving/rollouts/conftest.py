"""A rollout in a simulated world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from helpers.simulated_serving import (
    AskedRoute,
    ConfigMaps,
    MemoryRegistrar,
    SimulatedBackend,
    Traffic,
    World,
)
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.state import Names, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import Strategy, canary

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.spec import ServingSpec

ERRORS = Analysis(metrics=(Metric(name="errors", kind=Kind.ERRORS, source={"type": "traffic"}),))
CANARY = canary(10, 50, hold_seconds=60, analysis=ERRORS, watch_seconds=120)


def only_traffic(where: str, metric: Metric, golden: Golden | None) -> None:
    """Refuse every source but the simulated one."""
    if metric.source["type"] != "traffic":
        raise ConfigurationError(f"{where}.source.type", metric.source["type"], "known: traffic")


@dataclass
class Rollouts:
    """Rollouts of one endpoint, each process an engine of its own."""

    world: World
    make_spec: Callable[..., ServingSpec]
    told: list[str] = field(default_factory=list)

    @property
    def store(self) -> RolloutStore:
        return RolloutStore(ConfigMaps(self.world))  # type: ignore[arg-type]

    def engine(self, **given: Any) -> RolloutEngine:
        world = self.world
        return RolloutEngine(
            SimulatedBackend(world),
            self.store,
            MemoryRegistrar(world),
            sources={"traffic": Traffic(world)},
            check_metric=only_traffic,
            ask_route=AskedRoute(world),
            clock=lambda: world.now,
            sleep=world.sleep,
            **given,
        )

    async def begin(
        self, version: str = "2", strategy: Strategy = CANARY, *, rollout_id: str | None = None
    ) -> State | None:
        return await self.engine().begin(
            self.make_spec(version),
            strategy,
            rollout_id=rollout_id or f"run-{version}",
            actor=f"dag/deploy/run-{version}",
            names=Names(alias="champion"),
            tell=self.told.append,
        )

    async def run(self, version: str = "2", strategy: Strategy = CANARY) -> State:
        assert await self.begin(version, strategy)
        return await self.drive(version)

    async def drive(
        self, version: str = "2", *, until: Callable[[State], bool] | None = None, **given: Any
    ) -> State:
        return await self.engine(**given).drive(
            "delay", "default", spec=self.make_spec(version), until=until, tell=self.told.append
        )


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def rollouts(world: World, serving_spec: Callable[..., ServingSpec]) -> Rollouts:
    return Rollouts(world, serving_spec)
