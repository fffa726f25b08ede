"""Rules over recorded measurements, and the verdict they give. Pure: no I/O, no clock, no state.

A rule that finds no data (a missing metric, not-a-number, an infinity, for either model that it reads) is
*inconclusive*: it neither accepts nor rejects. The verdict is rejected when any rule rejects, else
inconclusive when any is, else accepted.

One-line forms, for templates and configuration (``candidate`` is meant where nothing else is said)::

    mae <= 25                          AtMost("mae", 25)
    accuracy >= 0.9                    AtLeast("accuracy", 0.9)
    rows >= 500                        MinimumSamples("rows", 500)    also n_rows, samples, test.samples ...
    mae <= champion.mae * 1.02         NotWorseThanChampion("mae", higher_is_better=False, tolerance=0.02)
    accuracy >= champion * 0.99        NotWorseThanChampion("accuracy", higher_is_better=True, tolerance=0.01)
    mae < champion.mae * 0.95          BetterThanChampion("mae", higher_is_better=False, by=0.05)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.registry.gates.verdicts import Evidence, Verdict, VerdictKind, show_number, stored
from nighttrain.providers.tracking.measured import Measured, NoNumber, read


class NoChampion(StrEnum):
    """The answer of a rule against the champion while there is none."""

    ACCEPT = "accept"
    REJECT = "reject"
    INCONCLUSIVE = "inconclusive"


NO_CHAMPION = tuple(NoChampion)

_SAMPLE_NAMES = frozenset({"rows", "samples"})
_RULE = re.compile(
    r"\s*(?:candidate\.)?(?P<metric>[^\s<>=*]+)\s*(?P<operator><=|>=|<|>)\s*"
    r"(?:(?P<champion>champion)(?:\.(?P<other>[^\s<>=*]+))?(?:\s*\*\s*(?P<factor>\S+))?|(?P<number>\S+))\s*"
)
_FORMS = "write it like 'mae <= 25', 'rows >= 500' or 'mae <= champion.mae * 1.02'"


class Rule:
    """A rule: :meth:`check` is a pure function of the two models' measurements."""

    kind: ClassVar[str]
    needs_champion: ClassVar[bool] = False
    metric: str

    def text(self) -> str:
        """The one-line form; :func:`parse_rule` reads it back."""
        raise NotImplementedError

    def check(self, candidate: float, champion: Measured | None) -> Evidence:
        """Judge numbers that are finite. ``champion`` is one too where ``needs_champion``."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{"rule": kind, ...}``."""
        return {"rule": self.kind, **{item.name: getattr(self, item.name) for item in fields(self)}}  # type: ignore[arg-type]

    def _evidence(
        self,
        verdict: VerdictKind,
        sentence: str,
        candidate: Measured | None,
        champion: Measured | None,
        limit: float | None,
    ) -> Evidence:
        return Evidence(self.text(), stored(candidate), stored(champion), limit, verdict, sentence)


@dataclass(frozen=True)
class AtMost(Rule):
    """The candidate's metric is at most ``limit``."""

    metric: str
    limit: float
    kind: ClassVar[str] = "at_most"

    def __post_init__(self) -> None:
        _check_metric(self.metric)
        _check_finite("limit", self.limit)

    def text(self) -> str:
        return f"{self.metric} <= {self.limit!r}"

    def check(self, candidate: float, champion: Measured | None) -> Evidence:
        value, limit = _pair(candidate, self.limit)
        if candidate <= self.limit:
            sentence, verdict = f"{self.metric} {value} is at most {limit}", VerdictKind.ACCEPTED
        else:
            sentence, verdict = f"{self.metric} {value} is above the limit {limit}", VerdictKind.REJECTED
        return self._evidence(verdict, sentence, candidate, champion, float(self.limit))


@dataclass(frozen=True)
class AtLeast(Rule):
    """The candidate's metric is at least ``limit``."""

    metric: str
    limit: float
    kind: ClassVar[str] = "at_least"

    def __post_init__(self) -> None:
        _check_metric(self.metric)
        _check_finite("limit", self.limit)

    def text(self) -> str:
        return f"{self.metric} >= {self.limit!r}"

    def check(self, candidate: float, champion: Measured | None) -> Evidence:
        value, limit = _pair(candidate, self.limit)
        if candidate >= self.limit:
            sentence, verdict = f"{self.metric} {value} is at least {limit}", VerdictKind.ACCEPTED
        else:
            sentence, verdict = f"{self.metric} {value} is below the limit {limit}", VerdictKind.REJECTED
        return self._evidence(verdict, sentence, candidate, champion, float(self.limit))


