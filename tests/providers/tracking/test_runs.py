from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow_server import unique

from nighttrain.providers.errors import ConfigurationError, TrackingNotFoundError
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.runs import (
    CHANGED_PARAMS_TAG,
    PARENT_TAG,
    RUN_KEY_TAG,
    Lineage,
    RunKey,
    RunStatus,
    RunTree,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mlflow_server import MakeModel, MLflowServer
    from scripted_http import Scripted

KEY = RunKey(
    orchestrator="airflow", dag_id="nightly", run_id="scheduled__2013-06-01T00:00:00+00:00", task_id="train"
)
names = st.text(min_size=1, max_size=12)


@pytest.fixture
async def tree(mlflow_server: MLflowServer) -> AsyncIterator[RunTree]:
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        yield RunTree(client, clock=lambda: 1_800_000_000.0)


def runs_of(server: MLflowServer, experiment: str) -> int:
    return len(server.call("POST", "runs/search", experiment_ids=[experiment]).get("runs", []))


def test_keys_are_readable() -> None:
    assert KEY.value == "airflow/nightly/scheduled__2013-06-01T00:00:00+00:00/train"
    assert KEY.parent.value == "airflow/nightly/scheduled__2013-06-01T00:00:00+00:00"


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.tuples(names, names, names, st.none() | names, st.integers(-1, 2)),
    st.tuples(names, names, names, st.none() | names, st.integers(-1, 2)),
)
def test_keys_differ_when_identities_do(
    one: tuple[str, str, str, str | None, int], two: tuple[str, str, str, str | None, int]
) -> None:
    def key(parts: tuple[str, str, str, str | None, int]) -> RunKey:
        orchestrator, dag, run, task, index = parts
        return RunKey(
            orchestrator=orchestrator,
            dag_id=dag,
            run_id=run,
            task_id=task,
            map_index=-1 if task is None else index,
        )

    assert (key(one).value == key(two).value) == (key(one) == key(two))
    assert not set(key(one).value) & set("'\"`")


def test_lineage_writes_what_is_known() -> None:
    lineage = Lineage(
        dag_id="nightly", attempt=2, map_index=-1, image="https://u:pw@registry/x", commit="abc"
    )
    assert lineage.tags() == {
        "nighttrain.dag_id": "nightly",
        "nighttrain.attempt": "2",
        "nighttrain.image": "https://***@registry/x",
        "nighttrain.commit": "abc",
        "mlflow.source.git.commit": "abc",
    }


@pytest.mark.mlflow
async def test_experiments(tree: RunTree, mlflow_server: MLflowServer) -> None:
    name = unique('it\'s an "experiment"')
    ids = await asyncio.gather(*(tree.ensure_experiment(name) for _ in range(3)))
    assert len(set(ids)) == 1
    mlflow_server.call("POST", "experiments/delete", experiment_id=ids[0])
    with pytest.raises(ConfigurationError, match="trash: mlflow experiments restore"):
        await tree.ensure_experiment(name)
    with pytest.raises(ConfigurationError, match="name"):
        await tree.ensure_experiment(" ")


@pytest.mark.mlflow
async def test_a_retry_reopens_the_same_runs(tree: RunTree, mlflow_server: MLflowServer) -> None:
    experiment = mlflow_server.experiment()
    parent = await tree.open_parent(experiment, KEY, name="nightly 2013-06-01", tags={"token": "abc"})
    child = await tree.open_child(
        parent, KEY, name="train", tags={"nighttrain.attempt": 1}, params={"depth": 3}
    )
    assert (child.status, child.end_time, child.tags[PARENT_TAG]) == ("RUNNING", None, parent.run_id)
    assert (child.tags["mlflow.source.name"], child.params) == ("nightly.train", {"depth": "3"})
    assert parent.tags["token"] == "***"
    await tree.close(child.run_id, RunStatus.FAILED)
    await tree.close(parent.run_id, "FAILED", end_time=1_800_000_000_123)
    assert (await tree.get(parent.run_id)).end_time == 1_800_000_000_123
    assert (await tree.get(child.run_id)).end_time == 1_800_000_000_000

    parent_again = await tree.open_parent(experiment, KEY, name="nightly 2013-06-01")
    child_again = await tree.open_child(
        parent_again, KEY, name="train", tags={"nighttrain.attempt": 2}, params={"depth": 4, "seed": 1}
    )
    assert (parent_again.run_id, child_again.run_id) == (parent.run_id, child.run_id)
    assert (child_again.status, child_again.end_time) == ("RUNNING", None)
    assert (parent_again.status, parent_again.end_time) == ("RUNNING", None)
    assert child_again.tags["nighttrain.attempt"] == "2"
    assert child_again.params == {"depth": "3", "seed": "1"}
    assert child_again.tags[CHANGED_PARAMS_TAG] == '{"depth": "4"}'
    assert runs_of(mlflow_server, experiment) == 2


