"""Verdicts on requests that go wrong, compared with the stable version's or with a limit alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nighttrain.providers.serving.analysis.metrics import Kind, Metric
from nighttrain.providers.serving.analysis.sequences import (
    Side,
    Stratum,
    excess_of,
    log_below,
    log_rate,
    rate_bounds,
    total,
    worse_since,
)
from nighttrain.providers.serving.analysis.tallies import ratios_of, stakes_of, stratum_of
from nighttrain.providers.serving.analysis.values import Counts, Tally, Verdict

# A version that is worse for certain is undone even where it is tolerable, but not for a twentieth of what
# is: with millions of requests everything is certain.
NEGLIGIBLE = 0.05

# The comparison over the same time finds most; a tenth of the false alarms is kept for the time after 100
# percent, when only an excess over the limit is a failure, which is soon found.
_ALONE = 0.1


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What the tallies of one metric say, sorted by what it can be compared with.

    :param strata: the requests to both versions, of each share that had both
    :param ratios: of each of them the evidence that the candidate is worse
    :param stakes: of all of them the evidence that it is tolerable
    :param alone: the candidate's requests of shares that sent nothing to the stable version
    :param newest: the requests of the share that is routed now
    :param has_stable: there is a version to compare with, even if it gets no requests
    """

    strata: tuple[Stratum, ...]
    ratios: tuple[tuple[float, ...], ...]
    stakes: tuple[float, ...]
    alone: Counts
    newest: Stratum
    has_stable: bool

    @property
    def candidate(self) -> Counts:
        """The candidate's requests that can be compared."""
        return total(stratum.candidate for stratum in self.strata)

    @property
    def stable(self) -> Counts:
        """The stable version's requests that they are compared with."""
        return total(stratum.stable for stratum in self.strata)


def compare(metric: Metric, tallies: Sequence[Tally]) -> Compared:
    """Sort the tallies of a metric that counts requests."""
    one_rate = metric.kind is Kind.DISAGREEMENT
    strata = [stratum_of(each) for each in tallies]
    if one_rate:
        strata = [Stratum(candidate=each.candidate, stable=Counts()) for each in strata]
    both = [tally for tally, stratum in zip(tallies, strata, strict=True) if stratum.compared]
    stakes = zip(*(stakes_of(tally) for tally in both), strict=True)
    return Compared(
        strata=tuple(stratum for stratum in strata if stratum.compared),
        ratios=tuple(ratios_of(tally) for tally in both),
        stakes=tuple(map(sum, stakes)),
        alone=total(stratum.candidate for stratum in strata if not stratum.compared),
        newest=strata[-1] if strata else Stratum(candidate=Counts(), stable=Counts()),
        has_stable=not one_rate and any(each.stable is not None for each in tallies),
    )


def decide(metric: Metric, found: Compared, *, false_alarms: float, let_through: float) -> Verdict:
    """The verdict. A version that is worse for certain has failed, also where it is tolerable."""
    if fails(metric, found, false_alarms) is not None:
        return Verdict.FAILED
    return Verdict.SUCCESSFUL if passes(metric, found, let_through) else Verdict.INCONCLUSIVE


def fails(metric: Metric, found: Compared, false_alarms: float) -> tuple[Stratum, ...] | None:
    """The requests that show the candidate to be worse, or ``None`` if they do not.

    :param false_alarms: the probability that this ever happens to a version that is no worse, over all looks
    """
    needed = metric.min_requests
    if found.strata and min(found.candidate.requests, found.stable.requests) >= needed:
        evidence, start = worse_since(found.ratios)
        strata = found.strata[start:]
        excess = excess_of(strata)
        certain = evidence >= -math.log(false_alarms * (1 - _ALONE))
        if certain and excess > 0 and excess >= NEGLIGIBLE * metric.limit:
            return strata
    if found.alone.requests >= needed:
        level = false_alarms * (_ALONE if found.has_stable else 1.0)
        if _is_beyond(found.alone, metric.limit, found.stable, Side.AT_MOST, level):
            return (Stratum(candidate=found.alone, stable=found.stable),)
    return None


def passes(metric: Metric, found: Compared, let_through: float) -> bool:
    """True if the candidate is shown to be tolerable, and the share that is routed now is not against it.

    :param let_through: the probability that this ever happens to a version beyond the limit
    """
    newest, limit = found.newest, metric.limit
    if too_few(metric, found) or _excess_now(found) > limit:
        return False
    if found.strata:
        evidence = log_below(found.stakes, found.candidate.requests, limit)
        if newest.compared or evidence >= -math.log(let_through):
            return evidence >= -math.log(let_through)
    return _is_beyond(found.alone, limit, found.stable, Side.AT_LEAST, let_through)


def too_few(metric: Metric, found: Compared) -> str | None:
    """Which requests of the share that is routed now are too few to call it successful, for people."""
    newest, needed = found.newest, metric.min_requests
    if newest.candidate.requests < needed:
        return f"{newest.candidate.requests:,} requests to the candidate at this share, {needed:,} are needed"
    if newest.compared and newest.stable.requests < needed:
        have = f"{newest.stable.requests:,} requests to the stable version at this share"
        return f"{have}, {needed:,} are needed"
    return None


def _excess_now(found: Compared) -> float:
    """Of the share that is routed now, above the stable version's rate: of the same time, or of before."""
    newest = found.newest
    if newest.compared:
        return excess_of([newest])
    before = found.stable.bad / found.stable.requests if found.strata else 0.0
    return newest.candidate.bad / newest.candidate.requests - before


def _is_beyond(alone: Counts, limit: float, before: Counts, side: Side, alpha: float) -> bool:
    """True if a rate is for certain on the other side of the limit above what the stable version had before.

    Half of the errors are allowed to each of the two rates; without a stable version there is but one.
    """
    if not before.requests:
        return log_rate(alone, limit, side) >= -math.log(alpha)
    lower, upper = rate_bounds(before, alpha / 2)
    most = min((upper if side is Side.AT_MOST else lower) + limit, 1.0)
    return log_rate(alone, most, side) >= -math.log(alpha / 2)
