"""The driving process is killed before or after any call, and another one goes on.

It ends promoted or undone, and nothing between, whatever else happens meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from helpers.simulated_serving import Killed, Version, World
from nighttrain.providers.errors import ClusterUnreachableError, RolloutFailedError
from nighttrain.providers.serving.rollouts.state import Order, Phase, State

from .conftest import Rollouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.serving.spec import ServingSpec

SCHEDULES, SAMPLE = 300, 60
"""As many as are asked to be shown, with ``--thorough``; a tenth of a second each."""


@dataclass
class Meddling:
    """What people and the cluster do to a rollout at given moments, each once."""

    world: World
    rollouts: Rollouts
    orders: dict[float, Order]
    deleted_at: float | None

    async def sleep(self, seconds: float) -> None:
        await self.world.sleep(seconds)
        for at in [at for at in self.orders if at <= self.world.now]:
            order = self.orders.pop(at)
            with contextlib.suppress(RolloutFailedError):  # It has ended: there is nothing to order any more.
                await self.rollouts.store.order("delay", "default", order, by="ann")
        if self.deleted_at is not None and self.world.now >= self.deleted_at and self.world.stable == "1":
            self.deleted_at = None
            self.world.versions["2"].up_since = None


async def survive(rollouts: Rollouts, meddling: Meddling, kills: list[tuple[str, int]]) -> State:
    """Begin and drive by one process after the other, until one comes to the end."""
    world = rollouts.world
    for when, calls in [*kills, ("never", 0)]:
        world.kill_before = world.calls + calls if when == "before" else None
        world.kill_after = world.calls + calls if when == "after" else None
        try:
            engine = rollouts.engine()
            engine._sleep = meddling.sleep
            begun = await rollouts.begin()
            assert begun is not None
            return await engine.drive(
                "delay", "default", spec=rollouts.make_spec("2"), tell=rollouts.told.append
            )
        except Killed:
            world.killed += 1
            continue
    raise AssertionError("the last process was killed too")


def check(world: World, end: State) -> None:
    """Alias, traffic, history and what is up say the same."""
    assert end.phase in (Phase.PROMOTED, Phase.UNDONE), end.describe()
    assert not world.faults
    serves = "2" if end.phase is Phase.PROMOTED else "1"
    assert (world.stable, world.holders["champion"]) == (serves, serves)
    assert world.asked == (100 if end.phase is Phase.PROMOTED else 0)
    assert world.notes[-1].startswith("promoted" if end.phase is Phase.PROMOTED else "undone")
    assert len({note.rsplit(" (", 1)[1] for note in world.notes}) == len(world.notes), "noted twice"
    assert end.phase is Phase.PROMOTED or world.versions["2"].up_since is None


async def whole_run(
    make_spec: Callable[..., ServingSpec], version: Version, kills: list[tuple[str, int]]
) -> World:
    world = World()
    world.versions["2"] = version
    rollouts = Rollouts(world, make_spec)
    end = await survive(rollouts, Meddling(world, rollouts, {}, None), kills)
    check(world, end)
    return world


@pytest.mark.sampled(2)
@pytest.mark.parametrize("errors", [0.0, 1.0])
async def test_killed_at_every_call_until_the_first_share_is_held(
    serving_spec: Callable[..., ServingSpec], errors: float
) -> None:
    """Every boundary of the first and of the last sixty calls; those between are alike, and drawn below."""
    undisturbed = await whole_run(serving_spec, Version(errors=errors), [])
    last = undisturbed.calls
    for call in [*range(1, 61), *range(last - 60, last + 1)]:
        for when in ("before", "after"):
            await whole_run(serving_spec, Version(errors=errors), [(when, call)])


@pytest.mark.parametrize("seed", range(SCHEDULES))
async def test_a_schedule_of_kills_faults_and_people(
    serving_spec: Callable[..., ServingSpec], seed: int, request: pytest.FixtureRequest
) -> None:
    if seed >= SAMPLE and not request.config.getoption("--thorough"):
        pytest.skip("one of a sample: --thorough runs all")
    chance = random.Random(seed)
    world = World(seed=seed)
    world.versions["2"] = Version(errors=chance.choice([0.0, 0.0, 0.5]), starts_in=chance.uniform(0, 30))
    world.fails_at = frozenset(chance.randrange(1, 800) for _ in range(chance.randrange(6)))
    rollouts = Rollouts(world, serving_spec)
    orders = {
        world.now + chance.uniform(0, 300): chance.choice(list(Order)) for _ in range(chance.randrange(4))
    }
    if Order.PAUSE in orders.values():
        orders[world.now + 600] = Order.RESUME
    deleted_at = world.now + chance.uniform(0, 250) if chance.random() < 0.2 else None
    kills = [
        (chance.choice(["before", "after"]), chance.randrange(1, 300)) for _ in range(chance.randrange(1, 5))
    ]
    end = await survive_outages(rollouts, Meddling(world, rollouts, orders, deleted_at), kills)
    check(world, end)


async def survive_outages(rollouts: Rollouts, meddling: Meddling, kills: list[tuple[str, int]]) -> State:
    """As Airflow does: a try that could not reach the cluster at its start is tried again."""
    while True:
        try:
            return await survive(rollouts, meddling, kills)
        except ClusterUnreachableError:
            await meddling.sleep(5)


async def test_a_slow_process_that_comes_too_late_changes_nothing(
    serving_spec: Callable[..., ServingSpec],
) -> None:
    """It decided on 10 percent, and before its patch arrives another one has aborted."""
    world = World()
    rollouts = Rollouts(world, serving_spec)
    await rollouts.begin()
    slow = rollouts.engine()
    arrives, aborted = asyncio.Event(), asyncio.Event()
    really = slow._backend.set_traffic

    async def late(*args: Any, **given: Any) -> None:
        arrives.set()
        await aborted.wait()
        await really(*args, **given)

    slow._backend.set_traffic = late  # type: ignore[method-assign]
    driving = asyncio.ensure_future(
        slow.drive("delay", "default", spec=serving_spec("2"), tell=rollouts.told.append)
    )
    await arrives.wait()
    await rollouts.store.order("delay", "default", Order.ABORT, by="ann")
    end = await rollouts.drive()
    assert (end.phase, world.asked) == (Phase.UNDONE, 0)
    aborted.set()
    assert (await driving).phase is Phase.UNDONE
    check(world, end)
    assert [share for _, share in world.history if share] == []
