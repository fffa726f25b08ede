"""Rules with a number: the candidate's metric is at most or at least so much."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.gates.recorded import Source
from nighttrain.providers.registry.gates.rules.base import (
    MetricRule,
    check_count,
    check_finite,
    check_metric,
    pair,
)
from nighttrain.providers.registry.gates.rules.rounding import rounding
from nighttrain.providers.registry.gates.verdicts import Evidence, VerdictKind

if TYPE_CHECKING:
    from nighttrain.providers.measured import Measured

_SAMPLE_NAMES = frozenset({"rows", "samples"})
_DAY = 86_400.0


@dataclass(frozen=True)
class AtMost(MetricRule):
    """The candidate's metric is at most ``limit``."""

    metric: str
    limit: float
    kind: ClassVar[str] = "at_most"

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_finite("limit", self.limit)

    def text(self) -> str:
        return f"{self.metric} <= {self.limit!r}"

    def check(self, candidate: float, reference: Measured | None) -> Evidence:
        spare = rounding(candidate, self.limit)
        value, limit = pair(candidate, self.limit, spare)
        if candidate <= self.limit + spare:
            sentence, verdict = f"{self.metric} {value} is at most {limit}", VerdictKind.ACCEPTED
        else:
            sentence, verdict = f"{self.metric} {value} is above the limit {limit}", VerdictKind.REJECTED
        return self.evidence(verdict, sentence, candidate, reference, float(self.limit))


@dataclass(frozen=True)
class AtLeast(MetricRule):
    """The candidate's metric is at least ``limit``."""

    metric: str
    limit: float
    kind: ClassVar[str] = "at_least"

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_finite("limit", self.limit)

    def text(self) -> str:
        return f"{self.metric} >= {self.limit!r}"

    def check(self, candidate: float, reference: Measured | None) -> Evidence:
        spare = rounding(candidate, self.limit)
        value, limit = pair(candidate, self.limit, spare)
        if candidate >= self.limit - spare:
            sentence, verdict = f"{self.metric} {value} is at least {limit}", VerdictKind.ACCEPTED
        else:
            sentence, verdict = f"{self.metric} {value} is below the limit {limit}", VerdictKind.REJECTED
        return self.evidence(verdict, sentence, candidate, reference, float(self.limit))


@dataclass(frozen=True)
class MinimumSamples(MetricRule):
    """Too few samples is no verdict: below ``count`` the gate is inconclusive, never rejected."""

    metric: str
    count: int
    kind: ClassVar[str] = "minimum_samples"

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_count("count", self.count)

    def text(self) -> str:
        shown = f"{self.metric} >= {self.count}"
        return shown if counts_samples(self.metric) else f"samples({self.metric}) >= {self.count}"

    def check(self, candidate: float, reference: Measured | None) -> Evidence:
        value, limit = pair(candidate, self.count)
        if candidate >= self.count:
            sentence, verdict = f"{self.metric} {value} is enough, {limit} are needed", VerdictKind.ACCEPTED
        else:
            sentence = f"{self.metric} {value} is too few to judge, {limit} are needed"
            verdict = VerdictKind.INCONCLUSIVE
        return self.evidence(verdict, sentence, candidate, reference, float(self.count))


@dataclass(frozen=True)
class DataAge(MetricRule):
    """The newest data that the candidate was trained on are at most ``seconds`` old."""

    seconds: float
    kind: ClassVar[str] = "data_age"

    def __post_init__(self) -> None:
        check_finite("seconds", self.seconds)
        if self.seconds <= 0:
            raise ConfigurationError("seconds", self.seconds, "give an age above 0, in seconds")

    @property
    def metric(self) -> str:  # type: ignore[override]
        """The gate fills it in, in seconds."""
        return "data_age"

    def text(self) -> str:
        days = self.seconds / _DAY
        return f"data_age <= {int(days)}d" if days == int(days) else f"data_age <= {self.seconds!r}s"

    def sources(self) -> frozenset[Source]:
        return frozenset({Source.DATA_AGE})

    def check(self, candidate: float, reference: Measured | None) -> Evidence:
        if candidate < 0:
            sentence = f"the data are said to end {_span(-candidate)} from now: that is no age"
            return self.evidence(VerdictKind.INCONCLUSIVE, sentence, candidate, reference, self.seconds)
        fresh = candidate <= self.seconds
        verdict = VerdictKind.ACCEPTED if fresh else VerdictKind.REJECTED
        relation = "at most" if fresh else "more than the"
        allowed = "are allowed" if fresh else "that are allowed"
        sentence = f"the data are {_span(candidate)} old, {relation} {_span(self.seconds)} {allowed}"
        return self.evidence(verdict, sentence, candidate, reference, float(self.seconds))


def counts_samples(metric: str) -> bool:
    """True if the metric's name says that it counts rows or samples."""
    name = metric.partition("[")[0]
    return re.split(r"[._/\-]", name)[-1].lower() in _SAMPLE_NAMES


def _span(seconds: float) -> str:
    for unit, name in ((_DAY, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:,.4g} {name if seconds > unit else name[:-1]}"
    return f"{seconds:.4g} seconds"
