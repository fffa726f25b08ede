"""The one-line forms of rules, and their plain values. The forms are listed in docs/reference/gates.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.measured import NoNumber, read
from nighttrain.providers.registry.gates.recorded import CHAMPION
from nighttrain.providers.registry.gates.rules.base import (
    DATA_AGE_FORM,
    SIGNATURE_FORM,
    MetricRule,
    Rule,
    check_metric,
)
from nighttrain.providers.registry.gates.rules.comparisons import BetterThan, NotWorseThan
from nighttrain.providers.registry.gates.rules.limits import (
    AtLeast,
    AtMost,
    DataAge,
    MinimumSamples,
    counts_samples,
)
from nighttrain.providers.registry.gates.rules.paired import PairedBootstrap
from nighttrain.providers.registry.gates.rules.requirements import (
    CustomCheck,
    RequiredTag,
    SignatureCompatible,
)
from nighttrain.providers.registry.gates.rules.slices import EverySlice, is_every_slice

MAX_LINE = 1_000

FORMS = "write it like 'mae <= 25', 'rows >= 500' or 'mae <= champion.mae * 1.02'"

_METRIC = r"[^\s<>=*+()\[\]]+(?:\[[^\[\]]+\])?"
_NUMBER = r"[^\s<>=*+()\[\]]+"
_RULE = re.compile(
    rf"(?:candidate\.)?(?P<metric>{_METRIC})\s*(?P<operator><=|>=|<|>)\s*"
    r"(?P<right>[^<>=()\[\]]+?)\s*(?:\((?P<options>[^()]*)\))?"
)
_OTHER = re.compile(
    rf"(?P<group>champion|baseline|(?:version|alias):[\w\-]+|[A-Za-z][\w\-]*(?=\.[^\d\s]))(?:\.(?P<metric>{_METRIC}))?"
    rf"(?:\s*\*\s*(?P<factor>{_NUMBER}))?(?:\s+(?P<sign>[+\-])\s*(?P<margin>{_NUMBER}))?",
    re.ASCII,
)
_SAMPLES = re.compile(r"samples\((?P<metric>[^\s()]+)\)\s*>=\s*(?P<count>\d{1,18})")
_SIGNATURE = re.compile(r"signature\s+compatible(?:\s+with\s+(?P<against>\S+))?")
_DATA_AGE = re.compile(r"(?:candidate\.)?data_age\s*<=\s*(?P<limit>[^<>=()\[\]]+)")
_TAG = re.compile(r"tag:(?P<key>[^\s=]+)(?:\s*=\s*(?P<value>.+))?")
_OPTION = re.compile(
    r"(?P<name>confidence|margin)\s+(?P<value>\S+)|(?P<counted>n|rows|groups)\s*>=\s*(?P<count>\d{1,18})"
)
_UNIT = re.compile(r"(?P<number>[\d.]+(?:e[+-]?\d+)?)\s*(?P<unit>[A-Za-z]+)", re.ASCII | re.IGNORECASE)
_BYTES = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SECONDS = {"ms": 0.001, "s": 1, "min": 60, "h": 3_600, "d": 86_400}
_UNITS: dict[str, float] = {**_BYTES, **_SECONDS}

_BEGINNINGS = {
    r"samples\(": "write 'samples(n) >= 500'",
    r"signature\b": SIGNATURE_FORM,
    r"(candidate\.)?data_age\b": DATA_AGE_FORM,
    "tag:": "write 'tag:owner', or 'tag:reviewed = yes'",
}
"""What a line that cannot be read was meant to be."""

_KINDS: dict[str, type[Any]] = {
    rule.kind: rule
    for rule in (
        *(AtMost, AtLeast, MinimumSamples, DataAge, NotWorseThan, BetterThan),
        *(EverySlice, PairedBootstrap, SignatureCompatible, RequiredTag, CustomCheck),
    )
}
# As versions before named them.
_KINDS |= {"not_worse_than_champion": NotWorseThan, "better_than_champion": BetterThan}


def parse_rule(rule: str | Mapping[str, Any] | Rule) -> Rule:
    """A rule from its one-line form, its plain values, or a rule itself.

    :raises ConfigurationError: it cannot be read, with the forms that can
    """
    if isinstance(rule, Rule | Mapping):
        read_rule = rule if isinstance(rule, Rule) else _from_dict(rule)
        if isinstance(read_rule, MetricRule) and is_every_slice(read_rule):
            fix = "for every slice give EverySlice(...), or the line 'mae[carrier=*] <= 25'"
            raise ConfigurationError("metric", read_rule.metric, fix)
        return read_rule
    if not isinstance(rule, str):
        raise ConfigurationError("rule", rule, FORMS)
    line = rule.strip()
    if len(line) > MAX_LINE:
        raise ConfigurationError("rule", rule[:200], f"a rule has at most {MAX_LINE:,} characters")
    if not line.isprintable():
        raise ConfigurationError("rule", rule, "a rule is one line, without control characters")
    return _requirement(rule, line) or _measured(rule, line)


def parse_rules(rules: Sequence[str | Mapping[str, Any] | Rule]) -> tuple[Rule, ...]:
    """:func:`parse_rule` for each. :raises ConfigurationError: also when there is none"""
    if isinstance(rules, str | Mapping | Rule):
        rules = [rules]
    parsed = tuple(parse_rule(rule) for rule in rules)
    if not parsed:
        raise ConfigurationError("rules", None, f"a gate without a rule would accept anything: {FORMS}")
    return parsed


def _requirement(rule: str, line: str) -> Rule | None:
    """A rule that does not compare a metric, if it is one."""
    if line.startswith("custom:"):
        return CustomCheck(line.removeprefix("custom:").strip())
    if found := _TAG.fullmatch(line):
        return RequiredTag(found["key"], found["value"])
    if found := _SIGNATURE.fullmatch(line):
        return SignatureCompatible(found["against"] or CHAMPION)
    if found := _DATA_AGE.fullmatch(line):
        return DataAge(_to_number(rule, found["limit"].strip(), _SECONDS, DATA_AGE_FORM))
    if found := _SAMPLES.fullmatch(line):
        _check_slice(rule, found["metric"])
        if found["metric"].endswith("=*]"):
            raise ConfigurationError("rule", rule, "write '(rows >= 200)' behind a rule for every slice")
        return MinimumSamples(found["metric"], int(found["count"]))
    return None


def _measured(rule: str, line: str) -> Rule:
    found = _RULE.fullmatch(line)
    if found is None:
        meant = (form for beginning, form in _BEGINNINGS.items() if re.match(beginning, line))
        raise ConfigurationError("rule", rule, next(meant, FORMS))
    _check_left_side(rule, found["metric"])
    options = _options(rule, found["options"])
    other = _OTHER.fullmatch(found["right"])
    if options.pop("paired", False):
        if other is None:
            raise ConfigurationError("rule", rule, "a paired rule compares: write 'mae <= champion (paired)'")
        return _paired(rule, found, other, options)
    minimum_rows = options.pop("rows", None)
    if options:
        raise ConfigurationError(
            "rule", rule, f"{', '.join(sorted(options))} belongs to a paired rule: write '(paired, ...)'"
        )
    if other is not None:
        each = _parse_comparison(rule, found, other)
    else:
        number = _to_number(rule, found["right"], _units(found["metric"]))
        each = _parse_absolute(rule, found["metric"], found["operator"], number)
    if is_every_slice(each):
        return EverySlice(each, 1 if minimum_rows is None else minimum_rows)
    if minimum_rows is not None:
        raise ConfigurationError("rule", rule, "(rows >= ...) goes with every slice: 'mae[carrier=*] <= ...'")
    return each


def _parse_absolute(rule: str, metric: str, operator: str, number: float) -> Any:
    if operator == "<=":
        return AtMost(metric, number)
    if operator == ">=":
        if counts_samples(metric) and number == int(number) and number >= 1:
            return MinimumSamples(metric, int(number))
        return AtLeast(metric, number)
    raise ConfigurationError("rule", rule, f"write '{operator}=': limits belong to what is allowed")


def _parse_comparison(rule: str, found: re.Match[str], other: re.Match[str]) -> NotWorseThan | BetterThan:
    metric, operator, group = found["metric"], found["operator"], other["group"]
    higher = operator.startswith(">")
    slack, margin = _slack(rule, metric, higher, other)
    if slack < 0 or margin < 0:
        if slack > 0 or margin > 0:
            raise ConfigurationError("rule", rule, "factor and margin move the limit in opposite directions")
        return BetterThan(metric, higher, -slack, -margin, group)
    if operator in ("<", ">"):
        if slack > 0 or margin > 0:
            raise ConfigurationError("rule", rule, f"with room for a worse candidate write '{operator}='")
        return BetterThan(metric, higher, against=group)
    return NotWorseThan(metric, higher, slack, margin, group)


def _slack(rule: str, metric: str, higher: bool, other: re.Match[str]) -> tuple[float, float]:
    """How much worse the candidate may be, as a share and in the metric's unit; negative: how much better it
    must be."""
    if other["metric"] not in (None, metric, metric.partition("[")[0]):
        raise ConfigurationError("rule", rule, f"compare the same metric: {other['group']}.{metric}")
    factor = 1.0 if other["factor"] is None else _to_number(rule, other["factor"])
    if not 0 < factor <= 2:
        raise ConfigurationError("rule", rule, "the factor is a number near 1, such as 1.02 for two per cent")
    margin = 0.0 if other["margin"] is None else _to_number(rule, other["margin"], _units(metric))
    if margin < 0:
        raise ConfigurationError("rule", rule, "write 'champion - 0.5' for a margin below")
    up = margin if other["sign"] == "+" else -margin
    # A sum with a zero in it, so that no negative zero is left.
    return round(1 - factor if higher else factor - 1, 12), (-up if higher else up) + 0.0


def _paired(
    rule: str, found: re.Match[str], other: re.Match[str], options: dict[str, Any]
) -> PairedBootstrap:
    metric, higher = found["metric"], found["operator"].startswith(">")
    tolerance, margin = _slack(rule, metric, higher, other)
    given = options.pop("margin", None)
    if given is not None:
        if tolerance or margin:
            raise ConfigurationError("rule", rule, "write the margin once: after the group or in brackets")
        tolerance, margin = given
    names = {"n": "minimum_rows", "rows": "minimum_rows", "groups": "minimum_groups"}
    kept = {names.get(name, name): value for name, value in options.items()}
    return PairedBootstrap(metric, higher, tolerance, margin, other["group"], **kept)


def _options(rule: str, text: str | None) -> dict[str, Any]:
    """What stands in brackets behind a rule."""
    options: dict[str, Any] = {}
    for part in (text or "").split(",") if text is not None else ():
        word = part.strip()
        found = _OPTION.fullmatch(word)
        name: str = "paired" if word == "paired" else (found["name"] or found["counted"]) if found else ""
        if not name or name in options:
            raise ConfigurationError(
                "rule", rule, "write '(rows >= 200)', or '(paired, confidence 0.95, n >= 500, groups >= 10)'"
            )
        if found is None:
            options[name] = True
        elif found["counted"]:
            options[name] = int(found["count"])
        elif name == "margin":
            options[name] = _margin(rule, found["value"])
        else:
            options[name] = _to_number(rule, found["value"])
    return options


def _margin(rule: str, text: str) -> tuple[float, float]:
    if text.endswith("%"):
        return round(_to_number(rule, text[:-1]) / 100, 12), 0.0
    return 0.0, _to_number(rule, text)


def _check_left_side(rule: str, metric: str) -> None:
    try:
        check_metric(metric)
    except ConfigurationError as error:
        raise ConfigurationError("rule", rule, error.fix) from None
    _check_slice(rule, metric)


def _check_slice(rule: str, metric: str) -> None:
    """:raises ConfigurationError: a pattern of slices, or blanks that would belong to a slice's name"""
    name, bracket, place = metric.removesuffix("]").partition("[")
    dimension, _, value = place.partition("=")
    if "*" in place and (dimension.strip(" *") != dimension or value != "*"):
        raise ConfigurationError(
            "rule",
            rule,
            f"every slice is written '{name}[{dimension.strip(' *')}=*]', and one by its whole name; a slice "
            "whose own name has a * is given as a class: AtMost(...)",
        )
    if bracket and (dimension.strip() != dimension or value.strip() != value):
        exact = f"{name}[{dimension.strip()}={value.strip()}]"
        raise ConfigurationError("rule", rule, f"write '{exact}', without blanks at the brackets and the =")


