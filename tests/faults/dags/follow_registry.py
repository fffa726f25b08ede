"""DAGs that a change of the registry starts; one watcher would take an hour without a webhook."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from nighttrain.sensors import registered_model

for name, asset in {
    "follow_stage": registered_model("m", stage="Production", poll_seconds=1),
    "follow_versions": registered_model("m", versions=True, poll_seconds=1),
    "follow_patiently": registered_model(
        "m", alias="champion", mlflow_conn_id="mlflow_patient", poll_seconds=3600
    ),
}.items():
    with DAG(name, schedule=[asset], catchup=False, is_paused_upon_creation=False) as dag:
        EmptyOperator(task_id="deploy")
    globals()[name] = dag
