"""Tests and bounds that stay valid however often one looks: the mathematics of the verdicts.

Each test is an e-process: a number that starts at 1, and whose mean stays at 1 or below as long as the
hypothesis holds, whenever one stops. That it ever reaches 1/a has then a probability of at most a (Ville's
inequality), so looking every 30 seconds costs nothing, and nothing has to be planned ahead. Robbins,
"Statistical methods related to the law of the iterated logarithm", Annals of Mathematical Statistics 41
(1970); Ramdas, Gruenwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid inference",
Statistical Science 38 (2023). All e-values here are natural logarithms.

Evidence is gathered interval by interval, each with its own split of the requests. So neither a rate that
changes with the time of day nor a share that changes with the number of replicas is taken for a difference
of the versions.
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

# The part of an e-value that is staked on one wrong request. Large stakes show soon that what hardly ever
# goes wrong is tolerable, and lose most where much goes wrong, for which the small ones are.
_STAKES = (0.01, 0.03, 0.1, 0.2, 0.35, 0.55, 0.8, 0.95)

# A rate is taken to be anywhere (Jeffreys' distribution), or of a few percent, or below one in a hundred:
# with the first alone, ruling out a rate of 0.01 takes twice as many requests where little goes wrong.
_RATES = ((0.5, 0.5), (0.5, 20.0), (0.5, 500.0))

# A bound for people is shown with at most four digits.
_HALVINGS = 20


class Side(StrEnum):
    """What is presumed until the evidence is against it."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Requests to both versions, over the same time.

    :param both: requests that went wrong at both, where both had the same requests (``paired``)
    """

    candidate: Counts
    stable: Counts
    paired: bool = False
    both: int = 0

    @property
    def compared(self) -> bool:
        """Both versions had requests."""
        return self.candidate.requests > 0 and self.stable.requests > 0

    @property
    def worse(self) -> int:
        """Requests that went wrong at the candidate; where both had the same, at it alone."""
        return self.candidate.bad - self.both

    @property
    def better(self) -> int:
        """Requests that went wrong at the stable version; where both had the same, at it alone."""
        return self.stable.bad - self.both


def log_ratios(stratum: Stratum) -> tuple[float, ...]:
    """The evidence of one interval that the candidate goes wrong more often, one number for each ratio.

    Given how many requests went wrong in all, each of them was the candidate's with a probability of ``w``,
    its share of the requests, if both versions go wrong as often: whatever the rate is. If the candidate's
    rate is ``r`` times the stable one's, it is ``w r / g`` with ``g = w r + 1 - w``. Each wrong request
    multiplies the evidence by the ratio of these two: ``r / g`` for the candidate's, ``1 / g`` for the stable
    version's. With ``n`` and ``m`` requests and rates ``p`` and ``q`` its mean is at most
    ``exp((r - 1) / g * n m / (n + m) * (p - q))``, because ``1 + x <= exp(x)``: at most 1 if the candidate is
    no worse. For conditioning on the sum see Turner, Ly and Gruenwald, "Generic E-variables for exact
    sequential k-sample tests that allow for optional stopping", Journal of Statistical Planning and Inference
    230 (2024).

    Where both versions had the same requests, those that went wrong at one only count, and ``w`` is a half
    (McNemar's test).
    """
    if not stratum.compared:
        return (0.0,) * len(_RATIOS)
    candidate, stable = stratum.candidate.requests, stratum.stable.requests
    share = candidate / (candidate + stable)
    worse, wrong = stratum.worse, stratum.worse + stratum.better
    return tuple(worse * math.log(ratio) - wrong * math.log(share * ratio + 1 - share) for ratio in _RATIOS)


def log_stakes(stratum: Stratum) -> tuple[float, ...]:
    """What one interval leaves of each stake on "the excess is below the limit"; see :func:`log_below`.

    A wrong request of the candidate's costs the part ``u`` that is staked on it; each of the stable version's
    gains ``u`` times the candidate's requests for one of the stable's.
    """
    if not stratum.compared:
        return (0.0,) * len(_STAKES)
    times = stratum.candidate.requests / stratum.stable.requests
    return tuple(
        stratum.worse * math.log1p(-stake) + stratum.better * math.log1p(stake * times) for stake in _STAKES
    )


def log_below(stakes: Sequence[float], requests: int, excess: float) -> float:
    """The evidence against "the candidate's rate is at least ``excess`` above the stable version's".

    With a stake of ``u``, ``n`` requests of the candidate and ``m`` of the stable version in an interval,
    ``exp(u n excess) (1 - u) ** bad (1 + u n / m) ** stable_bad`` has a mean of at most
    ``exp(u n (excess - p + q))``, for the rates ``p`` and ``q``, because ``1 + x <= exp(x)``. So the product
    over the intervals is an e-process if the excess, in the mean over the candidate's requests, is at least
    that; nothing need be known of ``q``. The result is the mean over the stakes. Waudby-Smith and Ramdas,
    "Estimating means of bounded random variables by betting", JRSS B 86 (2024); Howard, Ramdas, McAuliffe
    and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49
    (2021).

    :param stakes: the sum of the intervals' :func:`log_stakes`
    :param requests: the candidate's, in these intervals
    """
    each = [stake * requests * excess + left for stake, left in zip(_STAKES, stakes, strict=True)]
    return log_sum(each) - math.log(len(_STAKES))


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


def log_rate(counts: Counts, rate: float, side: Side) -> float:
    """The evidence against "the rate is at most (or at least) ``rate``".

    The probability of what was seen if the rate is not known (a mixture of beta distributions), divided by
    its largest probability under the hypothesis. Robbins (1970).
    """
    found = counts.bad / counts.requests if counts.requests else rate
    nearest = min(found, rate) if side is Side.AT_MOST else max(found, rate)
    good = counts.requests - counts.bad
    return _log_any_rate(counts) - _log_power(counts.bad, nearest) - _log_power(good, 1 - nearest)


def upper_excess(stakes: Sequence[float], requests: int, alpha: float) -> float:
    """An upper bound of the excess, over all intervals; it is ever wrong with a probability of ``alpha``."""
    threshold = -math.log(alpha)
    return _last_refused(1.0, -1.0, lambda at: log_below(stakes, requests, at) >= threshold)


def rate_bounds(counts: Counts, alpha: float) -> tuple[float, float]:
    """A lower and an upper bound of a rate; each is ever wrong with a probability of ``alpha``."""
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


def _log_any_rate(counts: Counts) -> float:
    """The probability of so many wrong requests, in the order they came, where the rate is not known."""
    good = counts.requests - counts.bad
    each = [_log_beta(a + counts.bad, b + good) - _log_beta(a, b) for a, b in _RATES]
    return log_sum(each) - math.log(len(_RATES))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_power(times: float, probability: float) -> float:
    """``times * log(probability)``, where nothing happened 0."""
    if not times:
        return 0.0
    return times * math.log(probability) if probability > 0 else -math.inf


def _last_refused(refused: float, held: float, is_refused: Callable[[float], bool]) -> float:
    """Between a value that is refused and one that is not, where the one becomes the other."""
    for _ in range(_HALVINGS):
        middle = (refused + held) / 2
        if is_refused(middle):
            refused = middle
        else:
            held = middle
    return refused
