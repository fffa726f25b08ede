"""Whole rollouts in a simulated world: what promotes, what undoes, what holds, and what people can do."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from helpers.simulated_serving import Traffic, Version, World
from nighttrain.providers.errors import (
    ClusterForbiddenError,
    ClusterRequestError,
    ConfigurationError,
    RolloutFailedError,
    RolloutUnderWayError,
)
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric, WhenInconclusive
from nighttrain.providers.serving.rollouts.state import Order, Phase, State
from nighttrain.providers.serving.strategy import Approval, Shadow, Strategy, Weight, blue_green, canary

from .conftest import CANARY, ERRORS

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.analysis.values import Sample

    from .conftest import Rollouts


def shares(world: World) -> list[int]:
    """The shares that were asked for, without repetitions."""
    found: list[int] = []
    for _, share in world.history:
        if not found or found[-1] != share:
            found.append(share)
    return found


async def test_a_good_version_goes_step_by_step(rollouts: Rollouts, world: World) -> None:
    end = await rollouts.run()
    assert end.phase is Phase.PROMOTED
    assert shares(world) == [0, 10, 50, 100]
    assert (world.stable, world.holders["champion"]) == ("2", "2")
    assert not world.faults
    assert [note.split(" (")[0] for note in world.notes] == [
        "rollout of version 2 on delay begins, beside version 1",
        "10 percent of the requests go to the candidate",
        "50 percent of the requests go to the candidate",
        "all requests go to the candidate",
        "promoted: version 2 serves",
    ]
    assert State.from_json(end.to_json()) == end


async def test_alias_and_traffic_go_together_and_come_back_together(rollouts: Rollouts, world: World) -> None:
    world.versions["2"] = Version(errors=0.0)
    assert await rollouts.begin()
    engine, spec = rollouts.engine(), rollouts.make_spec("2")

    async def fails_once_it_has_everything(seconds: float) -> None:
        await World.sleep(world, seconds)
        if world.asked == 100 and world.holders["champion"] == "2":
            world.versions["2"].errors = 0.5

    engine._sleep = fails_once_it_has_everything
    end = await engine.drive("delay", "default", spec=spec, tell=rollouts.told.append)
    assert end.phase is Phase.UNDONE
    assert shares(world) == [0, 10, 50, 100, 0]
    assert (world.stable, world.holders["champion"]) == ("1", "1")
    assert world.versions["2"].up_since is None


async def test_a_bad_version_is_undone_at_its_first_share(rollouts: Rollouts, world: World) -> None:
    world.versions["2"] = Version(errors=1.0)
    end = await rollouts.run()
    assert end.phase is Phase.UNDONE
    assert shares(world) == [0, 10, 0]
    assert world.holders["champion"] == "1"
    held = next(event.at for event in end.events if "10 percent" in event.text and "go to" in event.text)
    undone = next(event.at for event in end.events if event.text.startswith("undoing"))
    assert undone - held <= 2 * ERRORS.interval_seconds + 5
    assert world.exposed <= 0.15 * world.requests_a_second * (undone - held)


@pytest.mark.parametrize("alone", [False, True])
async def test_the_first_version_has_nobody_to_disagree_with(
    rollouts: Rollouts, world: World, alone: bool
) -> None:
    world.stable = None
    world.versions = {"2": Version()}
    disagreement = Metric(name="disagreement", kind=Kind.DISAGREEMENT, source={"type": "traffic"})
    metrics = (disagreement,) if alone else (*ERRORS.metrics, disagreement)
    strategy = replace(CANARY, analysis=replace(ERRORS, metrics=metrics))
    end = await rollouts.run(strategy=strategy)
    assert end.phase is Phase.PROMOTED
    assert [each.metric for each in end.judgements] == ([] if alone else ["errors"])


async def test_what_never_becomes_ready_gets_nothing(rollouts: Rollouts, world: World) -> None:
    world.versions["2"] = Version(starts_in=None)
    end = await rollouts.run()
    assert (end.phase, shares(world)) == (Phase.UNDONE, [0])
    assert "not ready within" in end.reason
    assert world.exposed == 0


async def test_a_metrics_outage_holds_and_goes_on(rollouts: Rollouts, world: World) -> None:
    assert await rollouts.begin()
    engine, spec = rollouts.engine(), rollouts.make_spec("2")
    down: list[float] = []

    async def outage_in_the_middle(seconds: float) -> None:
        await World.sleep(world, seconds)
        if world.asked == 10 and not down:
            down.append(world.now)
            world.sources_down = True
        if down and world.now > down[0] + 900:
            world.sources_down = False
        if world.sources_down:
            assert world.asked == 10

    engine._sleep = outage_in_the_middle
    end = await engine.drive("delay", "default", spec=spec, tell=rollouts.told.append)
    assert end.phase is Phase.PROMOTED
    assert world.now > down[0] + 900
    assert shares(world) == [0, 10, 50, 100]


@pytest.mark.parametrize(
    ("what", "phase"), [(WhenInconclusive.STALL, Phase.STALLED), (WhenInconclusive.ABORT, Phase.UNDONE)]
)
async def test_an_idle_endpoint_is_never_promoted(
    rollouts: Rollouts, world: World, what: WhenInconclusive, phase: Phase
) -> None:
    world.requests_a_second = 0
    analysis = replace(ERRORS, when_inconclusive=what, inconclusive_seconds=600)
    assert await rollouts.begin(strategy=canary(10, analysis=analysis))
    engine, spec = rollouts.engine(), rollouts.make_spec("2")

    async def for_an_hour(seconds: float) -> None:
        await World.sleep(world, seconds)
        if world.now > 1_003_600:
            raise TimeoutError

    engine._sleep = for_an_hour
    with pytest.raises(TimeoutError) if phase is Phase.STALLED else nullcontext():
        await engine.drive("delay", "default", spec=spec, tell=rollouts.told.append)
    state = await engine.status("delay", "default")
    assert state is not None
    assert state.phase is phase
    assert "inconclusive for 600 seconds" in state.reason
    assert world.asked == (10 if phase is Phase.STALLED else 0)
    assert world.holders["champion"] == "1"


async def stalled(rollouts: Rollouts, world: World, version: str = "2") -> None:
    world.requests_a_second = 0
    analysis = replace(ERRORS, inconclusive_seconds=60)
    assert await rollouts.begin(version, canary(10, analysis=analysis))
    await until(rollouts, world, Phase.STALLED, version)


async def until(rollouts: Rollouts, world: World, phase: Phase, version: str = "2") -> None:
    """Drive until the rollout is there, then leave it to others."""
    engine, spec = rollouts.engine(), rollouts.make_spec(version)

    class Left(Exception):
        pass

    async def leave(seconds: float) -> None:
        await World.sleep(world, seconds)
        state = await engine.status("delay", "default")
        if state and state.phase is phase and (phase is not Phase.HOLDING or state.applied == state.fence):
            raise Left

    engine._sleep = leave
    with pytest.raises(Left):
        await engine.drive("delay", "default", spec=spec, tell=rollouts.told.append)


async def test_a_newer_version_supersedes_a_stalled_one(rollouts: Rollouts, world: World) -> None:
    await stalled(rollouts, world)
    world.requests_a_second = 50
    end = await rollouts.run("3")
    assert end.phase is Phase.PROMOTED
    assert world.stable == "3"
    assert world.versions["2"].up_since is None
    assert any("abort by version 3: a newer version supersedes it" in note for note in world.notes)


async def test_one_rollout_of_an_endpoint_at_a_time(rollouts: Rollouts, world: World) -> None:
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    with pytest.raises(RolloutUnderWayError, match=r"2 is holding, 10 percent.*rollout abort"):
        await rollouts.begin("3")
    assert await rollouts.begin() is not None, "the same task finds its own"


async def test_an_alias_that_somebody_moves_ends_the_rollout(rollouts: Rollouts, world: World) -> None:
    world.holders["champion"] = "2"
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    world.holders["champion"] = "3"
    end = await rollouts.run("3")
    assert (end.phase, world.stable, world.holders["champion"]) == (Phase.PROMOTED, "3", "3")
    assert world.versions["2"].up_since is None


async def test_the_alias_given_back_starts_nothing_again(rollouts: Rollouts, world: World) -> None:
    """A deployment that a transition starts is told of the version that got the alias back: it serves."""
    world.holders["champion"] = "2"
    world.versions["2"] = Version(errors=1.0)
    assert (await rollouts.run()).phase is Phase.UNDONE
    assert world.holders["champion"] == "1"
    assert await rollouts.begin("1", rollout_id="started-by-the-transition") is None


async def test_people_pause_resume_promote_and_abort(rollouts: Rollouts, world: World) -> None:
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    engine = rollouts.engine()
    await rollouts.store.order("delay", "default", Order.PAUSE, by="ann", reason="lunch")
    paused = rollouts.engine()

    async def for_an_hour(seconds: float) -> None:
        await World.sleep(world, seconds)
        if world.now > 1_003_600:
            raise TimeoutError

    paused._sleep = for_an_hour
    with pytest.raises(TimeoutError):
        await paused.drive("delay", "default", tell=rollouts.told.append)
    state = await engine.status("delay", "default")
    assert state is not None
    assert state.paused
    assert world.asked == 10
    await rollouts.store.order("delay", "default", Order.PROMOTE, by="ann")
    await until(rollouts, world, Phase.SHIFTING)
    await until(rollouts, world, Phase.HOLDING)
    assert world.asked == 50
    await rollouts.store.order("delay", "default", Order.ABORT, by="bob", reason="changed my mind")
    end = await rollouts.drive()
    assert end.phase is Phase.UNDONE
    assert end.reason == "abort by bob: changed my mind"
    with pytest.raises(RolloutFailedError, match="nothing to abort"):
        await rollouts.store.order("delay", "default", Order.ABORT, by="bob")


async def test_a_process_whose_clock_is_hours_behind_measures_on(rollouts: Rollouts, world: World) -> None:
    assert await rollouts.begin()
    await rollouts.drive(until=lambda state: state.phase is Phase.HOLDING and state.looks > 1)
    world.versions["2"].errors = 1.0
    engine, spec, taken_over_at = rollouts.engine(), rollouts.make_spec("2"), world.now
    engine._clock = lambda: world.now - 7_200
    end = await engine.drive("delay", "default", spec=spec, tell=rollouts.told.append)
    assert end.phase is Phase.UNDONE
    assert world.now - taken_over_at <= 4 * ERRORS.interval_seconds


async def test_a_paused_rollout_still_undoes_itself(rollouts: Rollouts, world: World) -> None:
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    await rollouts.store.order("delay", "default", Order.PAUSE, by="ann")
    world.versions["2"].errors = 1.0
    assert (await rollouts.drive()).phase is Phase.UNDONE


async def test_a_person_is_asked(rollouts: Rollouts, world: World) -> None:
    strategy = Strategy(steps=(Weight(percent=10), Approval(reason="look at the errors"), Weight(percent=50)))
    assert await rollouts.begin(strategy=strategy)
    await until(rollouts, world, Phase.WAITING)
    assert world.asked == 10
    await rollouts.store.order("delay", "default", Order.PROMOTE, by="ann", reason="looks fine")
    assert (await rollouts.drive()).phase is Phase.PROMOTED
    assert any("look at the errors" in note for note in world.notes)


async def test_a_shadow_gets_copies_and_no_request(rollouts: Rollouts, world: World) -> None:
    strategy = Strategy(steps=(Shadow(percent=20), Weight(percent=10)), watch_seconds=10)
    assert await rollouts.begin(strategy=strategy)
    await until(rollouts, world, Phase.HOLDING)
    assert (world.asked, world.mirrored) == (0, 20)
    assert (await rollouts.drive()).phase is Phase.PROMOTED
    assert world.mirrored == 0


async def test_a_route_that_breaks_is_put_back_at_once(rollouts: Rollouts, world: World) -> None:
    world.broken_route = True
    end = await rollouts.run()
    assert (end.phase, world.asked) == (Phase.UNDONE, 0)
    assert "requests through it failed" in end.reason
    broken = next(at for at, share in world.history if share == 10)
    assert world.history[-1][0] - broken < 5


async def test_another_hand_that_puts_the_share_back_stops_the_rollout(
    rollouts: Rollouts, world: World
) -> None:
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    world.change_route(0, 0, world.fence)
    end = await rollouts.drive()
    assert end.phase is Phase.STOPPED
    assert "somebody changed the candidate's share from 10 to 0" in end.reason
    assert world.asked == 0


async def test_one_that_restores_the_whole_object_is_seen_too(rollouts: Rollouts, world: World) -> None:
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    world.change_route(0, 0, 0)
    end = await rollouts.drive()
    assert end.phase is Phase.STOPPED
    assert "kept in Git" in end.reason


async def test_a_deadline_ends_it(rollouts: Rollouts, world: World) -> None:
    world.requests_a_second = 0
    strategy = replace(CANARY, deadline_seconds=1800, analysis=replace(ERRORS, inconclusive_seconds=90))
    end = await rollouts.run(strategy=strategy)
    assert end.phase is Phase.UNDONE
    assert "deadline of 1800 seconds" in end.reason


async def test_the_first_version_needs_no_steps(rollouts: Rollouts, world: World) -> None:
    world.stable, world.versions, world.holders = None, {}, {}
    end = await rollouts.run("1")
    assert (end.phase, shares(world), world.holders["champion"]) == (Phase.PROMOTED, [0, 100], "1")


async def test_blue_green_is_watched(rollouts: Rollouts, world: World) -> None:
    world.versions["2"] = Version(errors=0.5)
    end = await rollouts.run(strategy=blue_green(ERRORS, watch_seconds=300))
    assert end.phase is Phase.UNDONE
    assert shares(world) == [0, 100, 0]


async def test_a_source_that_does_not_exist_is_refused(rollouts: Rollouts, world: World) -> None:
    metric = replace(ERRORS.metrics[0], source={"type": "promethoos"})
    with pytest.raises(ConfigurationError, match=r"source\.type.*promethoos.*known: traffic"):
        await rollouts.begin(strategy=canary(10, analysis=Analysis(metrics=(metric,))))
    assert not world.objects


@pytest.mark.parametrize("error", [ClusterForbiddenError("pods"), ValueError("a fault of its own")])
async def test_a_source_that_raises_is_blind_and_no_more(
    rollouts: Rollouts, world: World, error: Exception
) -> None:
    class Raises(Traffic):
        async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
            raise error

    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    engine = rollouts.engine()
    engine._sources = {"traffic": Raises(world)}
    held = await engine.drive(
        "delay", "default", until=lambda state: state.phase is Phase.STALLED, tell=rollouts.told.append
    )
    assert world.asked == 10
    assert str(error) in held.reason
    world.versions["2"].errors = 1.0
    assert (await rollouts.drive()).phase is Phase.UNDONE


async def test_a_finished_rollout_is_found_by_its_task_until_it_was_told(
    rollouts: Rollouts, world: World
) -> None:
    world.versions["2"] = Version(errors=1.0)
    assert (await rollouts.run()).phase is Phase.UNDONE
    again = await rollouts.begin()
    assert again is not None
    assert again.phase is Phase.UNDONE
    await rollouts.engine().take("delay", "default", "run-2")
    anew = await rollouts.begin()
    assert anew is not None
    assert anew.phase is Phase.STARTING


async def test_a_bad_version_is_undone_while_mlflow_is_away_and_the_alias_follows(
    rollouts: Rollouts, world: World
) -> None:
    world.holders["champion"] = "2"
    assert await rollouts.begin()
    await until(rollouts, world, Phase.HOLDING)
    world.registry_down, world.versions["2"].errors = True, 1.0
    gone = world.now
    engine = rollouts.engine()

    async def comes_back_in_an_hour(seconds: float) -> None:
        await World.sleep(world, seconds)
        if world.now > gone + 3600:
            world.registry_down = False

    engine._sleep = comes_back_in_an_hour
    end = await engine.drive("delay", "default", tell=rollouts.told.append)
    assert end.phase is Phase.UNDONE
    requests_left = next(at for at, share in world.history if at > gone and share == 0)
    assert requests_left < gone + 3 * ERRORS.interval_seconds
    assert world.holders["champion"] == "1"
    assert len({note.rsplit(" (", 1)[1] for note in world.notes}) == len(world.notes)


async def test_another_hand_that_is_always_faster_stops_the_rollout(rollouts: Rollouts, world: World) -> None:
    assert await rollouts.begin()
    engine = rollouts.engine()

    async def is_put_back_at_once(seconds: float) -> None:
        await World.sleep(world, seconds)
        if world.asked == 10:
            world.change_route(0, 0, world.fence)

    engine._sleep = is_put_back_at_once
    spec = rollouts.make_spec("2")
    end = await engine.drive("delay", "default", spec=spec, tell=rollouts.told.append)
    assert end.phase is Phase.STOPPED
    assert "as often as it is set" in end.reason


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_cluster_that_is_busy_for_long_is_waited_for(
    rollouts: Rollouts, world: World, status: int
) -> None:
    await rollouts.begin()
    world.failure = ClusterRequestError("try again later", status=status)
    world.cluster_down_until = world.now + 30  # half of what the candidate has for its start
    assert (await rollouts.drive()).phase is Phase.PROMOTED
    assert [line for line in rollouts.told if "waiting" in line] == ["delay: waiting: try again later"]


async def test_what_the_cluster_refuses_is_not_waited_for(rollouts: Rollouts, world: World) -> None:
    await rollouts.begin()
    world.failure = ClusterRequestError("not like this", status=400)
    world.cluster_down_until = world.now + 120
    with pytest.raises(ClusterRequestError):
        await rollouts.drive()
