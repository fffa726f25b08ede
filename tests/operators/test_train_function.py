"""A function as training code: what the operator makes of it."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.definitions.mappedoperator import MappedOperator

from helpers import train_functions as written
from nighttrain.operators.provider_info import get_provider_info
from nighttrain.operators.train_function import train_task
from nighttrain.operators.training import TrainingJobOperator
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.api.client import ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.tracking.client import TrackingConfig
from nighttrain.sensors.common.connections import ClusterConnection, MLflowConnection

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

CLUSTER = ClusterConnection(ClusterConfig(kubeconfig="nowhere"))
MLFLOW = MLflowConnection(TrackingConfig(uri="http://mlflow"), "http://mlflow", "http://mlflow")


def operator(argument: Any) -> Any:
    return argument.operator


def spec_of(task: Any) -> WorkloadSpec:
    spec: WorkloadSpec = task._spec({}, CLUSTER, MLFLOW)
    check_workload(spec)
    return spec


def arguments_of(task: Any) -> Any:
    return json.loads((spec_of(task).files or {})["arguments.json"])


def test_the_source_and_the_rendered_arguments_are_shipped() -> None:
    task = operator(written.fit.override(task_id="rendered")("{{ 0.5 }}", nights=["{{ ds }}", "{{ ds }}"]))
    task.render_template_fields({"ds": "2013-09-04"})
    spec = spec_of(task)
    assert (spec.image, spec.cmds) == (written.IMAGE, ["python", "/nighttrain/train.py"])
    assert arguments_of(task) == {"rate": "0.5", "nights": ["2013-09-04", "2013-09-04"]}
    source = (spec.files or {})["train.py"]
    assert "def fit(rate: float" in source
    assert "train_task" not in source
    assert "IMAGE" not in source


def test_it_is_a_training_task_with_its_parameters() -> None:
    task = operator(written.direct)
    assert isinstance(task, TrainingJobOperator)
    assert (task.task_id, task.task_type, task.operator_name) == (
        "fit",
        "_TrainDecoratedOperator",
        "@task.train",
    )
    assert (task.retries, task.multiple_outputs, task.doc_md) == (2, True, "Fits.")
    assert set(TrainingJobOperator.template_fields) | {"op_args", "op_kwargs"} == set(task.template_fields)
    assert operator(written.again).task_id == "fit__1"
    assert operator(written.overridden).image == "other:1"


def test_a_mapped_task_ships_each_ones_arguments() -> None:
    task = operator(written.mapped)
    assert isinstance(task, MappedOperator)
    one = task.unmap({"op_kwargs": {"rate": 2.0, "nights": []}})
    assert arguments_of(one) == {"rate": 2.0, "nights": []}
    assert one.multiple_outputs


def test_scalar_arguments_are_the_runs_parameters() -> None:
    task = operator(written.direct)
    assert task._prepare({}).params == {"rate": "0.5", "depth": "3"}
    long = operator(written.fit.override(task_id="long")(1, nights=[], note="x" * 501))
    assert long._prepare({}).params == {"rate": "1", "depth": "3"}


def test_parameters_and_commands_that_are_given_stay() -> None:
    task = operator(written.stated)
    assert spec_of(task).cmds == ["uv", "run", "/nighttrain/train.py"]
    assert task._prepare({}).params == {"given": "{{ ds }}"}


def test_by_hand_it_is_the_function() -> None:
    assert written.fit.function(0.5, nights=[]) == {"rate": 0.5}


def test_what_cannot_be_shipped_fails_while_the_dag_is_parsed() -> None:
    with pytest.raises(ConfigurationError, match=r"function needs_the_module = 'math': is defined outside"):
        train_task(image="x")(written.needs_the_module)
    with pytest.raises(ConfigurationError, match="a lambda cannot be shipped"):
        train_task(lambda: None, image="x")
    with pytest.raises(ConfigurationError, match=r"parameter ds.*context does not reach the pod"):
        train_task(image="x")(written.wants_context)


def test_an_argument_that_is_not_json_fails_by_name() -> None:
    task = operator(written.fit.override(task_id="dated")(0.5, nights=[date(2013, 9, 4)]))
    with pytest.raises(ConfigurationError, match=r"argument nights\[0\]: is of type date"):
        spec_of(task)


def test_an_argument_that_is_a_secret_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"arguments\.json.*db_password.*Secret") as caught:
        check_workload(spec_of(operator(written.secretive)))
    assert "hunter2xyz" not in str(caught.value)


def test_airflow_finds_the_decorator_by_its_name() -> None:
    (entry,) = get_provider_info()["task-decorators"]
    assert entry == {"class-name": f"{train_task.__module__}.{train_task.__name__}", "name": "train"}


def test_the_dag_can_be_stored() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    stored = json.dumps(DagSerialization.to_dict(operator(written.direct).dag))
    assert "registry.example.com/train:1" in stored
