"""Many mapped trainings deferred at once in a real Airflow: all end, none twice; how long each part took.

``pytest tests/scale/test_thousand_mapped.py --mapped 1000 -s``. Each task's process costs a second of a core,
twice: a thousand take the better part of an hour on two cores. All wait at a gate until every one of them is
deferred, then all end at once.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.table import Table

from helpers.airflow_in_parts import Trainings, seconds_of, trainings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(4 * 3600)]

# A task's process, twice over, on two busy cores; several times what is usual.
SECONDS_EACH = 12.0


def test_mapped_trainings_all_end_and_none_runs_twice(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    number = request.config.getoption("--mapped", default=0)
    if not number:
        pytest.skip("a command: give --mapped N")
    seconds = 300 + SECONDS_EACH * number
    with trainings(tmp_path, number) as mapped:
        began = time.time()
        mapped.start()
        mapped.until(lambda: mapped.count("deferred") == number, seconds, "all to be deferred")
        mapped.until(lambda: len(mapped.lines("began")) == number, seconds, "all containers to run")
        opened = time.time()
        mapped.open_gate()
        mapped.until(lambda: mapped.state() in {"success", "failed"}, seconds, "the DAG run to end")
        ended = time.time()
        mapped.check_each_once()
        report(mapped, began, opened, ended)


def report(mapped: Trainings, began: float, opened: float, ended: float) -> None:
    parts: dict[str, list[float]] = {}
    ends = dict(mapped.lines("ended"))
    starts = dict(mapped.lines("began"))
    moments: dict[str, list[float]] = {}
    untold = 0
    for index, task in enumerate(mapped.tasks()):
        lines = mapped.log_lines(index, trigger=False)
        deferred = first(lines, "DEFERRED")
        fired = first(mapped.log_lines(index, trigger=True), "Trigger fired event")
        if deferred is None or fired is None:  # a busy triggerer loses lines of its log now and then
            untold += 1
            continue
        # The resumed process's first line.
        resumed = min((at for at, _ in lines if at > fired), default=fired)
        steps = {
            "triggered": began,
            "running": seconds_of(task["start_date"]),
            "container began": starts[index],
            "deferred": deferred,
            "container ended": ends[index],
            "trigger fired": fired,
            # Airflow keeps only the last time that a task was queued: this is the resumption's.
            "queued again": seconds_of(task["queued_when"]) if task.get("queued_when") else fired,
            "resumed": resumed,
            "success": seconds_of(task["end_date"]),
        }
        for name, at in steps.items():
            moments.setdefault(name, []).append(at)
        for name, since, until in (
            ("task running -> its container began", "running", "container began"),
            ("task running -> deferred", "running", "deferred"),
            ("container ended -> trigger fired", "container ended", "trigger fired"),
            ("trigger fired -> queued again", "trigger fired", "queued again"),
            ("queued again -> resumed", "queued again", "resumed"),
            ("resumed -> success", "resumed", "success"),
        ):
            parts.setdefault(name, []).append(steps[until] - steps[since])
    table = Table(title=f"{mapped.number:,} mapped trainings, seconds for each task", title_justify="left")
    for name in ("part", "p50", "least", "most"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name, values in parts.items():
        table.add_row(name, *(f"{value:.2f}" for value in (median(values), min(values), max(values))))
    whole = Table(title="Seconds after the DAG run was triggered", title_justify="left")
    for name in ("moment", "first", "p50", "last"):
        whole.add_column(name, justify="left" if name == "moment" else "right")
    for name, values in moments.items():
        seconds = [value - began for value in values]
        whole.add_row(name, *(f"{value:.1f}" for value in (min(seconds), median(seconds), max(seconds))))
    console = Console(width=120)
    console.print(table, whole)
    if untold:
        console.print(f"without {untold} tasks whose log lacks a line")
    console.print(f"gate opened after {opened - began:.0f} s; DAG run seen ended after {ended - began:.0f} s")


def first(lines: Sequence[tuple[float, str]], text: str) -> float | None:
    """When a text was first logged."""
    return next((at for at, line in lines if text in line), None)
