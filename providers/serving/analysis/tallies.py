"""Samples, added up share by share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from nighttrain.providers.serving.analysis.sequences import Stratum, log_ratios, log_stakes
from nighttrain.providers.serving.analysis.values import KEPT_VALUES, Counts, Sample, Tally

N = TypeVar("N", int, float)


def add(tallies: Sequence[Tally], sample: Sample, *, share: float) -> tuple[Tally, ...]:
    """The tallies of a metric with one more sample; a new one begins where the share changed.

    A sample that could not be measured, or whose numbers contradict one another, counts as an error and
    changes nothing else. Missing and NaN are no data.

    :param share: the candidate's share of the requests while the sample was taken, 0 to 1
    """
    held = list(tallies)
    why = sample.error or _contradiction(sample)
    goes_on = bool(held) and held[-1].share == share and (why is not None or _same_form(held[-1], sample))
    last = held.pop() if goes_on else Tally(share=share, paired=sample.paired)
    if why:
        return (*held, replace(last, errors=last.errors + 1, last_error=why))
    last = replace(last, errors=0, last_error="")
    if sample.candidate_bins or sample.stable_bins:
        return (*held, _with_bins(last, sample))
    if sample.candidate is None:
        values = (*last.values, _number_or_none(sample.value))[-KEPT_VALUES:]
        return (*held, replace(last, values=values))
    return (*held, _with_counts(last, sample.candidate, sample.stable, sample.both))


def ratios_of(tally: Tally) -> tuple[float, ...]:
    """What the intervals of one share say about "the candidate is worse", added up."""
    return tally.ratios or log_ratios(stratum_of(tally))


def stakes_of(tally: Tally) -> tuple[float, ...]:
    """What the intervals of one share say about "it is tolerable", added up."""
    return tally.stakes or log_stakes(stratum_of(tally))


def stratum_of(tally: Tally) -> Stratum:
    """The requests to both versions during one share."""
    return Stratum(
        candidate=tally.candidate, stable=tally.stable or Counts(), paired=tally.paired, both=tally.both
    )


def _with_counts(tally: Tally, candidate: Counts, stable: Counts | None, both: int) -> Tally:
    compared = Stratum(
        candidate=candidate,
        stable=stable or Counts(),
        paired=tally.paired,
        both=both if tally.paired else 0,
    )
    return replace(
        tally,
        candidate=tally.candidate + candidate,
        stable=(tally.stable or Counts()) + stable if stable else tally.stable,
        both=tally.both + compared.both,
        ratios=_sums(tally.ratios, log_ratios(compared)),
        stakes=_sums(tally.stakes, log_stakes(compared)),
    )


def _with_bins(tally: Tally, sample: Sample) -> Tally:
    candidate = _sums(tally.candidate_bins, sample.candidate_bins)
    stable = _sums(tally.stable_bins, sample.stable_bins)
    return replace(
        tally,
        candidate=Counts(requests=sum(candidate)),
        stable=Counts(requests=sum(stable)),
        candidate_bins=candidate,
        stable_bins=stable,
    )


def _sums(held: Sequence[N], more: Sequence[N]) -> tuple[N, ...]:
    return tuple(a + b for a, b in zip(held, more, strict=True)) if held else tuple(more)


def _same_form(tally: Tally, sample: Sample) -> bool:
    """True if both count the same things, so that they can be added."""
    if tally.candidate.requests and sample.candidate is not None and tally.paired != sample.paired:
        return False
    bins = len(sample.candidate_bins)
    return not bins or not tally.candidate_bins or len(tally.candidate_bins) == bins


def _number_or_none(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _contradiction(sample: Sample) -> str | None:
    """Why a sample's numbers cannot be right."""
    candidate, stable = sample.candidate, sample.stable
    for who, counts in (("the candidate", candidate), ("the stable version", stable)):
        if counts is None:
            continue
        finite = math.isfinite(counts.requests) and math.isfinite(counts.bad)
        if not finite or not 0 <= counts.bad <= counts.requests:
            return f"{counts.bad} of {counts.requests} requests to {who} are said to be bad"
    if len(sample.candidate_bins) != len(sample.stable_bins):
        return f"{len(sample.candidate_bins)} bins are compared with {len(sample.stable_bins)}"
    if any(each < 0 for each in (*sample.candidate_bins, *sample.stable_bins)):
        return "a bin is said to hold fewer than no predictions"
    if sample.paired and candidate and stable:
        either = candidate.bad + stable.bad - sample.both
        if candidate.requests != stable.requests:
            return f"{candidate.requests} and {stable.requests} are said to be the same requests"
        if not 0 <= sample.both <= min(candidate.bad, stable.bad) or either > candidate.requests:
            return (
                f"of {candidate.requests} requests to both {candidate.bad} and {stable.bad} are said to be "
                f"bad, {sample.both} of them at both"
            )
    return None
