"""The mathematics of the verdicts: what its proofs say is counted out here, exactly, on small numbers."""

from __future__ import annotations

import math
from itertools import product

import pytest

from nighttrain.providers.serving.analysis.sequences import (
    Side,
    Stratum,
    distribution_band,
    excess_of,
    log_below,
    log_rate,
    log_ratios,
    log_stakes,
    rate_bounds,
    upper_excess,
    worse_since,
)
from nighttrain.providers.serving.analysis.values import Counts

ROUNDING = 1 + 1e-9


def counts(requests: int, bad: int) -> Counts:
    return Counts(requests=requests, bad=bad)


def stratum(candidate: tuple[int, int], stable: tuple[int, int]) -> Stratum:
    return Stratum(candidate=counts(*candidate), stable=counts(*stable))


def chance(requests: int, bad: int, rate: float) -> float:
    return math.comb(requests, bad) * rate**bad * (1 - rate) ** (requests - bad)


@pytest.mark.parametrize("rates", [(0.1, 0.4), (0.5, 0.02), (0.9, 0.9)])
@pytest.mark.parametrize("better_by", [1.0, 0.7])
def test_evidence_against_a_version_that_is_no_worse_has_a_mean_of_at_most_one(
    rates: tuple[float, float], better_by: float
) -> None:
    """Two intervals in two shares, each with a rate and a split of its own: all outcomes, weighed."""
    sizes = ((2, 5), (4, 3))
    mean = 0.0
    for outcome in product(*(range(size + 1) for pair in sizes for size in pair)):
        pairs = (outcome[:2], outcome[2:])
        weight = 1.0
        vectors = []
        for (requests, others), rate, (bad, other_bad) in zip(sizes, rates, pairs, strict=True):
            weight *= chance(requests, bad, rate * better_by) * chance(others, other_bad, rate)
            vectors.append(log_ratios(stratum((requests, bad), (others, other_bad))))
        mean += weight * math.exp(worse_since(vectors)[0])
    assert mean <= ROUNDING
    assert mean > 0.5  # It is a test, and not a number that never moves.


def test_intervals_are_added_up_with_the_split_that_each_had() -> None:
    """At night errors are frequent and the share is small; by day neither: nobody is worse for it."""
    night, day = stratum((10, 5), (90, 45)), stratum((90, 1), (10, 0))
    apart = [sum(pair) for pair in zip(log_ratios(night), log_ratios(day), strict=True)]
    together = log_ratios(stratum((100, 6), (100, 45)))
    assert worse_since([apart])[0] < 0
    swapped = [
        sum(pair) for pair in zip(log_ratios(stratum((90, 45), (10, 5))), log_ratios(day), strict=True)
    ]
    assert worse_since([swapped])[0] < 0
    assert worse_since([log_ratios(stratum((180, 46), (20, 5)))])[0] < 0
    assert together != pytest.approx(apart)


@pytest.mark.parametrize("known", [True, False])
def test_on_the_same_requests_what_fails_at_both_is_no_evidence(known: bool) -> None:
    """Each of four pairs is bad at both, at one, or at none. Not to know how many at both is careful."""
    at_both, at_one = 0.3, 0.1
    mean = 0.0
    for outcome in product("bcsn", repeat=4):
        weight = math.prod({"b": at_both, "c": at_one, "s": at_one, "n": 0.5}[each] for each in outcome)
        both, worse, better = (outcome.count(each) for each in "bcs")
        paired = Stratum(
            candidate=counts(4, both + worse),
            stable=counts(4, both + better),
            paired=True,
            both=both if known else 0,
        )
        mean += weight * math.exp(worse_since([log_ratios(paired)])[0])
    assert mean == pytest.approx(1.0) if known else mean <= ROUNDING


def test_copies_of_a_part_of_the_requests_are_no_evidence_either() -> None:
    """A shadow that is sent two of five requests, and fails exactly where the stable version fails."""
    mean = 0.0
    for bad in product((0, 1), repeat=5):
        weight = math.prod(0.3 if each else 0.7 for each in bad)
        mean += weight * math.exp(worse_since([log_ratios(stratum((2, sum(bad[:2])), (5, sum(bad))))])[0])
    assert mean <= ROUNDING


def test_evidence_is_found_from_the_share_on_that_it_began_at() -> None:
    fine, broken = stratum((1000, 10), (9000, 90)), stratum((2500, 100), (7500, 75))
    evidence, start = worse_since([log_ratios(fine), log_ratios(broken)])
    assert start == 1
    assert evidence > 10
    assert worse_since([log_ratios(broken)])[1] == 0
    assert worse_since([]) == (0.0, 0)


