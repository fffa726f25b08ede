"""Whenever a version comes to hold the stage Production, whoever moved it, roll it out as a canary.

It gets half of the requests first, is asked about flights that are known beforehand, and is promoted or
undone by its answers. Undone, it gives the stage back, and the alias where it had that, too.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from nighttrain.operators.serving import RolloutModelOperator
from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric
from nighttrain.providers.serving.strategy import Strategy, Weight
from nighttrain.sensors.assets import registered_model
from nighttrain.sensors.serving import EndpointReadySensor

MODEL = "airline-delay"
IMAGE = "{{ var.value.get('airline_delay_image', 'localhost/airline-delay:1') }}"

# Seconds, so that a rollout on a laptop ends while one watches. Nobody uses the model there, and golden
# requests say after one interval what they have to say. Where clients are: minutes of each, more steps, and a
# metric with the source "counters", which counts what clients get (without any it would hold for ever).
HOLD_SECONDS = 2.0
INTERVAL_SECONDS = 2.0
WATCH_SECONDS = 2.0

# One pod of each version: with plain Services a share is a part of the pods, and a half needs the fewest.
PERCENT = 50

# Real flights of 2013-07-10, by `python -m airline_delay.golden`. Ten left 91 to 231 minutes late.
GOLDEN_FLIGHTS = Path(__file__).with_name("airline_delay") / "golden_flights.json"
GOLDEN_REQUESTS = json.loads(GOLDEN_FLIGHTS.read_text())

# Measured with trainings of one night in each month from February to December, on these flights. Models of
# two nights in a row differ by 18 minutes at most; 7, 28 or 90 days apart by 60 at most. One that was trained
# on shuffled labels expects every flight to be about on time: each of the ten is 79 minutes or more away.
TOLERANCE_MINUTES = 60.0

# So a normal night disagrees on none of the twenty flights, and one that learned nothing on ten. With 60
# requests an interval none, or one of the twenty, is successful at the first look, and ten have failed.
DISAGREEMENT_LIMIT = 0.2
REQUESTS_PER_INTERVAL = 3 * len(GOLDEN_REQUESTS)

# 60 requests without an error show that there are less than one in ten; a smaller limit needs more of them.
ERROR_LIMIT = 0.1

STRATEGY = Strategy(
    steps=(Weight(percent=PERCENT, hold_seconds=HOLD_SECONDS),),
    golden=Golden(requests=tuple(GOLDEN_REQUESTS), tolerance=TOLERANCE_MINUTES),
    analysis=Analysis(
        interval_seconds=INTERVAL_SECONDS,
        metrics=(
            Metric(
                name="errors",
                kind=Kind.ERRORS,
                limit=ERROR_LIMIT,
                source={"type": "probe", "requests_per_interval": REQUESTS_PER_INTERVAL},
            ),
            Metric(
                name="disagreement",
                kind=Kind.DISAGREEMENT,
                limit=DISAGREEMENT_LIMIT,
                source={"type": "comparison", "requests_per_interval": REQUESTS_PER_INTERVAL},
            ),
        ),
    ),
    watch_seconds=WATCH_SECONDS,
)

with DAG(
    dag_id="deploy_on_stage_transition",
    description="Roll out the version in stage Production as a canary; promote it, or undo it by its answers",
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
        moves_alias="champion",
        strategy=STRATEGY,
        image=IMAGE,
        container_resources={"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
    )
    ready = EndpointReadySensor(
        task_id="ready", endpoint=MODEL, version=rollout.output["version"], timeout=600
    )
    rollout >> ready
