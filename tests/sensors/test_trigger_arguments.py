"""A trigger's arguments are a wire format: what an earlier version stored is still accepted."""

from __future__ import annotations

from typing import Any, cast

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string

from nighttrain.operators.training import TrainingJobOperator
from nighttrain.operators.workload import _Underway
from nighttrain.providers.attempts.attempt import Attempt
from nighttrain.providers.attempts.attempt_run import AttemptRun
from nighttrain.providers.kubernetes.api.connection import ClusterConfig
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.sensors.triggers import WorkloadTrigger

# What Airflow's database may still hold.
STORED: dict[str, Any] = {
    "kubernetes_conn_id": "kubernetes_default",
    "workload": {"namespace": "n", "name": "job", "uid": "u", "attempt": 1},
    "startup_timeout_seconds": 600.0,
    "schedule_timeout_seconds": None,
    "queue_timeout_seconds": 60.0,
    "get_logs": True,
    "cancel_on_kill": True,
    "mlflow_conn_id": None,
    "run": None,
    "unknown_run": None,
}


def test_a_wait_that_was_stored_before_quotas_could_be_waited_for_fails_as_it_did() -> None:
    timeouts = Timeouts.from_dict(WorkloadTrigger(**STORED).timeouts)
    assert (timeouts.startup, timeouts.queue, timeouts.fail_if_over_quota) == (600.0, 60.0, True)


def test_a_trigger_is_made_again_from_what_it_stores() -> None:
    _, stored = WorkloadTrigger(**STORED).serialize()
    assert WorkloadTrigger(**stored).serialize()[1] == stored


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("WorkloadTrigger", STORED),
        (
            "EndpointTrigger",
            {
                "kubernetes_conn_id": "kubernetes_default",
                "namespace": "ml",
                "endpoint": "airline-delay",
                "version": "3",
                "timeout_seconds": 600.0,
                "serving_only": False,
            },
        ),
        (
            "MLflowAnswersTrigger",
            {"mlflow_conn_id": "mlflow_default", "event": {}, "poll_seconds": 5.0, "timeout_seconds": 60.0},
        ),
        (
            "RegistryTrigger",
            {
                "mlflow_conn_id": "mlflow_default",
                "condition": {
                    "model_name": "airline-delay",
                    "awaited": "stage",
                    "key": "Production",
                    "version": None,
                    "newer_than": None,
                },
                "poll_seconds": 5.0,
            },
        ),
        (
            "ModelChangeTrigger",
            {
                "model_name": "airline-delay",
                "stage": "Production",
                "alias": None,
                "mlflow_conn_id": "mlflow_default",
                "poll_seconds": 5.0,
            },
        ),
    ],
)
def test_the_path_that_is_stored_with_a_trigger_leads_to_it(name: str, arguments: dict[str, Any]) -> None:
    path = f"nighttrain.sensors.triggers.{name}"
    assert import_string(path)(**arguments).serialize()[0] == path


def test_an_operators_wish_to_wait_for_a_larger_quota_reaches_its_trigger() -> None:
    attempt = Attempt(
        cluster=ClusterConfig(),
        tracking=None,
        workload=Workload("n", "job", "u", 1),
        run=AttemptRun(run_id="r", experiment_id="e", parent_run_id="p"),
    )
    operator = TrainingJobOperator(task_id="train", image="i", fail_if_over_quota=False)
    with pytest.raises(TaskDeferred) as deferred:
        operator._defer(_Underway(cast("Any", {}), attempt, {}))
    assert deferred.value.trigger.serialize()[1]["timeouts"]["fail_if_over_quota"] is False
