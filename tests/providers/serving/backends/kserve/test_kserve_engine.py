"""Rollouts on KServe, driven by the engine: both ends, the way back, processes that die."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, cast

import pytest

from helpers.dying_writer import Dying, Killed, go_back
from helpers.played_kserve import NAMESPACE, PlayedKServe
from helpers.simulated_serving import MemoryRegistrar, World
from nighttrain.providers.errors import (
    ConfigurationError,
    NothingToRollBackToError,
    RolloutUnderWayError,
)
from nighttrain.providers.kubernetes.api.resources import (
    INFERENCE_SERVICES,
)
from nighttrain.providers.serving.backends.kserve.backend import KServe
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.state import Names, Order, Phase
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import canary

from .conftest import Make, emptied, hand_of, needs_definitions, served

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.rollouts.state import State

pytestmark = needs_definitions


class Driven:
    """One rollout of version 2, by as many processes as it takes; time passes as fast as it is waited for."""

    def __init__(self, kserve: PlayedKServe, mode: str, make: Make) -> None:
        self.kserve, self.mode, self.candidate = kserve, mode, make("2")
        self.world, self.store = World(), RolloutStore(kserve.client)

    async def sleep(self, seconds: float) -> None:
        self.world.now += max(seconds, 0.05)
        await self.kserve.reconcile()

    def engine(self, client: ClusterClient) -> RolloutEngine:
        backend = KServe(client, mode=self.mode, sleep=self.kserve.sleep)
        return RolloutEngine(
            backend,
            self.store,
            MemoryRegistrar(self.world),
            sources={},
            check_metric=_accept,
            clock=lambda: self.world.now,
            sleep=self.sleep,
        )

    async def run(self, client: ClusterClient, order: Order | None) -> Phase:
        """To the end; the order is given at half of the requests."""
        engine, strategy = self.engine(client), canary(10, 50, hold_seconds=20.0, watch_seconds=30.0)
        names = Names(alias="champion")
        await engine.begin(self.candidate, strategy, rollout_id="r", actor="a", names=names, tell=print)
        if order:
            held = await engine.drive("delay", NAMESPACE, spec=self.candidate, until=_at_half, tell=print)
            if not held.ended:
                await self.store.order("delay", NAMESPACE, order, by="me")
        return (await engine.drive("delay", NAMESPACE, spec=self.candidate, tell=print)).phase

    async def is_as_it_should_be(self, order: Order | None) -> None:
        """Alias and requests with one version, and nothing of the rollout left."""
        serves = "1" if order else "2"
        assert self.world.holders["champion"] == serves
        held = (await self.kserve.service())["spec"]
        assert held["predictor"]["labels"]["nighttrain.dev/version"] == serves
        assert "canary" not in held
        assert "canaryTrafficPercent" not in held["predictor"]


def _accept(field: str, metric: Any, golden: Any) -> None:
    """There is none."""


def _at_half(state: State) -> bool:
    return state.ended or (state.phase is Phase.HOLDING and state.step == 1)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("order", [None, Order.ABORT])
async def test_the_engine_drives_it_to_either_end(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str, order: Order | None
) -> None:
    await served(hand_of(kserve, mode), spec)
    driven = Driven(kserve, mode, spec)
    assert await driven.run(client, order) is (Phase.UNDONE if order else Phase.PROMOTED)
    await driven.is_as_it_should_be(order)


class Back(Driven):
    """Version 2 is promoted; then the way back, by as many processes as it takes."""

    def __init__(self, kserve: PlayedKServe, mode: str, make: Make) -> None:
        super().__init__(kserve, mode, make)
        self.candidate = make("2", startup_timeout_seconds=30.0)

    async def run(self, client: ClusterClient, order: Order | None) -> Phase:
        phase = await super().run(client, order)
        await self.engine(client).take("delay", NAMESPACE, "r")
        return phase

    async def promoted(self) -> None:
        self.world.holders["champion"] = "1"
        assert await self.run(self.kserve.client, None) is Phase.PROMOTED
        await self.is_as_it_should_be(None)

    async def back(self, client: ClusterClient, rollout_id: str = "back") -> State:
        return await go_back(self.engine(client), "delay", NAMESPACE, rollout_id, print)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
async def test_a_promoted_rollout_is_taken_back_by_a_rollout_and_once_more_forward(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str
) -> None:
    await served(hand_of(kserve, mode), spec, replicas=3, env_vars={"ONLY": "of the first"})
    first = (await kserve.service())["spec"]["predictor"]
    driven = Back(kserve, mode, spec)
    await driven.promoted()
    state = await driven.back(client)
    assert (state.phase, state.target.candidate, state.target.stable) == (Phase.PROMOTED, "1", "2")
    assert "goes back to version 1 from 2: wrong since noon" in state.events[0].text
    await driven.is_as_it_should_be(Order.ABORT)
    held = (await kserve.service())["spec"]["predictor"]
    assert held == first | ({"name": "v1"} if mode == "Standard" else {}), "in the form in which it served"
    again = await driven.back(client, "again")
    assert (again.phase, again.target.candidate) == (Phase.PROMOTED, "2")
    await driven.is_as_it_should_be(None)


@pytest.mark.parametrize("mode", ["Standard", "Knative"])
async def test_on_the_way_back_nobody_loses_the_promoted_version_before_the_old_one_is_ready(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str
) -> None:
    await served(hand_of(kserve, mode), spec)
    driven = Back(kserve, mode, spec)
    await driven.promoted()
    kserve.never_ready = {"1"}
    state = await driven.back(client)
    assert state.phase is Phase.UNDONE
    assert "not ready within" in state.reason
    assert "somebody" not in state.reason
    await driven.is_as_it_should_be(None)
    assert not any(event.text.startswith("all requests") for event in state.events)
    # It failed, and the way back is known still; and so it is after another rollout that was undone.
    kserve.never_ready = set()
    driven.candidate = spec("3")
    assert await driven.run(client, Order.ABORT) is Phase.UNDONE
    state = await driven.back(client, "later")
    assert (state.phase, state.target.candidate) == (Phase.PROMOTED, "1")
    await driven.is_as_it_should_be(Order.ABORT)


async def test_there_is_no_way_back_from_what_is_under_way_or_was_changed_by_hand(
    client: ClusterClient, kserve: PlayedKServe, spec: Make
) -> None:
    driven = Back(kserve, "Standard", spec)
    with pytest.raises(NothingToRollBackToError, match="there is no rollout of delay"):
        await driven.back(client)
    driven.candidate = spec("1")
    assert await driven.run(client, None) is Phase.PROMOTED
    with pytest.raises(NothingToRollBackToError, match="roll that version out"):
        await driven.back(client)
    driven.candidate = spec("2")
    engine = driven.engine(client)
    names, told = Names(), print
    await engine.begin(driven.candidate, canary(10), rollout_id="u", actor="a", names=names, tell=told)
    with pytest.raises(RolloutUnderWayError, match="nighttrain rollout abort delay"):
        await driven.back(client)
    await driven.store.order("delay", NAMESPACE, Order.ABORT, by="me")
    await engine.drive("delay", NAMESPACE, spec=driven.candidate, tell=print)
    assert await driven.run(client, None) is Phase.PROMOTED
    label = {"labels": {"nighttrain.dev/version": "9"}}
    await client.patch(INFERENCE_SERVICES, NAMESPACE, "delay", {"spec": {"predictor": label}})
    before = await kserve.service()
    with pytest.raises(ConfigurationError, match="it serves version 9"):
        await driven.back(client)
    assert await kserve.service() == before


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("order", [None, Order.ABORT])
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_any_write_another_process_brings_it_to_the_same_end(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str, order: Order | None, after: bool
) -> None:
    died = 0
    for dies_at in count(1):
        await served(hand_of(kserve, mode), spec)
        driven, dying = Driven(kserve, mode, spec), Dying(client, dies_at, after=after)
        try:
            ended = await driven.run(cast("ClusterClient", dying), order)
        except Killed:
            died += 1
            ended = await driven.run(client, order)
        assert ended is (Phase.UNDONE if order else Phase.PROMOTED), f"killed at write {dies_at}"
        await driven.is_as_it_should_be(order)
        await emptied(client)
        if died < dies_at:
            break
    assert died >= 8, "each step writes the stamp and the InferenceService"


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["Standard", "Knative"])
@pytest.mark.parametrize("after", [False, True])
async def test_killed_at_any_write_of_the_way_back_another_process_brings_it_to_its_end(
    client: ClusterClient, kserve: PlayedKServe, spec: Make, mode: str, after: bool
) -> None:
    for dies_at in count(1):
        await served(hand_of(kserve, mode), spec)
        driven, dying = Back(kserve, mode, spec), Dying(client, dies_at, after=after)
        await driven.promoted()
        died = True
        try:
            state = await driven.back(cast("ClusterClient", dying))
            died = False
        except Killed:
            state = await driven.back(client)
        assert (state.phase, state.target.candidate) == (Phase.PROMOTED, "1"), f"killed at write {dies_at}"
        await driven.is_as_it_should_be(Order.ABORT)
        await emptied(client)
        if not died:
            break
    assert dies_at > 6, "each step writes the stamp and the InferenceService"
