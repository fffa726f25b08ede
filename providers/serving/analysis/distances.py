"""Verdicts on how far the distributions of two versions' predictions are apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from nighttrain.providers.serving.analysis.sequences import distribution_band
from nighttrain.providers.serving.analysis.values import Judgement, Tally, Verdict

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.metrics import Metric


def judge(metric: Metric, tallies: Sequence[Tally], *, false_alarms: float, let_through: float) -> Judgement:
    """The largest difference of the two distribution functions at the bins' edges, give or take both bands.

    Each version's distribution function is within its band at every look (see
    :func:`~nighttrain.providers.serving.analysis.sequences.distribution_band`); half of the errors are
    allowed to each.
    """
    candidate, stable = _added_up(tallies)
    requests, stable_requests = sum(candidate), sum(stable)
    newest = sum(tallies[-1].candidate_bins) if tallies else 0
    evidence = {"candidate_requests": requests, "stable_requests": stable_requests, "limit": metric.limit}
    if min(newest, stable_requests) < metric.min_requests:
        sentence = (
            f"{metric.name}: {newest:,} predictions of the candidate at this share and {stable_requests:,} "
            f"of the stable version, {metric.min_requests:,} of each are needed."
        )
        return Judgement(
            metric=metric.name, verdict=Verdict.INCONCLUSIVE, sentence=sentence, evidence=evidence
        )
    distance = max(
        abs(one / requests - other / stable_requests)
        for one, other in zip(accumulate(candidate), accumulate(stable), strict=True)
    )
    lower = max(0.0, distance - _bands(requests, stable_requests, false_alarms))
    upper = min(1.0, distance + _bands(requests, stable_requests, let_through))
    if lower > metric.limit:
        verdict, says = Verdict.FAILED, f"for certain above {lower:.3g}"
    elif upper <= metric.limit:
        verdict, says = Verdict.SUCCESSFUL, f"at most {upper:.3g}"
    else:
        verdict, says = Verdict.INCONCLUSIVE, f"between {lower:.3g} and {upper:.3g}"
    return Judgement(
        metric=metric.name,
        verdict=verdict,
        sentence=(
            f"{metric.name}: the distributions of {requests:,} predictions of the candidate and "
            f"{stable_requests:,} of the stable version are {distance:.3g} apart, {says}; "
            f"{metric.limit:.3g} is tolerable."
        ),
        evidence={**evidence, "distance": distance, "lower": lower, "upper": upper},
    )


def _added_up(tallies: Sequence[Tally]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both versions' bins over all shares that have as many as the newest."""
    size = len(tallies[-1].candidate_bins) if tallies else 0
    alike = [tally for tally in tallies if size and len(tally.candidate_bins) == size]
    return (
        tuple(map(sum, zip(*(tally.candidate_bins for tally in alike), strict=True))),
        tuple(map(sum, zip(*(tally.stable_bins for tally in alike), strict=True))),
    )


def _bands(requests: int, stable_requests: int, alpha: float) -> float:
    return distribution_band(requests, alpha / 2) + distribution_band(stable_requests, alpha / 2)
