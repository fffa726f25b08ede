"""What is analysed during a rollout, as data: metrics, their limits, and where they are measured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.values import KEPT_VALUES
from nighttrain.providers.serving.fields import is_number, require_a

# Two looks a minute: a bad version is undone within a minute of the first that suffices.
INTERVAL_SECONDS = 30.0

# One good version in a hundred is undone, over all looks of all metrics together.
FALSE_ALARMS = 0.01

# One version in twenty that is worse by exactly the limit goes on; worse ones are found out sooner or later.
LET_THROUGH = 0.05

# The least number of requests to a version before anything is said about it: below, one error is percents.
MIN_REQUESTS = 50

# An hour in which nothing could be said: traffic will hardly come by waiting longer.
INCONCLUSIVE_SECONDS = 3600.0

# Prometheus restarts within minutes; after an hour a person should know that nobody looks.
OUTAGE_SECONDS = 3600.0

# The state of a rollout keeps what each has measured, in an object of at most a megabyte.
MAX_METRICS = 50

_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")


class Kind(StrEnum):
    """What a metric measures."""

    ERRORS = "errors"
    """Requests that failed, were cut, or hang."""
    LATENCY = "latency"
    """Requests slower than a limit that follows from the stable version's quantile."""
    DISAGREEMENT = "disagreement"
    """Requests that both versions answered, differently."""
    WRONG = "wrong"
    """Golden requests that were not answered as expected, or late labels that the prediction missed."""
    DISTANCE = "distance"
    """The largest distance of the two distributions of predictions (Kolmogorov and Smirnov's)."""
    NUMBER = "number"
    """A number that a query or a check of one's own gives."""


