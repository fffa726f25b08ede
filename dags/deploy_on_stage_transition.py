"""Whenever a version comes to hold the stage Production, whoever moved it, serve that version."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from nighttrain.operators.serving import RolloutModelOperator
from nighttrain.sensors.assets import registered_model
from nighttrain.sensors.serving import EndpointReadySensor

MODEL = "airline-delay"
IMAGE = "{{ var.value.get('airline_delay_image', 'localhost/airline-delay:1') }}"

with DAG(
    dag_id="deploy_on_stage_transition",
    description="Roll out the version in stage Production, switch when it is ready, keep the old one",
    schedule=[registered_model(MODEL, stage="Production")],
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["nighttrain", MODEL],
) as dag:
    rollout = RolloutModelOperator(
        task_id="rollout",
        endpoint=MODEL,
        model_name=MODEL,
        stage="Production",
        image=IMAGE,
        container_resources={"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
    )
    ready = EndpointReadySensor(
        task_id="ready", endpoint=MODEL, version=rollout.output["version"], timeout=600
    )
    rollout >> ready
