"""The place of a task instance in a loop, which Airflow 3.4 calls its region, as one word.

All iterations of a task share DAG, run, task, map index, try number and ``max_tries``. The pair of region id
and index tells them apart: it stays over retries and clears, and iterations that replace others (a loop's
gate was cleared) get another id. A task instance's own id does not stay: every try has a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OUTSIDE = UUID(int=0)


def region_of(ti: Any) -> str:
    """The region of a running task; empty outside of one, and on an Airflow that knows none (before 3.4)."""
    region_id, index = getattr(ti, "region_id", None), getattr(ti, "region_index", None)
    if region_id is None or index is None or UUID(str(region_id)) == OUTSIDE:
        return ""
    return f"{region_id}:{index}"


def as_parameters(region: str) -> dict[str, str]:
    """The query that selects a region in a request to Airflow's REST API."""
    region_id, _, index = region.rpartition(":")
    return {"region_id": region_id, "region_index": index} if region else {}


def has_ended(breadcrumbs: Iterable[Mapping[str, Any]], task_id: str, region: str) -> bool:
    """True if this iteration is among the ended task instances of its DAG run.

    Airflow's other answer, the states of tasks by name, is that of a loop's latest iteration only.
    """
    return any(
        crumb.get("task_id") == task_id and f"{crumb.get('region_id')}:{crumb.get('region_index')}" == region
        for crumb in breadcrumbs
    )
