"""Airflow's own Kubernetes operators, executed without a scheduler: run by test_foreign_clients.py with the
kubeconfig as argument, in a process whose AIRFLOW_HOME is a temporary folder. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

from airflow.providers.cncf.kubernetes.operators.job import KubernetesJobOperator
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk.exceptions import AirflowException, TaskDeferred

KUBECONFIG, TRACK = sys.argv[1], sys.argv[2]


def context(task_id: str) -> Any:
    """As much of a context as the operators look at."""
    pushed: dict[str, Any] = {}
    run = SimpleNamespace(run_id="by-hand", logical_date=None)
    ti = SimpleNamespace(
        dag_id="foreign",
        task_id=task_id,
        run_id="by-hand",
        try_number=1,
        map_index=-1,
        dag_run=run,
        xcom_push=lambda key, value, **_: pushed.update({key: value}),
        xcom_pull=lambda *_, **__: None,
        pushed=pushed,
    )
    dag = SimpleNamespace(dag_id="foreign", parent_dag=None)
    return {"ti": ti, "task_instance": ti, "run_id": "by-hand", "dag_run": run, "dag": dag}


def pod_operator(task_id: str, code: str, **options: Any) -> KubernetesPodOperator:
    return KubernetesPodOperator(
        task_id=task_id,
        name=task_id,
        namespace="default",
        image="py",
        cmds=["python", "-c", code],
        config_file=KUBECONFIG,
        in_cluster=False,
        kubernetes_conn_id=None,
        get_logs=True,
        on_finish_action="keep_pod",
        **options,
    )


def run_deferred(operator: Any, given: Any) -> list[str]:
    """What a triggerer does: run the trigger to its first event, and call the method it names."""
    events: list[str] = []
    work: Any = operator.execute
    arguments: tuple[Any, ...] = (given,)
    keywords: dict[str, Any] = {}
    while True:
        try:
            work(*arguments, **keywords)
            return events
        except TaskDeferred as deferred:
            trigger: Any = deferred.trigger
            work = getattr(operator, deferred.method_name)
            keywords = dict(deferred.kwargs or {})

        async def first(trigger: Any = trigger) -> Any:
            async for event in trigger.run():
                return event.payload
            return None

        payload = asyncio.run(first())
        events.append(str(payload["status"]))
        arguments = (given, payload)


def attempt(function: Any) -> Any:
    try:
        return function()
    except AirflowException as error:
        return f"{type(error).__name__}"


def main() -> dict[str, Any]:
    found: dict[str, Any] = {}
    if TRACK == "pod":
        given = context("pod-works")
        pod_operator("pod-works", "print('trained')").execute(given)
        found["works"] = given["ti"].pushed.get("pod_name", "")
        breaks = pod_operator("pod-breaks", "raise SystemExit(3)")
        found["breaks"] = attempt(lambda: breaks.execute(context("pod-breaks")))
    elif TRACK == "deferred":
        operator = pod_operator("pod-defers", "print('trained')", deferrable=True, poll_interval=0.2)
        found["events"] = run_deferred(operator, context("pod-defers"))
    else:
        given = context("job-works")
        KubernetesJobOperator(
            task_id="job-works",
            name="job-works",
            namespace="default",
            image="py",
            cmds=["python", "-c", "print('trained')"],
            config_file=KUBECONFIG,
            in_cluster=False,
            kubernetes_conn_id=None,
            wait_until_job_complete=True,
            job_poll_interval=0.2,
        ).execute(given)
        found["job"] = given["ti"].pushed.get("job_name", "")
    return found


print("RESULT " + json.dumps(main()))
