"""Rules against another group: as good as it up to a margin, or better than it by a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nighttrain.providers.measured import Measured, NoNumber, read
from nighttrain.providers.registry.gates.recorded import CHAMPION
from nighttrain.providers.registry.gates.rules.base import (
    MetricRule,
    check_flag,
    check_group,
    check_margin,
    check_metric,
    check_share,
    named,
    pair,
)
from nighttrain.providers.registry.gates.rules.rounding import rounding
from nighttrain.providers.registry.gates.verdicts import Evidence, VerdictKind, show_number


class Comparison(MetricRule):
    """What the two have in common: a limit that is the other's value, moved by a share and a margin."""

    metric: str
    higher_is_better: bool
    margin: float
    against: str

    def share(self) -> float:
        """The share by which the limit is moved: positive is up."""
        raise NotImplementedError

    def offset(self) -> float:
        """What is added to the limit, in the metric's unit."""
        raise NotImplementedError

    def right_side(self) -> str:
        """The right side of the one-line form."""
        metric = self.metric.partition("[")[0]
        return f"{self.against}.{metric}{times(self.share())}{plus(self.offset())}"

    def limit(self, reference: float) -> float:
        """What the candidate has to meet."""
        return moved(reference, self.share()) + self.offset()

    def limit_in_words(self, reference: float, shown_limit: str) -> str:
        """The right side as a sentence says it."""
        return limit_in_words(self.against, self.share(), self.offset(), reference, shown_limit)

    def _check_fields(self) -> None:
        check_metric(self.metric)
        check_margin(self.margin)
        check_group(self.against)
        check_flag("higher_is_better", self.higher_is_better)


@dataclass(frozen=True)
class NotWorseThan(Comparison):
    """The candidate is as good as the other, up to ``tolerance`` of the other's value (0.02 is 2 %).

    :param margin: how much worse it may be beyond that, in the metric's unit
    :param against: the group: ``champion``, ``baseline``, ``version:12``, ``alias:NAME`` ...
    """

    metric: str
    higher_is_better: bool
    tolerance: float = 0.0
    margin: float = 0.0
    against: str = CHAMPION
    kind: ClassVar[str] = "not_worse_than"

    def __post_init__(self) -> None:
        self._check_fields()
        check_share("tolerance", self.tolerance)

    def share(self) -> float:
        return -self.tolerance if self.higher_is_better else self.tolerance

    def offset(self) -> float:
        return -self.margin if self.higher_is_better else self.margin

    def text(self) -> str:
        return f"{self.metric} {'>=' if self.higher_is_better else '<='} {self.right_side()}"

    def check(self, candidate: float, reference: Measured | None) -> Evidence:
        other = given(reference)
        limit = self.limit(other)
        spare = rounding(candidate, other, self.margin)
        good = candidate >= limit - spare if self.higher_is_better else candidate <= limit + spare
        return _compared(self, good, candidate, other, limit, spare)


@dataclass(frozen=True)
class BetterThan(Comparison):
    """The candidate is strictly better than the other, by at least ``by`` of the other's value.

    :param margin: how much better it has to be beyond that, in the metric's unit
    :param against: the group: ``champion``, ``baseline``, ``version:12``, ``alias:NAME`` ...
    """

    metric: str
    higher_is_better: bool
    by: float = 0.0
    margin: float = 0.0
    against: str = CHAMPION
    kind: ClassVar[str] = "better_than"

    def __post_init__(self) -> None:
        self._check_fields()
        check_share("by", self.by)

    def share(self) -> float:
        return self.by if self.higher_is_better else -self.by

    def offset(self) -> float:
        return self.margin if self.higher_is_better else -self.margin

    def text(self) -> str:
        return f"{self.metric} {'>' if self.higher_is_better else '<'} {self.right_side()}"

    def check(self, candidate: float, reference: Measured | None) -> Evidence:
        other = given(reference)
        limit = self.limit(other)
        spare = rounding(candidate, other, self.margin)
        if self.higher_is_better:
            good = candidate > other + spare and candidate >= limit - spare
        else:
            good = candidate < other - spare and candidate <= limit + spare
        return _compared(self, good, candidate, other, limit, spare)


def moved(value: float, share: float) -> float:
    """``value`` moved by a share of its size: up for a positive share, whatever the value's sign."""
    return value + share * abs(value) if value < 0 else value * (1 + share)


def times(share: float) -> str:
    """The factor of a one-line form."""
    # 1 + 0.07 is 1.07 for people, 1.07 or its neighbour for floats.
    return f" * {round(1 + share, 12)!r}" if share else ""


def plus(offset: float) -> str:
    """The margin of a one-line form."""
    return f" {'+' if offset > 0 else '-'} {abs(float(offset))!r}" if offset else ""


def given(reference: Measured | None) -> float:
    """A reference that was checked to be a number."""
    if reference is None or isinstance(reference, NoNumber):
        raise ValueError("a comparison needs the other's measurement")
    return reference


def limit_in_words(against: str, share: float, offset: float, reference: float, shown_limit: str) -> str:
    """The limit as a sentence says it: the other's value, and how it was moved."""
    words = f"{named(against)}'s {show_number(reference)}"
    if reference > 0 and not (offset and not share):
        words += f" × {1 + share:.4g}" if share and f"{1 + share:.4g}" != "1" else " × 1.00"
    elif share:
        words += f" {'plus' if share > 0 else 'minus'} {abs(share) * 100:.4g} %"
    if offset:
        words += f" {'plus' if offset > 0 else 'minus'} {show_number(abs(offset))}"
    return f"{words} = {shown_limit}" if share or offset else words


def _compared(
    rule: NotWorseThan | BetterThan,
    good: bool,
    candidate: float,
    reference: float,
    limit: float,
    spare: float,
) -> Evidence:
    if isinstance(read(limit), NoNumber):
        words = rule.limit_in_words(reference, "").partition(" = ")[0]
        sentence = f"{rule.metric} cannot be compared: {words} is infinite"
        return rule.evidence(VerdictKind.INCONCLUSIVE, sentence, candidate, reference, None)
    value, shown_limit = pair(candidate, limit, spare)
    words = rule.limit_in_words(reference, shown_limit)
    if good:
        relation = "is at least" if rule.higher_is_better else "is at most"
        if isinstance(rule, BetterThan) and not rule.share() and not rule.offset():
            relation = "is better than"
        return rule.evidence(
            VerdictKind.ACCEPTED, f"{rule.metric} {value} {relation} {words}", candidate, reference, limit
        )
    worse = "is below" if rule.higher_is_better else "is above"
    relation = "is no better than" if abs(candidate - limit) <= spare else worse
    return rule.evidence(
        VerdictKind.REJECTED, f"{rule.metric} {value} {relation} {words}", candidate, reference, limit
    )


# The names from before there were other groups to compare with.
NotWorseThanChampion = NotWorseThan
BetterThanChampion = BetterThan
