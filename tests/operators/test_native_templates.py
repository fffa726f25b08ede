"""Templates that give numbers, dates and lists: ``render_template_as_native_obj``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from nighttrain.operators.registry import PromoteModelOperator, RegisterModelOperator
from nighttrain.operators.serving import RollbackModelOperator, RolloutModelOperator
from nighttrain.operators.training import EvaluateModelOperator, TrainingJobOperator
from nighttrain.operators.workload import Prepared
from nighttrain.providers.texts import as_texts
from nighttrain.sensors.registry import ModelStageSensor

DAY = "{{ ds_nodash }}"
CONTEXT: dict[str, Any] = {
    "ds_nodash": "20130105",
    "flag": "True",
    "logical_date": datetime(2013, 1, 5, tzinfo=UTC),
}


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of these: what fails, fails before."""
    content = json.dumps({"apiVersion": "v1", "kind": "Config"})
    kubernetes = {"conn_type": "kubernetes", "extra": {"kube_config": content}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(kubernetes))
    mlflow = {"conn_type": "mlflow", "host": "http://127.0.0.1:9"}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(mlflow))


def rendered(kind: Any, **fields: Any) -> Any:
    with DAG("nightly", schedule=None, render_template_as_native_obj=True):
        operator = kind(task_id="task", **fields)
    operator.render_template_fields(CONTEXT)
    return operator


def context() -> Any:
    ti = SimpleNamespace(
        dag_id="nightly", run_id="r", task_id="task", map_index=-1, try_number=1, max_tries=0
    )
    return {"ti": ti, "dag_run": SimpleNamespace(start_date=datetime(2013, 1, 1, tzinfo=UTC))}


def test_a_training_is_the_same_job_with_native_templates_and_without() -> None:
    fields: dict[str, Any] = {
        "image": "train:1",
        "arguments": ["--as-of", DAY],
        "cmds": ["train", "{{ flag }}"],
        "env_vars": {"AS_OF": DAY},
        "labels": {"as-of": DAY},
        "annotations": {"as-of": DAY},
        "configmaps": [DAY],
        "namespace": DAY,
        "hostname": DAY,
        "queue_name": DAY,
        "experiment_name": DAY,
        "run_name": DAY,
    }
    operator = rendered(TrainingJobOperator, **fields)
    assert operator.labels == {"as-of": 20130105}, "the template is native"
    as_texts(operator, *operator.text_fields)
    tracked = operator._tracked(context(), Prepared())
    assert (tracked.experiment_name, tracked.run_name) == ("20130105", "20130105")
    spec = tracked.spec
    assert (spec.namespace, spec.hostname, spec.queue_name) == ("20130105",) * 3
    assert spec.args() == ["--as-of", "20130105"]
    assert spec.command() == ["train", "true"]
    assert {"configMapRef": {"name": "20130105"}} in spec.env_sources()


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (TrainingJobOperator, {"image": "i", "run_name": "{{ logical_date }}"}, "run_name"),
        (TrainingJobOperator, {"image": "i", "arguments": ["{{ logical_date }}"]}, r"arguments\[0\]"),
        (TrainingJobOperator, {"image": "i", "labels": {"a": "{{ logical_date }}"}}, r"labels\['a'\]"),
        (EvaluateModelOperator, {"image": "i", "model_name": "{{ [1] }}", "version": "1"}, "model_name"),
        (RegisterModelOperator, {"model_name": "{{ [1] }}", "run_id": "r"}, "model_name"),
        (PromoteModelOperator, {"model_name": "m", "version": "{{ logical_date }}"}, "version"),
        (
            RolloutModelOperator,
            {"endpoint": "e", "image": "i", "model_name": "m", "version": "{{ [1] }}"},
            "version",
        ),
        (RollbackModelOperator, {"endpoint": "{{ [1] }}"}, "endpoint"),
    ],
)
def test_what_is_no_text_is_told_with_its_name_and_not_tried_again(
    kind: Any, fields: dict[str, Any], field: str
) -> None:
    operator = rendered(kind, **fields)
    with pytest.raises(AirflowFailException, match=rf"{field} = .*must be a string, not (list|datetime)"):
        operator.execute(context())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (PromoteModelOperator, {"model_name": DAY, "version": DAY, "alias": DAY, "reason": DAY}),
        (RegisterModelOperator, {"model_name": DAY, "run_id": DAY, "description": DAY}),
        (RolloutModelOperator, {"endpoint": DAY, "image": DAY, "model_name": DAY, "version": DAY}),
    ],
)
def test_numbers_are_text_for_the_registry_and_for_serving(kind: Any, fields: dict[str, Any]) -> None:
    operator = rendered(kind, **fields)
    assert {getattr(operator, name) for name in fields} == {20130105}, "the template is native"
    operator._connect()
    assert {getattr(operator, name) for name in fields} == {"20130105"}


def test_numbers_are_text_for_a_sensor() -> None:
    sensor = rendered(ModelStageSensor, model_name=DAY, stage=DAY, version=DAY)
    condition = sensor._condition()
    assert (condition.model_name, condition.key, condition.version) == ("20130105",) * 3
