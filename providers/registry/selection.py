"""The best of several trainings by a metric of their runs. Pure; ties and missing values are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nighttrain.providers.errors import ConfigurationError, NothingToSelectError, clip
from nighttrain.providers.measured import NoNumber, read
from nighttrain.providers.texts import one_line
from nighttrain.providers.tracking.names import check_key

MAX_NAMED = 10
"""In a message: more trainings than a person reads."""

MAX_SHOWN = 250
"""Characters of a name in a message: as long as MLflow lets a metric's name be."""


class Mode(StrEnum):
    """Which value is the better one."""

    MIN = "min"
    MAX = "max"


@dataclass(frozen=True)
class Candidate:
    """A training and its value of the metric.

    :param index: its map index, where it says one, else its place among the results
    """

    index: int
    run_id: str
    value: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"index": self.index, "run_id": self.run_id, "value": self.value}


@dataclass(frozen=True)
class NotMeasured:
    """A training that cannot be compared, and why."""

    index: int
    run_id: str | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"index": self.index, "run_id": self.run_id, "why": self.why}


@dataclass(frozen=True)
class Selection:
    """The best training, those that it was compared with, and those that could not be.

    :param ties: all that share the best value, the chosen one first; empty where it is alone
    """

    metric: str
    mode: Mode
    best: Candidate
    candidates: tuple[Candidate, ...]
    missing: tuple[NotMeasured, ...] = ()
    ties: tuple[Candidate, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "run_id": self.best.run_id,
            "metric": self.metric,
            "value": self.best.value,
            "index": self.best.index,
            "candidates": [each.to_dict() for each in self.candidates],
            "missing": [each.to_dict() for each in self.missing],
            "ties": [each.to_dict() for each in self.ties],
        }

    def explain(self) -> str:
        """Lines for a log: who was chosen, who shares the value, who was left out and why."""
        word = "least" if self.mode is Mode.MIN else "greatest"
        best = f"{_shown(self.best.run_id)} (index {self.best.index})"
        lines = [
            f"{_shown(self.metric)}: run {best} has the {word}, "
            f"{self.best.value:.6g}, of {len(self.candidates)}"
        ]
        if self.ties:
            named = self.ties[1:][:MAX_NAMED]
            others = ", ".join(f"{_shown(each.run_id)} (index {each.index})" for each in named)
            lines.append(f"the same value: {others}; the first counts")
        if self.missing:
            lines.append(f"left out: {_named(self.missing)}")
        return "\n".join(lines)


def check_mode(mode: object) -> Mode:
    """``min`` or ``max``. :raises ConfigurationError: neither"""
    try:
        return Mode(str(mode).strip().lower())
    except ValueError as error:
        raise ConfigurationError("mode", mode, "write min or max") from error


def select_best(results: Iterable[object], metric: str, mode: str | Mode = Mode.MIN) -> Selection:
    """The training with the least (or greatest) value of a metric; of equals the first.

    :param results: what trainings returned: mappings with ``run_id`` and ``metrics``. ``None`` stands for one
        that was skipped
    :raises ConfigurationError: no such mode, no name, no results at all, or what is no list of them
    :raises NothingToSelectError: none of them has a number
    """
    wanted = check_mode(mode)
    if not isinstance(metric, str) or not metric.strip():
        raise ConfigurationError("metric", metric, "name a metric that the trainings log, such as val_mae")
    check_key(metric, field="metric")
    read_results = [_read(index, result, metric) for index, result in enumerate(_several(results))]
    if not read_results:
        raise ConfigurationError(
            "results", None, "there are none: give the outputs of the trainings, such as train.output"
        )
    candidates = tuple(each for each in read_results if isinstance(each, Candidate))
    missing = tuple(each for each in read_results if isinstance(each, NotMeasured))
    if not candidates:
        raise NothingToSelectError(
            f"none of {len(read_results)} trainings has a number for {metric!r}: {_named(missing)}"
        )
    choose = min if wanted is Mode.MIN else max
    value = choose(each.value for each in candidates)
    equals = sorted((each for each in candidates if each.value == value), key=lambda each: each.index)
    ties = tuple(equals) if len(equals) > 1 else ()
    return Selection(metric, wanted, equals[0], candidates, missing, ties)


def _several(results: object) -> list[object]:
    fix = "give the outputs of the trainings, such as train.output of a mapped task"
    if results is None:
        raise ConfigurationError("results", None, f"there are none (None): {fix}")
    if isinstance(results, str | bytes | Mapping) or not isinstance(results, Iterable):
        raise ConfigurationError("results", results, f"{fix}: a list, also where there is one")
    return list(results)


def _read(place: int, result: object, metric: str) -> Candidate | NotMeasured:
    if result is None:
        return NotMeasured(place, None, "it was skipped, or returned nothing")
    run_id = result.get("run_id") if isinstance(result, Mapping) else None
    if not isinstance(result, Mapping) or not run_id:
        return NotMeasured(place, None, "it is no result of a training: it names no run_id")
    index = result.get("map_index", place)
    index = index if type(index) is int and index >= 0 else place
    metrics = result.get("metrics")
    known = metrics if isinstance(metrics, Mapping) else {}
    value = read(known.get(metric))
    if not isinstance(value, NoNumber):
        return Candidate(index, str(run_id), value)
    if value is NoNumber.MISSING:
        names = clip(", ".join(sorted(map(str, known))), 200) or "none"
        return NotMeasured(index, str(run_id), f"it did not log it; its metrics: {names}")
    return NotMeasured(index, str(run_id), f"it is {value.sentence}")


def _shown(name: str) -> str:
    """A name that somebody wrote, as it may stand within a line."""
    return one_line(clip(name, MAX_SHOWN))


def _named(missing: tuple[NotMeasured, ...]) -> str:
    shown = "; ".join(
        f"{_shown(each.run_id or 'no run')} (index {each.index}): {one_line(each.why)}"
        for each in missing[:MAX_NAMED]
    )
    more = len(missing) - MAX_NAMED
    return f"{shown}; and {more} more" if more > 0 else shown
