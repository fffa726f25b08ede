"""Predictions in the answers of model servers: whether two agree, and what their distribution is."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

# Bins of a distance: steps of a twentieth are finer than any limit that is set on it.
MAX_BINS = 20

# Of one answer; more tell nothing that the first do not.
MAX_VALUES = 10_000

# What a whole number of JSON may have and still be a finite number of another kind.
_DIGITS = 300


def prediction_of(body: bytes) -> Any:
    """What an answer predicts, without what names server, version and time; its text if it is no JSON."""
    try:
        answer = loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")
    if not isinstance(answer, dict):
        return answer
    if "predictions" in answer:
        return answer["predictions"]
    for name, inner in (("outputs", ("name", "shape", "data")), ("choices", ("text", "message"))):
        if isinstance(answer.get(name), list):
            parts = [part for part in answer[name] if isinstance(part, dict)]
            return [{key: part[key] for key in inner if key in part} for part in parts]
    return answer


def loads(text: str | bytes) -> Any:
    """JSON, whose whole numbers are finite as other numbers, too, or infinite.

    :raises ValueError: it is none
    :raises RecursionError: it is nested too deeply
    """
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else float(digits))


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """True if two JSON values differ in nothing but numbers, and in those by no more than the tolerance."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        return one == other or abs(one - other) <= tolerance
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(alike(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key], tolerance) for key in one)
    return bool(one == other)


def values_of(prediction: Any) -> list[float | str]:
    """The numbers of a prediction one by one, and its texts as classes."""
    found: list[float | str] = []
    rest = [prediction]
    while rest and len(found) < MAX_VALUES:
        value = rest.pop()
        if isinstance(value, (list, dict)):
            rest += reversed(list(value.values()) if isinstance(value, dict) else value)
        elif isinstance(value, (str, bool)) or value is None:
            found.append(str(value)[:100])
        elif math.isfinite(value):
            found.append(float(value))
    return found


def bins_of(values: Sequence[float | str]) -> list[float] | list[str] | None:
    """Upper bounds of the bins, or the classes; one more bin takes everything else."""
    numbers = sorted({value for value in values if not isinstance(value, str)})
    if numbers:
        found = sorted(value for value in values if not isinstance(value, str))
        if len(numbers) >= MAX_BINS:
            numbers = sorted({found[len(found) * step // MAX_BINS] for step in range(1, MAX_BINS)})
        return numbers
    classes = [name for name, _ in Counter(str(value) for value in values).most_common(MAX_BINS - 1)]
    return sorted(classes) or None


def into_bins(values: Sequence[float | str], bins: Sequence[Any]) -> list[int]:
    """How many values fall into each bin."""
    counts = [0] * (len(bins) + 1)
    of_classes = isinstance(bins[0], str)
    for value in values:
        if isinstance(value, str) != of_classes:
            place = len(bins)
        elif of_classes:
            place = bins.index(value) if value in bins else len(bins)
        else:
            place = bisect_left(bins, value)
        counts[place] += 1
    return counts
