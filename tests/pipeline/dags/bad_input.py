"""Tasks that must each fail with a sentence of their own, and leave nothing behind."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG

from nighttrain.operators.registry import ModelGateOperator, PromoteModelOperator, RegisterModelOperator
from nighttrain.operators.serving import RollbackModelOperator, RolloutModelOperator
from nighttrain.operators.training import EvaluateModelOperator, TrainingJobOperator


def training(task_id: str, **parameters: Any) -> None:
    given = {"image": "localhost/python:3.11", "cmds": ["python3", "-c"], "arguments": ["pass"]}
    TrainingJobOperator(task_id=task_id, **{**given, **parameters})


with DAG(dag_id="bad_input", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    training("misspelt_resources", container_resources={"limit": {"memory": "1Gi"}})
    training("unparsable_quantity", container_resources={"limits": {"memory": "3 gigs"}})
    training("impossible_label", labels={"team": "not a label!"})
    training("forbidden_namespace", namespace="forbidden")
    training("missing_namespace", namespace="nowhere")
    training("unreachable_cluster", kubernetes_conn_id="cluster_down", cluster_outage_timeout_seconds=0)
    training("missing_connection", kubernetes_conn_id="never_made")
    RegisterModelOperator(
        task_id="unreachable_mlflow", model_name="nothing", run_id="0" * 32, mlflow_conn_id="mlflow_down"
    )
    training("unauthorised_mlflow", mlflow_conn_id="mlflow_401")
    RegisterModelOperator(
        task_id="run_without_model", model_name="nothing", run_id="{{ dag_run.conf['empty_run'] }}"
    )
    RegisterModelOperator(task_id="no_such_run", model_name="nothing", run_id="0" * 32)
    EvaluateModelOperator(
        task_id="no_such_model", model_name="nobody", version="1", image="localhost/python:3.11"
    )
    PromoteModelOperator(task_id="no_such_version", model_name="tampered", version="99")
    RolloutModelOperator(
        task_id="digest_differs",
        endpoint="tampered",
        model_name="tampered",
        version="1",
        image="localhost/python:3.11",
    )
    RollbackModelOperator(task_id="nothing_to_roll_back", endpoint="never-rolled-out")
    ModelGateOperator(task_id="not_an_evaluation", evaluation={"mae": 1}, rules=["mae <= 2"])
