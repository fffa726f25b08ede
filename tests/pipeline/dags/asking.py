"""A promotion that a person is asked about: with a day to answer, and with two seconds."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from nighttrain.operators import ApproveModelOperator, PromoteModelOperator


@task(multiple_outputs=False)
def judged(model: str) -> dict[str, Any]:
    """What a gate returns."""
    evidence = {
        "rule": "mae <= champion",
        "candidate": 20.0,
        "champion": 22.0,
        "limit": 22.0,
        "verdict": "accepted",
        "sentence": "mae 20 is at most 22 | <b>by far</b>",
    }
    summary = "accepted: mae 20 is at most 22"
    return {
        "kind": "accepted",
        "model_name": model,
        "version": "1",
        "summary": summary,
        "evidence": [evidence],
    }


for name, seconds in (("asking", 24 * 3600), ("asking_briefly", 2)):
    with DAG(name, schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
        verdict = judged("{{ dag_run.conf['model'] }}")
        approve = ApproveModelOperator(
            task_id="approve",
            verdict=verdict,
            assigned_users=["ann", {"id": "bob", "name": "bob"}],
            response_timeout=timedelta(seconds=seconds),
            on_timeout="skip",
        )
        promote = PromoteModelOperator(
            task_id="promote",
            model_name="{{ dag_run.conf['model'] }}",
            version="1",
            verdict=verdict,
            approver=approve.output["approver"],
            reason=approve.output["reason"],
        )
        approve >> promote
