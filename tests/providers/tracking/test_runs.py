from __future__ import annotations

import asyncio
import dataclasses
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.mlflow_server import unique
from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingNotFoundError,
    TrackingTrashError,
    TrackingUnauthorizedError,
)
from nighttrain.providers.tracking import run_store
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.election import Election
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import (
    JOB_UID_TAG,
    PARENT_TAG,
    PREVIOUS_TAG,
    RUN_KEY_TAG,
    SUPERSEDED_TAG,
    Lineage,
    Run,
    RunKey,
    RunStatus,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from helpers.mlflow_server import MakeModel, MLflowServer
    from helpers.scripted_http import Scripted

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
    iteration = dataclasses.replace(KEY, map_index=3, region="019b:2")
    assert iteration.value == f"{KEY.value}/3/019b:2"
    assert iteration.parent == KEY.parent


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
async def test_each_attempt_has_a_run_of_its_own(tree: RunTree, mlflow_server: MLflowServer) -> None:
    experiment = mlflow_server.experiment()
    parent = await tree.open_parent(experiment, KEY, name="nightly 2013-06-01", tags={"note": "abc"})
    first = await tree.open_attempt(
        experiment, KEY, name="train", parent_run_id=parent.run_id, params={"depth": 3}
    )
    assert (first.status, first.end_time, first.tags[PARENT_TAG]) == ("RUNNING", None, parent.run_id)
    assert (first.tags["mlflow.source.name"], first.name) == ("nightly.train", "train")
    await tree.set_tags(first.run_id, {JOB_UID_TAG: "u"})
    await tree.close(first.run_id, RunStatus.FAILED)

    second = await tree.open_attempt(
        experiment, KEY, name="train", parent_run_id=parent.run_id, params={"depth": 4}
    )
    await tree.supersede(second)
    assert second.run_id != first.run_id
    assert (second.name, second.tags[PREVIOUS_TAG], second.number) == ("train #2", first.run_id, 2)
    first, second = await tree.attempts(experiment, KEY)
    assert (first.status, first.tags[SUPERSEDED_TAG]) == ("FAILED", second.run_id)
    assert (first.params, second.params) == ({"depth": "3"}, {"depth": "4"})
    assert SUPERSEDED_TAG not in second.tags


@pytest.mark.mlflow
async def test_a_run_whose_params_are_refused_is_not_left_open(
    mlflow_server: MLflowServer, scripted: Scripted
) -> None:
    scripted.upstream, scripted.refuse = mlflow_server.uri, "runs/log-batch"
    experiment = mlflow_server.experiment()
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        with pytest.raises(TrackingUnauthorizedError):
            await RunTree(client).open_attempt(experiment, KEY, name="train", params={"depth": 3})
    assert runs_of(mlflow_server, experiment) == 0


@pytest.mark.mlflow
async def test_a_run_whose_maker_died_before_its_job_is_closed_by_the_next(
    tree: RunTree, mlflow_server: MLflowServer
) -> None:
    experiment = mlflow_server.experiment()
    left = await tree.open_attempt(experiment, KEY, name="train")
    await tree.supersede(await tree.open_attempt(experiment, KEY, name="train"))
    assert (await tree.get(left.run_id)).status == "KILLED"


@pytest.mark.mlflow
@pytest.mark.parametrize("one_before_the_other", [True, False])
async def test_of_two_that_opened_one_attempt_the_one_without_a_job_is_closed(
    tree: RunTree, mlflow_server: MLflowServer, one_before_the_other: bool
) -> None:
    """Its process died once the other one's Job was there, before it could put its run into the trash."""
    experiment = mlflow_server.experiment()
    parent = await tree.open_parent(experiment, KEY, name="p")

    async def opened() -> Run:
        return await tree.open_attempt(experiment, KEY, name="train", parent_run_id=parent.run_id)

    if one_before_the_other:
        used, left = await opened(), await opened()
    else:
        left, used = await asyncio.gather(opened(), opened())
    assert (left.number, used.number) == (1, 1)
    await tree.set_tags(used.run_id, {JOB_UID_TAG: "u"})
    await tree.supersede(await tree.get(used.run_id))
    await tree.close(used.run_id, RunStatus.FINISHED)
    await tree.settle_parent(parent.run_id)
    assert (await tree.get(left.run_id)).status == "KILLED"
    assert (await tree.get(parent.run_id)).status == "FINISHED"


@pytest.mark.mlflow
async def test_parents_opened_at_once_are_one(tree: RunTree, mlflow_server: MLflowServer) -> None:
    experiment = mlflow_server.experiment()
    parents = await asyncio.gather(*(tree.open_parent(experiment, KEY, name="p") for _ in range(5)))
    assert len({parent.run_id for parent in parents}) == 1
    assert runs_of(mlflow_server, experiment) == 1
    shown = mlflow_server.call("GET", "experiments/search", max_results=1000)["experiments"]
    assert not [each for each in shown if each["name"].startswith("nighttrain election")]


@pytest.mark.mlflow
async def test_a_slower_opener_is_told_who_was_elected(tree: RunTree, mlflow_server: MLflowServer) -> None:
    """One that began first, and stands last: no start time and no pause decides."""
    experiment = mlflow_server.experiment()
    slow = mlflow_server.call("POST", "runs/create", experiment_id=experiment, start_time=1)["run"]["info"]
    fast = await tree.open_parent(experiment, KEY, name="p")
    election = Election(tree.client, experiment, KEY.parent.value, "parent 0")
    assert await election.stand(slow["run_id"]) == fast.run_id
    assert await election.elected() == fast.run_id


@pytest.mark.mlflow
async def test_a_candidate_whose_maker_died_goes_when_the_parent_is_settled(
    tree: RunTree, mlflow_server: MLflowServer
) -> None:
    experiment = mlflow_server.experiment()
    parent = await tree.open_parent(experiment, KEY, name="p")
    left = await tree._create(experiment, KEY.parent, name="p", tags={})
    child = await tree.open_attempt(experiment, KEY, name="c", parent_run_id=parent.run_id)
    await tree.close(child.run_id, "FINISHED")
    await tree.settle_parent(parent.run_id)
    assert (await tree.get(left.run_id)).deleted
    assert (await tree.get(parent.run_id)).status == "FINISHED"


@pytest.mark.mlflow
async def test_credentials_that_may_make_no_experiments_still_get_a_parent(
    mlflow_server: MLflowServer, scripted: Scripted
) -> None:
    scripted.upstream, scripted.refuse = mlflow_server.uri, "experiments/create"
    experiment = mlflow_server.experiment()
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        parents = [await RunTree(client).open_parent(experiment, KEY, name="p") for _ in range(2)]
    assert parents[0].run_id == parents[1].run_id


@pytest.mark.mlflow
async def test_of_parents_side_by_side_none_goes_that_has_a_child(
    mlflow_server: MLflowServer, scripted: Scripted
) -> None:
    """Where nobody may elect, tasks that start at once may have a parent each."""
    scripted.upstream, scripted.refuse = mlflow_server.uri, "experiments/create"
    experiment = mlflow_server.experiment()
    async with (
        MLflowClient(TrackingConfig(scripted.uri)) as one,
        MLflowClient(TrackingConfig(scripted.uri)) as two,
    ):
        trees = RunTree(one), RunTree(two)
        looked = asyncio.Barrier(2)
        for each in trees:
            each.find = _looking_together(each.find, looked)  # type: ignore[method-assign]
        parents = await asyncio.gather(*(each.open_parent(experiment, KEY, name="p") for each in trees))
        first, second = [
            await trees[0].open_attempt(
                experiment, replace(KEY, task_id=task), name=task, parent_run_id=parent.run_id
            )
            for task, parent in zip("ab", parents, strict=True)
        ]
        assert parents[0].run_id != parents[1].run_id
        await trees[0].close(first.run_id, "FINISHED")
        await trees[0].settle_parent(parents[0].run_id)
        assert not (await trees[0].get(parents[1].run_id)).deleted
        await trees[1].close(second.run_id, "FAILED")
        await trees[1].settle_parent(parents[1].run_id)
        ends = [(await trees[0].get(each.run_id)).status for each in parents]
    assert ends == ["FINISHED", "FAILED"]


def _looking_together(find: Any, looked: asyncio.Barrier) -> Any:
    async def found(*asked: Any) -> Any:
        known = await find(*asked)
        await looked.wait()
        return known

    return found


@pytest.mark.mlflow
async def test_a_parent_that_a_person_restores_takes_none_from_the_one_after_it(
    tree: RunTree, mlflow_server: MLflowServer
) -> None:
    experiment = mlflow_server.experiment()
    first = await tree.open_parent(experiment, KEY, name="p")
    begun = await tree.open_attempt(experiment, KEY, name="a", parent_run_id=first.run_id)
    await tree.discard(first.run_id)
    second = await tree.open_parent(experiment, KEY, name="p")
    mlflow_server.call("POST", "runs/restore", run_id=first.run_id)
    await tree.close(begun.run_id, "FINISHED")
    # The next task is about to open its run below the second one.
    await tree.settle_parent(first.run_id)
    assert not (await tree.get(second.run_id)).deleted
    await tree.open_attempt(experiment, replace(KEY, task_id="b"), name="b", parent_run_id=second.run_id)
    await tree.settle_parent(first.run_id)
    assert [(await tree.get(each.run_id)).status for each in (first, second)] == ["FINISHED", "RUNNING"]


@pytest.mark.mlflow
@pytest.mark.parametrize(
    "lose", ["runs/create", "runs/search", "experiments/create", "experiments/delete", "get-by-name"]
)
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
    second = await tree.open_parent(experiment, KEY, name="p")
    assert second.run_id != first.run_id
    assert (await tree.open_parent(experiment, KEY, name="p")).run_id == second.run_id


@pytest.mark.mlflow
async def test_params_and_tags_in_any_number(tree: RunTree, mlflow_server: MLflowServer) -> None:
    run_id = mlflow_server.run(mlflow_server.experiment(), nan="NaN", minus="-Infinity")
    for _ in range(2):
        await tree.log_params(
            run_id, {f"p{i}": i for i in range(130)} | {"db_password": "x", "long": "y" * 9_000}
        )
    await tree.set_tags(run_id, {f"t{i}": i for i in range(130)} | {"long": "z" * 9_000, "b d": "1"})
    run = await tree.get(run_id)
    assert math.isnan(run.metrics["nan"])
    assert run.metrics["minus"] == -math.inf
    assert (run.params["p129"], run.params["db_password"], len(run.params["long"])) == ("129", "***", 6_000)
    assert (run.tags["t129"], len(run.tags["long"]), run.tags["b d"]) == ("129", 8_000, "1")
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
async def test_the_parent_ends_as_its_worst_task(tree: RunTree, mlflow_server: MLflowServer) -> None:
    experiment = mlflow_server.experiment()
    parent = await tree.open_parent(experiment, KEY, name="p")
    children = [
        await tree.open_attempt(
            experiment, dataclasses.replace(KEY, map_index=index), name="c", parent_run_id=parent.run_id
        )
        for index in range(2)
    ]
    for child, status, expected in zip(children, ("KILLED", "FINISHED"), ("RUNNING", "KILLED"), strict=True):
        await tree.close(child.run_id, status)
        await tree.settle_parent(parent.run_id)
        assert (await tree.get(parent.run_id)).status == expected


@pytest.mark.mlflow
async def test_the_parent_follows_each_tasks_last_attempt(tree: RunTree, mlflow_server: MLflowServer) -> None:
    experiment = mlflow_server.experiment()
    parent = await tree.open_parent(experiment, KEY, name="p")
    for ends, expected in (("FAILED", "FAILED"), ("KILLED", "KILLED"), ("FINISHED", "FINISHED")):
        run = await tree.open_attempt(experiment, KEY, name="c", parent_run_id=parent.run_id)
        await tree.settle_parent(parent.run_id)
        assert (await tree.get(parent.run_id)).status == "RUNNING"
        await tree.supersede(run)
        await tree.close(run.run_id, ends)
        await tree.settle_parent(parent.run_id)
        assert (await tree.get(parent.run_id)).status == expected


@pytest.mark.mlflow
@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
async def test_the_parent_counts_children_beyond_the_first_page(
    tree: RunTree, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(run_store, "PAGE", 3)
    experiment = mlflow_server.experiment()
    parent = await tree.open_parent(experiment, KEY, name="p")
    children = [
        await tree.open_attempt(
            experiment, dataclasses.replace(KEY, map_index=index), name="c", parent_run_id=parent.run_id
        )
        for index in range(8)
    ]
    # A search gives the newest first: the oldest is on the last page.
    for child, end in zip(children, [status, *["FINISHED"] * 7], strict=True):
        await tree.close(child.run_id, end)
    await tree.settle_parent(parent.run_id)
    assert (await tree.get(parent.run_id)).status == status


@pytest.mark.mlflow
async def test_a_run_in_the_trash_takes_no_writes(tree: RunTree, mlflow_server: MLflowServer) -> None:
    run = await tree.open_attempt(mlflow_server.experiment(), KEY, name="train")
    await tree.discard(run.run_id)
    assert (await tree.get(run.run_id)).deleted
    for write in (tree.set_tags(run.run_id, {"a": 1}), tree.close(run.run_id, "FINISHED")):
        with pytest.raises(TrackingTrashError):
            await write


@pytest.mark.mlflow
async def test_bad_input(tree: RunTree, mlflow_server: MLflowServer) -> None:
    run = await tree.get(mlflow_server.run(mlflow_server.experiment()))
    with pytest.raises(ConfigurationError, match="MLflow knows RUNNING, FINISHED"):
        await tree.close(run.run_id, "DONE")
    with pytest.raises(ConfigurationError, match="task_id"):
        await tree.open_attempt(run.experiment_id, KEY.parent, name="x")
    with pytest.raises(TrackingNotFoundError):
        await tree.get("0" * 32)
