"""The cncf provider's own operator, with none of nighttrain's code in it."""

from __future__ import annotations

from datetime import datetime

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG

with DAG(dag_id="stock_operators", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    for deferrable in (False, True):
        mode = "deferrable" if deferrable else "blocking"
        for name, command in (("succeeds", "print('it ran')"), ("fails", "raise SystemExit(4)")):
            KubernetesPodOperator(
                task_id=f"{name}_{mode}",
                kubernetes_conn_id="kubernetes_default",
                namespace="default",
                name=f"stock-{name}-{mode}",
                image="localhost/python:3.11",
                cmds=["python3", "-c"],
                arguments=[command],
                deferrable=deferrable,
                poll_interval=1,
                termination_grace_period=1,
                on_finish_action="keep_pod",
            )
