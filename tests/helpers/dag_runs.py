"""DAG runs as a task sees them in its context."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

LONG_AGO = datetime(2013, 1, 1, tzinfo=UTC)


def dag_run(began: datetime = LONG_AGO, interval: datetime | None = None) -> Any:
    """What the operators read of a DAG run.

    :param interval: begin and end of its data interval; without, it has none
    """
    return SimpleNamespace(start_date=began, data_interval_start=interval, data_interval_end=interval)
