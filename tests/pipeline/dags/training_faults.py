"""Trainings that something happens to."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, ExceptionRetryPolicy, RetryAction, RetryRule

from nighttrain.operators.registry import RegisterModelOperator
from nighttrain.operators.training import TrainingJobOperator
from nighttrain.providers.errors import ApplicationError, InfrastructureError

# Prints, waits until the test has killed the worker (the Job goes on meanwhile), then logs a real model.
SLOW = """
import sys, time
print("training started", flush=True)
time.sleep(12)
import mlflow
class Constant(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [1.0] * len(model_input)
with mlflow.start_run():
    mlflow.log_metric("mae", 1.0)
    mlflow.pyfunc.log_model(name="model", python_model=Constant(), pip_requirements=["mlflow"])
print("training done", flush=True)
"""
# Hangs until something happens to it; whoever comes after it finds the mark, and ends.
HANGS_ONCE = """
import pathlib, sys, time
mark = pathlib.Path(sys.argv[1])
if not mark.exists():
    mark.touch()
    time.sleep(600)
print("trained at last", flush=True)
"""
EXIT_3 = "import sys; print('the data are gone', flush=True); sys.exit(3)"

with DAG(dag_id="worker_killed", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    train = TrainingJobOperator(
        task_id="train",
        image="localhost/python:3.11",
        cmds=["python3", "-c"],
        arguments=[SLOW],
        deferrable=False,
        retries=1,
        retry_delay=timedelta(seconds=1),
    )
    train >> RegisterModelOperator(
        task_id="register", model_name="worker-killed", run_id=train.output["run_id"]
    )

with DAG(dag_id="exit_3", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    train = TrainingJobOperator(
        task_id="train", image="localhost/python:3.11", cmds=["python3", "-c"], arguments=[EXIT_3]
    )
    train >> RegisterModelOperator(task_id="register", model_name="exit-3", run_id=train.output["run_id"])

with DAG(dag_id="timed_out", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    for mode in ("deferred", "blocking"):
        TrainingJobOperator(
            task_id=f"train_{mode}",
            image="localhost/python:3.11",
            cmds=["python3", "-c"],
            arguments=["import time; print('waiting', flush=True); time.sleep(600)"],
            termination_grace_period=1,
            deferrable=mode == "deferred",
            # Longer than a busy machine needs until the training runs.
            execution_timeout=timedelta(seconds=30),
        )

with DAG(dag_id="mlflow_away", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    TrainingJobOperator(
        task_id="train",
        image="localhost/python:3.11",
        cmds=["python3", "-c"],
        arguments=["import time; print('training', flush=True); time.sleep(6); print('done')"],
    )

with DAG(dag_id="cannot_start", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    TrainingJobOperator(task_id="train", image="localhost/Not A Name:1", cmds=["python3"])

with DAG(dag_id="cancelled", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    TrainingJobOperator(
        task_id="train",
        image="localhost/python:3.11",
        cmds=["python3", "-c"],
        arguments=["import time; print('waiting', flush=True); time.sleep(600)"],
        termination_grace_period=1,
    )

for dag_id in ("cleared", "evicted"):
    with DAG(dag_id=dag_id, schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
        TrainingJobOperator(
            task_id="train",
            image="localhost/python:3.11",
            cmds=["python3", "-c"],
            arguments=[HANGS_ONCE, "{{ dag_run.conf['mark'] }}"],
            termination_grace_period=1,
        )

with DAG(dag_id="worker_told_to_end", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    TrainingJobOperator(
        task_id="train",
        image="localhost/python:3.11",
        cmds=["python3", "-c"],
        arguments=["import time; print('training started', flush=True); time.sleep(8); print('done')"],
        deferrable=False,
        retries=1,
        retry_delay=timedelta(seconds=1),
    )

with DAG(dag_id="told_apart", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    TrainingJobOperator(
        task_id="train",
        image="localhost/python:3.11",
        cmds=["python3", "-c"],
        arguments=[EXIT_3],
        retries=2,
        retry_delay=timedelta(seconds=1),
        retry_policy=ExceptionRetryPolicy(
            rules=[
                RetryRule(exception=ApplicationError, action=RetryAction.FAIL, reason="the code's own fault"),
                RetryRule(exception=InfrastructureError, action=RetryAction.RETRY),
            ]
        ),
    )
