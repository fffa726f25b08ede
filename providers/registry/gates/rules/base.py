"""What every rule is, and what those that read one number of a candidate have in common."""

from __future__ import annotations

import re
from dataclasses import fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.measured import Measured, NoNumber, read
from nighttrain.providers.registry.gates.recorded import (
    CANDIDATE,
    CHAMPION,
    NAMED_ALIAS,
    NAMED_VERSION,
    Recorded,
    Source,
)
from nighttrain.providers.registry.gates.verdicts import Evidence, VerdictKind, show_number, stored

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NAME = 250
"""MLflow's limit for the name of a metric."""

MAX_ADDRESS = MAX_NAME + 2 * 200 + 3
"""With a dimension and a slice, whose names in a file have at most 200 characters."""

WORDS_FOR_GROUPS = (CANDIDATE, CHAMPION, "baseline")
"""With these begins no name of a metric: a rule would be about another one than it says."""

DATA_AGE_FORM = "write 'data_age <= 2d'"
SIGNATURE_FORM = "write 'signature compatible', or 'signature compatible with version:12'"

_METRIC = re.compile(r"""[^\s<>=*+()\[\]{}|`'"\\&,;\x00-\x1f\x7f]+""")
_SLICE = re.compile(r"\[(?P<dimension>[^\[\]=]+)=(?P<value>[^\[\]]+)\]")
_GROUP = re.compile(r"[A-Za-z][\w\-]*|version:[1-9]\d{0,18}|alias:[A-Za-z0-9_\-]{1,255}", re.ASCII)


class NoChampion(StrEnum):
    """The answer of a rule against the champion while there is none."""

    ACCEPT = "accept"
    REJECT = "reject"
    INCONCLUSIVE = "inconclusive"


NO_CHAMPION = tuple(NoChampion)


