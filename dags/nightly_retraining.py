"""Every night: train on the latest flights, compare with the champion, promote what is better.

A run that is asked for by hand is about the last night that is over by then, or about the one that it names.

The image, the connections and the schedule are all that ties this DAG to a place: set the Airflow variable
``airline_delay_image`` and the connections ``kubernetes_default`` and ``mlflow_default``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from airflow.sdk import DAG, CronDataIntervalTimetable, Param

from nighttrain.operators.registry import ModelGateOperator, PromoteModelOperator, RegisterModelOperator
from nighttrain.operators.training import EvaluateModelOperator, TrainingJobOperator

MODEL = "airline-delay"
IMAGE = "{{ var.value.get('airline_delay_image', 'localhost/airline-delay:1') }}"
RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "3Gi"}}
# A night ends at four in the morning in New York; its flights have landed by then. The data are of 2013, and
# this is its last night that has three days after it to be judged on.
NIGHT_ENDS, NEW_YORK, LAST_NIGHT = timedelta(hours=4), ZoneInfo("America/New_York"), "2013-12-28"
NIGHT = "{{ night(dag_run, params) }}"


def night(dag_run: Any, params: Any) -> str:
    """The night that a run is about, however it was started: without a date there is no data interval."""
    if params["night"]:
        return str(params["night"])
    moment = dag_run.data_interval_end or dag_run.run_after
    day = (moment.astimezone(NEW_YORK) - NIGHT_ENDS).date() - timedelta(days=1)
    return min(day.isoformat(), LAST_NIGHT)


with DAG(
    dag_id="nightly_retraining",
    description="Train on Kubernetes, track in MLflow, gate against the champion, promote",
    schedule=CronDataIntervalTimetable("0 4 * * *", timezone="America/New_York"),
    start_date=datetime(2013, 1, 29),
    end_date=datetime(2013, 12, 28),
    catchup=False,
    max_active_runs=1,
    params={
        "night": Param(
            None,
            type=["null", "string"],
            format="date",
            description="a day of 2013; if left out, the last night that is over when the run is asked for",
        )
    },
    user_defined_macros={"night": night},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["nighttrain", MODEL],
) as dag:
    train = TrainingJobOperator(
        task_id="train",
        image=IMAGE,
        cmds=["python", "-m", "airline_delay.train"],
        arguments=["--as-of", NIGHT],
        container_resources=RESOURCES,
        experiment_name=MODEL,
        parameters={"night": NIGHT},
    )
    register = RegisterModelOperator(
        task_id="register",
        model_name=MODEL,
        run_id=train.output["run_id"],
        description=f"Trained on the flights known by the end of {NIGHT}",
    )
    evaluate = EvaluateModelOperator(
        task_id="evaluate",
        model_name=MODEL,
        version=register.output["version"],
        image=IMAGE,
        cmds=["python", "-m", "airline_delay.evaluate"],
        arguments=["--as-of", NIGHT],
        container_resources=RESOURCES,
        experiment_name=MODEL,
    )
    gate = ModelGateOperator(
        task_id="gate",
        evaluation=evaluate.output,
        rules=["mae <= 25", "mae <= champion.mae", "rows >= 500"],
    )
    promote = PromoteModelOperator(
        task_id="promote",
        model_name=MODEL,
        version=register.output["version"],
        alias="champion",
        stage="Production",
        verdict=gate.output,
    )
    train >> register >> evaluate >> gate >> promote