@pytest.mark.mlflow
async def test_runs_opened_at_once_become_one(tree: RunTree, mlflow_server: MLflowServer) -> None:
    experiment = mlflow_server.experiment()
    parents = await asyncio.gather(*(tree.open_parent(experiment, KEY, name="p") for _ in range(5)))
    # The oldest is kept: of runs with one start time, the same one for everybody who looks afterwards.
    kept = await tree.open_parent(experiment, KEY, name="p")
    assert kept.run_id in {parent.run_id for parent in parents}
    assert runs_of(mlflow_server, experiment) == 1


@pytest.mark.mlflow
@pytest.mark.parametrize("lose", ["runs/create", "runs/search"])
async def test_a_lost_answer_makes_no_double(
    mlflow_server: MLflowServer, scripted: Scripted, lose: str
) -> None:
    scripted.upstream, scripted.lose = mlflow_server.uri, lose
    experiment = mlflow_server.experiment()
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        run = await RunTree(client).open_parent(experiment, KEY, name="p")
    assert scripted.lose == ""
    assert run.tags[RUN_KEY_TAG] == KEY.parent.value
    assert runs_of(mlflow_server, experiment) == 1


@pytest.mark.mlflow
async def test_a_run_in_the_trash_is_not_reopened(tree: RunTree, mlflow_server: MLflowServer) -> None:
    experiment = mlflow_server.experiment()
    first = await tree.open_parent(experiment, KEY, name="p")
    mlflow_server.call("POST", "runs/delete", run_id=first.run_id)
    assert (await tree.open_parent(experiment, KEY, name="p")).run_id != first.run_id


@pytest.mark.mlflow
async def test_metrics_params_and_tags_in_any_number(tree: RunTree, mlflow_server: MLflowServer) -> None:
    run_id = mlflow_server.run(mlflow_server.experiment())
    await tree.log_metrics(
        run_id, {"nan": math.nan, "minus": -math.inf, **{f"m{i}": float(i) for i in range(1_005)}}
    )
    for _ in range(2):
        await tree.log_params(
            run_id, {f"p{i}": i for i in range(130)} | {"db_password": "x", "long": "y" * 9_000}
        )
    await tree.set_tags(run_id, {f"t{i}": i for i in range(130)} | {"long": "z" * 9_000, "b d": "1"})
    run = await tree.get(run_id)
    assert math.isnan(run.metrics["nan"])
    assert run.metrics["minus"] == -math.inf
    assert len(run.metrics) == 1_007
    assert (run.params["p129"], run.params["db_password"], len(run.params["long"])) == ("129", "***", 6_000)
    assert (run.tags["t129"], len(run.tags["long"]), run.tags["b d"]) == ("129", 8_000, "1")
    for bad in ({"m": None}, {"m": True}, {"m": "much"}, {"a//b": 1.0}):
        with pytest.raises(ConfigurationError, match=r"metrics\["):
            await tree.log_metrics(run_id, bad)  # type: ignore[arg-type]
    for refused in (tree.set_tags, tree.log_params):
        with pytest.raises(ConfigurationError, match=r"\['x\[0\]'\]"):
            await refused(run_id, {"x[0]": 1})


@pytest.mark.mlflow
async def test_logged_models(tree: RunTree, make_model: MakeModel, mlflow_server: MLflowServer) -> None:
    made = make_model(register=False)
    second = mlflow_server.logged_model(made.experiment_id, made.run_id, name="second", ready=False)
    models = await tree.logged_models(await tree.get(made.run_id))
    assert [(model.model_id, model.name, model.status, model.ready) for model in models] == [
        (made.model_id, "model", "READY", True),
        (second, "second", "PENDING", False),
    ]
    assert models[0].source == f"models:/{made.model_id}"


@pytest.mark.mlflow
async def test_the_parent_ends_as_its_worst_child(tree: RunTree, mlflow_server: MLflowServer) -> None:
    parent = await tree.open_parent(mlflow_server.experiment(), KEY, name="p")
    children = [
        await tree.open_child(parent, dataclasses.replace(KEY, map_index=index), name="c")
        for index in range(2)
    ]
    for child, status, expected in zip(children, ("KILLED", "FINISHED"), ("RUNNING", "KILLED"), strict=True):
        await tree.close(child.run_id, status)
        await tree.settle_parent(parent.run_id)
        assert (await tree.get(parent.run_id)).status == expected


@pytest.mark.mlflow
async def test_bad_input(tree: RunTree, mlflow_server: MLflowServer) -> None:
    run = await tree.get(mlflow_server.run(mlflow_server.experiment()))
    with pytest.raises(ConfigurationError, match="MLflow knows RUNNING, FINISHED"):
        await tree.close(run.run_id, "DONE")
    with pytest.raises(ConfigurationError, match="task_id"):
        await tree.open_child(run, KEY.parent, name="x")
    with pytest.raises(TrackingNotFoundError):
        await tree.get("0" * 32)
