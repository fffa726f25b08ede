"""What a verdict on requests says to people, and its evidence as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nighttrain.providers.serving.analysis.metrics import Kind, Metric
from nighttrain.providers.serving.analysis.rates import Compared, fails, too_few
from nighttrain.providers.serving.analysis.sequences import (
    Stratum,
    excess_of,
    log_stakes,
    rate_bounds,
    total,
    upper_excess,
    worse_since,
)
from nighttrain.providers.serving.analysis.values import Counts, Judgement, Verdict

_WENT = {
    Kind.ERRORS: "failed",
    Kind.LATENCY: "were slow",
    Kind.WRONG: "were answered wrongly",
    Kind.DISAGREEMENT: "were answered differently",
}


def of_rates(
    metric: Metric, found: Compared, verdict: Verdict, *, false_alarms: float, let_through: float
) -> Judgement:
    """The judgement with its sentence and its evidence.

    :param false_alarms: see :func:`~nighttrain.providers.serving.analysis.judging.judge`
    """
    shown = _shown(metric, found, verdict, false_alarms)
    evidence = _evidence(metric, found, shown, let_through)
    return Judgement(
        metric=metric.name,
        verdict=verdict,
        sentence=(
            f"{metric.name}: {_counted(metric, shown)}{_says(metric, found, verdict, evidence, len(shown))}"
            f"{_since_everything(found, verdict)}"
        ),
        evidence=evidence,
    )


def percent(share: float) -> str:
    """A share as a percentage with three digits at most."""
    return f"{share * 100:.3g} %"


def _shown(metric: Metric, found: Compared, verdict: Verdict, false_alarms: float) -> tuple[Stratum, ...]:
    """The requests that the sentence is about."""
    if verdict is Verdict.FAILED:
        return fails(metric, found, false_alarms) or ()
    if found.strata:
        return found.strata
    return (Stratum(candidate=found.alone, stable=Counts()),)


def _evidence(
    metric: Metric, found: Compared, shown: Sequence[Stratum], let_through: float
) -> dict[str, Any]:
    candidate = total(stratum.candidate for stratum in shown)
    stable = total(stratum.stable for stratum in shown)
    evidence: dict[str, Any] = {
        "candidate_requests": candidate.requests,
        "candidate_bad": candidate.bad,
        "limit": metric.limit,
    }
    if not candidate.requests:
        return evidence
    if not stable.requests:
        lower, upper = rate_bounds(candidate, let_through)
        rate = candidate.bad / candidate.requests
        return {**evidence, "rate": rate, "lower": lower, "upper": upper}
    lower, upper = _bounds(shown, let_through)
    evidence |= {"stable_requests": stable.requests, "stable_bad": stable.bad}
    evidence |= {"excess": excess_of(shown), "lower": lower, "upper": upper}
    if shown[0] in found.strata:
        # As a power of ten, what is against "no worse": 2 is one in a hundred.
        evidence["log10_evidence"] = worse_since(found.ratios)[0] / math.log(10)
    return evidence


def _bounds(strata: Sequence[Stratum], alpha: float) -> tuple[float, float]:
    """Of the excess; each share counts as one interval, which changes a bound for people but little."""
    turned = [
        Stratum(candidate=each.stable, stable=each.candidate, paired=each.paired, both=each.both)
        for each in strata
    ]
    upper, lower = (
        upper_excess(
            [sum(each) for each in zip(*map(log_stakes, side), strict=True)],
            total(stratum.candidate for stratum in side).requests,
            alpha,
        )
        for side in (strata, turned)
    )
    return min(-lower, excess_of(strata)), upper


def _counted(metric: Metric, shown: Sequence[Stratum]) -> str:
    candidate = total(stratum.candidate for stratum in shown)
    stable = total(stratum.stable for stratum in shown)
    if not candidate.requests:
        return ""
    if metric.kind is Kind.DISAGREEMENT:
        return f"{_of(candidate)} requests to both versions {_WENT[metric.kind]}{_rate(candidate)}. "
    versus = f", and {_of(stable)} to the stable version{_rate(stable)}" if stable.requests else ""
    return f"{_of(candidate)} requests to the candidate {_WENT[metric.kind]}{_rate(candidate)}{versus}. "


def _of(counts: Counts) -> str:
    return f"{counts.bad:,} of {counts.requests:,}"


def _rate(counts: Counts) -> str:
    return f" ({percent(counts.bad / counts.requests)})"


def _says(metric: Metric, found: Compared, verdict: Verdict, evidence: dict[str, Any], shares: int) -> str:
    compared = "excess" in evidence
    limit = f"{metric.limit * 100:.3g}{'' if compared else ' %'} is tolerable"
    if verdict is Verdict.INCONCLUSIVE:
        few = too_few(metric, found)
        if few or "lower" not in evidence:
            return f"{few or 'No requests'}."
        if evidence["upper"] <= metric.limit:
            return f"{_between(evidence, shares)}, but not at the share that is routed now; {limit}."
        return f"{_between(evidence, shares)}; {limit}, so more requests have to tell."
    if verdict is Verdict.SUCCESSFUL:
        return f"{_most(evidence, shares)}; {limit}."
    if not compared:
        return f"That is more than chance makes; {limit}."
    return f"That is {_points(evidence['excess'])} more, and more than chance makes, however often one looks."


def _since_everything(found: Compared, verdict: Verdict) -> str:
    """What is not in the comparison: the time after 100 percent."""
    alone = found.alone
    if verdict is Verdict.FAILED or not found.strata or not alone.requests:
        return ""
    return f" Since it gets all requests, {_of(alone)}{_rate(alone)}."


def _most(evidence: dict[str, Any], shares: int) -> str:
    upper = evidence["upper"]
    if "excess" not in evidence:
        return f"At most {percent(upper)}"
    most = f"at most {_points(upper)} more" if upper >= 0 else f"at least {_points(-upper)} less"
    return f"Share by share {most}" if shares > 1 else most.capitalize()


def _between(evidence: dict[str, Any], shares: int) -> str:
    lower, upper = evidence["lower"], evidence["upper"]
    if "excess" not in evidence:
        return f"The rate is between {percent(lower)} and {percent(upper)}"
    low, high = (f"{_points(abs(each))} {'less' if each < 0 else 'more'}" for each in (lower, upper))
    return f"{'Share by share that' if shares > 1 else 'That'} is between {low} and {high}"


def _points(share: float) -> str:
    return f"{share * 100:.3g} percentage points"
