"""Text is text, with ``render_template_as_native_obj`` as without it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from kubernetes.client import V1EnvVar

from helpers.airflow_connections import connect_mlflow
from helpers.dag_runs import dag_run
from nighttrain.operators.registry import ModelGateOperator, PromoteModelOperator, RegisterModelOperator
from nighttrain.operators.serving import RollbackModelOperator, RolloutModelOperator
from nighttrain.operators.training import EvaluateModelOperator, TrainingJobOperator
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.texts import as_texts
from nighttrain.sensors.registry import ModelAliasSensor

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
    connect_mlflow(monkeypatch, "http://127.0.0.1:9")


def rendered(kind: Any, native: bool = True, **fields: Any) -> Any:
    with DAG("nightly", schedule=None, render_template_as_native_obj=native):
        operator = kind(task_id="task", **fields)
    operator.render_template_fields(CONTEXT)
    return operator


def context() -> Any:
    ti = SimpleNamespace(
        dag_id="nightly", run_id="r", task_id="task", map_index=-1, try_number=1, max_tries=0
    )
    return {"ti": ti, "dag_run": dag_run()}


def tracked(native: bool, **fields: Any) -> Any:
    operator = rendered(TrainingJobOperator, native, image="train:1", **fields)
    as_texts(operator, *operator.text_fields)
    return operator._tracked(context(), operator._prepare(context()))


def test_a_training_is_the_same_job_with_native_templates_and_without() -> None:
    fields: dict[str, Any] = {
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
    native, text = tracked(True, **fields), tracked(False, **fields)
    assert (native.experiment_name, native.run_name) == ("20130105", "20130105")
    spec = native.spec
    assert (spec.namespace, spec.hostname, spec.queue_name) == ("20130105",) * 3
    assert spec.args() == ["--as-of", "20130105"]
    assert spec.command() == ["train", "True"]
    assert {"configMapRef": {"name": "20130105"}} in spec.env_sources()
    assert job(native) == job(text)


def job(of: Any) -> Any:
    return build_job(check_workload(of.spec), of.identity, 1)


# Each is an expression of Python, which native templates evaluate.
TEXTS = [
    *("1.10", "True", "1_000", "1e5", "0x1F", "'quoted'", "+5", "5 # five", '{"lr": 0.1}', "[64, 64]"),
    *("1,2", "None", "1e400", "007", "  7 ", "b'a'", "...", "1j", "(a)", "-5", "12345678901234567890"),
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("template", ["{text}", "{{{{ text }}}}"], ids=["plain", "templated"])
@pytest.mark.parametrize(
    "place",
    [
        lambda text: {"arguments": ["--as", text]},
        lambda text: {"cmds": ["train", text]},
        lambda text: {"env_vars": {"AS": text}},
        lambda text: {"env_vars": [V1EnvVar(name="AS", value=text)]},
        lambda text: {"annotations": {"as": text}},
        lambda text: {"parameters": {"as": text}},
        lambda text: {"run_name": text},
        lambda text: {
            "pod_template_dict": {
                "spec": {"containers": [{"name": "main", "env": [{"name": "AS", "value": text}]}]}
            }
        },
    ],
    ids=["arguments", "cmds", "env_vars", "models", "annotations", "parameters", "run_name", "pod"],
)
def test_a_text_stays_the_text_that_it_is(
    text: str, template: str, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTEXT, "text", text)
    native, plain = (tracked(native, **place(template.format(text=text))) for native in (True, False))
    assert (job(native), native.params, native.run_name) == (job(plain), plain.params, plain.run_name)


@pytest.mark.parametrize("field", ["arguments", "cmds"])
def test_a_template_that_is_all_of_a_field_may_give_a_list(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTEXT, "words", ["train", "1.10"])
    monkeypatch.setitem(CONTEXT, "settings", {"A": "1.10"})
    monkeypatch.setitem(CONTEXT, "json", '{"lr": 0.1}')
    spec = tracked(True, **{field: "{{ words }}", "env_vars": "{{ settings }}"}).spec
    assert (spec.args() or spec.command()) == ["train", "1.10"]
    assert spec.env() == [{"name": "A", "value": "1.10"}]
    spec = tracked(True, **{field: "{{ json }}"}).spec
    assert (spec.args() or spec.command()) == ['{"lr": 0.1}']
    spec = tracked(True, **{field: "[64, 64]"}).spec
    assert (spec.args() or spec.command()) == ["[64, 64]"]


def test_filters_macros_and_undefined_names_are_those_of_the_dag() -> None:
    with DAG(
        "nightly",
        schedule=None,
        render_template_as_native_obj=True,
        user_defined_macros={"zone": "007"},
        user_defined_filters={"loud": str.upper},
    ):
        operator = TrainingJobOperator(
            task_id="task", image="i", arguments=["{{ zone }}", "{{ 'a' | loud }}", "{{ logical_date | ds }}"]
        )
    operator.render_template_fields(CONTEXT)  # type: ignore[arg-type]
    assert operator.arguments == ["007", "A", "2013-01-05"]


def test_a_mapped_task_renders_text_too() -> None:
    with DAG("nightly", schedule=None, render_template_as_native_obj=True):
        mapped = TrainingJobOperator.partial(task_id="task", image="i").expand(arguments=[["1.10", DAY]])
    operator = mapped.unmap({"arguments": ["1.10", DAY]})
    environment = mapped.get_template_env()
    operator._do_render_template_fields(operator, ["arguments"], CONTEXT, environment, set())
    assert operator.arguments == ["1.10", "20130105"]


def test_what_a_gate_judges_may_be_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTEXT, "found", {"candidate": {"mae": 1.5}})
    gate = rendered(ModelGateOperator, evaluation="{{ found }}", rules=["mae <= 25"])
    assert gate.evaluation == {"candidate": {"mae": 1.5}}


DATE = datetime(2013, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (TrainingJobOperator, {"image": "i", "run_name": DATE}, "run_name"),
        (TrainingJobOperator, {"image": "i", "arguments": [DATE]}, r"arguments\[0\]"),
        (TrainingJobOperator, {"image": "i", "labels": {"a": DATE}}, r"labels\['a'\]"),
        (EvaluateModelOperator, {"image": "i", "model_name": [1], "version": "1"}, "model_name"),
        (RegisterModelOperator, {"model_name": [1], "run_id": "r"}, "model_name"),
        (PromoteModelOperator, {"model_name": "m", "version": DATE}, "version"),
        (
            RolloutModelOperator,
            {"endpoint": "e", "image": "i", "model_name": "m", "version": [1]},
            "version",
        ),
        (RollbackModelOperator, {"endpoint": [1]}, "endpoint"),
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
    assert {getattr(operator, name) for name in fields} == {"20130105"}
    given = kind(task_id="task", **dict.fromkeys(fields, 20130105))
    given._connect()
    assert {getattr(given, name) for name in fields} == {"20130105"}


def test_numbers_are_text_for_a_sensor() -> None:
    sensor = rendered(ModelAliasSensor, model_name=DAY, alias=DAY, version=DAY)
    condition = sensor._condition()
    assert (condition.model_name, condition.key, condition.version) == ("20130105",) * 3
