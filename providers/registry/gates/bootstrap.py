"""The wild cluster bootstrap of a studentized mean, for differences whose rows come in groups.

The flights of one day share its weather: they are no independent witnesses, the days are. With few groups a
percentile bootstrap of whole groups finds differences that are not there: at ten days of flights about twice
as often as it says. Cameron, Gelbach and Miller, "Bootstrap-Based Improvements for Inference with Clustered
Errors", Review of Economics and Statistics 90 (2008): draw a sign for each group's deviation from the
hypothesis (Rademacher weights), studentize each draw, and compare. An interval is what such a test does not
reject. Pure Python: groups are hundreds, not millions.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DRAWS = 1_999
"""With 1,999 draws and the sample itself, 95 % is 50 of 2,000 on each side: a whole number."""

_Test = Callable[[float], bool]

_HALVINGS = 12
"""Of a bracket of some standard errors: the end is then exact to a thousandth of one."""


@dataclass(frozen=True)
class Interval:
    """The mean of the differences, and the means that the data do not contradict."""

    mean: float
    low: float
    high: float


def mean_interval(
    sums: Sequence[float], rows: Sequence[int], *, confidence: float, draws: int = DRAWS
) -> Interval:
    """The confidence interval of a mean over all rows, from the sum and the number of rows of each group.

    :param confidence: two-sided: 0.95 leaves 2.5 % on either side
    :returns: a point where all groups have the same mean
    """
    total = sum(rows)
    mean = math.fsum(sums) / total
    if len(sums) < 2:
        return Interval(mean, -math.inf, math.inf)
    sample = _Sample(sums, rows, draws)
    if sample.spread == 0.0:
        return Interval(mean, mean, mean)
    share = (1 - confidence) / 2
    low = _end(mean, -sample.spread, lambda value: sample.share_above(value) <= share)
    high = _end(mean, sample.spread, lambda value: sample.share_below(value) <= share)
    return Interval(mean, low, high)


def _end(mean: float, step: float, refused: _Test) -> float:
    """The place between what is not refused and what is, going from the mean in one direction."""
    inside, outside = mean, mean + 2 * step
    for _ in range(40):
        if refused(outside):
            break
        inside, outside, step = outside, outside + 2 * step, 2 * step
    else:
        return math.copysign(math.inf, step)
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if refused(middle):
            outside = middle
        else:
            inside = middle
    # The outer one: an interval that is a hair too long errs on the safe side.
    return outside


class _Sample:
    """The draws, kept as four sums each, so that a hypothesis is tested without going through the groups."""

    def __init__(self, sums: Sequence[float], rows: Sequence[int], draws: int) -> None:
        self._count, self._rows = len(sums), float(sum(rows))
        self._mean = math.fsum(sums) / self._rows
        deviations = [value - self._mean * n for value, n in zip(sums, rows, strict=True)]
        self._squares = math.fsum(each * each for each in deviations)
        self._products = math.fsum(each * n for each, n in zip(deviations, rows, strict=True))
        self._row_squares = float(sum(n * n for n in rows))
        scale = math.fsum(abs(value) for value in sums) / self._rows
        spread = self._error(self._squares)
        # What rounding leaves of groups that are all alike is no spread.
        self.spread = 0.0 if spread <= 1e-12 * scale else spread
        self._draws = self._draw(deviations, rows, draws)

    def _error(self, squares: float) -> float:
        return math.sqrt(max(squares, 0.0) * self._count / (self._count - 1)) / self._rows

    def _draw(
        self, deviations: Sequence[float], rows: Sequence[int], draws: int
    ) -> list[tuple[float, float, float, float]]:
        """Per draw the signed sums of deviations, rows, deviations times rows, and rows squared.

        Each is twice the sum over the groups with a plus, less the sum over all.
        """
        generator = random.Random(_seed(deviations, rows))
        parts = [(d, float(n), d * n, float(n * n)) for d, n in zip(deviations, rows, strict=True)]
        whole = [math.fsum(part[i] for part in parts) for i in range(4)]
        drawn = []
        for _ in range(draws):
            bits = generator.getrandbits(self._count)
            a = b = c = d = 0.0
            for part in parts:
                if bits & 1:
                    a, b, c, d = a + part[0], b + part[1], c + part[2], d + part[3]
                bits >>= 1
            drawn.append((2 * a - whole[0], 2 * b - whole[1], 2 * c - whole[2], 2 * d - whole[3]))
        return drawn

    def _counts(self, hypothesis: float) -> tuple[int, int]:
        """How many draws under the hypothesis lie at or below the sample, and how many at or above it."""
        shift = self._mean - hypothesis
        own = shift / self.spread
        # Of the deviations from the hypothesis: those from the mean, moved by shift for each row.
        squares = self._squares + 2 * shift * self._products + shift * shift * self._row_squares
        total, row_squares = self._rows, self._row_squares
        # The error of a draw, as in _error, without a function's call for each of thousands.
        scale = self._count / (self._count - 1) / (total * total)
        below = above = 0
        for deviations, rows, products, signed_squares in self._draws:
            mean = (deviations + shift * rows) / total
            signed = products + shift * signed_squares
            variance = (squares - 2 * mean * signed + mean * mean * row_squares) * scale
            limit = own * math.sqrt(variance) if variance > 0 else 0.0
            below += mean <= limit
            above += mean >= limit
        return below, above

    def share_below(self, hypothesis: float) -> float:
        """How often a sample would lie as far below the hypothesis as this one, if it were true.

        The sample is one of the draws itself: without it a test rejects too often.
        """
        return (1 + self._counts(hypothesis)[0]) / (len(self._draws) + 1)

    def share_above(self, hypothesis: float) -> float:
        """The same for above."""
        return (1 + self._counts(hypothesis)[1]) / (len(self._draws) + 1)


def _seed(deviations: Sequence[float], rows: Sequence[int]) -> int:
    text = ";".join(f"{d!r},{n}" for d, n in zip(deviations, rows, strict=True))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