@dataclass(frozen=True)
class NotWorseThanChampion(Rule):
    """The candidate is as good as the champion, up to ``tolerance`` of the champion's value (0.02 is 2 %)."""

    metric: str
    higher_is_better: bool
    tolerance: float = 0.0
    kind: ClassVar[str] = "not_worse_than_champion"
    needs_champion: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_metric(self.metric)
        _check_share("tolerance", self.tolerance)

    def text(self) -> str:
        operator, sign = (">=", -1) if self.higher_is_better else ("<=", 1)
        return f"{self.metric} {operator} champion.{self.metric}{_times(sign * self.tolerance)}"

    def check(self, candidate: float, champion: Measured | None) -> Evidence:
        reference = _given(champion)
        sign = -1 if self.higher_is_better else 1
        limit = _moved(reference, sign * self.tolerance)
        good = candidate >= limit if self.higher_is_better else candidate <= limit
        return _compared(
            self, good, candidate, reference, limit, sign * self.tolerance, self.higher_is_better
        )


@dataclass(frozen=True)
class BetterThanChampion(Rule):
    """The candidate is strictly better than the champion, by at least ``by`` of the champion's value."""

    metric: str
    higher_is_better: bool
    by: float = 0.0
    kind: ClassVar[str] = "better_than_champion"
    needs_champion: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_metric(self.metric)
        _check_share("by", self.by)

    def text(self) -> str:
        operator, sign = (">", 1) if self.higher_is_better else ("<", -1)
        return f"{self.metric} {operator} champion.{self.metric}{_times(sign * self.by)}"

    def check(self, candidate: float, champion: Measured | None) -> Evidence:
        reference = _given(champion)
        sign = 1 if self.higher_is_better else -1
        limit = _moved(reference, sign * self.by)
        if self.higher_is_better:
            good = candidate > reference and candidate >= limit
        else:
            good = candidate < reference and candidate <= limit
        return _compared(self, good, candidate, reference, limit, sign * self.by, self.higher_is_better)


@dataclass(frozen=True)
class MinimumSamples(Rule):
    """Too few samples is no verdict: below ``count`` the gate is inconclusive, never rejected."""

    metric: str
    count: int
    kind: ClassVar[str] = "minimum_samples"

    def __post_init__(self) -> None:
        _check_metric(self.metric)
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise ConfigurationError("count", self.count, "give a whole number from 1")
        _check_finite("count", self.count)

    def text(self) -> str:
        shown = f"{self.metric} >= {self.count}"
        return shown if _counts_samples(self.metric) else f"samples({self.metric}) >= {self.count}"

    def check(self, candidate: float, champion: Measured | None) -> Evidence:
        value, limit = _pair(candidate, self.count)
        if candidate >= self.count:
            sentence, verdict = f"{self.metric} {value} is enough, {limit} are needed", VerdictKind.ACCEPTED
        else:
            sentence = f"{self.metric} {value} is too few to judge, {limit} are needed"
            verdict = VerdictKind.INCONCLUSIVE
        return self._evidence(verdict, sentence, candidate, champion, float(self.count))


_KINDS: dict[str, type[Any]] = {
    rule.kind: rule for rule in (AtMost, AtLeast, NotWorseThanChampion, BetterThanChampion, MinimumSamples)
}


