"""A backfill trains once for each day and map index; one that is asked for again trains anew."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from helpers.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(420)]


def backfill(pipeline: Pipeline) -> None:
    """Ask Airflow for the day, also where it has it already. It sees late that one before it is over."""
    body = {
        "dag_id": "backfilled",
        "from_date": "2024-01-01T00:00:00Z",
        "to_date": "2024-01-01T00:00:00Z",
        "reprocess_behavior": "completed",
    }

    def accepted() -> bool:
        answer = pipeline.stack.api("POST", "/backfills", json=body)
        assert answer.status_code in {200, 409}, answer.text
        return bool(answer.status_code == 200)

    pipeline.until(accepted, 90, "the backfill before to be over")


def ended(pipeline: Pipeline, jobs: int) -> dict[str, Any] | None:
    """The one DAG run, once it has ended after so many Jobs."""
    runs = pipeline.runs("backfilled")
    over = [run for run in runs if run["state"] in {"success", "failed"}]
    return over[0] if over and len(pipeline.jobs("backfilled")) >= jobs else None


def trained(pipeline: Pipeline) -> Counter[tuple[str, str]]:
    """How many Jobs succeeded for each map index and attempt."""
    return Counter(
        (
            job["metadata"]["annotations"]["nighttrain.dev/map-index"],
            job["metadata"]["labels"]["nighttrain.dev/attempt"],
        )
        for job in pipeline.jobs("backfilled")
        if job["status"].get("succeeded") == 1
    )


@pytest.mark.thorough
def test_a_backfill_trains_once_and_a_second_one_trains_anew(pipeline: Pipeline) -> None:
    pipeline.unpause("backfilled")
    backfill(pipeline)
    first = pipeline.until(lambda: ended(pipeline, 2), 120, "the backfill to end")
    assert first["state"] == "success"
    assert trained(pipeline) == {("0", "1"): 1, ("1", "1"): 1}

    backfill(pipeline)
    second = pipeline.until(lambda: ended(pipeline, 4), 120, "the second backfill to end")
    assert second["state"] == "success"
    assert second["dag_run_id"] == first["dag_run_id"]
    assert trained(pipeline) == {(index, attempt): 1 for index in "01" for attempt in "12"}
    # The DAG run's, and one for each attempt of each map index.
    statuses = [run["info"]["status"] for run in pipeline.mlflow_runs("backfilled")]
    assert statuses == ["FINISHED"] * 5
