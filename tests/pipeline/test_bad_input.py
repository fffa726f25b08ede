"""Bad input, each with its own clear message, and nothing created."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from helpers.pipeline import Pipeline

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.mlflow, pytest.mark.timeout(420)]

# What a person has to find in the task's log: the field or thing, the value, and what to do.
EXPECTED = {
    "misspelt_resources": ["container_resources.limit", "limits"],
    "unparsable_quantity": ["container_resources.limits.memory", "3 gigs"],
    "impossible_label": ["labels", "not a label!"],
    "forbidden_namespace": ["jobs", "forbidden", "403"],
    "missing_namespace": ["nowhere", "not found"],
    "unreachable_cluster": ["no answer from http://127.0.0.1", "Is the cluster up"],
    "missing_connection": ["kubernetes_conn_id", "never_made", "airflow connections add"],
    "unreachable_mlflow": ["MLflow", "127.0.0.1"],
    "unauthorised_mlflow": ["401", "token"],
    "run_without_model": ["log_model"],
    "no_such_run": ["0" * 32],
    "no_such_model": ["nobody"],
    "no_such_version": ["99", "tampered"],
    "digest_differs": ["sha256", "f" * 64],
    "nothing_to_roll_back": ["never-rolled-out"],
    "not_an_evaluation": ["evaluation", "EvaluateModelOperator"],
}


@pytest.fixture(scope="module")
def failed_run(pipeline: Pipeline) -> tuple[Pipeline, str]:
    """One DAG run of all the bad tasks, over."""
    experiment = pipeline.mlflow("POST", "experiments/create", name="empty")["experiment_id"]
    empty_run, tampered_run = [
        pipeline.mlflow("POST", "runs/create", experiment_id=experiment, start_time=1)["run"]["info"][
            "run_id"
        ]
        for _ in range(2)
    ]
    pipeline.mlflow("POST", "registered-models/create", name="tampered")
    artifact = _upload(pipeline, experiment, tampered_run)
    source = f"mlflow-artifacts:/{artifact}"
    version = pipeline.mlflow(
        "POST", "model-versions/create", name="tampered", source=source, run_id=tampered_run
    )
    assert version["model_version"]["version"] == "1"
    pipeline.mlflow(
        "POST",
        "model-versions/set-tag",
        name="tampered",
        version="1",
        key="nighttrain.artifact.sha256",
        value="f" * 64,
    )
    run_id = pipeline.trigger("bad_input", empty_run=empty_run)
    assert pipeline.finished("bad_input", run_id, 300) == "failed"
    return pipeline, run_id


def _upload(pipeline: Pipeline, experiment: str, run_id: str) -> str:
    import httpx

    path = f"{experiment}/{run_id}/artifacts/model"
    url = f"{pipeline.stack.mlflow_uri}/api/2.0/mlflow-artifacts/artifacts/{path}/MLmodel"
    assert httpx.put(url, content=b"flavors: {}\n").is_success
    return path


@pytest.mark.parametrize("task_id", EXPECTED)
def test_message_names_the_field_the_value_and_the_fix(
    failed_run: tuple[Pipeline, str], task_id: str
) -> None:
    pipeline, run_id = failed_run
    assert pipeline.task("bad_input", run_id, task_id)["state"] == "failed"
    message = _error(pipeline.log("bad_input", run_id, task_id))
    for words in EXPECTED[task_id]:
        assert words in message, message
    assert "very-secret-token" not in pipeline.log("bad_input", run_id, task_id)


def test_nothing_was_created(failed_run: tuple[Pipeline, str]) -> None:
    pipeline, _ = failed_run
    assert pipeline.jobs("bad_input") == []
    deployments = pipeline.kubernetes("/apis/apps/v1/namespaces/default/deployments")["items"]
    assert [d["metadata"]["name"] for d in deployments if "tampered" in d["metadata"]["name"]] == []
    assert pipeline.versions("nothing") == []
    experiments = pipeline.mlflow("POST", "experiments/search", max_results=100)["experiments"]
    assert "bad_input" not in {experiment["name"] for experiment in experiments}


def test_unknown_parameter_is_named_when_the_dag_is_parsed(pipeline: Pipeline) -> None:
    errors = pipeline.stack.api("GET", "/importErrors").json()["import_errors"]
    (misspelt,) = [e["stack_trace"] for e in errors if e["filename"] == "unknown_parameter.py"]
    assert "imagee" in misspelt


def _error(log: str) -> str:
    """The messages of the errors in a task's log, which is JSON lines."""
    texts = []
    for line in log.splitlines():
        entry: dict[str, Any] = json.loads(line)
        if entry.get("level") in {"error", "critical"}:
            texts.append(str(entry.get("event")))
            texts += [str(detail.get("exc_value")) for detail in entry.get("error_detail") or []]
    return "\n".join(texts)