class Rule:
    """A rule: :meth:`judge` is a pure function of what is on record."""

    kind: ClassVar[str]
    metric: str
    against: str | None = None
    """The group that the candidate is compared with, if it is."""

    @property
    def needs_champion(self) -> bool:
        """True if the rule has nothing to compare with while there is no champion."""
        return self.against == CHAMPION

    def text(self) -> str:
        """The one-line form; :func:`parse_rule` reads it back.

        Not that of a slice whose own name has a star, or a blank at its ends: there is only the class.
        """
        raise NotImplementedError

    def judge(self, recorded: Recorded, no_champion: NoChampion) -> Evidence:
        """The rule's finding. Never raises, whatever is on record."""
        raise NotImplementedError

    def sources(self) -> frozenset[Source]:
        """What has to be gathered for this rule, beside the measurements."""
        return frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{"rule": kind, ...}``."""
        return {"rule": self.kind, **{item.name: getattr(self, item.name) for item in fields(self)}}  # type: ignore[arg-type]

    def without_champion(
        self, no_champion: NoChampion, candidate: Measured | None = None, shown: str = ""
    ) -> Evidence:
        """The finding while there is no champion to compare with."""
        verdict, said = {
            NoChampion.ACCEPT: (VerdictKind.ACCEPTED, "so the rule is met"),
            NoChampion.REJECT: (VerdictKind.REJECTED, "and the gate wants one"),
            NoChampion.INCONCLUSIVE: (VerdictKind.INCONCLUSIVE, "so the rule cannot be judged"),
        }[no_champion]
        return Evidence(
            self.text(),
            stored(candidate),
            None,
            None,
            verdict,
            f"{shown or self.text()}: there is no champion yet, {said}",
            note=f"no champion yet: no_champion is {no_champion.value}",
        )

    def inconclusive(self, sentence: str, note: str = "") -> Evidence:
        """A finding without numbers: something is missing."""
        return Evidence(self.text(), None, None, None, VerdictKind.INCONCLUSIVE, sentence, note=note)


class MetricRule(Rule):
    """A rule that reads one metric of the candidate, and of the group it is compared with."""

    def check(self, candidate: float, reference: Measured | None) -> Evidence:
        """Judge numbers that are finite. ``reference`` is one too where ``against`` names a group."""
        raise NotImplementedError

    def judge(self, recorded: Recorded, no_champion: NoChampion) -> Evidence:
        measured = recorded.of(CANDIDATE) or {}
        compared = recorded.of(self.against or CHAMPION)
        value = read(measured.get(self.metric))
        reference = None if compared is None else read(compared.get(self.metric))
        if isinstance(value, NoNumber):
            source = source_of(self.metric) if value is NoNumber.MISSING else None
            why = recorded.why_missing(source) if source else ""
            sentence = f"the candidate has no {no_data(measured, self.metric, value)}{why}"
            return self.evidence(VerdictKind.INCONCLUSIVE, sentence, value, reference, None)
        if self.against is None:
            return self.check(value, reference)
        if compared is None:
            if self.needs_champion and not recorded.has_champion:
                return self.without_champion(no_champion, value, f"{self.metric} {show_number(value)}")
            return self.evidence(
                VerdictKind.INCONCLUSIVE, not_measured(self.against, recorded), value, None, None
            )
        if isinstance(reference, NoNumber):
            whose = named(self.against)
            sentence = f"{whose} has no {no_data(compared, self.metric, reference)}"
            return self.evidence(VerdictKind.INCONCLUSIVE, sentence, value, reference, None)
        return self.check(value, reference)

    def sources(self) -> frozenset[Source]:
        source = source_of(self.metric)
        return frozenset() if source is None else frozenset({source})

    def evidence(
        self,
        verdict: VerdictKind,
        sentence: str,
        candidate: Measured | None,
        reference: Measured | None,
        limit: float | None,
    ) -> Evidence:
        """A finding about numbers, put where the table shows them."""
        found = Evidence(
            self.text(), stored(candidate), stored(reference), limit, verdict, clip(sentence, MAX_SENTENCE)
        )
        if self.against in (None, CHAMPION):
            return found
        return found.compared_with(str(self.against))


MAX_SENTENCE = 2_000
"""A tag of a version holds 5,000 characters, and a verdict has several sentences."""


def source_of(metric: str) -> Source | None:
    """Where a metric comes from that the scoring code does not log as a metric."""
    if "[" in metric:
        return Source.SLICES
    return {"artifact_bytes": Source.ARTIFACT_BYTES, "data_age": Source.DATA_AGE}.get(metric)


def named(group: str) -> str:
    """A group within a sentence."""
    kind, colon, name = group.partition(":")
    return f"{kind} {name}" if colon else f"the {group}"


def not_measured(group: str, recorded: Recorded) -> str:
    """The sentence about a group that nobody measured."""
    known = [name for name in sorted(map(str, recorded.groups)) if recorded.of(name) is not None]
    listed = ", ".join(clip(name, 60) for name in known[:8]) or "nothing"
    return f"{named(group)} was not measured (measured: {listed})"


def no_data(values: Mapping[str, Any], metric: str, found: NoNumber) -> str:
    """What follows "has no": the metric, and what stood in its place."""
    if metric not in values:
        known = sorted(clip(str(key), 60) for key in values)
        plain = [key for key in known if "[" not in key or "[" in metric]
        return f"{metric} (measured: {', '.join(plain[:8]) or 'nothing'})"
    if found is NoNumber.UNREADABLE:
        return f"usable {metric}: {clip(repr(values[metric]), 60)} is no number"
    return f"usable {metric}: it is {found.sentence}"


def pair(value: float, limit: float, spare: float = 0.0) -> tuple[str, str]:
    """Both as text, with as many digits as it takes to tell them apart.

    :param spare: how far they may be apart and still count as equal
    """
    if abs(value - limit) <= spare:
        return show_number(limit), show_number(limit)
    shown = show_number(value), show_number(limit)
    if value == limit or float(shown[0].replace(",", "")) != float(shown[1].replace(",", "")):
        return shown
    for digits in range(5, 18):
        shown = f"{value:.{digits}g}", f"{limit:.{digits}g}"
        if shown[0] != shown[1]:
            return shown
    return repr(value), repr(limit)


def check_metric(metric: object) -> None:
    """:raises ConfigurationError: no name of a metric, with or without a slice"""
    fix = (
        "give the metric's name, without blanks, quotes and < > = * + ( ) [ ] { } | & , ; one "
        "slice of it is written mae[carrier=AA]"
    )
    if not isinstance(metric, str) or len(metric) > MAX_ADDRESS:
        raise ConfigurationError("metric", metric, fix)
    name, bracket, rest = metric.partition("[")
    if (
        len(name) > MAX_NAME
        or not _METRIC.fullmatch(name)
        or (bracket and not _SLICE.fullmatch(bracket + rest))
    ):
        raise ConfigurationError("metric", metric, fix)
    if not metric.isprintable():
        raise ConfigurationError("metric", metric, "use printable characters only")
    misused = _misused(name, bool(bracket))
    if misused:
        raise ConfigurationError("metric", metric, misused)


def _misused(name: str, sliced: bool) -> str:
    """What to write instead of a name that means something else in a rule; empty for the name of a metric."""
    if name == "data_age":
        return f"the age of the data has one form: {DATA_AGE_FORM}"
    if name == "signature":
        return f"a signature has no number: {SIGNATURE_FORM}"
    if name.startswith(("tag:", "custom:")):
        return "a tag and a check of your own have no number: 'tag:reviewed = yes', 'custom:my_pkg.check'"
    if name.split(".")[0] in WORDS_FOR_GROUPS or name.startswith((NAMED_VERSION, NAMED_ALIAS)):
        return "on the left stands the candidate's metric, by its name alone: write 'mae <= champion.mae'"
    if name == "artifact_bytes" and sliced:
        return "the artifact has no slices: write 'artifact_bytes <= 50MB'"
    return ""


def check_group(group: object) -> None:
    """:raises ConfigurationError: no name of a group that a rule may compare with"""
    if not isinstance(group, str) or not _GROUP.fullmatch(group) or group == CANDIDATE:
        raise ConfigurationError(
            "against", group, "give champion, baseline, version:12, alias:NAME or another prefix of metrics"
        )
    if group not in WORDS_FOR_GROUPS and group.lower() in WORDS_FOR_GROUPS:
        raise ConfigurationError("against", group, f"write {group.lower()}, in small letters")


def check_finite(name: str, value: object) -> None:
    """:raises ConfigurationError: no finite number"""
    if not isinstance(value, int | float) or isinstance(read(value), NoNumber):
        raise ConfigurationError(name, value, "give a finite number")


def check_share(name: str, value: object) -> None:
    """:raises ConfigurationError: no share from 0 up to 1"""
    check_finite(name, value)
    if not 0 <= value < 1:  # type: ignore[operator]
        raise ConfigurationError(
            name, value, "give a share of the champion's value from 0 up to 1: 0.02 is 2 %"
        )


def check_margin(value: object) -> None:
    """:raises ConfigurationError: no margin in the metric's own unit"""
    check_finite("margin", value)
    if value < 0:  # type: ignore[operator]
        raise ConfigurationError("margin", value, "give a number from 0, in the metric's unit")


def check_count(name: str, value: object) -> None:
    """:raises ConfigurationError: no whole number from 1"""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(name, value, "give a whole number from 1")
    check_finite(name, value)


def check_flag(name: str, value: object) -> None:
    """:raises ConfigurationError: neither true nor false"""
    if not isinstance(value, bool):
        raise ConfigurationError(name, value, "give true or false")
