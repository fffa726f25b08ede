"""Every hour: remove workloads whose task is over. Run it by hand with ``only_show`` to look first."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, Param

from nighttrain.operators.maintenance import ReapWorkloadsOperator

with DAG(
    dag_id="reap_workloads",
    schedule="@hourly",
    start_date=datetime(2024, 1, 1),
    catchup=False,
    max_active_runs=1,
    params={"only_show": Param(False, type="boolean", description="Only show what would be removed.")},
    tags=["nighttrain", "maintenance"],
) as dag:
    ReapWorkloadsOperator(
        task_id="reap", only_show="{{ params.only_show }}", mlflow_conn_id="mlflow_default", retries=1
    )
