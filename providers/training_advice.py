"""Advice for training code that ended with one of MLflow's own errors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Outcome,
    )

# As mlflow.start_run() words it, in MLflow 2 and 3.
OTHER_EXPERIMENT = "active experiment ID does not match environment run ID"


def advised(outcome: Outcome, *, experiment_name: str, run_id: str) -> Outcome:
    """Add a sentence of advice to ``outcome``, where its last lines say what went wrong."""
    lines = " ".join(outcome.last_lines)
    advice = ""
    if OTHER_EXPERIMENT in lines:
        advice = (
            "The training code calls mlflow.set_experiment(...) with another experiment than its run's, "
            f"which is {experiment_name!r}: leave the call out, or give experiment_name its name"
        )
    elif run_id and f"Run with id={run_id} not found" in lines:
        advice = (
            f"The training code does not find its run {run_id}: it asks another MLflow "
            "(mlflow.set_tracking_uri, MLFLOW_WORKSPACE) than the connection's, or the run was deleted"
        )
    if not advice or outcome.succeeded or advice in outcome.message:
        return outcome
    return replace(outcome, message="\n".join(part for part in (outcome.message, advice) if part))
