"""Credentials that MLflow does not accept, or not any more: nothing bad stays, and somebody is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.simulated_serving import Version, World
from nighttrain.providers.errors import RolloutFailedError, TrackingUnauthorizedError
from nighttrain.providers.serving.rollouts.state import Phase

from .conftest import ERRORS
from .test_rollouts import shares, until

if TYPE_CHECKING:
    from collections.abc import Collection

    from .conftest import Rollouts

WRITES = ("move", "give_back", "note")
EVERYTHING = ("holders", *WRITES)


async def refused_at_last(rollouts: Rollouts, world: World) -> Phase:
    """Drive the rollout to its end, which tells the refusal; how it ended."""
    engine, spec = rollouts.engine(), rollouts.make_spec("2")
    with pytest.raises((RolloutFailedError, TrackingUnauthorizedError), match="403"):
        await engine.drive("delay", "default", spec=spec, tell=rollouts.told.append)
    state = await engine.status("delay", "default")
    assert state is not None
    return state.phase


async def test_who_may_not_write_the_history_makes_nothing(rollouts: Rollouts, world: World) -> None:
    assert await rollouts.begin()
    world.registry_refuses = frozenset(WRITES)
    assert await refused_at_last(rollouts, world) is Phase.UNDONE
    assert "2" not in world.versions
    assert shares(world) == [0]
    assert world.holders["champion"] == "1"


async def test_who_may_not_read_begins_nothing(rollouts: Rollouts, world: World) -> None:
    world.registry_refuses = frozenset(EVERYTHING)
    with pytest.raises(TrackingUnauthorizedError, match="403"):
        await rollouts.begin()
    assert not world.objects


@pytest.mark.parametrize("refused", [WRITES, EVERYTHING])
async def test_a_good_version_whose_alias_may_not_be_moved_is_undone(
    rollouts: Rollouts, world: World, refused: Collection[str]
) -> None:
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    world.registry_refuses = frozenset(refused)
    assert await refused_at_last(rollouts, world) is Phase.UNDONE
    assert shares(world) == [0, 10, 50, 100, 0]
    assert (world.stable, world.holders["champion"]) == ("1", "1")
    assert not world.faults


@pytest.mark.parametrize("refused", [WRITES, EVERYTHING])
async def test_a_bad_version_is_undone_where_mlflow_refuses(
    rollouts: Rollouts, world: World, refused: Collection[str]
) -> None:
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    world.registry_refuses, world.versions["2"].errors = frozenset(refused), 1.0
    since = world.now
    assert await refused_at_last(rollouts, world) is Phase.UNDONE
    assert shares(world) == [0, 10, 0]
    back = next(at for at, share in world.history if at > since and share == 0)
    assert back - since <= 3 * ERRORS.interval_seconds


async def test_a_refusal_is_told_once_while_it_lasts_and_what_was_not_written_follows(
    rollouts: Rollouts, world: World
) -> None:
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    world.registry_refuses = frozenset({"note"})
    engine = rollouts.engine()

    async def allowed_again_at_the_end(seconds: float) -> None:
        await World.sleep(world, seconds)
        if world.asked == 100:
            world.registry_refuses = frozenset()

    engine._sleep = allowed_again_at_the_end
    end = await engine.drive("delay", "default", spec=rollouts.make_spec("2"), tell=rollouts.told.append)
    assert end.phase is Phase.PROMOTED
    assert sum("the history is not written" in line for line in rollouts.told) == 1
    assert [note.split(" (")[0] for note in world.notes][1:3] == [
        "10 percent of the requests go to the candidate",
        "50 percent of the requests go to the candidate",
    ]


async def test_an_alias_that_may_not_be_given_back_is_told_with_the_traffic_back(
    rollouts: Rollouts, world: World
) -> None:
    world.holders["champion"] = "2"
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    world.registry_refuses, world.versions["2"] = frozenset(WRITES), Version(errors=1.0, up_since=0.0)
    assert await refused_at_last(rollouts, world) is Phase.DRAINING
    assert shares(world) == [0, 10, 0]
    world.registry_refuses = frozenset()
    assert (await rollouts.drive("2")).phase is Phase.UNDONE
    assert world.holders["champion"] == "1"
