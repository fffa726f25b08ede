"""Good versions are undone no more often than was allowed, however often one looks: counted.

Time is simulated. ``./run bench -k rollout_analysis`` does the same with a thousand rollouts in each cell.
"""

from __future__ import annotations

import numpy as np
import pytest

from helpers.simulated_rollouts import (
    ANALYSIS,
    BARELY,
    GOLDEN,
    GOOD,
    LOOKS,
    NIGHT,
    SHARES,
    STRATEGY,
    Streams,
    Version,
    World,
    draw,
    most,
    nighttrain_rule,
)
from nighttrain.providers.serving.analysis.judging import add, judge_all, overall
from nighttrain.providers.serving.analysis.rates import compare, fails
from nighttrain.providers.serving.analysis.values import Counts, Sample, Tally, Verdict


@pytest.mark.sampled(2)
@pytest.mark.slow
@pytest.mark.parametrize("version", [GOOD, BARELY], ids=["no other", "barely tolerable"])
@pytest.mark.parametrize("per_second", [1, 10, 100])
def test_good_versions_are_undone_as_seldom_as_was_allowed(version: Version, per_second: int) -> None:
    rollouts, undone = 20, 0
    worlds = [World(per_second=per_second, errors=errors) for errors in (0.0, 0.001, 0.01)]
    worlds.append(World(per_second=per_second, errors=0.01, drift=NIGHT))
    for seed, world in enumerate(worlds):
        streams = draw(world, version, rollouts, seed)
        undone += sum(nighttrain_rule(streams, each).undone is not None for each in range(rollouts))
    assert undone <= most(rollouts * len(worlds), ANALYSIS.false_alarms)


def test_one_comparison_alone_with_a_rate_and_a_share_that_wander() -> None:
    """300 comparisons of 120 looks each, at a level of one in twenty, so that an error would show."""
    rng = np.random.default_rng(7)
    metric, times, looks, level = ANALYSIS.metrics[0], 300, 120, 0.05
    alarms = 0
    for _ in range(times):
        rate = np.clip(0.1 * np.exp(np.cumsum(rng.normal(0, 0.2, looks))), 0.001, 0.9)
        share = np.clip(0.3 + np.cumsum(rng.normal(0, 0.05, looks)), 0.02, 0.98)
        requests = rng.binomial(60, share)
        bad, other_bad = rng.binomial(requests, rate), rng.binomial(60 - requests, rate)
        alarms += _alarm(metric, zip(requests, bad, 60 - requests, other_bad, strict=True), level)
    assert alarms <= most(times, level)


def _alarm(metric: object, counts: object, level: float) -> bool:
    tallies: tuple[Tally, ...] = ()
    for requests, bad, others, other_bad in counts:  # type: ignore[attr-defined]
        sample = Sample(
            metric="errors",
            at=0,
            seconds=30,
            candidate=Counts(requests=int(requests), bad=int(bad)),
            stable=Counts(requests=int(others), bad=int(other_bad)),
        )
        tallies = add(tallies, sample, share=0.3)
        if fails(metric, compare(metric, tallies), level):  # type: ignore[arg-type]
            return True
    return False


@pytest.mark.parametrize("errors", [1.0, 3.0])
def test_the_simulation_decides_as_the_engine_does(errors: float) -> None:
    """The same look by look: the verdict of all metrics together, and what follows from it."""
    streams = draw(World(per_second=20, errors=0.01), Version(errors=errors), 3, seed=5)
    for rollout in range(3):
        assert nighttrain_rule(streams, rollout) == _engine(streams, rollout)


def _engine(streams: Streams, rollout: int) -> object:
    from helpers.simulated_rollouts import Ending

    tallies: dict[str, tuple[Tally, ...]] = {}
    percents = [*(step.percent for step in STRATEGY.steps), 100]  # type: ignore[union-attr]
    holds = [*(step.hold_seconds for step in STRATEGY.steps), STRATEGY.watch_seconds]  # type: ignore[union-attr]
    step, held, exposed = 0, 0, 0
    for look in range(LOOKS):
        at = (rollout, look, SHARES.index(percents[step]))
        exposed += int(streams.clients[at])
        requests, others = int(streams.candidate[at]), int(streams.stable[at])
        counted = {
            "errors": ((requests, streams.errors[at]), (others, streams.stable_errors[at])),
            "latency": ((requests, streams.slow[at]), (others, streams.stable_slow[at])),
            "disagreement": ((GOLDEN, streams.disagreed[rollout, look]), None),
        }
        for name, (one, other) in counted.items():
            sample = Sample(
                metric=name,
                at=look,
                seconds=30,
                candidate=Counts(requests=one[0], bad=int(one[1])),
                stable=other and Counts(requests=other[0], bad=int(other[1])),
            )
            tallies[name] = add(tallies.get(name, ()), sample, share=percents[step] / 100)
        verdict, held = overall(judge_all(ANALYSIS, tallies)), held + 30
        if verdict is Verdict.FAILED:
            return Ending(undone=look, exposed=exposed)
        if held >= holds[step] and verdict is Verdict.SUCCESSFUL:
            if step == len(STRATEGY.steps):
                rest = streams.clients[rollout, look + 1 :, SHARES.index(100)].sum()
                return Ending(promoted=look, exposed=exposed + int(rest))
            step, held = step + 1, 0
    return Ending(exposed=exposed)
