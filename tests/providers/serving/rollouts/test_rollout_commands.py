"""``nighttrain rollout``: the state is in an API server; the serving system is simulated, and obeys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.commands import DONE, FAILED, main
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.serving.rollouts.state import Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore

from .conftest import Rollouts

if TYPE_CHECKING:
    from helpers.simulated_serving import World
    from nighttrain.providers.local.cluster.server import EmbeddedCluster
    from nighttrain.providers.serving.spec import ServingSpec


@dataclass
class OnCluster(Rollouts):
    """Rollouts whose state is in the cluster that the command line reaches, too."""

    cluster: EmbeddedCluster | None = None
    client: ClusterClient | None = None

    @property
    def store(self) -> RolloutStore:
        assert self.client is not None
        return RolloutStore(self.client)

    async def command(self, *words: str) -> int:
        assert self.cluster is not None
        where = ["--kubeconfig", str(self.cluster.kubeconfig)]
        return await asyncio.to_thread(main, ["rollout", *words, *where])

    async def until(self, holds: Callable[[State], bool]) -> State:
        return await self.drive(until=holds)

    async def drive(self, version: str = "2", **until: Callable[[State], bool]) -> State:
        spec, engine = self.make_spec(version), self.engine()
        return await engine.drive("delay", "default", spec=spec, tell=self.told.append, **until)


@pytest.fixture
async def rollouts(
    idle_cluster: EmbeddedCluster, world: World, serving_spec: Callable[..., ServingSpec]
) -> AsyncIterator[OnCluster]:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(idle_cluster.kubeconfig))) as client:
        yield OnCluster(world, serving_spec, cluster=idle_cluster, client=client)


async def test_orders_are_left_in_the_cluster_and_obeyed(
    rollouts: OnCluster, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert await rollouts.command("status", "delay") == FAILED
    assert "there was no rollout in steps of delay" in capsys.readouterr().err
    assert await rollouts.begin()
    held = await rollouts.until(lambda state: state.phase is Phase.HOLDING and state.looks > 0)
    assert await rollouts.command("status", "delay") == DONE
    said = capsys.readouterr().out
    assert said.startswith("delay: version 2 is holding, 10 percent of the requests\n")
    assert "errors  inconclusive" in said
    assert await rollouts.command("status", "delay", "--json") == DONE
    assert State.from_json(capsys.readouterr().out) == held

    assert await rollouts.command("pause", "delay", "--reason", "lunch") == DONE
    assert "say it again with --drive" in capsys.readouterr().out.lower()
    await rollouts.until(lambda state: state.paused)
    assert any("pause by" in line and "lunch" in line for line in rollouts.told)
    assert await rollouts.command("resume", "delay") == DONE
    await rollouts.until(lambda state: not state.paused)
    assert await rollouts.command("promote", "delay") == DONE
    await rollouts.until(lambda state: state.phase is Phase.HOLDING and state.percent == 50)
    capsys.readouterr()

    assert await rollouts.command("abort", "delay", "--drive") == FAILED
    assert "--mlflow-uri" in capsys.readouterr().err
    assert await rollouts.command("abort", "delay", "--reason", "complaints") == DONE
    end = await rollouts.drive()
    assert (end.phase, world.asked, world.holders["champion"]) == (Phase.UNDONE, 0, "1")
    assert end.reason.endswith(": complaints")
    assert await rollouts.command("abort", "delay") == FAILED
    assert "there is nothing to abort" in capsys.readouterr().err
