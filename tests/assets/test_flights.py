"""The real flights of 2013 as Dagster partitions: one night trains, a worse one is stopped."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from helpers.lineage_keys import LINEAGE_KEYS, RUN_KEYS
from helpers.mlflow_server import unique
from nighttrain.assets.flights import NIGHTS, airline_delay_definitions
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import promote

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.mlflow_server import MLflowServer
    from nighttrain.assets.resources import KubernetesResource, MLflowResource

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]


class Flights:
    """The definitions of one test, on a model of its own."""

    def __init__(self, kubernetes: KubernetesResource, mlflow: MLflowResource) -> None:
        self.model = unique("airline-delay")
        self.defs = airline_delay_definitions(kubernetes=kubernetes, mlflow=mlflow, model_name=self.model)
        self.resources: dict[str, Any] = {"kubernetes": kubernetes, "mlflow": mlflow}
        self.mlflow = mlflow

    def materialize(
        self, night: str, instance: dg.DagsterInstance, *more: Any, check: bool
    ) -> dg.ExecuteInProcessResult:
        checks = list(self.defs.asset_checks or []) if check else []
        return dg.materialize(
            [*(self.defs.assets or []), *checks, *more],  # type: ignore[list-item]
            instance=instance,
            resources=self.resources,
            partition_key=night,
            raise_on_error=not check,
        )

    def promote(self, version: str) -> None:
        async def work() -> None:
            async with self.mlflow.client() as client:
                await promote(ModelRegistry(client), self.model, version, stage="Production")

        run_sync(work())


@pytest.fixture
def flights(kubernetes: KubernetesResource, mlflow: MLflowResource) -> Flights:
    return Flights(kubernetes, mlflow)


def tags_of(thing: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in thing.get("tags", ())}


def values_of(materialization: dg.AssetMaterialization) -> dict[str, Any]:
    return {name: entry.value for name, entry in materialization.metadata.items()}


@pytest.mark.thorough
def test_one_night_trains_and_mlflow_looks_as_it_does_from_airflow(
    flights: Flights,
    mlflow_server: MLflowServer,
    instance: dg.DagsterInstance,
    jobs: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NIGHTTRAIN_COMMIT", "0123abc")
    result = flights.materialize("2013-09-04", instance, check=False)
    assert result.success
    (made,) = result.asset_materializations_for_node("airline_delay")
    assert made.partition == "2013-09-04"
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == "1"
    seen = values_of(made)

    (version,) = mlflow_server.versions(flights.model)
    (job,) = jobs()
    assert seen["version"] == version["version"] == "1"
    assert seen["run_id"] == version["run_id"]
    assert seen["job"] == f"default/{job['metadata']['name']}"
    assert seen["image"] == "localhost/airline-delay:1"
    assert "sha256:" in seen["image_digest"]

    run = mlflow_server.call("GET", "runs/get", run_id=seen["run_id"])["run"]
    tags = tags_of(run["data"])
    parent = mlflow_server.call("GET", "runs/get", run_id=tags["mlflow.parentRunId"])["run"]
    assert run["info"]["status"] == parent["info"]["status"] == "FINISHED"
    assert tags_of(parent["data"])["nighttrain.run_key"] == f"dagster/{result.dagster_run.job_name}/" + (
        result.run_id
    )
    assert {key for key in tags if key.startswith("nighttrain.")} == LINEAGE_KEYS | RUN_KEYS
    assert tags["nighttrain.orchestrator"] == "dagster"
    assert tags["nighttrain.run_id"] == result.run_id
    assert tags["nighttrain.task_id"] == "airline_delay"
    assert tags["nighttrain.outcome"] == "succeeded"
    assert tags["nighttrain.try_number"] == "1"
    assert tags["nighttrain.commit"] == tags["mlflow.source.git.commit"] == "0123abc"
    assert tags["nighttrain.job_uid"] == job["metadata"]["uid"]
    # The very interval that the DAG's timetable gives this night.
    assert tags["nighttrain.data_interval_start"] == "2013-09-04T04:00:00-04:00"
    assert tags["nighttrain.data_interval_end"] == "2013-09-05T04:00:00-04:00"
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert params["night"] == params["as_of"] == "2013-09-04"
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert 5 < metrics["train.mae"] < 15

    assert run["info"]["run_name"] == "airline_delay 2013-09-04"
    assert seen["metrics"]["train.mae"] == metrics["train.mae"]
    (given,) = run["inputs"]["dataset_inputs"]
    sha256 = params["dataset.sha256"]
    assert (given["dataset"]["name"], given["dataset"]["digest"]) == (
        f"{result.dagster_run.job_name} 2013-09-04",
        sha256[:12],
    )
    assert sha256 in given["dataset"]["source"]

    assert tags_of(version) == {
        "nighttrain.night": "2013-09-04",
        "nighttrain.dag_run": f"{result.dagster_run.job_name}/{result.run_id}",
        "nighttrain.job": seen["job"],
        "nighttrain.artifact.sha256": seen["artifact_sha256"],
    }
    assert len(seen["artifact_sha256"]) == 64
    place = {"run_id": seen["run_id"], "path": "nighttrain/lineage.json"}
    kept = mlflow_server.http.get("/get-artifact", params=place).raise_for_status().json()["lineage"]
    assert {f"nighttrain.{name}" for name in kept} == LINEAGE_KEYS | {"nighttrain.night"}
    assert {key: kept[key.removeprefix("nighttrain.")] for key in LINEAGE_KEYS} == {
        key: tags[key] for key in LINEAGE_KEYS
    }
    assert "partition 2013-09-04" in version["description"]
    assert "Night 2013-09-04" in version["description"]


@pytest.mark.thorough
def test_a_worse_night_stops_at_the_gate(
    flights: Flights, mlflow_server: MLflowServer, instance: dg.DagsterInstance
) -> None:
    flights.materialize("2013-09-05", instance, check=False)
    flights.promote("1")

    @dg.asset(deps=["airline_delay"], partitions_def=NIGHTS)
    def announcement() -> None: ...

    result = flights.materialize("2013-09-06", instance, announcement, check=True)

    assert not result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert evaluation.blocking
    seen = {name: entry.value for name, entry in evaluation.metadata.items()}
    assert seen["verdict"] == "rejected"
    assert (seen["candidate_version"], seen["champion_version"]) == ("2", "1")
    assert "mae <= champion.mae" in html.unescape(seen["evidence"])
    by_rule = {item["rule"]: item for item in seen["measurements"]}
    worse = by_rule["mae <= champion.mae"]
    assert worse["verdict"] == "rejected"
    assert worse["candidate"] > worse["champion"] > 5
    print(f"candidate mae {worse['candidate']:.3f}, champion mae {worse['champion']:.3f}")
    assert by_rule["rows >= 500"]["verdict"] == "accepted"

    assert [event.asset_key.to_user_string() for event in result.get_asset_materialization_events()] == [
        "airline_delay"
    ]
    failed = {event.step_key for event in result.get_step_failure_events()}
    assert failed == {"airline_delay_gate"}

    tags = tags_of(mlflow_server.versions(flights.model)[1])
    assert tags["nighttrain.gate.verdict"] == "rejected"
    assert "is above the champion's" in tags["nighttrain.gate.summary"]
    assert tags["nighttrain.gate.by"].startswith("dagster:")
    run = mlflow_server.call("GET", "runs/get", run_id=tags["nighttrain.gate.evaluation_run"])["run"]
    assert run["info"]["status"] == "FINISHED"
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    assert (params["candidate_version"], params["champion_version"]) == ("2", "1")
    assert tags_of(run["data"])["nighttrain.task_id"] == "airline_delay-gate"
    # The evaluation is a child of the same Dagster run's parent, beside the training.
    training = mlflow_server.call(
        "GET", "runs/get", run_id=mlflow_server.versions(flights.model)[1]["run_id"]
    )
    assert (
        tags_of(run["data"])["mlflow.parentRunId"] == tags_of(training["run"]["data"])["mlflow.parentRunId"]
    )
