"""What a DAG file with ``@task.train`` holds."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from airflow.sdk import DAG, task

from nighttrain.operators.train_function import train_task

IMAGE = "registry.example.com/train:1"


@train_task(image=IMAGE, retries=2)
def fit(rate: float, nights: list[str], depth: int = 3, note: str | None = None) -> dict[str, Any]:
    """Fits."""
    print(rate, nights, depth, note)
    return {"rate": rate}


@train_task(image=IMAGE, cmds=["uv", "run", "/nighttrain/train.py"], parameters={"given": "{{ ds }}"})
def explicit(rate: float) -> None:
    print(rate)


@train_task(image=IMAGE)
def log_in(db_password: str) -> None:
    print(db_password)


with DAG("train_functions", schedule=None, start_date=datetime(2024, 1, 1)):

    @task
    def rates() -> list[float]:
        return [1.0, 2.0]

    direct = fit(0.5, nights=["{{ ds }}"])
    again = fit(0.6, nights=[])
    overridden = fit.override(task_id="other", image="other:1")(0.5, nights=[])
    mapped = fit.override(task_id="mapped").partial(nights=[]).expand(rate=rates())
    stated = explicit(1)
    secretive = log_in("hunter2xyz")


def needs_the_module() -> float:
    return math.pi


def wants_context(rate: float, ds: str | None = None) -> None:
    print(rate, ds)
