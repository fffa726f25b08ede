"""The tags of ours that a training's run has, whichever orchestrator ran it."""

from __future__ import annotations

LINEAGE_KEYS = {
    *("nighttrain.orchestrator", "nighttrain.dag_id", "nighttrain.run_id", "nighttrain.task_id"),
    *("nighttrain.try_number", "nighttrain.attempt", "nighttrain.namespace", "nighttrain.job_name"),
    *("nighttrain.job_uid", "nighttrain.pod_uid", "nighttrain.image", "nighttrain.image_digest"),
    *("nighttrain.outcome", "nighttrain.data_interval_start", "nighttrain.data_interval_end"),
    *("nighttrain.run_key", "nighttrain.commit", "nighttrain.run_number", "nighttrain.cluster"),
}
"""They go into the lineage file of its version."""

RUN_KEYS = {"nighttrain.epoch", "nighttrain.opening"}
"""Of the run alone."""
