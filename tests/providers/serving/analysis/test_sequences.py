"""The mathematics of the verdicts: what its proofs say is counted out here, exactly, on small numbers."""

from __future__ import annotations

import math
from itertools import product

import pytest

from nighttrain.providers.serving.analysis.sequences import (
    Side,
    Stratum,
    distribution_band,
    excess_bounds,
    excess_of,
    log_excess,
    log_rate,
    log_ratios,
    rate_bounds,
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


@pytest.mark.parametrize(("rate", "excess"), [(0.0, 0.1), (0.05, 0.1), (0.3, 0.2), (0.5, -0.2)])
@pytest.mark.parametrize("side", Side)
def test_evidence_against_a_true_excess_has_a_mean_of_at_most_one(
    rate: float, excess: float, side: Side
) -> None:
    mean = 0.0
    for bad, other_bad in product(range(8), range(12)):
        weight = chance(7, bad, rate + excess) * chance(11, other_bad, rate)
        mean += weight * math.exp(log_excess([stratum((7, bad), (11, other_bad))], excess, side))
    assert mean <= ROUNDING


@pytest.mark.parametrize("side", Side)
def test_each_share_may_have_rates_of_its_own_under_the_hypothesis(side: Side) -> None:
    mean = 0.0
    for outcome in product(range(5), range(4), range(3), range(6)):
        weight = chance(4, outcome[0], 0.15) * chance(3, outcome[1], 0.05)
        weight *= chance(2, outcome[2], 0.9) * chance(5, outcome[3], 0.8)
        strata = [stratum((4, outcome[0]), (3, outcome[1])), stratum((2, outcome[2]), (5, outcome[3]))]
        mean += weight * math.exp(log_excess(strata, 0.1, side))
    assert mean <= ROUNDING


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(("worse", "better"), [(0.2, 0.1), (0.1, 0.0), (0.5, 0.4)])
def test_so_has_it_on_the_same_requests(side: Side, worse: float, better: float) -> None:
    mean = 0.0
    for outcome in product("csn", repeat=7):
        weight = math.prod({"c": worse, "s": better, "n": 1 - worse - better}[each] for each in outcome)
        paired = Stratum(
            candidate=counts(7, outcome.count("c")), stable=counts(7, outcome.count("s")), paired=True
        )
        mean += weight * math.exp(log_excess([paired], worse - better, side))
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
        lower, upper = excess_bounds(strata, 0.05)
        assert excess_of(strata) == pytest.approx(0.01)
        assert -1 <= lower < 0.01 < upper <= 1
        widths.append(upper - lower)
        at, above = rate_bounds(counts(100 * times, 2 * times), 0.05)
        assert 0 <= at < 0.02 < above <= 1
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize(("bad", "other_bad"), [(0, 0), (50, 0), (0, 70), (50, 70)])
def test_bounds_at_the_ends(bad: int, other_bad: int) -> None:
    strata = [stratum((50, bad), (70, other_bad))]
    lower, upper = excess_bounds(strata, 0.05)
    assert -1 <= lower <= excess_of(strata) <= upper <= 1
    paired = [
        Stratum(
            candidate=counts(50, bad),
            stable=counts(50, min(other_bad, 50)),
            paired=True,
            both=min(bad, other_bad),
        )
    ]
    lower, upper = excess_bounds(paired, 0.05)
    assert -1 <= lower <= excess_of(paired) <= upper <= 1
    assert rate_bounds(counts(50, bad), 0.05)[0] >= 0


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
