"""A function of this file is the training code."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import DAG, task

from nighttrain.operators import SelectBestModelOperator

NOT_SHIPPED = "the DAG file's own"


@task.train(image="localhost/python:3.11", cmds=["python3", "/nighttrain/train.py"])
def fit(rate: float, nights: list[str], depth: int = 3) -> dict[str, float]:
    import mlflow

    print(f"fitting with {rate} on {nights}")
    with mlflow.start_run():
        mlflow.log_metric("mae", rate * depth * len(nights))
    return {"loss": rate}


@task
def nights() -> list[str]:
    return ["2013-09-04", "2013-09-05"]


@task
def report(trained: str, everything: dict[str, object]) -> None:
    assert everything["run_id"] == trained
    assert str(everything["job"]).startswith("default/train-function-")
    assert everything["models"] == []
    assert everything["metrics"] == {"mae": 3.0, "loss": 0.5}


with DAG("train_function", schedule=None, start_date=datetime(2024, 1, 1), catchup=False):
    found = nights()
    one = fit(0.5, nights=found)
    report(one["run_id"], one)
    mapped = fit.override(task_id="mapped").partial(nights=["{{ dag_run.run_id }}"]).expand(rate=[1.0, 2.0])
    SelectBestModelOperator(task_id="pick", results=mapped, metric="loss")
