"""Whom an evaluation scores, and what a gate reads for its rules, against a real MLflow."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from helpers.airflow_connections import connect_mlflow
from helpers.mlflow_server import MLflowServer, unique
from nighttrain.operators.registry import ModelGateOperator
from nighttrain.operators.training import EvaluateModelOperator
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.gates.verdicts import Verdict
from nighttrain.sensors.common.connections import get_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]


@pytest.fixture
def context(mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    connect_mlflow(monkeypatch, mlflow_server.uri)
    ti = SimpleNamespace(dag_id="nightly", run_id="r", task_id="t", map_index=-1, xcoms={})
    ti.xcom_push = lambda key, value: ti.xcoms.update({key: json.loads(json.dumps(value))})
    return {"ti": ti}


@pytest.fixture
def experiment(mlflow_server: MLflowServer) -> str:
    return mlflow_server.experiment()


@pytest.fixture
def model(mlflow_server: MLflowServer, experiment: str) -> str:
    """A registered model with three versions; the first has an alias."""
    name = unique("model")
    for _ in range(3):
        run = mlflow_server.run(experiment)
        mlflow_server.version(name, run, mlflow_server.logged_model(experiment, run))
    mlflow_server.call("POST", "registered-models/alias", name=name, alias="last-good", version="1")
    return name


def evaluate(model: str, **more: Any) -> EvaluateModelOperator:
    return EvaluateModelOperator(task_id="evaluate", image="i", model_name=model, version="3", **more)


def test_the_container_is_told_whom_to_score_and_what_to_check(context: Any, model: str) -> None:
    operator = evaluate(model, compare_with=["version:2", "alias:last-good"], checks=["my.check"])
    prepared = operator._prepare(context)
    assert prepared.environment == {
        "CANDIDATE_MODEL_URI": f"models:/{model}/3",
        "COMPARED_MODEL_URIS": json.dumps(
            {"version:2": f"models:/{model}/2", "alias:last-good": f"models:/{model}/1"}
        ),
        "GATE_CHECKS": '["my.check"]',
    }
    assert prepared.params["compared.alias:last-good"] == "1"
    assert prepared.facts == {
        "version": "3",
        "champion_version": None,
        "compared_versions": {"version:2": "2", "alias:last-good": "1"},
    }


@pytest.mark.parametrize(
    "given", [{"compare_with": ["stage:Production"]}, {"compare_with": "version:1"}, {"checks": ["os"]}]
)
def test_what_is_asked_wrongly_is_told_before_anything_starts(
    context: Any, model: str, given: dict[str, Any]
) -> None:
    with pytest.raises(AirflowFailException, match="ConfigurationError") as failed:
        evaluate(model, **given)._prepare(context)
    assert isinstance(failed.value.__cause__, ConfigurationError)


def test_the_picture_of_an_evaluation_is_linked(context: Any, mlflow_server: MLflowServer) -> None:
    links = evaluate("m")._run_links(get_mlflow("mlflow_default"), "7", "abc")
    page = f"{mlflow_server.uri}/#/experiments/7/runs/abc"
    assert links == {"run": page, "plot": f"{page}/artifacts/nighttrain/evaluation.png"}
    assert "Evaluation plot" in {link.name for link in EvaluateModelOperator.operator_extra_links}


def test_a_gate_reads_what_its_rules_need_and_its_table_says_why(
    context: Any, mlflow_server: MLflowServer, experiment: str, model: str
) -> None:
    run = mlflow_server.run(experiment)
    uri = mlflow_server.call("GET", "runs/get", run_id=run)["run"]["info"]["artifact_uri"]
    slices = {"candidate": {"carrier": {"A|A": {"mae": 9.0, "rows": 300}, "UA": {"mae": 2.0, "rows": 300}}}}
    mlflow_server.upload(uri, "nighttrain/slices.json", json.dumps(slices).encode())
    operator = ModelGateOperator(
        task_id="gate",
        evaluation={
            "model_name": model,
            "version": "3",
            "champion_version": None,
            "run_id": run,
            "measurements": {"candidate": {"mae": 3.0}, "baseline": {"mae": 4.0}},
        },
        rules=["mae <= champion", "mae <= baseline", "mae[carrier=*] <= 5", "artifact_bytes <= 1MB"],
        on_rejected="continue",
    )
    result = operator.execute(context)
    assert result["kind"] == "rejected"
    assert [item["verdict"] for item in result["evidence"]] == [
        "accepted",
        "accepted",
        "rejected",
        "accepted",
    ]
    assert result["summary"] == "rejected: mae[carrier=A|A] 9 is above the limit 5"
    verdict = Verdict.from_dict(context["ti"].xcoms["verdict"])
    assert verdict.evidence[0].note == "no champion yet: no_champion is accept"
    assert "no champion yet" in verdict.table()
    assert "A&#124;A" in verdict.markdown_table()
    (judged,) = [each for each in mlflow_server.versions(model) if each["version"] == "3"]
    tags = {tag["key"]: tag["value"] for tag in judged["tags"]}
    assert tags["nighttrain.gate.summary"] == result["summary"]