@pytest.mark.parametrize("excess", [0.1, 0.0, -0.05])
def test_evidence_against_a_true_excess_has_a_mean_of_at_most_one(excess: float) -> None:
    """Two intervals, each with a rate and a split of its own: all outcomes, weighed."""
    sizes, rates = ((3, 2), (2, 5)), (0.05, 0.5)
    mean = 0.0
    for outcome in product(*(range(size + 1) for pair in sizes for size in pair)):
        pairs = (outcome[:2], outcome[2:])
        weight, stakes = 1.0, [0.0] * 8
        for (requests, others), rate, (bad, other_bad) in zip(sizes, rates, pairs, strict=True):
            weight *= chance(requests, bad, rate + excess) * chance(others, other_bad, rate)
            left = log_stakes(stratum((requests, bad), (others, other_bad)))
            stakes = [sum(pair) for pair in zip(stakes, left, strict=True)]
        mean += weight * math.exp(log_below(stakes, 5, excess))
    assert 0.3 < mean <= ROUNDING


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("worse", "better"), [(0.2, 0.1), (0.1, 0.0), (0.4, 0.3)])
def test_so_has_it_on_the_same_requests(worse: float, better: float, known: bool) -> None:
    at_both = 0.2
    mean = 0.0
    for outcome in product("bcsn", repeat=4):
        chances = {"b": at_both, "c": worse, "s": better, "n": 1 - at_both - worse - better}
        weight = math.prod(chances[each] for each in outcome)
        both, at_one, at_other = (outcome.count(each) for each in "bcs")
        paired = Stratum(
            candidate=counts(4, both + at_one),
            stable=counts(4, both + at_other),
            paired=True,
            both=both if known else 0,
        )
        mean += weight * math.exp(log_below(log_stakes(paired), 4, worse - better))
    assert mean <= ROUNDING


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("side", Side)
def test_so_has_evidence_against_a_true_rate(rate: float, side: Side) -> None:
    possible = [bad for bad in range(31) if chance(30, bad, rate)]
    evidence = {bad: math.exp(log_rate(counts(30, bad), rate, side)) for bad in possible}
    assert sum(chance(30, bad, rate) * evidence[bad] for bad in possible) <= ROUNDING


def test_bounds_hold_the_estimate_and_close_in_on_it() -> None:
    widths = []
    for times in (1, 10, 100):
        strata = [stratum((100 * times, 2 * times), (900 * times, 9 * times))]
        assert excess_of(strata) == pytest.approx(0.01)
        upper = upper_excess(log_stakes(strata[0]), 100 * times, 0.05)
        assert 0.01 < upper <= 1
        widths.append(upper - 0.01)
        at, above = rate_bounds(counts(100 * times, 2 * times), 0.05)
        assert 0 <= at < 0.02 < above <= 1
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize(("bad", "other_bad"), [(0, 0), (50, 0), (0, 70), (50, 70)])
def test_bounds_at_the_ends(bad: int, other_bad: int) -> None:
    both = stratum((50, bad), (70, other_bad))
    assert excess_of([both]) <= upper_excess(log_stakes(both), 50, 0.05) <= 1
    lower, upper = rate_bounds(counts(50, bad), 0.05)
    assert 0 <= lower <= bad / 50 <= upper <= 1


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.001, 1e-5])
def test_the_constant_of_the_band_satisfies_its_theorem(alpha: float) -> None:
    """Howard and Ramdas bound the probability of ever leaving the band with factor A and constant C by
    4 exp(-g C) (1 + 1 / ((g - 1) log eta)), g = 2 / eta (A - sqrt(2 (eta - 1) / C)) ** 2, for any eta.
    """
    factor, samples = 0.85, 10_000
    constant = (distribution_band(samples, alpha) / factor) ** 2 * samples - math.log(1 + math.log(samples))

    def error(eta: float) -> float:
        inside = factor - math.sqrt(2 * (eta - 1) / constant)
        growth = 2 / eta * inside**2
        if inside <= 0 or growth <= 1:
            return 1.0
        return 4 * math.exp(-growth * constant) * (1 + 1 / ((growth - 1) * math.log(eta)))

    assert min(error(1 + place / 10_000) for place in range(1, 4_400)) <= alpha