def _units(metric: str) -> Mapping[str, float]:
    return _BYTES if metric == "artifact_bytes" else _UNITS


def _to_number(rule: str, text: str, units: Mapping[str, float] = _UNITS, forms: str = FORMS) -> float:
    found = _UNIT.fullmatch(text)
    factor = units.get(found["unit"]) if found else None
    if found and factor is None and found["unit"] in _UNITS:
        raise ConfigurationError("rule", rule, f"{found['unit']} does not fit: use {', '.join(units)}")
    try:
        number = float(found["number"] if found and factor else text)
    except ValueError:
        raise ConfigurationError("rule", rule, f"{text!r} is not a number; {forms}") from None
    number *= factor or 1
    if isinstance(read(number), NoNumber):
        raise ConfigurationError("rule", rule, f"a limit is a finite number, and {text} is not")
    return number


def _from_dict(values: Mapping[str, Any]) -> Rule:
    plain = dict(values)
    name = plain.pop("rule", None)
    kind = _KINDS.get(str(name))
    if kind is None:
        raise ConfigurationError("rule", name, f"the rules are {', '.join(_KINDS)}")
    if kind is EverySlice and isinstance(plain.get("each"), Mapping):
        plain["each"] = _from_dict(plain["each"])
    try:
        rule = kind(**plain)
    except TypeError as error:
        names = ", ".join(item.name for item in fields(kind))
        raise ConfigurationError("rule", dict(values), f"a rule {name} takes {names}") from error
    assert isinstance(rule, Rule)  # noqa: S101
    return rule
