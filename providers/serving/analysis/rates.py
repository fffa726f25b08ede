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
    log_excess,
    log_rate,
    total,
    worse_since,
)
from nighttrain.providers.serving.analysis.tallies import evidence_of, stratum_of
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
    :param evidence: of each of them that the candidate is worse
    :param alone: the candidate's requests of shares that sent nothing to the stable version
    :param newest: the requests of the share that is routed now
    :param has_stable: there is a version to compare with, even if it gets no requests
    """

    strata: tuple[Stratum, ...]
    evidence: tuple[tuple[float, ...], ...]
    alone: Counts
    newest: Stratum
    has_stable: bool

    @property
    def candidate(self) -> Counts:
        """All of the candidate's requests."""
        return total(stratum.candidate for stratum in self.strata) + self.alone

    @property
    def stable(self) -> Counts:
        """The stable version's requests that the candidate's are compared with."""
        return total(stratum.stable for stratum in self.strata)


def compare(metric: Metric, tallies: Sequence[Tally]) -> Compared:
    """Sort the tallies of a metric that counts requests."""
    one_rate = metric.kind is Kind.DISAGREEMENT
    both = [each for each in tallies if not one_rate and _has_both(each)]
    alone = [each for each in tallies if one_rate or not _has_both(each)]
    newest = stratum_of(tallies[-1]) if tallies else Stratum(candidate=Counts(), stable=Counts())
    if one_rate:
        newest = Stratum(candidate=newest.candidate, stable=Counts())
    return Compared(
        strata=tuple(stratum_of(each) for each in both),
        evidence=tuple(evidence_of(each) for each in both),
        alone=total(each.candidate for each in alone),
        newest=newest,
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
    if found.strata and min(total_candidate(found.strata), found.stable.requests) >= needed:
        evidence, start = worse_since(found.evidence)
        strata = found.strata[start:]
        excess = excess_of(strata)
        certain = evidence >= -math.log(false_alarms * (1 - _ALONE))
        if certain and excess > 0 and excess >= NEGLIGIBLE * metric.limit:
            return strata
    if found.alone.requests >= needed:
        level = false_alarms * (_ALONE if found.has_stable else 1.0)
        if _alone_evidence(metric, found, Side.AT_MOST) >= -math.log(level):
            return (Stratum(candidate=found.alone, stable=found.stable),)
    return None


def passes(metric: Metric, found: Compared, let_through: float) -> bool:
    """True if the candidate is shown to be tolerable, and the share that is routed now is not against it.

    :param let_through: the probability that this ever happens to a version beyond the limit
    """
    newest, threshold = found.newest, -math.log(let_through)
    if newest.candidate.requests < metric.min_requests:
        return False
    if newest.stable.requests:
        enough = newest.stable.requests >= metric.min_requests
        return (
            enough
            and excess_of([newest]) <= metric.limit
            and log_excess(found.strata, metric.limit, Side.AT_LEAST) >= threshold
        )
    if found.strata:
        now = excess_of([Stratum(candidate=newest.candidate, stable=found.stable)])
        before = log_excess(found.strata, metric.limit, Side.AT_LEAST)
        if now > metric.limit or before >= threshold:
            return now <= metric.limit
    now_below = bool(found.strata) or newest.candidate.bad <= metric.limit * newest.candidate.requests
    return now_below and _alone_evidence(metric, found, Side.AT_LEAST) >= threshold


def too_few(metric: Metric, found: Compared) -> str | None:
    """Which requests are too few to say anything, for people."""
    newest, needed = found.newest, metric.min_requests
    if newest.candidate.requests < needed:
        return f"{newest.candidate.requests:,} requests to the candidate at this share, {needed:,} are needed"
    if newest.stable.requests and newest.stable.requests < needed:
        return (
            f"{newest.stable.requests:,} requests to the stable version at this share, {needed:,} are needed"
        )
    return None


def total_candidate(strata: Sequence[Stratum]) -> int:
    """The candidate's requests in all of them."""
    return total(stratum.candidate for stratum in strata).requests


def _alone_evidence(metric: Metric, found: Compared, side: Side) -> float:
    """Against the limit above the stable version's earlier rate, or above nothing where there is none."""
    if not found.stable.requests:
        return log_rate(found.alone, metric.limit, side)
    stratum = Stratum(candidate=found.alone, stable=found.stable)
    return log_excess([stratum], metric.limit, side)


def _has_both(tally: Tally) -> bool:
    return tally.candidate.requests > 0 and tally.stable is not None and tally.stable.requests > 0
