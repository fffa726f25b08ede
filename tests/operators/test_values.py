"""What a task measures and what a DAG names, up to MLflow: nothing is lost, masked or invented."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.sdk.log import mask_secret

from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.dag_runs import dag_run
from helpers.lineage_keys import LINEAGE_KEYS, RUN_KEYS
from helpers.mlflow_server import MakeModel, MLflowServer, unique
from nighttrain.operators.registry import ModelGateOperator, RegisterModelOperator
from nighttrain.operators.training import EvaluateModelOperator, TrainingJobOperator
from nighttrain.providers.errors import ConfigurationError, GateInconclusiveError
from nighttrain.providers.local.cluster.store.resources import JOBS

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

# As training code does it, with MLflow's own client.
MEASURES = """
import math, mlflow
with mlflow.start_run():
    mlflow.log_metrics({"candidate.r2": math.inf, "candidate.mae": 3.0, "champion.mae": math.nan,
                        "candidate.bias": -math.inf, "baseline.mae": math.inf, "candidate.rows": 900})
"""
INCONCLUSIVE = {
    "r2 >= 0.5": "the candidate has no usable r2: it is infinite",
    "mae <= champion.mae * 1.02": "the champion has no usable mae: it is not a number (NaN)",
    "bias <= 1": "the candidate has no usable bias: it is minus infinity",
    "f1 >= 0.5": "the candidate has no f1 (measured: bias, mae, r2, rows)",
}


class Airflow:
    """Runs a task in this process; XComs are kept as Airflow keeps them: in JSON."""

    def __init__(self) -> None:
        self.dag_id, self.run_id, self.xcoms = unique("dag"), "scheduled__2013-06-01T00:00:00+00:00", {}

    def run(self, task: BaseOperator) -> Any:
        ti: Any = SimpleNamespace(
            dag_id=self.dag_id, run_id=self.run_id, task_id="t", map_index=-1, try_number=1, max_tries=0
        )
        ti.xcom_push = self.push
        now = datetime.now(UTC)
        context: Any = {"ti": ti, "dag_run": dag_run(now, now)}
        return json.loads(json.dumps(task.execute(context), allow_nan=False))

    def push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value, allow_nan=False))


@pytest.fixture
def airflow(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> Airflow:
    connect_kubernetes(monkeypatch, cluster)
    connect_mlflow(monkeypatch, mlflow_server.uri)
    return Airflow()


def training(**options: Any) -> TrainingJobOperator:
    command = ["python", "-S", "-c", "print(1)"]
    return TrainingJobOperator(task_id="t", image="py", cmds=command, deferrable=False, **options)


def tags_of(server: MLflowServer, name: str, version: str) -> dict[str, str]:
    found = next(v for v in server.versions(name) if v["version"] == version)
    return {tag["key"]: tag["value"] for tag in found["tags"]}


@pytest.mark.timeout(600)
def test_numbers_that_are_none_reach_the_verdict_by_name(
    airflow: Airflow, mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    name = unique("model")
    champion, candidate = make_model(name).version, make_model(name).version
    assert champion is not None
    assert candidate is not None
    mlflow_server.call("POST", "registered-models/alias", name=name, alias="champion", version=champion)

    evaluation = airflow.run(
        EvaluateModelOperator(
            task_id="t",
            image="py",
            cmds=["python", "-c", MEASURES],
            deferrable=False,
            model_name=name,
            version=candidate,
        )
    )
    assert evaluation["measurements"] == {
        "candidate": {"r2": "Infinity", "mae": 3.0, "bias": "-Infinity", "rows": 900.0},
        "champion": {"mae": "NaN"},
        "baseline": {"mae": "Infinity"},
    }
    gate = ModelGateOperator(task_id="t", evaluation=evaluation, rules=[*INCONCLUSIVE, "rows >= 500"])
    with pytest.raises(AirflowFailException) as caught:
        airflow.run(gate)
    assert isinstance(caught.value.__cause__, GateInconclusiveError)
    verdict = airflow.xcoms["verdict"]
    assert [item["sentence"] for item in verdict["evidence"][:-1]] == list(INCONCLUSIVE.values())
    recorded = tags_of(mlflow_server, name, candidate)
    assert recorded["nighttrain.gate.verdict"] == "inconclusive"
    assert recorded["nighttrain.gate.summary"] == f"inconclusive: {'; '.join(INCONCLUSIVE.values())}"


@pytest.mark.parametrize("value", [float("nan"), "Infinity", 10**400, True, None, "much", [1]])
def test_an_evaluation_written_by_hand_is_read_as_carefully(
    airflow: Airflow, mlflow_server: MLflowServer, make_model: MakeModel, value: object
) -> None:
    made = make_model()
    evaluation = {
        "model_name": made.name,
        "version": made.version,
        "measurements": {"candidate": {"mae": "3.5", "r2": value}, "champion": {"mae": 4, "r2": 0.5}},
    }

    def gate(*rules: str) -> Any:
        task = ModelGateOperator(
            task_id="t", evaluation=evaluation, rules=rules, on_inconclusive="continue", no_champion="reject"
        )
        return airflow.run(task)

    assert gate("mae <= champion.mae", "mae <= 3.5")["kind"] == "accepted"
    assert gate("mae <= champion.mae", "r2 >= champion.r2")["kind"] == "inconclusive"
    assert tags_of(mlflow_server, made.name, "1")["nighttrain.gate.verdict"] == "inconclusive"


@pytest.mark.parametrize("measurements", [None, [], {"candidate": None}, {"candidate": 3}])
def test_an_evaluation_that_is_none_names_itself(airflow: Airflow, measurements: object) -> None:
    evaluation = {"model_name": "m", "version": "1", "measurements": measurements}
    with pytest.raises(AirflowFailException, match="measurements"):
        airflow.run(ModelGateOperator(task_id="t", evaluation=evaluation, rules=["mae <= 1"]))


def test_parameters_go_in_as_they_are(airflow: Airflow, mlflow_server: MLflowServer) -> None:
    mask_secret("swordfish99")
    parameters = {
        "学習率": 0.1,
        "木の数": 300,
        "n_pass": 7,
        "use_secretary_features": True,
        "pad_token": "<pad>",
        "note": "with swordfish99",
        "db_password": "hunter2",
    }
    result = airflow.run(training(parameters=parameters))
    run = mlflow_server.call("GET", "runs/get", run_id=result["run_id"])["run"]
    logged = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert logged == {
        **{name: str(value) for name, value in parameters.items()},
        "note": "with ***",
        "db_password": "***",
    }


def test_a_trainings_run_has_the_tags_that_it_has_in_dagster(
    airflow: Airflow, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_COMMIT", "0123abc")
    result = airflow.run(training())
    run = mlflow_server.call("GET", "runs/get", run_id=result["run_id"])["run"]
    keys = {tag["key"] for tag in run["data"]["tags"]}
    assert {key for key in keys if key.startswith("nighttrain.")} == LINEAGE_KEYS | RUN_KEYS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parameters": {"x[0]": 3, "x(0)": 4}}, ["parameters['x[0]']", "3", "'x_0'"]),
        ({"parameters": {"a//b": 1}}, ["parameters['a//b']", "'a/b'"]),
        ({"parameters": {1: "a", "1": "b"}}, ["parameters['1']", "two names"]),
        ({"parameters": {"long": "v" * 6_001}}, ["parameters['long']", "6,001", "6,000"]),
        ({"run_name": "r" * 251}, ["run_name", "251", "250"]),
        ({"experiment_name": "e" * 257}, ["experiment_name", "257", "256"]),
        ({"experiment_name": "a\0b"}, ["experiment_name", "NUL"]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    airflow: Airflow,
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    options: dict[str, Any],
    words: list[str],
) -> None:
    jobs = cluster.call(lambda store: len(store.list(JOBS)[0]))
    with pytest.raises(AirflowFailException) as caught:
        airflow.run(training(**options))
    assert isinstance(caught.value.__cause__, ConfigurationError)
    for word in words:
        assert word in str(caught.value)
    assert cluster.call(lambda store: len(store.list(JOBS)[0])) == jobs
    mine = f"name = '{airflow.dag_id}'"
    assert mlflow_server.call("POST", "experiments/search", max_results=9, filter=mine) == {}


@pytest.mark.parametrize(
    "options",
    [
        *({"tags": tags} for tags in ({"x[0]": "1"}, {"a": "v" * 5_001}, {"a": "b\0"}, "a=b")),
        {"description": "d" * 5_001},
    ],
)
def test_registering_what_does_not_fit_makes_no_model(
    airflow: Airflow, mlflow_server: MLflowServer, make_model: MakeModel, options: dict[str, Any]
) -> None:
    made, name = make_model(register=False), unique("model")
    with pytest.raises(AirflowFailException, match=r"tags|description"):
        airflow.run(RegisterModelOperator(task_id="t", model_name=name, run_id=made.run_id, **options))
    found = mlflow_server.call("GET", "registered-models/search", filter=f"name = '{name}'")
    assert found == {}
