"""The reaper, without the age that keeps young workloads."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG

from nighttrain.operators.maintenance import ReapWorkloadsOperator

with DAG(dag_id="reaping", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    ReapWorkloadsOperator(task_id="reap", minimum_age_seconds=0, mlflow_conn_id="mlflow_default")
