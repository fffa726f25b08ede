"""The night that a run is about, and the name by which people tell a task's runs apart."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime

from nighttrain.providers.tracking.names import fit_run_name

NIGHT_PARAMETER = "night"
"""A parameter of this name says which night a training is about, whatever its data interval is."""


def night_of(interval_start: str | None, parameters: object = None) -> str | None:
    """The night as an ISO date: the parameter ``night`` if it is one, else the data interval's first day.

    The day is that of the recorded time zone: Airflow records UTC, so it is ``ds``.

    :param interval_start: ISO 8601, as the lineage has it
    :param parameters: the run's parameters
    :returns: ``None`` where neither says a day
    """
    given = parameters.get(NIGHT_PARAMETER) if isinstance(parameters, Mapping) else None
    return _day(given) or _day(interval_start)


def run_name(task_id: str, *, night: str | None = None, map_index: int = -1, region: str = "") -> str:
    """``train 2026-11-25``, ``train[3] 2026-11-25``; a later attempt's number is added where it is opened.

    :param region: the iteration of a loop, whose number is its last part
    """
    mapped = f"[{map_index}]" if map_index >= 0 else ""
    iteration = f" loop {region.rpartition(':')[2]}" if region else ""
    return fit_run_name(f"{task_id}{mapped}{iteration}{f' {night}' if night else ''}")


def _day(text: object) -> str | None:
    if not isinstance(text, str):
        return None
    try:
        return date.fromisoformat(text.strip()).isoformat()
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.strip()).date().isoformat()
    except ValueError:
        return None
