"""Rollouts in simulated time: streams of requests, and three rules that watch the same ones.

Looks are 30 seconds apart. For each rollout and each share everything is drawn beforehand: how many requests
come, whose they are, how many go wrong. So a rule that shares as much at the same time as another sees
exactly the same requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from nighttrain.providers.serving.analysis import rates
from nighttrain.providers.serving.analysis.judging import add, false_alarms_each
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric
from nighttrain.providers.serving.analysis.values import Counts, Sample, Tally
from nighttrain.providers.serving.strategy import Strategy, Weight, canary

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOOK_SECONDS = 30
LOOKS = 120
"""An hour, the deadline."""

SHARES = (10, 20, 25, 30, 40, 50, 100)
_PLACE = {share: place for place, share in enumerate(SHARES)}

# Latencies are lognormal; with 0.5 the 95th percentile is 2.3 times the median, and the 99th 3.2 times.
_SPREAD = 0.5
_BEFORE = 1_000
"""Requests of the stable version before the rollout, from which its 95th percentile is estimated."""

GOLDEN = 30
"""Golden requests that each version is sent at each look, one a second, whatever the traffic is.

The two answers to the same one are compared.
"""

ANALYSIS = Analysis(
    metrics=(
        Metric(name="errors", kind=Kind.ERRORS),
        Metric(name="latency", kind=Kind.LATENCY),
        Metric(name="disagreement", kind=Kind.DISAGREEMENT, limit=0.02),
    ),
    interval_seconds=LOOK_SECONDS,
)
STRATEGY = canary(10, 25, 50, hold_seconds=900, analysis=ANALYSIS, watch_seconds=600)


NIGHT = tuple(1.0 + 9.0 * (40 <= look < 70) for look in range(LOOKS))
"""For a quarter of an hour everything fails ten times as often, whichever version answers."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Where rollouts happen.

    :param per_second: requests, in the mean; they come independently of one another
    :param errors: the stable version's rate
    :param drift: at each look, by how much the rates of both versions are multiplied; empty for 1
    :param golden_counted: golden requests are counted with clients', as a server's own counters do
    """

    per_second: float
    errors: float
    drift: tuple[float, ...] = ()
    golden_counted: bool = True


@dataclass(frozen=True, kw_only=True)
class Version:
    """A candidate.

    :param errors: its rate of errors, as a multiple of the stable version's
    :param slower: its latencies, as a multiple
    :param disagrees: the share of golden requests that it answers differently
    """

    errors: float = 1.0
    slower: float = 1.0
    disagrees: float = 0.005


GOOD = Version()
BARELY = Version(slower=1.2, disagrees=0.02)
"""As slow, and of another opinion as often, as is just tolerable."""
MORE_ERRORS = Version(errors=2.0)
SLOW = Version(slower=1.5)
DISAGREES = Version(disagrees=0.05)


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Counts by rollout, look and share (answers that differ: by rollout and look).

    :param clients: those of the candidate's requests that clients sent
    """

    clients: NDArray[np.int64]
    candidate: NDArray[np.int64]
    stable: NDArray[np.int64]
    errors: NDArray[np.int64]
    stable_errors: NDArray[np.int64]
    slow: NDArray[np.int64]
    stable_slow: NDArray[np.int64]
    disagreed: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one rollout ended.

    :param undone: the look at which the version was undone
    :param promoted: the look at which everything went to it for good
    :param exposed: clients' requests that the candidate got within the hour
    """

    undone: int | None = None
    promoted: int | None = None
    exposed: int = 0


def draw(world: World, version: Version, rollouts: int, seed: int) -> Streams:
    """The streams of so many rollouts."""
    rng = np.random.default_rng(seed)
    size = (rollouts, LOOKS, len(SHARES))
    requests = rng.poisson(world.per_second * LOOK_SECONDS, size[:2])[:, :, None]
    candidate = rng.binomial(np.broadcast_to(requests, size), np.array(SHARES) / 100)
    clients = candidate
    golden = GOLDEN if world.golden_counted else 0
    candidate, stable = clients + golden, requests - clients + golden
    drift = np.array(world.drift or (1.0,) * LOOKS)[None, :, None]
    errors = np.minimum(world.errors * drift, 1.0)
    slow, stable_slow = _slow_shares(version, rng.beta(_BEFORE * 0.95, _BEFORE * 0.05, rollouts))
    return Streams(
        clients=clients,
        candidate=candidate,
        stable=stable,
        errors=rng.binomial(candidate, np.minimum(errors * version.errors, 1.0)),
        stable_errors=rng.binomial(stable, errors),
        slow=rng.binomial(candidate, slow[:, None, None]),
        stable_slow=rng.binomial(stable, stable_slow[:, None, None]),
        disagreed=rng.binomial(GOLDEN, version.disagrees, size[:2]),
    )


def nighttrain_rule(
    streams: Streams, rollout: int, strategy: Strategy = STRATEGY, analysis: Analysis = ANALYSIS
) -> Ending:
    """Undone by a metric that failed; the next share when all are successful and the hold is over."""
    weights = [step for step in strategy.steps if isinstance(step, Weight)]
    watched = _Watched(analysis)
    step, since, exposed = 0, 0, 0
    for look in range(LOOKS):
        share = weights[step].percent if step < len(weights) else 100
        hold = weights[step].hold_seconds if step < len(weights) else strategy.watch_seconds
        exposed += int(streams.clients[rollout, look, _PLACE[share]])
        watched.look(streams, rollout, look, share)
        if watched.failed():
            return Ending(undone=look, exposed=exposed)
        if (look + 1 - since) * LOOK_SECONDS >= hold and watched.successful():
            if share == 100:
                rest = int(streams.clients[rollout, look + 1 :, _PLACE[100]].sum())
                return Ending(promoted=look, exposed=exposed + rest)
            step, since = step + 1, look + 1
    return Ending(exposed=exposed)


@dataclass
class _Watched:
    """What the engine does at each look, without a cluster."""

    analysis: Analysis
    tallies: dict[str, tuple[Tally, ...]] = field(default_factory=dict)

    def look(self, streams: Streams, rollout: int, look: int, share: int) -> None:
        at = (rollout, look, _PLACE[share])
        requests, others = int(streams.candidate[at]), int(streams.stable[at])
        pairs = {
            "errors": (_counts(requests, streams.errors[at]), _counts(others, streams.stable_errors[at])),
            "latency": (_counts(requests, streams.slow[at]), _counts(others, streams.stable_slow[at])),
            "disagreement": (_counts(GOLDEN, streams.disagreed[rollout, look]), None),
        }
        for name, (candidate, stable) in pairs.items():
            sample = Sample(
                metric=name,
                at=(look + 1) * LOOK_SECONDS,
                seconds=LOOK_SECONDS,
                candidate=candidate,
                stable=stable,
            )
            self.tallies[name] = add(self.tallies.get(name, ()), sample, share=share / 100)

    def failed(self) -> bool:
        each = false_alarms_each(self.analysis)
        return any(rates.fails(metric, found, each) for metric, found in self.compared())

    def successful(self) -> bool:
        level = self.analysis.let_through
        return all(rates.passes(metric, found, level) for metric, found in self.compared())

    def compared(self) -> list[tuple[Metric, rates.Compared]]:
        metrics = self.analysis.metrics
        return [(metric, rates.compare(metric, self.tallies[metric.name])) for metric in metrics]


def known_ratio(streams: Streams, rollout: int, ratio: float, false_alarms: float) -> bool:
    """Whether somebody who knew that errors are either the same or ``ratio`` times as many would find out.

    Wald's sequential test, on the shares of :data:`STRATEGY` without a delay: what is possible at best.
    """
    evidence = 0.0
    for look in range(LOOKS):
        at = (rollout, look, _PLACE[(10, 25, 50)[min(look // 30, 2)]])
        share = float(streams.candidate[at] / (streams.candidate[at] + streams.stable[at]))
        bad, other_bad = int(streams.errors[at]), int(streams.stable_errors[at])
        evidence += bad * math.log(ratio) - (bad + other_bad) * math.log(share * ratio + 1 - share)
        if evidence >= -math.log(false_alarms):
            return True
    return False


def most(times: int, rate: float) -> int:
    """So many of ``times`` that more has a probability below one in a hundred thousand."""
    tail, at = 1.0, -1
    while tail > 1e-5:
        at += 1
        tail -= math.comb(times, at) * rate**at * (1 - rate) ** (times - at)
    return at


def argo_rule(streams: Streams, rollout: int, world: World) -> Ending:
    """Argo Rollouts: a threshold every five minutes in the background, ``failureLimit: 3`` for each metric.

    The same shares and holds as ours. The fourth failed measurement of a metric aborts. An interval without
    a request gives NaN, which is a failure where only a success condition is written.
    """
    failures = [0, 0, 0]
    exposed = 0
    for begin in range(0, 90, 10):
        share = (10, 25, 50)[begin // 30]
        exposed += int(streams.clients[rollout, begin : begin + 10, _PLACE[share]].sum())
        beyond = _beyond(streams, rollout, slice(begin, begin + 10), share, world)
        failures = [count + failed for count, failed in zip(failures, beyond, strict=True)]
        if max(failures) > 3:
            return Ending(undone=begin + 9, exposed=exposed)
    return _promoted(streams, rollout, 90, exposed)


def flagger_rule(streams: Streams, rollout: int, world: World) -> Ending:
    """Flagger: thresholds every minute, ``stepWeight: 10``, ``maxWeight: 50``, ``threshold: 5``.

    A check that passes moves on by a step; the fifth that does not undoes the rollout. A minute without a
    request is a failed check.
    """
    failures, share, exposed = 0, 10, 0
    for begin in range(0, LOOKS, 2):
        exposed += int(streams.clients[rollout, begin : begin + 2, _PLACE[share]].sum())
        if any(_beyond(streams, rollout, slice(begin, begin + 2), share, world)):
            failures += 1
            if failures >= 5:
                return Ending(undone=begin + 1, exposed=exposed)
        elif share == 50:
            return _promoted(streams, rollout, begin + 2, exposed)
        else:
            share += 10
    return Ending(exposed=exposed)


def _beyond(
    streams: Streams, rollout: int, looks: slice, share: int, world: World
) -> tuple[bool, bool, bool]:
    """Whether errors, 95th percentile and disagreement are beyond a threshold that knows the base rate."""
    at = (rollout, looks, _PLACE[share])
    requests = int(streams.candidate[at].sum())
    if not requests:
        return True, True, True
    golden = GOLDEN * (looks.stop - looks.start)
    return (
        int(streams.errors[at].sum()) > (world.errors + 0.01) * requests,
        int(streams.slow[at].sum()) > 0.05 * requests,
        int(streams.disagreed[rollout, looks].sum()) > 0.02 * golden,
    )


def _promoted(streams: Streams, rollout: int, look: int, exposed: int) -> Ending:
    return Ending(promoted=look, exposed=exposed + int(streams.clients[rollout, look:, _PLACE[100]].sum()))


def _counts(requests: int, bad: int) -> Counts:
    return Counts(requests=requests, bad=int(bad))


def _slow_shares(
    version: Version, levels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each rollout the candidate's and the stable version's share of slow requests.

    Slow is above the stable version's 95th percentile as it was estimated beforehand, and for the candidate
    above 1.2 times that.
    """
    normal = NormalDist()
    shift = float(np.log(1.2 / version.slower)) / _SPREAD
    slow = [1 - normal.cdf(normal.inv_cdf(float(level)) + shift) for level in levels]
    return np.array(slow), 1 - levels