def parse_rule(rule: str | Mapping[str, Any] | Rule) -> Rule:
    """A rule from its one-line form, its plain values, or a rule itself.

    :raises ConfigurationError: it cannot be read, with the forms that can
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, Mapping):
        return _from_dict(rule)
    if not isinstance(rule, str):
        raise ConfigurationError("rule", rule, _FORMS)
    samples = re.fullmatch(r"\s*samples\((?P<metric>[^\s()]+)\)\s*>=\s*(?P<count>\d+)\s*", rule)
    if samples:
        return MinimumSamples(samples["metric"], int(samples["count"]))
    found = _RULE.fullmatch(rule)
    if found is None:
        raise ConfigurationError("rule", rule, _FORMS)
    if found["champion"]:
        return _parse_comparison(rule, found)
    return _parse_absolute(rule, found["metric"], found["operator"], _to_number(rule, found["number"]))


def parse_rules(rules: Sequence[str | Mapping[str, Any] | Rule]) -> tuple[Rule, ...]:
    """:func:`parse_rule` for each. :raises ConfigurationError: also when there is none"""
    if isinstance(rules, str | Mapping | Rule):
        rules = [rules]
    parsed = tuple(parse_rule(rule) for rule in rules)
    if not parsed:
        raise ConfigurationError("rules", None, f"a gate without a rule would accept anything: {_FORMS}")
    return parsed


def judge(
    rules: Sequence[str | Mapping[str, Any] | Rule],
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    *,
    no_champion: str = "accept",
) -> Verdict:
    """Judge the candidate's measurements.

    :param champion: the champion's measurements on the same data; ``None`` when there is no champion yet
    :param no_champion: what a rule against the champion says then: ``accept``, ``reject`` or ``inconclusive``
    :raises ConfigurationError: no rules, a rule that cannot be read, an unknown ``no_champion``
    """
    if no_champion not in NO_CHAMPION:
        raise ConfigurationError("no_champion", no_champion, f"one of {', '.join(NO_CHAMPION)}")
    for name, values in (("candidate", candidate), ("champion", champion)):
        if not isinstance(values, Mapping) and (name, values) != ("champion", None):
            raise ConfigurationError(f"measurements.{name}", values, "give a mapping of metrics to numbers")
    without = NoChampion(no_champion)
    evidence = tuple(_judge_one(rule, candidate, champion, without) for rule in parse_rules(rules))
    kinds = {item.verdict for item in evidence}
    for kind in (VerdictKind.REJECTED, VerdictKind.INCONCLUSIVE):
        if kind in kinds:
            return Verdict(kind, evidence)
    return Verdict(VerdictKind.ACCEPTED, evidence)


def _judge_one(
    rule: Rule, candidate: Mapping[str, Any], champion: Mapping[str, Any] | None, no_champion: NoChampion
) -> Evidence:
    value = read(candidate.get(rule.metric))
    reference = None if champion is None else read(champion.get(rule.metric))
    if isinstance(value, NoNumber):
        sentence = f"the candidate has no {_no_data(candidate, rule.metric, value)}"
        return rule._evidence(VerdictKind.INCONCLUSIVE, sentence, value, reference, None)
    if rule.needs_champion and champion is None:
        verdict, said = {
            NoChampion.ACCEPT: (VerdictKind.ACCEPTED, "so the rule is met"),
            NoChampion.REJECT: (VerdictKind.REJECTED, "and the gate wants one"),
            NoChampion.INCONCLUSIVE: (VerdictKind.INCONCLUSIVE, "so the rule cannot be judged"),
        }[no_champion]
        sentence = f"{rule.metric} {show_number(value)}: there is no champion yet, {said}"
        return rule._evidence(verdict, sentence, value, None, None)
    if rule.needs_champion and champion is not None and isinstance(reference, NoNumber):
        sentence = f"the champion has no {_no_data(champion, rule.metric, reference)}"
        return rule._evidence(VerdictKind.INCONCLUSIVE, sentence, value, reference, None)
    return rule.check(value, reference)


def _no_data(values: Mapping[str, Any], metric: str, found: NoNumber) -> str:
    if metric not in values:
        known = ", ".join(sorted(str(key) for key in values)[:8]) or "nothing"
        return f"{metric} (measured: {known})"
    if found is NoNumber.UNREADABLE:
        return f"usable {metric}: {clip(repr(values[metric]), 60)} is no number"
    return f"usable {metric}: it is {found.sentence}"


def _compared(
    rule: Rule,
    good: bool,
    candidate: float,
    champion: float,
    limit: float,
    share: float,
    higher_is_better: bool,
) -> Evidence:
    if isinstance(read(limit), NoNumber):
        reference = f"the champion's {show_number(champion)} × {1 + share:.4g}"
        sentence = f"{rule.metric} cannot be compared: {reference} is infinite"
        return rule._evidence(VerdictKind.INCONCLUSIVE, sentence, candidate, champion, None)
    value, shown_limit = _pair(candidate, limit)
    reference = f"the champion's {show_number(champion)}"
    if champion > 0:
        reference += f" × {1 + share:.4g}" if share and f"{1 + share:.4g}" != "1" else " × 1.00"
    elif share:
        reference += f" {'plus' if share > 0 else 'minus'} {abs(share) * 100:.4g} %"
    if share:
        reference += f" = {shown_limit}"
    if good:
        relation = "is at least" if higher_is_better else "is at most"
        if isinstance(rule, BetterThanChampion):
            relation = "is better than" if not share else relation
        sentence = f"{rule.metric} {value} {relation} {reference}"
        return rule._evidence(VerdictKind.ACCEPTED, sentence, candidate, champion, limit)
    worse = "is below" if higher_is_better else "is above"
    relation = "is no better than" if candidate == limit else worse
    sentence = f"{rule.metric} {value} {relation} {reference}"
    return rule._evidence(VerdictKind.REJECTED, sentence, candidate, champion, limit)


def _moved(value: float, share: float) -> float:
    """``value`` moved by a share of its size: up for a positive share, whatever the value's sign."""
    return value + share * abs(value) if value < 0 else value * (1 + share)


