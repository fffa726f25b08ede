"""Each registry sensor, deferred and in the worker."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG

from nighttrain.sensors.registry import ModelAliasSensor, ModelStageSensor, ModelVersionSensor

with DAG(dag_id="sensing", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    for deferrable in (True, False):
        suffix = "deferred" if deferrable else "poking"
        common = {"model_name": "sensed", "deferrable": deferrable, "timeout": 120, "poke_interval": 1}
        ModelVersionSensor(task_id=f"version_{suffix}", **common)
        ModelAliasSensor(task_id=f"alias_{suffix}", alias="champion", **common)
        ModelStageSensor(task_id=f"stage_{suffix}", stage="Production", **common)
