"""What a verdict on requests says to people, and its evidence as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nighttrain.providers.serving.analysis.metrics import Kind, Metric
from nighttrain.providers.serving.analysis.rates import Compared, fails, too_few
from nighttrain.providers.serving.analysis.sequences import (
    Stratum,
    excess_bounds,
    excess_of,
    rate_bounds,
    total,
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
        sentence=f"{metric.name}: {_counted(metric, shown)}{_says(metric, found, verdict, evidence)}",
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
    lower, upper = excess_bounds(shown, let_through)
    evidence |= {"stable_requests": stable.requests, "stable_bad": stable.bad}
    evidence |= {"excess": excess_of(shown), "lower": lower, "upper": upper}
    if found.evidence:
        # As a power of ten: what is against "no worse", from one in a hundred on is 2.
        evidence["log10_evidence"] = worse_since(found.evidence)[0] / math.log(10)
    return evidence


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


def _says(metric: Metric, found: Compared, verdict: Verdict, evidence: dict[str, Any]) -> str:
    limit = f"{percent(metric.limit)} {'more ' if 'excess' in evidence else ''}is tolerable"
    if verdict is Verdict.INCONCLUSIVE:
        few = too_few(metric, found)
        if few or "lower" not in evidence:
            return f"{few or 'No requests'}."
        return f"{_between(evidence)}; {limit}, so more requests have to tell."
    if verdict is Verdict.SUCCESSFUL:
        most = evidence["upper"]
        return f"At most {percent(max(most, 0.0))}{' more' if 'excess' in evidence else ''}; {limit}."
    if "excess" not in evidence:
        return f"That is more than chance; {limit}."
    return (
        f"It is worse by {percent(evidence['excess'])}, which is more than chance, however often one looks."
    )


def _between(evidence: dict[str, Any]) -> str:
    lower, upper = evidence["lower"], evidence["upper"]
    if "excess" not in evidence:
        return f"The rate is between {percent(lower)} and {percent(upper)}"
    low = f"{percent(-lower)} less" if lower < 0 else f"{percent(lower)} more"
    high = f"{percent(-upper)} less" if upper < 0 else f"{percent(upper)} more"
    return f"That is between {low} and {high} than the stable version's"
