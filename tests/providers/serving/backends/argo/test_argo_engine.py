"""Rollouts on Argo Rollouts, driven by the engine: both ends, the way back, processes that die."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, cast

import pytest

from helpers.dying_writer import Dying, Killed, go_back
from helpers.played_argo import NAMESPACE, PlayedArgo
from helpers.simulated_serving import MemoryRegistrar, World
from nighttrain.providers.serving.backends.argo.backend import ArgoRollouts
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.state import Names, Order, Phase
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import blue_green, canary

from .conftest import Make, emptied, hand_of, needs_definitions, served, settings

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.providers.serving.strategy import Strategy

pytestmark = needs_definitions


class Driven:
    """One rollout of version 2, by as many processes as it takes; time passes as fast as it is waited for."""

    def __init__(self, argo: PlayedArgo, mode: str, make: Make, strategy: Strategy) -> None:
        self.argo, self.mode, self.candidate, self.strategy = argo, mode, make("2"), strategy
        self.world, self.store, self.told = World(), RolloutStore(argo.client), list[str]()

    async def sleep(self, seconds: float) -> None:
        self.world.now += max(seconds, 0.05)
        await self.argo.reconcile()

    def engine(self, client: ClusterClient) -> RolloutEngine:
        return RolloutEngine(
            ArgoRollouts(client, **settings(self.mode)),
            self.store,
            MemoryRegistrar(self.world),
            sources={},
            check_metric=lambda field, metric, golden: None,
            clock=lambda: self.world.now,
            sleep=self.sleep,
        )

    async def run(self, client: ClusterClient, until: Callable[[State], bool] | None, order: Order) -> State:
        """To the end; an order may be given on the way."""
        engine, tell = self.engine(client), self.told.append
        names = Names(alias="champion")
        await engine.begin(self.candidate, self.strategy, rollout_id="r", actor="a", names=names, tell=tell)
        if until:
            held = await engine.drive("delay", NAMESPACE, spec=self.candidate, until=until, tell=tell)
            if not held.ended:
                await self.store.order("delay", NAMESPACE, order, by="me")
        return await engine.drive("delay", NAMESPACE, spec=self.candidate, tell=tell)

    async def is_as_it_should_be(self, serves: str) -> None:
        """Alias and requests with one version, and nothing of the rollout left."""
        assert self.world.holders["champion"] == serves
        for _ in range(3):
            await self.argo.reconcile()
        assert await self.argo.sizes() == {serves: 4}
        rollout = await self.argo.rollout()
        assert rollout["status"]["phase"] == "Healthy"
        assert rollout["spec"]["template"]["metadata"]["labels"]["nighttrain.dev/version"] == serves


SHORT = canary(10, 50, hold_seconds=2.0, watch_seconds=2.0)
STEPPED = canary(10, 50, hold_seconds=20.0, watch_seconds=30.0)
ENDS = {
    "promoted": (None, "2"),
    "aborted at a half": (
        lambda state: state.ended or (state.phase is Phase.HOLDING and state.step == 1),
        "1",
    ),
    "aborted with everything": (lambda state: state.ended or state.phase is Phase.WATCHING, "1"),
}


@pytest.mark.parametrize("mode", ["replicas", "route"])
@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("strategy", [STEPPED, blue_green(watch_seconds=30.0)], ids=["stepped", "blue-green"])
async def test_the_engine_drives_it_to_either_end(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str, end: str, strategy: Strategy
) -> None:
    until, serves = ENDS[end]
    await served(hand_of(argo, mode), argo, serving_spec, mode)
    driven = Driven(argo, mode, serving_spec, strategy)
    if end == "aborted at a half" and not strategy.steps:
        pytest.skip("there is no half of it")
    state = await driven.run(client, until, Order.ABORT)
    assert state.phase is (Phase.PROMOTED if serves == "2" else Phase.UNDONE), driven.told
    await driven.is_as_it_should_be(serves)


async def test_a_version_that_argo_gives_up_is_undone_with_its_alias(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make
) -> None:
    await served(hand_of(argo), argo, serving_spec, "replicas")
    driven = Driven(argo, "replicas", serving_spec, STEPPED)

    def held(state: State) -> bool:
        return state.ended or (state.phase is Phase.HOLDING and state.step == 0)

    engine = driven.engine(client)
    await engine.begin(
        driven.candidate, STEPPED, rollout_id="r", actor="a", names=Names(alias="champion"), tell=print
    )
    await engine.drive("delay", NAMESPACE, spec=driven.candidate, until=held, tell=print)
    await argo.abort()
    state = await engine.drive("delay", NAMESPACE, spec=driven.candidate, tell=print)
    assert state.phase is Phase.UNDONE
    assert "Argo Rollouts has aborted it" in state.reason
    await driven.is_as_it_should_be("1")


class Back(Driven):
    """Version 2 is promoted; then the way back, by as many processes as it takes."""

    async def promoted(self) -> None:
        self.world.holders["champion"] = "1"
        state = await self.run(self.argo.client, None, Order.ABORT)
        assert state.phase is Phase.PROMOTED, self.told
        await self.is_as_it_should_be("2")

    async def back(self, client: ClusterClient, rollout_id: str = "back") -> State:
        return await go_back(self.engine(client), "delay", NAMESPACE, rollout_id, self.told.append)


@pytest.mark.parametrize("mode", ["replicas", "route"])
async def test_a_promoted_rollout_is_taken_back_by_a_rollout_and_once_more_forward(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str
) -> None:
    await served(hand_of(argo, mode), argo, serving_spec, mode)
    first = (await argo.rollout())["spec"]["template"]
    driven = Back(argo, mode, serving_spec, SHORT)
    driven.candidate = serving_spec("2", env_vars={"ONLY": "here"})
    await driven.promoted()
    state = await driven.back(client)
    assert (state.phase, state.target.candidate, state.target.stable) == (Phase.PROMOTED, "1", "2")
    await driven.is_as_it_should_be("1")
    assert (await argo.rollout())["spec"]["template"] == first, "in the form in which it served"
    again = await driven.back(client, "again")
    assert (again.phase, again.target.candidate) == (Phase.PROMOTED, "2")
    await driven.is_as_it_should_be("2")


@pytest.mark.parametrize("mode", ["replicas", "route"])
async def test_what_does_not_come_up_on_the_way_back_leaves_all_as_it_was(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str
) -> None:
    await served(hand_of(argo, mode), argo, serving_spec, mode)
    driven = Back(argo, mode, serving_spec, SHORT)
    driven.candidate = serving_spec("2", startup_timeout_seconds=20.0)
    await driven.promoted()
    argo.never_ready.add("1")
    state = await driven.back(client)
    assert state.phase is Phase.UNDONE
    await driven.is_as_it_should_be("2")


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["replicas", "route"])
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_any_write_of_the_way_back_another_process_brings_it_to_its_end(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str, after: bool
) -> None:
    # Before each second write, and after it: that is every boundary once.
    for dies_at in count(1, 2):
        await served(hand_of(argo, mode), argo, serving_spec, mode)
        driven, dying = Back(argo, mode, serving_spec, SHORT), Dying(client, dies_at, after=after)
        await driven.promoted()
        died = True
        try:
            state = await driven.back(cast("ClusterClient", dying))
            died = False
        except Killed:
            state = await driven.back(client)
        assert (state.phase, state.target.candidate) == (Phase.PROMOTED, "1"), f"killed at {dies_at}"
        await driven.is_as_it_should_be("1")
        await emptied(client)
        await argo.reconcile()
        if not died:
            break
    assert dies_at > 5, "each step stamps the Rollout, and changes it"


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["replicas", "route"])
@pytest.mark.parametrize("end", list(ENDS))
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_any_write_another_process_brings_it_to_the_same_end(
    client: ClusterClient, argo: PlayedArgo, serving_spec: Make, mode: str, end: str, after: bool
) -> None:
    until, serves = ENDS[end]
    died = 0
    # Before each second write, and after it: that is every boundary once.
    for dies_at in count(1, 2):
        await served(hand_of(argo, mode), argo, serving_spec, mode)
        driven, dying = Driven(argo, mode, serving_spec, SHORT), Dying(client, dies_at, after=after)
        try:
            state = await driven.run(cast("ClusterClient", dying), until, Order.ABORT)
        except Killed:
            died += 1
            state = await driven.run(client, until, Order.ABORT)
        assert state.phase is (Phase.PROMOTED if serves == "2" else Phase.UNDONE), f"killed at {dies_at}"
        await driven.is_as_it_should_be(serves)
        await emptied(client)
        await argo.reconcile()
        if died * 2 < dies_at:
            break
    assert died >= 5, "each step stamps the Rollout, and changes it"
