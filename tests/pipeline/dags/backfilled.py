"""Two mapped trainings of a day, which nobody but a backfill asks for."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG

from nighttrain.operators.training import TrainingJobOperator

DAY = datetime(2024, 1, 1)

with DAG(dag_id="backfilled", schedule="@daily", start_date=DAY, end_date=DAY, catchup=False):
    TrainingJobOperator.partial(
        task_id="train", image="localhost/python:3.11", cmds=["python3", "-S", "-c"]
    ).expand(arguments=[[f"print('trained half {half}')"] for half in (1, 2)])
