"""A misspelt parameter: an import error that names it."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG

from nighttrain.operators.training import TrainingJobOperator

with DAG(dag_id="unknown_parameter", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    TrainingJobOperator(task_id="train", image="localhost/python:3.11", imagee="typo")
