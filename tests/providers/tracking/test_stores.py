"""What every store of MLflow takes: each test runs on SQLite and on PostgreSQL, which refuses long texts."""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from helpers.mlflow_server import unique
from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.api.client import ClusterConfig
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.measured import to_json
from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import Author, promote
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.names import fit_run_name, read_params
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import RUN_KEY_TAG, Lineage, RunKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from helpers.mlflow_server import MLflowServer

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

PARAMETERS = {
    "学習率": 0.1,
    "木の数": 300,
    "n_pass": 7,
    "use_secretary_features": True,
    "a/b c:d": "x" * 6_000,
}


@pytest.fixture
async def client(mlflow_store: MLflowServer) -> AsyncIterator[MLflowClient]:
    async with MLflowClient(TrackingConfig(mlflow_store.uri)) as opened:
        yield opened


async def test_names_and_values_at_their_limits_are_kept_whole(client: MLflowClient) -> None:
    tree = RunTree(client)
    experiment = await tree.ensure_experiment(unique("実験").ljust(256, "木"))
    key = RunKey(orchestrator="airflow", dag_id="夜" * 250, run_id="r" * 250, task_id="t" * 250)
    parent = await tree.open_parent(experiment, key, name=fit_run_name(f"{key.dag_id} {key.run_id}"))
    opened = await tree.open_attempt(
        experiment,
        key,
        name="木" * 250,
        parent_run_id=parent.run_id,
        tags={"k" * 250: "値" * 9_000},
        params=read_params(PARAMETERS),
    )
    run = await tree.get(opened.run_id)
    assert (run.name, run.tags[RUN_KEY_TAG]) == ("木" * 250, key.value)
    assert run.tags["k" * 250] == "値" * 7_999 + "…"
    assert run.params == {name: str(value) for name, value in PARAMETERS.items()}
    again = await tree.find(experiment, key)
    assert again is not None
    assert again.run_id == run.run_id


async def test_a_dag_with_a_long_id_trains(mlflow_store: MLflowServer) -> None:
    dag_id, run_id = unique("d").ljust(230, "d"), "scheduled__2013-06-01T00:00:00+00:00"
    ids = {"orchestrator": "airflow", "dag_id": dag_id, "run_id": run_id}
    key = RunKey(**ids, task_id="t")
    with EmbeddedCluster(images={"py": sys.executable}) as cluster:
        work = TrackedWorkload(
            cluster=ClusterConfig(kubeconfig=str(cluster.kubeconfig)),
            tracking=TrackingConfig(mlflow_store.uri),
            tracking_uri_for_pods=mlflow_store.uri,
            spec=WorkloadSpec(image="py", cmds=["python", "-S", "-c", "print(1)"]),
            identity=WorkloadIdentity(**ids, task_id="t"),
            epoch="1",
            experiment_name=key.dag_id,
            run_name="t",
            lineage=partial(Lineage, **ids, task_id="t"),
        )
        started = await work.start()
        closed = (
            await work.attempt(started).settle(await work.attempt(started).follow(timeouts=Timeouts(60)))
        ).started
    parent = mlflow_store.call("GET", "runs/get", run_id=closed.parent_run_id)["run"]["info"]
    assert (len(parent["run_name"]), parent["status"]) == (250, "FINISHED")
    assert parent["run_name"].endswith(f" {key.run_id}")


async def test_what_a_database_refuses_never_reaches_it(client: MLflowClient) -> None:
    tree = RunTree(client)
    experiment = await tree.ensure_experiment(unique("experiment"))
    key = RunKey(orchestrator="airflow", dag_id="d", run_id="r", task_id="t")
    run = await tree.open_parent(experiment, key, name="p", tags={"line": "a\0b\udfff"})
    await tree.log_params(run.run_id, {"line": "a\0b"})
    run = await tree.get(run.run_id)
    assert (run.tags["line"], run.params["line"]) == ("a\ufffdb\ufffd", "a\ufffdb")


async def test_numbers_that_are_none_come_back_as_what_they_were(
    client: MLflowClient, mlflow_store: MLflowServer
) -> None:
    logged = {"inf": math.inf, "minus": -math.inf, "nan": math.nan, "zero": 0.0, "great": 1e308}
    sent = {name: to_json(value) for name, value in logged.items()}
    read = (await RunTree(client).get(mlflow_store.run(mlflow_store.experiment(), **sent))).metrics
    assert math.isnan(read.pop("nan"))
    del logged["nan"]
    assert read == logged


async def test_the_registry_takes_what_fits_and_is_not_asked_otherwise(
    client: MLflowClient, mlflow_store: MLflowServer
) -> None:
    registry = ModelRegistry(client)
    experiment = mlflow_store.experiment()
    run_id = mlflow_store.run(experiment)
    mlflow_store.logged_model(experiment, run_id)
    name = unique("模型").ljust(256, "木")
    for refused in ({"description": "d" * 5_001}, {"description": "a\0b"}, {"tags": {"x[0]": "1"}}):
        with pytest.raises(ConfigurationError):
            await registry.register(name, run_id=run_id, **refused)  # type: ignore[arg-type]
    for bad in ("..", ".", "..x", "a\0b", "m" * 257):
        with pytest.raises(ConfigurationError):
            await registry.ensure_model(bad)
    assert mlflow_store.call("GET", "registered-models/search", filter=f"name = '{name}'") == {}

    version = await registry.register(
        name, run_id=run_id, description="d" * 5_000, tags={"k" * 250: "値" * 5_001, "nul": "a\0b"}
    )
    assert version.description == "d" * 5_000
    assert version.tags["k" * 250] == "値" * 4_999 + "…"
    with pytest.raises(ConfigurationError, match="5,001 characters"):
        await registry.set_description(name, version.version, "d" * 5_001)


async def test_a_promotions_record_is_whole_whatever_its_reason_holds(
    client: MLflowClient, mlflow_store: MLflowServer
) -> None:
    experiment = mlflow_store.experiment()
    run_id = mlflow_store.run(experiment)
    name = unique("model")
    version = mlflow_store.version(name, run_id, mlflow_store.logged_model(experiment, run_id))
    registry = ModelRegistry(client)
    author = Author(reason='"' * 2_000, evidence={"r2": math.nan, "say": "\n" * 2_000})
    await promote(registry, name, version, author=author)
    ledger = await Changes(registry, name).history.read()
    promotion, done = ledger.entries
    assert (promotion.reason[:3], promotion.alias, done.finishes) == ('"""', "champion", 1)
    assert ledger.faults == ()
