"""The shipped DAG, started by hand: without a date, and with today's, which Airflow's form fills in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.sensors.common.triggerer_health import triggerer_health

if TYPE_CHECKING:
    from helpers.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(420)]

DAG_ID = "nightly_retraining"
ENDED = {"success", "failed"}


def night_of(pipeline: Pipeline, run_id: str) -> str:
    """What the training was told, once it has succeeded; the rest of the run is called off."""
    path = f"/dags/{DAG_ID}/dagRuns/{run_id}"
    try:
        pipeline.until(
            lambda: pipeline.task(DAG_ID, run_id, "train").get("state") in {*ENDED, "up_for_retry"},
            120,
            f"the training of {run_id}",
        )
        assert pipeline.task(DAG_ID, run_id, "train")["state"] == "success", pipeline.log(
            DAG_ID, run_id, "train"
        )
    finally:
        assert pipeline.stack.api("PATCH", path, json={"state": "failed"}).status_code == 200
    (run,) = [run for run in pipeline.mlflow_runs("airline-delay") if _tags(run).get(KEY) == run_id]
    return {param["key"]: param["value"] for param in run["data"]["params"]}["night"]


KEY = "nighttrain.run_id"


def _tags(run: dict[str, Any]) -> dict[str, str]:
    is_child = any(tag["key"] == "mlflow.parentRunId" for tag in run["data"]["tags"])
    return {tag["key"]: tag["value"] for tag in run["data"]["tags"]} if is_child else {}


@pytest.mark.thorough
def test_a_run_that_is_asked_for_by_hand_is_about_the_last_night_there_is(pipeline: Pipeline) -> None:
    assert night_of(pipeline, pipeline.trigger(DAG_ID)) == "2013-12-17"

    body = {"logical_date": datetime.now(UTC).isoformat(), "conf": {}}
    answer = pipeline.stack.api("POST", f"/dags/{DAG_ID}/dagRuns", json=body)
    assert answer.status_code == 200, answer.text
    assert night_of(pipeline, answer.json()["dag_run_id"]) == "2013-12-17"

    assert night_of(pipeline, pipeline.trigger(DAG_ID, night="2013-09-04")) == "2013-09-04"


def test_airflows_health_page_is_shown_to_tasks_and_speaks_of_the_triggerer(pipeline: Pipeline) -> None:
    health = triggerer_health([pipeline.stack.airflow_uri], seconds=30)
    assert health is not None
    assert health["status"] == "healthy"