class WhenInconclusive(StrEnum):
    """What follows when the analysis stays inconclusive, or blind, for longer than its limit."""

    STALL = "stall"
    """Hold the share and wait for a person, or for a newer version."""
    ABORT = "abort"
    """Undo the rollout."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric and its limit.

    :param name: for people, and for its series in MLflow; lower-case letters, digits and ``_``
    :param source: where it is measured: ``{"type": "counters"}`` and the source's own parameters
    :param limit: what is tolerable. Of errors, wrong and slow requests: a step goes on once the candidate is
        shown to be worse than the stable version by less than this share of the requests (0.01 is one in a
        hundred), and is undone once it is shown to be worse at all, by a twentieth of this or more. Where
        there is nothing to compare with, the largest share. Of disagreement and distance: the largest share,
        from 0 to 1. Of a number: the number
    :param worse: of a number, whether ``"above"`` or ``"below"`` the limit is a failure
    :param quantile: of latency, the quantile that is held
    :param increase: of latency, what is tolerable on top of the stable version's quantile; 0.2 is a fifth
    :param failures: of a number, measurements in a row beyond the limit that are a failure. Numbers have no
        size of sample, so this is a rule of thumb and no test
    :param min_requests: to each version, below which nothing is said
    """

    name: str
    kind: Kind
    source: Mapping[str, Any] = field(default_factory=lambda: {"type": "counters"})
    limit: float = 0.01
    worse: str = "above"
    quantile: float = 0.95
    increase: float = 0.2
    failures: int = 3
    min_requests: int = MIN_REQUESTS

    def validate(self, field_name: str) -> None:
        """Find every mistake that can be found without measuring.

        :raises ConfigurationError: names the field, the value and the fix
        """
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"{field_name}.name", self.name, "use lower-case letters, digits and '_', a letter first"
            )
        require_a(Kind, f"{field_name}.kind", self.kind, f"choose one of {', '.join(Kind)}, as Kind.ERRORS")
        number = self.kind is Kind.NUMBER
        if not is_number(self.limit) or not (number or 0 <= self.limit < 1):
            fix = "give a number" if number else "give a share from 0 to below 1; 0.01 is one in a hundred"
            raise ConfigurationError(f"{field_name}.limit", self.limit, fix)
        if self.worse not in ("above", "below"):
            raise ConfigurationError(f"{field_name}.worse", self.worse, "write above or below")
        if not is_number(self.quantile) or not 0 < self.quantile < 1:
            raise ConfigurationError(f"{field_name}.quantile", self.quantile, "give a share such as 0.95")
        if not is_number(self.increase) or self.increase < 0:
            raise ConfigurationError(f"{field_name}.increase", self.increase, "give a share such as 0.2")
        for name in ("failures", "min_requests"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{field_name}.{name}", value, "use a whole number from 1")
        if self.failures > KEPT_VALUES:
            fix = f"use at most {KEPT_VALUES}: no more measurements are kept"
            raise ConfigurationError(f"{field_name}.failures", self.failures, fix)
        if not isinstance(self.source, Mapping) or not isinstance(self.source.get("type"), str):
            raise ConfigurationError(f"{field_name}.source", self.source, "name its type, e.g. counters")


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The metrics that decide, how often they are measured, and what follows when they cannot say.

    A step goes on when all are successful; one that failed undoes the rollout; otherwise it holds.

    :param false_alarms: the probability that a version which is no worse is ever undone by all the tests
        together, however often they look
    :param let_through: the probability that a version which is worse by the limit ever counts as successful,
        for each metric
    :param inconclusive_seconds: of one step, after which ``when_inconclusive`` follows
    :param outage_seconds: without any measurement, after which ``when_inconclusive`` follows
    """

    metrics: tuple[Metric, ...]
    interval_seconds: float = INTERVAL_SECONDS
    false_alarms: float = FALSE_ALARMS
    let_through: float = LET_THROUGH
    inconclusive_seconds: float = INCONCLUSIVE_SECONDS
    outage_seconds: float = OUTAGE_SECONDS
    when_inconclusive: WhenInconclusive = WhenInconclusive.STALL

    def validate(self) -> None:
        """Find every mistake that can be found without measuring.

        :raises ConfigurationError: names the field, the value and the fix
        """
        fix = "give a list of metrics, or leave analysis out"
        require_a((list, tuple), "strategy.analysis.metrics", self.metrics, fix)
        fix = f"choose one of {', '.join(WhenInconclusive)}, as WhenInconclusive.STALL"
        field_name = "strategy.analysis.when_inconclusive"
        require_a(WhenInconclusive, field_name, self.when_inconclusive, fix)
        if not self.metrics:
            raise ConfigurationError("strategy.analysis.metrics", (), "name a metric, or leave analysis out")
        if len(self.metrics) > MAX_METRICS:
            fix = f"give at most {MAX_METRICS}: the rollout's state keeps what each has measured"
            raise ConfigurationError("strategy.analysis.metrics", len(self.metrics), fix)
        for number, metric in enumerate(self.metrics):
            require_a(Metric, f"strategy.analysis.metrics[{number}]", metric, "give a Metric")
            metric.validate(f"strategy.analysis.metrics[{number}]")
        names = [metric.name for metric in self.metrics]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ConfigurationError("strategy.analysis.metrics", twice, "give each metric a name of its own")
        for name in ("interval_seconds", "inconclusive_seconds", "outage_seconds"):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise ConfigurationError(f"strategy.analysis.{name}", value, "give seconds above 0")
        for name in ("false_alarms", "let_through"):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value < 0.5:
                raise ConfigurationError(
                    f"strategy.analysis.{name}", value, "give a probability such as 0.01"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "metrics": [asdict(metric) for metric in self.metrics]}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Analysis:
        """An analysis from plain values.

        :raises ConfigurationError: names the field that is unknown or missing
        """
        where = "strategy.analysis"
        require_a(
            Mapping, where, given, "give an analysis's fields: its metrics, and how often they are measured"
        )
        _check_fields(where, given, cls)
        metrics = given.get("metrics") or ()
        require_a((list, tuple), f"{where}.metrics", metrics, "give a list of metrics")
        values = {key: value for key, value in given.items() if key != "metrics"}
        if "when_inconclusive" in values:
            values["when_inconclusive"] = _choice(
                f"{where}.when_inconclusive", WhenInconclusive, values["when_inconclusive"]
            )
        return cls(
            metrics=tuple(_metric(f"{where}.metrics[{n}]", each) for n, each in enumerate(metrics)), **values
        )


def _metric(where: str, given: Any) -> Metric:
    require_a(Mapping, where, given, "give a metric's fields: name, kind, source, limit")
    _check_fields(where, given, Metric)
    if missing := {"name", "kind"} - given.keys():
        raise ConfigurationError(f"{where}.{min(missing)}", None, "a metric needs a name and a kind")
    return Metric(**{**given, "kind": _choice(f"{where}.kind", Kind, given["kind"])})


def _choice(where: str, kind: type[StrEnum], given: Any) -> Any:
    try:
        return kind(given)
    except ValueError as error:
        raise ConfigurationError(where, given, f"choose one of {', '.join(kind)}") from error


def _check_fields(where: str, given: Mapping[str, Any], kind: Any) -> None:
    known = kind.__dataclass_fields__
    if unknown := sorted(map(str, given.keys() - known.keys())):
        raise ConfigurationError(
            f"{where}.{unknown[0]}", given[unknown[0]], f"there is no such field; known: {', '.join(known)}"
        )
