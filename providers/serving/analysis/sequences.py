"""Tests and bounds that stay valid however often one looks: the mathematics of the verdicts.

Each test is an e-process: a number that starts at 1, and whose mean stays at 1 or below as long as the
hypothesis holds, whenever one stops. That it ever reaches 1/a has then a probability of at most a (Ville's
inequality), so looking every 30 seconds costs nothing, and nothing has to be planned ahead. Robbins,
"Statistical methods related to the law of the iterated logarithm", Annals of Mathematical Statistics 41
(1970); Ramdas, Gruenwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid inference",
Statistical Science 38 (2023). All e-values here are natural logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nighttrain.providers.serving.analysis.values import Counts

# How many times as often as the stable version's a candidate's requests may go wrong, and how likely each
# ratio is taken to be beforehand. It decides how soon a bad version is found and not how often a good one is
# accused. Most weight lies where finding takes longest; the last ratio is for a version that breaks all. What
# is less than about a twentieth worse is never found.
_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
_WEIGHTS = (0.05, 0.10, 0.20, 0.25, 0.15, 0.10, 0.05, 0.05, 0.05)

# A rate is taken to be anywhere (Jeffreys' distribution), or of a few percent, or below one in a hundred:
# with the first alone, ruling out an excess of 0.01 takes twice as many requests where errors are rare.
_RATES = ((0.5, 0.5), (0.5, 20.0), (0.5, 500.0))

# Halvings of an interval from 0 to 1: far finer than what any number of requests can tell apart.
_HALVINGS = 45

# A bound for people is shown with at most four digits.
_BOUND_HALVINGS = 20


class Side(StrEnum):
    """What is presumed until the evidence is against it."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Requests to both versions during one share.

    :param both: requests that went wrong at both, where both had the same requests (``paired``)
    """

    candidate: Counts
    stable: Counts
    paired: bool = False
    both: int = 0


def log_ratios(stratum: Stratum) -> tuple[float, ...]:
    """The evidence of one interval that the candidate goes wrong more often, one number for each ratio.

    Given how many requests went wrong in all, each of them was the candidate's with a probability of at most
    ``w``, its share of the requests, if the candidate is no worse: whatever the rate is, and however it
    changes from one interval to the next. If it is ``r`` times as high, the probability is
    ``w r / (w r + 1 - w)``. Each wrong request multiplies the evidence by the ratio of these two
    probabilities. Drawing without replacement only makes it smaller (Hoeffding, "Probability inequalities
    for sums of bounded random variables", JASA 58 (1963), theorem 4). For the idea of conditioning on the
    sum: Turner, Ly and Gruenwald, "Generic E-variables for exact sequential k-sample tests that allow for
    optional stopping", Journal of Statistical Planning and Inference 230 (2024).

    Where both versions had the same requests, those that went wrong at one only count, and ``w`` is a half
    (McNemar's test).
    """
    candidate, stable = stratum.candidate, stratum.stable
    total = candidate.requests + stable.requests
    if not candidate.requests or not stable.requests:
        return (0.0,) * len(_RATIOS)
    worse, better = candidate.bad - stratum.both, stable.bad - stratum.both
    share = 0.5 if stratum.paired else candidate.requests / total
    found = []
    for ratio in _RATIOS:
        grown = share * ratio + 1 - share
        found.append(worse * math.log(ratio) - (worse + better) * math.log(grown))
    return tuple(found)


def worse_since(shares: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The evidence that the candidate goes wrong more often, from some share on.

    The mean over the ratios, and over where it may have begun: from the first share with a weight of a half,
    from a later one (a version can fail under load alone) with the k-th share's 1/(k (k + 1)). What begins
    at a share that has not come yet counts as 1. Such a mean of e-processes is one.

    :param shares: of each share, in order, the sum of its intervals' :func:`log_ratios`
    :return: the e-value's logarithm, and the index of the share from which the evidence is largest
    """
    tails = [0.0] * len(_RATIOS)
    logs: list[float] = []
    for place in range(len(shares) - 1, -1, -1):
        tails = [tail + one for tail, one in zip(tails, shares[place], strict=True)]
        weighed = [math.log(weight) + tail for weight, tail in zip(_WEIGHTS, tails, strict=True)]
        logs.append(log_sum(weighed) - math.log((place + 1) * (place + 2)))
    logs.reverse()
    rest = -math.log(len(shares) + 1)
    start = max(range(len(logs)), key=logs.__getitem__, default=0)
    return log_sum([*logs, rest]), start


def log_excess(strata: Sequence[Stratum], excess: float, side: Side) -> float:
    """The evidence against "the candidate's rate is at most (or at least) ``excess`` above the stable one's".

    The probability of what was seen, where the rates are not known beforehand (a mixture of beta
    distributions), divided by its largest probability under the hypothesis. Each stratum may have rates of
    its own under the hypothesis, so that a rate that changes with the time of day, together with the share,
    is not taken for a difference of the versions. A mixture over a likelihood that is maximal is at most the
    likelihood ratio to the truth, whose mean is 1: Robbins (1970); Wasserman, Ramdas and Balakrishnan,
    "Universal inference", PNAS 117 (2020).
    """
    return _log_any_rates(strata) - sum(_largest(stratum, excess, side) for stratum in strata)


def log_rate(counts: Counts, rate: float, side: Side) -> float:
    """The evidence against "the rate is at most (or at least) ``rate``"; see :func:`log_excess`."""
    found = counts.bad / counts.requests if counts.requests else rate
    nearest = min(found, rate) if side is Side.AT_MOST else max(found, rate)
    good = counts.requests - counts.bad
    return _log_any_rate(counts) - _log_power(counts.bad, nearest) - _log_power(good, 1 - nearest)


def excess_bounds(strata: Sequence[Stratum], alpha: float) -> tuple[float, float]:
    """A lower and an upper bound of the excess; each is wrong at any time with probability ``alpha``."""
    point = excess_of(strata)
    threshold = -math.log(alpha)
    lower = _last_refused(-1.0, point, lambda at: log_excess(strata, at, Side.AT_MOST) >= threshold)
    upper = _last_refused(1.0, point, lambda at: log_excess(strata, at, Side.AT_LEAST) >= threshold)
    return lower, upper


def rate_bounds(counts: Counts, alpha: float) -> tuple[float, float]:
    """A lower and an upper bound of a rate; each is wrong at any time with probability ``alpha``."""
    point = counts.bad / counts.requests if counts.requests else 0.5
    threshold = -math.log(alpha)
    lower = _last_refused(0.0, point, lambda at: log_rate(counts, at, Side.AT_MOST) >= threshold)
    upper = _last_refused(1.0, point, lambda at: log_rate(counts, at, Side.AT_LEAST) >= threshold)
    return lower, upper


def excess_of(strata: Sequence[Stratum]) -> float:
    """The candidate's rate above the stable version's, each stratum weighed by the candidate's requests."""
    requests = sum(stratum.candidate.requests for stratum in strata)
    weighed = sum(
        stratum.candidate.bad - stratum.candidate.requests * stratum.stable.bad / stratum.stable.requests
        for stratum in strata
    )
    return weighed / requests if requests else 0.0


def distribution_band(samples: int, alpha: float) -> float:
    """How far a sample's distribution function is ever from the true one, anywhere, at any size of sample.

    Howard and Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm
    identification", Bernoulli 28 (2022), theorem 2 with m = 1 and A = 0.85.
    """
    spread = math.log(1 + math.log(samples)) + 0.8 * math.log(1612 / alpha)
    return min(1.0, 0.85 * math.sqrt(spread / samples))


def total(counts: Iterable[Counts]) -> Counts:
    """All of them added up."""
    return sum(counts, Counts())


def log_sum(logs: Sequence[float]) -> float:
    """The logarithm of a sum of numbers given as logarithms."""
    largest = max(logs)
    return largest + math.log(sum(math.exp(each - largest) for each in logs))


def _largest(stratum: Stratum, excess: float, side: Side) -> float:
    """The largest log-likelihood under the hypothesis."""
    found = excess_of([stratum])
    if (found <= excess) is (side is Side.AT_MOST):
        excess = found
    return _largest_paired(stratum, excess) if stratum.paired else _largest_unpaired(stratum, excess)


def _largest_unpaired(stratum: Stratum, excess: float) -> float:
    """Over all rates of the stable version, the candidate's being ``excess`` higher."""
    bad, good = stratum.candidate.bad, stratum.candidate.requests - stratum.candidate.bad
    stable_bad, stable_good = stratum.stable.bad, stratum.stable.requests - stratum.stable.bad

    def slope(rate: float) -> float:
        higher = rate + excess
        return (
            (bad / higher if bad else 0.0)
            - (good / (1 - higher) if good else 0.0)
            + (stable_bad / rate if stable_bad else 0.0)
            - (stable_good / (1 - rate) if stable_good else 0.0)
        )

    rate = _zero(slope, max(0.0, -excess), min(1.0, 1.0 - excess))
    return (
        _log_power(bad, rate + excess)
        + _log_power(good, 1 - rate - excess)
        + _log_power(stable_bad, rate)
        + _log_power(stable_good, 1 - rate)
    )


def _largest_paired(stratum: Stratum, excess: float) -> float:
    """Over all rates of "wrong at the stable version only", the opposite one being ``excess`` higher."""
    worse, better = stratum.candidate.bad - stratum.both, stratum.stable.bad - stratum.both
    same = stratum.candidate.requests - worse - better

    def slope(rate: float) -> float:
        return (
            (worse / (rate + excess) if worse else 0.0)
            + (better / rate if better else 0.0)
            - (2 * same / (1 - 2 * rate - excess) if same else 0.0)
        )

    rate = _zero(slope, max(0.0, -excess), (1.0 - excess) / 2)
    return (
        _log_power(worse, rate + excess) + _log_power(better, rate) + _log_power(same, 1 - 2 * rate - excess)
    )


def _log_any_rate(counts: Counts) -> float:
    """The probability of so many wrong requests, in the order they came, where the rate is not known."""
    good = counts.requests - counts.bad
    each = [_log_beta(a + counts.bad, b + good) - _log_beta(a, b) for a, b in _RATES]
    return log_sum(each) - math.log(len(_RATES))


def _log_any_rates(strata: Sequence[Stratum]) -> float:
    """The probability of what was seen; half of the weight on the same rates in all shares."""
    same = _log_same_rates(strata)
    if len(strata) < 2:
        return same
    return log_sum([same, sum(_log_same_rates([stratum]) for stratum in strata)]) - math.log(2)


def _log_same_rates(strata: Sequence[Stratum]) -> float:
    unpaired = [stratum for stratum in strata if not stratum.paired]
    paired = [stratum for stratum in strata if stratum.paired]
    found = 0.0
    if unpaired:
        found += _log_two_rates(
            total(stratum.candidate for stratum in unpaired), total(stratum.stable for stratum in unpaired)
        )
    if paired:
        worse = sum(stratum.candidate.bad - stratum.both for stratum in paired)
        better = sum(stratum.stable.bad - stratum.both for stratum in paired)
        requests = sum(stratum.candidate.requests for stratum in paired)
        found += _log_any_rate(Counts(requests=requests, bad=worse + better))
        found += _log_any_direction(worse, better)
    return found


def _log_two_rates(candidate: Counts, stable: Counts) -> float:
    """Half of the weight on one rate for both versions, half on a rate of its own for each.

    Most candidates are no different, and one rate is learnt from fewer requests than two.
    """
    apart = _log_any_rate(candidate) + _log_any_rate(stable)
    return log_sum([_log_any_rate(candidate + stable), apart]) - math.log(2)


def _log_any_direction(worse: int, better: int) -> float:
    """The probability of so many for the worse and for the better; half of the weight on "as often"."""
    any_direction = _log_beta(0.5 + worse, 0.5 + better) - _log_beta(0.5, 0.5)
    return log_sum([-(worse + better) * math.log(2), any_direction]) - math.log(2)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_power(times: float, probability: float) -> float:
    """``times * log(probability)``, where nothing happened 0."""
    if not times:
        return 0.0
    return times * math.log(probability) if probability > 0 else -math.inf


def _zero(falling: Callable[[float], float], lower: float, upper: float) -> float:
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        if falling(middle) > 0:
            lower = middle
        else:
            upper = middle
    return (lower + upper) / 2


def _last_refused(refused: float, held: float, is_refused: Callable[[float], bool]) -> float:
    """Between a value that is refused and one that is not, where the one becomes the other."""
    for _ in range(_BOUND_HALVINGS):
        middle = (refused + held) / 2
        if is_refused(middle):
            refused = middle
        else:
            held = middle
    return refused
