"""A rollback for a person to trigger."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG

from nighttrain.operators.serving import RollbackModelOperator

with DAG(dag_id="rolling_back", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    RollbackModelOperator(
        task_id="roll_back",
        endpoint="airline-delay",
        alias=None,
        stage="Production",
        reason="the second answers 2",
    )
