"""The files that scoring code may leave beside its metrics: their forms, and the one place that checks them.

What stands in them was written by whoever could write to the run: nothing of it is believed to be harmless.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from nighttrain.providers.errors import clip
from nighttrain.providers.measured import to_json
from nighttrain.providers.redaction import redact
from nighttrain.providers.registry.gates.verdicts import VerdictKind

FOLDER = "nighttrain"
SLICES_FILE = f"{FOLDER}/slices.json"
PAIRED_LOSSES_FILE = f"{FOLDER}/paired_losses.json"
CHECKS_FILE = f"{FOLDER}/checks.json"

MAX_BYTES = 2_000_000
"""Ten thousand slices, or as many days of ten models. It is read into memory, by several tasks at once."""

MAX_ENTRIES = 10_000
MAX_NAME = 200


class UnreadableFileError(ValueError):
    """A file is not of the form that the reference describes; the message follows its name."""


@dataclass(frozen=True)
class PairedLosses:
    """One metric's sums over groups of rows that belong together, of every model on the same rows."""

    groups: tuple[str, ...]
    rows: tuple[int, ...]
    sums: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class CheckResult:
    """The word of a function of the user's own."""

    verdict: VerdictKind
    sentence: str


def read_slices(content: bytes) -> dict[str, dict[str, float | str]]:
    """``slices.json`` as measurements by group, named ``mae[carrier=AA]``. :raises UnreadableFileError:"""
    found: dict[str, dict[str, float | str]] = {}
    count = 0
    for group, dimensions in _object(_json(content), "it").items():
        measured = found.setdefault(_name(group), {})
        for dimension, slices in _object(dimensions, f"the group {_shown(group)}").items():
            if "=" in dimension:
                raise UnreadableFileError(f"has the dimension {_shown(dimension)}, with a = in its name")
            for value, metrics in _object(slices, f"the dimension {_shown(dimension)}").items():
                count += 1
                if count > MAX_ENTRIES:
                    raise UnreadableFileError(f"has more than {MAX_ENTRIES:,} slices")
                place = f"[{_name(dimension)}={_name(value)}]"
                for metric, number in _object(metrics, f"the slice {_shown(value)}").items():
                    measured[f"{_name(metric)}{place}"] = to_json(number)
    return found


def read_paired_losses(content: bytes) -> dict[str, PairedLosses]:
    """``paired_losses.json`` by metric. :raises UnreadableFileError: it is not of that form"""
    return {
        _name(metric): _paired(_object(value, f"the metric {_shown(metric)}"), _shown(metric))
        for metric, value in _object(_json(content), "it").items()
    }


def read_checks(content: bytes) -> dict[str, CheckResult]:
    """``checks.json`` by dotted path. :raises UnreadableFileError: it is not of that form"""
    found = {}
    for path, value in _object(_json(content), "it").items():
        result = _object(value, f"the check {_shown(path)}")
        verdict, sentence = result.get("verdict"), result.get("sentence", "")
        if isinstance(verdict, bool):
            verdict = VerdictKind.ACCEPTED.value if verdict else VerdictKind.REJECTED.value
        if verdict not in {kind.value for kind in VerdictKind} or not isinstance(sentence, str):
            raise UnreadableFileError(f"gives no verdict for {_shown(path)}")
        found[_name(path)] = CheckResult(VerdictKind(verdict), redact(clip(" ".join(sentence.split()), 500)))
    return found


def _paired(value: Mapping[str, Any], metric: str) -> PairedLosses:
    groups, rows, sums = value.get("groups"), value.get("rows"), value.get("sums")
    if not isinstance(groups, list) or not 0 < len(groups) <= MAX_ENTRIES:
        raise UnreadableFileError(f"{metric} has no groups, or more than {MAX_ENTRIES:,}")
    names = tuple(_name(group) for group in groups)
    if len(set(names)) != len(names):
        raise UnreadableFileError(f"{metric} names a group twice")
    if not isinstance(rows, list) or len(rows) != len(groups) or not all(_is_count(item) for item in rows):
        raise UnreadableFileError(f"{metric} does not have a whole number of rows from 1 for each group")
    read: dict[str, tuple[float, ...]] = {}
    for who, numbers in _object(sums, f"the sums of {metric}").items():
        if not isinstance(numbers, list) or len(numbers) != len(groups):
            raise UnreadableFileError(f"{metric} does not have a sum of {_shown(who)} for each group")
        if not all(_is_number(item) for item in numbers):
            raise UnreadableFileError(f"a sum of {_shown(who)} in {metric} is no number")
        read[_name(who)] = tuple(float(item) for item in numbers)
    return PairedLosses(names, tuple(rows), read)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError("is no JSON") from error


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UnreadableFileError(f"is not of the form that a gate reads: {what} is no JSON object")
    if len(value) > MAX_ENTRIES:
        raise UnreadableFileError(f"has more than {MAX_ENTRIES:,} entries in one object")
    return value


def _name(value: object) -> str:
    """A name that may stand in a sentence. :raises UnreadableFileError: it may not"""
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_NAME
        or not value.isprintable()
        or set("[]") & set(value)
    ):
        raise UnreadableFileError(
            f"has the name {_shown(value)}: 1 to {MAX_NAME} printable characters without brackets are read"
        )
    return value


def _shown(value: object) -> str:
    return clip(ascii(value), 60)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**12


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e150
