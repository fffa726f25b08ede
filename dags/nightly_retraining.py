"""Every night: train on the latest flights, compare with the champion, promote what is better.

A run that is asked for by hand is about the last night that is over by then, or about the one that it names.

The image, the connections and the schedule are all that ties this DAG to a place: set the Airflow variable
``airline_delay_image`` and the connections ``kubernetes_default`` and ``mlflow_default``.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pendulum
from airflow.sdk import DAG, Param
from airflow.timetables.events import EventsTimetable  # 3.3 cannot read what it wrote of airflow.sdk's own

from nighttrain.operators.registry import ModelGateOperator, PromoteModelOperator, RegisterModelOperator
from nighttrain.operators.training import EvaluateModelOperator, TrainingJobOperator

MODEL = "airline-delay"
IMAGE = "{{ var.value.get('airline_delay_image', 'localhost/airline-delay:1') }}"
RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "3Gi"}}
# A night ends at four in the morning in New York; its flights have landed by then. The first has four weeks
# before it to learn from, the last has two weeks after it to be judged on.
NEW_YORK = "America/New_York"
NIGHT_ENDS = timedelta(hours=4)
FIRST_NIGHT, LAST_NIGHT = date(2013, 1, 29), date(2013, 12, 17)
FIRST_END = pendulum.datetime(2013, 1, 30, 4, tz=NEW_YORK)
ENDS = [FIRST_END.add(days=days) for days in range((LAST_NIGHT - FIRST_NIGHT).days + 1)]
NIGHT = "{{ night(dag_run, params) }}"
LABELS = "{{ '--shuffle-labels' if params.shuffle_labels else '--no-shuffle-labels' }}"


def night(dag_run: Any, params: Any) -> str:
    """The night that a run is about, however it was started: without a date there is no data interval."""
    if params["night"]:
        return str(params["night"])
    moment = dag_run.data_interval_end or dag_run.run_after
    day: date = (moment.astimezone(ZoneInfo(NEW_YORK)) - NIGHT_ENDS).date() - timedelta(days=1)
    return min(day, LAST_NIGHT).isoformat()


with DAG(
    dag_id="nightly_retraining",
    description="Train on Kubernetes, track in MLflow, gate against the champion, promote",
    # Data that go on take "0 4 * * *" with a time zone. These end, and an end_date would leave a run that is
    # asked for with today's date without tasks.
    schedule=EventsTimetable(ENDS, description="At 04:00 in New York, every night of 2013"),
    start_date=datetime(2013, 1, 29),
    catchup=False,
    max_active_runs=1,
    params={
        "night": Param(
            None,
            type=["null", "string"],
            format="date",
            description="a day of 2013; if left out, the last night that is over when the run is asked for",
        ),
        "shuffle_labels": Param(
            False,
            type="boolean",
            description="train a model that learns nothing, to see what the gate and the rollout say to it",
        ),
        "let_through": Param(
            None,
            type=["null", "string"],
            description="why the candidate is promoted whatever the gate's rules say",
        ),
    },
    user_defined_macros={"night": night},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["nighttrain", MODEL],
) as dag:
    train = TrainingJobOperator(
        task_id="train",
        image=IMAGE,
        cmds=["python", "-m", "airline_delay.train"],
        arguments=["--as-of", NIGHT, LABELS],
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
        run_name=f"evaluate {NIGHT}",
    )
    gate = ModelGateOperator(
        task_id="gate",
        evaluation=evaluate.output,
        rules=[
            "mae <= 25",
            "mae <= baseline.mae * 0.98",
            "mae <= champion.mae",
            "mae <= champion.mae * 1.05 (paired)",
            "rows >= 500",
        ],
        # Nights that cannot be told from the champion are normal ones, too: what serves goes on serving.
        on_inconclusive="skip",
        let_through="{{ params.let_through or '' }}",
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
