"""The statistical rule: is the candidate better than what is allowed, by more than chance explains?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.gates.bootstrap import Interval, mean_interval
from nighttrain.providers.registry.gates.recorded import CANDIDATE, CHAMPION, Recorded, Source
from nighttrain.providers.registry.gates.rules.base import (
    NoChampion,
    Rule,
    check_count,
    check_finite,
    check_flag,
    check_group,
    check_margin,
    check_metric,
    check_share,
    named,
    not_measured,
)
from nighttrain.providers.registry.gates.rules.comparisons import limit_in_words, moved, plus, times
from nighttrain.providers.registry.gates.rules.rounding import rounding
from nighttrain.providers.registry.gates.verdicts import Evidence, VerdictKind, show_number

if TYPE_CHECKING:
    from nighttrain.providers.registry.gates.recorded_files import PairedLosses

CONFIDENCE = 0.95
"""The habit of the field: one verdict in forty, on either side, is chance where nothing differs."""

MINIMUM_ROWS = 500
"""As many as the gate's plain rule in the examples asks for."""

MINIMUM_GROUPS = 10
"""Fewer groups allow fewer than a thousand combinations of signs, and no statement about 2.5 %."""


@dataclass(frozen=True)
class PairedBootstrap(Rule):
    """A comparison by means over rows that both models predicted, with a confidence interval.

    :param tolerance: how much worse the candidate may be, as a share of the other's mean; negative: how much
        better it has to be
    :param margin: the same in the metric's unit, beyond that
    :param confidence: of the two-sided interval
    :param minimum_rows: fewer rows are inconclusive
    :param minimum_groups: fewer groups of rows that belong together are inconclusive
    """

    metric: str
    higher_is_better: bool
    tolerance: float = 0.0
    margin: float = 0.0
    against: str = CHAMPION
    confidence: float = CONFIDENCE
    minimum_rows: int = MINIMUM_ROWS
    minimum_groups: int = MINIMUM_GROUPS
    kind: ClassVar[str] = "paired_bootstrap"

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if "[" in self.metric:
            raise ConfigurationError("metric", self.metric, "a statistical rule is about all rows")
        check_flag("higher_is_better", self.higher_is_better)
        check_finite("tolerance", self.tolerance)
        check_share("tolerance", abs(self.tolerance))
        check_finite("margin", self.margin)
        check_margin(abs(self.margin))
        check_group(self.against)
        check_finite("confidence", self.confidence)
        if not 0.5 <= self.confidence <= 0.99:
            raise ConfigurationError("confidence", self.confidence, "give a share from 0.5 to 0.99")
        check_count("minimum_rows", self.minimum_rows)
        check_count("minimum_groups", self.minimum_groups)
        if self.minimum_groups < MINIMUM_GROUPS:
            raise ConfigurationError("minimum_groups", self.minimum_groups, f"give at least {MINIMUM_GROUPS}")

    def share(self) -> float:
        """The share by which the limit is moved: positive is up."""
        return -self.tolerance if self.higher_is_better else self.tolerance

    def offset(self) -> float:
        """What is added to the limit."""
        return -self.margin if self.higher_is_better else self.margin

    def text(self) -> str:
        right = f"{self.against}.{self.metric}{times(self.share())}{plus(self.offset())}"
        return (
            f"{self.metric} {'>=' if self.higher_is_better else '<='} {right} (paired, confidence "
            f"{self.confidence!r}, n >= {self.minimum_rows}, groups >= {self.minimum_groups})"
        )

    def sources(self) -> frozenset[Source]:
        return frozenset({Source.PAIRED_LOSSES})

    def judge(self, recorded: Recorded, no_champion: NoChampion) -> Evidence:
        if self.needs_champion and not recorded.has_champion:
            return self.without_champion(no_champion)
        if recorded.of(self.against) is None:
            return self.inconclusive(not_measured(self.against, recorded))
        losses = recorded.paired.get(self.metric)
        if losses is None:
            why = recorded.why_missing(Source.PAIRED_LOSSES)
            known = ", ".join(sorted(recorded.paired)[:8]) or "none"
            return self.inconclusive(f"no paired losses of {self.metric} (found: {known}){why}")
        for group in (CANDIDATE, self.against):
            if group not in losses.sums:
                return self.inconclusive(f"the paired losses of {self.metric} leave out {named(group)}")
        rows, groups = sum(losses.rows), len(losses.rows)
        if rows < self.minimum_rows or groups < self.minimum_groups:
            return self.inconclusive(
                f"{rows:,} rows in {groups:,} groups are too few to judge, {self.minimum_rows:,} in "
                f"{self.minimum_groups:,} are needed",
                note=f"{rows:,} rows, {groups:,} groups",
            )
        return self._compare(losses)

    def _compare(self, losses: PairedLosses) -> Evidence:
        rows = sum(losses.rows)
        mine, other = losses.sums[CANDIDATE], losses.sums[self.against]
        candidate, reference = sum(mine) / rows, sum(other) / rows
        limit = moved(reference, self.share()) + self.offset()
        # Moves each group's sum as `moved` moves the mean.
        factor = 1 + self.share() if reference >= 0 else 1 - self.share()
        above = [
            value - factor * theirs - self.offset() * n
            for value, theirs, n in zip(mine, other, losses.rows, strict=True)
        ]
        interval = mean_interval(above, losses.rows, confidence=self.confidence)
        return self._evidence(candidate, reference, limit, interval, losses)

    def _evidence(
        self, candidate: float, reference: float, limit: float, interval: Interval, losses: PairedLosses
    ) -> Evidence:
        good, bad = interval.low, interval.high
        if not self.higher_is_better:
            good, bad = -bad, -good
        spare = rounding(candidate, reference, self.margin)
        verdict = VerdictKind.INCONCLUSIVE
        if good >= -spare:
            verdict = VerdictKind.ACCEPTED
        elif bad < -spare:
            verdict = VerdictKind.REJECTED
        words = {
            VerdictKind.ACCEPTED: "is certainly on the good side of",
            VerdictKind.REJECTED: "is certainly on the wrong side of",
            VerdictKind.INCONCLUSIVE: "cannot be told from",
        }[verdict]
        rows, groups = sum(losses.rows), len(losses.rows)
        span = f"{interval.low:+.4g} to {interval.high:+.4g}"
        limit_words = limit_in_words(self.against, self.share(), self.offset(), reference, show_number(limit))
        sentence = (
            f"{self.metric} {show_number(candidate)} {words} {limit_words}: "
            f"{interval.mean:+.4g} from it, {self.confidence * 100:.4g} % interval {span}, {rows:,} rows in "
            f"{groups:,} groups"
        )
        found = Evidence(
            self.text(),
            candidate,
            reference,
            limit,
            verdict,
            sentence,
            note=f"{span}, n {rows:,} in {groups:,}",
            details={
                "effect": interval.mean,
                "difference": candidate - reference,
                "low": interval.low,
                "high": interval.high,
                "confidence": self.confidence,
                "rows": rows,
                "groups": groups,
            },
        )
        return found if self.against == CHAMPION else found.compared_with(self.against)
