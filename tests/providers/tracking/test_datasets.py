"""A training's inputs in MLflow, from what its run recorded; never twice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.datasets import (
    MAX_DATASET_DIGEST,
    MAX_DATASET_NAME,
    dataset_of,
    record_inputs,
)
from nighttrain.providers.tracking.runs import Run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from helpers.mlflow_server import MLflowServer

INTERVAL = {
    "nighttrain.dag_id": "nightly",
    "nighttrain.data_interval_start": "2026-11-25T00:00:00+00:00",
    "nighttrain.data_interval_end": "2026-11-26T00:00:00+00:00",
}


def run(tags: dict[str, str], **params: str) -> Run:
    return Run("r", "1", "train", "FINISHED", tags=tags, params=params)


def told(dataset: dict[str, Any] | None) -> dict[str, Any]:
    assert dataset is not None
    source: dict[str, Any] = json.loads(dataset["source"])
    return source


def test_the_interval_is_the_data_set_and_its_digest_says_what_it_is_of() -> None:
    dataset = dataset_of(run(INTERVAL))
    assert dataset is not None
    assert (dataset["name"], dataset["source_type"]) == ("nightly 2026-11-25", "nighttrain")
    assert told(dataset) == {
        "data_interval_start": "2026-11-25T00:00:00+00:00",
        "data_interval_end": "2026-11-26T00:00:00+00:00",
        "night": "2026-11-25",
        "digest_is_of": "these facts",
    }
    other = dataset_of(run({**INTERVAL, "nighttrain.data_interval_start": "2026-11-24T00:00:00+00:00"}))
    assert other is not None
    assert other["digest"] != dataset["digest"]


def test_what_the_training_recorded_of_its_data_is_used() -> None:
    params = {
        "dataset.name": "flights",
        "dataset.source": "s3://key:hunter2@bucket/flights",
        "dataset.sha256": "ab" * 32,
        "night": "2026-11-24",
    }
    dataset = dataset_of(run(INTERVAL, **params))
    assert dataset is not None
    assert (dataset["name"], dataset["digest"]) == ("flights", "abababababab")
    assert "hunter2" not in dataset["source"]
    said = told(dataset)
    assert (said["night"], said["sha256"], said["digest_is_of"]) == ("2026-11-24", "ab" * 32, "the data")


def test_a_run_that_recorded_nothing_of_its_data_has_none() -> None:
    assert dataset_of(run({"nighttrain.dag_id": "nightly"}, rate="0.5")) is None


def test_names_and_digests_fit_mlflows_columns() -> None:
    params = {"dataset.name": "n" * 6_000, "dataset.digest": "d" * 6_000}
    dataset = dataset_of(run({**INTERVAL, "nighttrain.dag_id": "x" * 600}, **params))
    assert dataset is not None
    assert (len(dataset["name"]), len(dataset["digest"])) == (MAX_DATASET_NAME, MAX_DATASET_DIGEST)


@pytest.fixture
async def client(mlflow_store: MLflowServer) -> AsyncIterator[MLflowClient]:
    async with MLflowClient(TrackingConfig(mlflow_store.uri)) as client:
        yield client


def stored(server: MLflowServer, run_id: str) -> Run:
    return Run.from_api(server.call("GET", "runs/get", run_id=run_id)["run"])


def trained(server: MLflowServer) -> Run:
    run_id = server.run(server.experiment())
    for key, value in INTERVAL.items():
        server.call("POST", "runs/set-tag", run_id=run_id, key=key, value=value)
    return stored(server, run_id)


@pytest.mark.mlflow
@pytest.mark.slow
async def test_inputs_are_recorded_once(client: MLflowClient, mlflow_store: MLflowServer) -> None:
    training = trained(mlflow_store)
    assert await record_inputs(client, training)
    assert await record_inputs(client, training)  # as after a lost answer
    answer = mlflow_store.call("GET", "runs/get", run_id=training.run_id)["run"]["inputs"]
    (given,) = answer["dataset_inputs"]
    assert given["dataset"]["name"] == "nightly 2026-11-25"
    assert given["tags"] == [{"key": "mlflow.data.context", "value": "training"}]
    assert not await record_inputs(client, stored(mlflow_store, training.run_id))


@pytest.mark.mlflow
@pytest.mark.slow
async def test_inputs_that_the_training_code_logged_are_not_doubled(
    client: MLflowClient, mlflow_store: MLflowServer
) -> None:
    training = trained(mlflow_store)
    own = {"name": "own", "digest": "1", "source_type": "local", "source": "{}"}
    body = {"run_id": training.run_id, "datasets": [{"dataset": own}]}
    mlflow_store.call("POST", "runs/log-inputs", **body)
    assert not await record_inputs(client, stored(mlflow_store, training.run_id))
    assert stored(mlflow_store, training.run_id).datasets == ("own",)


@pytest.mark.mlflow
@pytest.mark.slow
async def test_a_run_in_the_trash_takes_none_and_that_is_no_error(
    client: MLflowClient, mlflow_store: MLflowServer
) -> None:
    training = trained(mlflow_store)
    mlflow_store.call("POST", "runs/delete", run_id=training.run_id)
    assert not await record_inputs(client, training)