def _times(share: float) -> str:
    return f" * {_factor(share)!r}" if share else ""


def _factor(share: float) -> float:
    # 1 + 0.07 is 1.07 for people, 1.07 or its neighbour for floats.
    return round(1 + share, 12)


def _given(champion: Measured | None) -> float:
    if champion is None or isinstance(champion, NoNumber):
        raise ValueError("a rule against the champion needs its measurement")
    return champion


def _pair(value: float, limit: float) -> tuple[str, str]:
    """Both as text, with as many digits as it takes to tell them apart."""
    shown = show_number(value), show_number(limit)
    if value == limit or float(shown[0].replace(",", "")) != float(shown[1].replace(",", "")):
        return shown
    for digits in range(5, 18):
        shown = f"{value:.{digits}g}", f"{limit:.{digits}g}"
        if shown[0] != shown[1]:
            return shown
    return repr(value), repr(limit)


def _parse_absolute(rule: str, metric: str, operator: str, number: float) -> Rule:
    if operator == "<=":
        return AtMost(metric, number)
    if operator == ">=":
        if _counts_samples(metric) and number == int(number) and number >= 1:
            return MinimumSamples(metric, int(number))
        return AtLeast(metric, number)
    raise ConfigurationError("rule", rule, f"write '{operator}=': limits belong to what is allowed")


def _parse_comparison(rule: str, found: re.Match[str]) -> Rule:
    metric, operator = found["metric"], found["operator"]
    if found["other"] not in (None, metric):
        raise ConfigurationError("rule", rule, f"compare the same metric: champion.{metric}")
    factor = 1.0 if found["factor"] is None else _to_number(rule, found["factor"])
    if not 0 < factor <= 2:
        raise ConfigurationError("rule", rule, "the factor is a number near 1, such as 1.02 for two per cent")
    higher = operator.startswith(">")
    slack = round(1 - factor if higher else factor - 1, 12)
    """Positive: how much worse the candidate may be. Negative: how much better it must be."""
    if slack < 0:
        return BetterThanChampion(metric, higher, -slack)
    if operator in ("<", ">"):
        if slack > 0:
            raise ConfigurationError("rule", rule, f"with room for a worse candidate write '{operator}='")
        return BetterThanChampion(metric, higher)
    return NotWorseThanChampion(metric, higher, slack)


def _counts_samples(metric: str) -> bool:
    return re.split(r"[._/\-]", metric)[-1].lower() in _SAMPLE_NAMES


def _to_number(rule: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ConfigurationError("rule", rule, f"{text!r} is not a number; {_FORMS}") from None
    if isinstance(read(number), NoNumber):
        raise ConfigurationError("rule", rule, f"a limit is a finite number, and {text} is not")
    return number


def _from_dict(values: Mapping[str, Any]) -> Rule:
    plain = dict(values)
    name = plain.pop("rule", None)
    kind = _KINDS.get(str(name))
    if kind is None:
        raise ConfigurationError("rule", name, f"the rules are {', '.join(_KINDS)}")
    try:
        rule = kind(**plain)
    except TypeError as error:
        names = ", ".join(item.name for item in fields(kind))
        raise ConfigurationError("rule", dict(values), f"a rule {name} takes {names}") from error
    assert isinstance(rule, Rule)  # noqa: S101
    return rule


def _check_metric(metric: object) -> None:
    if not isinstance(metric, str) or not metric or re.search(r"[\s<>=*()]", metric):
        raise ConfigurationError("metric", metric, "give the metric's name, without blanks and < > = * ( )")


def _check_finite(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(read(value), NoNumber):
        raise ConfigurationError(name, value, "give a finite number")


def _check_share(name: str, value: object) -> None:
    _check_finite(name, value)
    if not 0 <= value < 1:  # type: ignore[operator]
        raise ConfigurationError(
            name, value, "give a share of the champion's value from 0 up to 1: 0.02 is 2 %"
        )
