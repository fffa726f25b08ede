"""The cncf provider's operator, with a container that writes down when it exits."""

from __future__ import annotations

import os
from datetime import datetime

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG

# 9 s and a random part: polling every 2 s must not always hit the same moment.
SCRIPT = """
import os, random, sys, time
time.sleep(9 + 2 * random.random())
with open(sys.argv[1], "w") as file:
    file.write(repr(time.time()))
os._exit(0)
"""

with DAG(dag_id="pod_exits", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    KubernetesPodOperator(
        task_id="task",
        name="pod-exits",
        namespace="default",
        kubernetes_conn_id="kubernetes_default",
        image="localhost/python:3.11",
        cmds=["python3", "-S", "-E", "-c"],
        arguments=[SCRIPT, f"{os.environ['NIGHTTRAIN_BENCH_EXITS']}/pod_exits"],
        deferrable=True,
        poll_interval=2,
        termination_grace_period=1,
    )
