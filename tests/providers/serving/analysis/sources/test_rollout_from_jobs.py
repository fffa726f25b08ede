"""A whole rollout that is measured, warmed up and asked from inside the cluster, by Jobs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from helpers.polling import until_async
from helpers.simulated_serving import MemoryRegistrar, World
from nighttrain.providers.kubernetes.api.resources import JOBS
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric
from nighttrain.providers.serving.analysis.sources.choice import Ways, check_source, make_sources
from nighttrain.providers.serving.analysis.sources.routes import RouteFromJobs, warm_up
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.state import Names, Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import Strategy, Weight

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.traffic import Addresses
    from nighttrain.providers.serving.spec import ServingSpec


@pytest.fixture
def cluster(image: str) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": image, "py": sys.executable}) as cluster:
        yield cluster


async def short(seconds: float) -> None:
    await asyncio.sleep(seconds / 10)


class Rollouts:
    """One endpoint's rollouts, whose engine reaches nothing but the API server."""

    def __init__(self, client: ClusterClient) -> None:
        ways = Ways(client, None, in_cluster=True, image="py")  # type: ignore[arg-type]

        async def warm(state: State, addresses: Addresses) -> bool | str:
            golden = state.strategy.golden
            assert golden is not None
            return await warm_up(ways.asker(), state.target.endpoint, addresses, golden, 3)

        self.told: list[str] = []
        self.engine = RolloutEngine(
            ReplicaShares(client, sleep=short),
            RolloutStore(client),
            MemoryRegistrar(World()),
            sources=make_sources(ways),
            check_metric=check_source,
            ask_route=RouteFromJobs(ways.jobs()),
            warm_up=warm,
            sleep=short,
        )

    async def run(self, spec: ServingSpec, strategy: Strategy) -> State:
        run = f"run-{spec.version}"
        await self.engine.begin(
            spec, strategy, rollout_id=run, actor="test", names=Names(), tell=self.told.append
        )
        return await self.engine.drive(spec.endpoint, "default", spec=spec, tell=self.told.append)


def strategy(expected: str) -> Strategy:
    probe = {"type": "probe", "requests_per_interval": 40}
    analysis = Analysis(
        metrics=(
            Metric(name="errors", kind=Kind.ERRORS, limit=0.2, source=probe, min_requests=20),
            Metric(name="wrong", kind=Kind.WRONG, limit=0.2, source=probe, min_requests=20),
            Metric(name="counted", kind=Kind.ERRORS, limit=0.2, min_requests=20),
        ),
        interval_seconds=0.5,
    )
    return Strategy(
        steps=(Weight(percent=50, hold_seconds=0.1),),
        analysis=analysis,
        golden=Golden(requests=(0.001, 0.002), expected=(expected, None)),
        watch_seconds=0.1,
        warm_up=3,
    )


@pytest.mark.thorough
async def test_good_versions_are_promoted_and_a_wrong_one_is_undone(
    store: Any, client: ClusterClient, serving_spec: Callable[..., ServingSpec]
) -> None:
    rollouts = Rollouts(client)
    first = serving_spec("1", artifact_digest=store.add("1"))
    end = await rollouts.run(first, strategy("version 1"))
    assert end.phase is Phase.PROMOTED, rollouts.told
    # Answers as the first one does, and so it is right.
    second = serving_spec("2", artifact_digest=store.add("2", "version 1"))
    end = await rollouts.run(second, strategy("version 1"))
    assert end.phase is Phase.PROMOTED, rollouts.told
    third = serving_spec("3", artifact_digest=store.add("3"))
    end = await rollouts.run(third, strategy("version 1"))
    assert end.phase is Phase.UNDONE, rollouts.told
    assert "wrong" in end.reason
    assert not any("waiting" in line for line in rollouts.told)

    async def no_job_is_left() -> bool:
        return not (await client.list(JOBS, "default"))["items"]

    await until_async(no_job_is_left)
