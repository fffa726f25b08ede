"""Trainings in task loops, which Airflow has since 3.4. Before, this file holds no DAG."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import airflow.sdk
from airflow.sdk import DAG, task_group

from nighttrain.operators.training import TrainingJobOperator

# Logs to MLflow without its package, which takes many seconds to import, for each of a dozen containers.
TRAIN = """
import json, os, sys, urllib.request
params = [{"key": key, "value": value} for key, value in zip(["argument", "previous"], sys.argv[1:])]
urllib.request.urlopen(urllib.request.Request(
    os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-batch",
    json.dumps({"run_id": os.environ["MLFLOW_RUN_ID"], "params": params}).encode(),
    {"Content-Type": "application/json"},
))
"""
# The iterations from the second on wait until the test has made the mark.
WAIT = """
import pathlib, sys, time
print("training started", flush=True)
while int(sys.argv[1]) > 0 and not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.1)
"""
PREVIOUS = "{{ loop.previous['run_id'] if loop.index else 'none' }}"
MARK = "{{ dag_run.conf['mark'] }}"


def looping(dag_id: str, body: Any, max_iterations: int) -> None:
    with DAG(dag_id=dag_id, schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
        task_group(group_id="loop")(body).loop(max_iterations=max_iterations)  # type: ignore[attr-defined]


def training(code: str, *arguments: str, **options: Any) -> TrainingJobOperator:
    return TrainingJobOperator(
        task_id="train",
        image="localhost/python:3.11",
        cmds=["python3", "-c"],
        arguments=[code, *arguments],
        termination_grace_period=1,
        **options,
    )


def mapped() -> None:
    TrainingJobOperator.partial(
        task_id="train", image="localhost/python:3.11", cmds=["python3", "-c"]
    ).expand(arguments=[[TRAIN, "{{ loop.index }}" + letter, "none"] for letter in "ab"])


if hasattr(airflow.sdk, "LoopDecision"):
    looping("looped", lambda: training(TRAIN, "{{ loop.index }}", PREVIOUS), 3)
    looping("looped_mapped", mapped, 2)
    looping("looped_cancelled", lambda: training(WAIT, "{{ loop.index }}", MARK), 3)
    looping(
        "looped_worker",
        lambda: training(
            WAIT,
            "{{ loop.index }}",
            MARK,
            deferrable=False,
            retries=1,
            retry_delay=timedelta(seconds=1),
        ),
        3,
    )
