"""Many trainings at once, which all wait behind one gate."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from airflow.sdk import DAG

from nighttrain.operators.training import TrainingJobOperator

NUMBER = int(os.environ.get("NIGHTTRAIN_SCALE_MAPPED", "1"))
FOLDER = os.environ.get("NIGHTTRAIN_SCALE_FOLDER", "/nowhere")
# Opening a named pipe waits without work until somebody opens the other end: a thousand cost nothing.
# Each appends one line, so that a training that ran twice is seen.
SCRIPT = """
echo "$1 $(date +%s.%N)" >> $0/began
[ -e $0/open ] || read line < $0/gate
echo "$1 $(date +%s.%N)" >> $0/ended
"""

with DAG(
    dag_id="mapped_trainings",
    schedule=None,
    start_date=datetime(2024, 1, 1),
    catchup=False,
    max_active_tasks=NUMBER,
):
    TrainingJobOperator.partial(
        task_id="train",
        image="localhost/python:3.11",
        cmds=["sh", "-c", SCRIPT],
        startup_timeout_seconds=3600,
        termination_grace_period=1,
        # Only where workers are killed: elsewhere every training has to do with its first try.
        retries=int(os.environ.get("NIGHTTRAIN_SCALE_RETRIES", "0")),
        retry_delay=timedelta(seconds=1),
    ).expand(arguments=[[FOLDER, str(number)] for number in range(NUMBER)])
