"""What the reaper does with workloads and runs that nobody waits for any more."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from helpers.container_code import lasts_until
from helpers.mlflow_server import unique
from helpers.reaper_visits import (
    EveryTaskIs,
    EveryTaskIsOver,
    OnlyThisTaskIsOver,
    reap_everything,
    start_and_die,
    until_ended,
    visited,
)
from helpers.tracked_training import (
    GOES_ON,
    TRAINING,
    child_and_parent,
    finish,
    outage,
    runs_of,
    to_the_end,
    tracked,
    until_logged,
)
from nighttrain.providers.attempts.attempt_run import open_parent
from nighttrain.providers.attempts.reaper import TaskState, TaskStates, Verdict, find
from nighttrain.providers.attempts.reaper_visit import (
    ForgottenRun,
    Runs,
    close_forgotten,
    find_forgotten,
    reap_all,
    settle_parents,
)
from nighttrain.providers.errors import TrackingUnreachableError
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.values.identity import ATTEMPT_KEY_LABEL
from nighttrain.providers.local.cluster.store.resources import NAMESPACES
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.run_tree import RunTree

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.local.cluster.server import EmbeddedCluster


async def test_a_run_without_a_job_beside_one_that_succeeded_is_no_attempt(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    """Its process found that the attempt was another one's, and died before it put the run into the trash."""
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING)
        closed = await to_the_end(work)
        async with (
            MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as client,
            await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as kube,
        ):
            tree = RunTree(client)
            parent = await tree.get(closed.parent_run_id)
            left = await tree.open_attempt(
                parent.experiment_id,
                work.run_key,
                name="train",
                parent_run_id=parent.run_id,
                tags=work._new_tags(cluster=kube.server, namespace="default"),
            )
            assert left.number == 2
            forgotten = await find_forgotten(
                kube, client, "default", OnlyThisTaskIsOver(work), minimum_age_seconds=0, now=time.time() + 60
            )
            assert left.run_id in [each.run.run_id for each in forgotten]
            await close_forgotten(Runs(client, pytest.fail), forgotten)
            left, parent = await tree.get(left.run_id), await tree.get(parent.run_id)
    assert (left.status, left.tags["nighttrain.superseded_by"]) == ("KILLED", closed.run_id)
    assert parent.status == "FINISHED"


async def test_reaping_closes_the_run_that_the_workload_was_given(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON)
        started = await work.start()
        assert await reap_everything(work, mlflow_server.uri) == []
        runs = await runs_of(mlflow_server, work)
    assert {run.run_id for run in runs} == {started.run_id, started.parent_run_id}
    assert {run.status for run in runs if run.run_id == started.run_id} == {"KILLED"}
    assert "RUNNING" not in {run.status for run in runs}


@pytest.mark.parametrize("opens_a_run", [True, False])
async def test_reaping_closes_the_run_of_a_workload_that_started_during_an_outage(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, opens_a_run: bool
) -> None:
    async with outage(mlflow_server) as mlflow:
        code = (TRAINING if opens_a_run else "") + GOES_ON
        work = tracked(cluster, mlflow, code)
        await work.start()
        await mlflow.end()
        if opens_a_run:
            await until_logged(mlflow_server, work)
        assert await reap_everything(work, mlflow_server.uri) == []
        runs = await runs_of(mlflow_server, work)
    (child,) = (run for run in runs if run.tags["nighttrain.run_key"] == work.run_key.value)
    (parent,) = (run for run in runs if run is not child)
    assert child.status == "KILLED"
    assert child.metrics == ({"rmse": 1.5} if opens_a_run else {})
    assert child.tags["mlflow.parentRunId"] == parent.run_id
    assert parent.status != "RUNNING"


@pytest.mark.parametrize(("code", "status"), [("pass", "FINISHED"), ("raise SystemExit(3)", "FAILED")])
@pytest.mark.parametrize("knows_its_run", [True, False])
async def test_what_ended_after_its_worker_died_on_the_last_try_is_closed_as_it_ended(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, code: str, status: str, knows_its_run: bool
) -> None:
    async with outage(mlflow_server, begun=not knows_its_run) as mlflow:
        work = tracked(cluster, mlflow, code)
        await finish(work, await work.start())  # and here the worker dies: nobody closes
    assert await reap_everything(work, mlflow_server.uri, expected=Verdict.CLOSED) == []
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == (status, status)
    async with await ClusterClient.open(work.cluster) as client:
        assert not [
            finding
            for finding in await find(client, "default", EveryTaskIsOver(), minimum_age_seconds=0)
            if finding.identity == work.identity
        ]
        kept = await client.list(JOBS, "default", label_selector=f"{ATTEMPT_KEY_LABEL}={work.identity.key}")
        assert len(kept["items"]) == 1


@pytest.mark.parametrize(("code", "status"), [("pass", "FINISHED"), ("raise SystemExit(3)", "FAILED")])
async def test_what_ended_after_its_worker_died_right_after_its_creation_is_closed_as_it_ended(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    status: str,
) -> None:
    """Nothing on the run says that it ever had a Job."""
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, code)
        await start_and_die(work, monkeypatch, "after its Job")
        await until_ended(work)
    seen = await visited(work, mlflow_server.uri)
    assert [each.verdict for each in seen.findings if each.identity == work.identity] == [Verdict.CLOSED]
    assert (seen.forgotten, seen.tracking_error) == ([], None)
    for _ in range(2):
        child, parent = await child_and_parent(mlflow_server, work)
        assert (child.status, parent.status) == (status, status)
        assert child.tags["nighttrain.outcome"] == ("succeeded" if code == "pass" else "application_error")
        assert child.tags["nighttrain.job_uid"]
        seen = await visited(work, mlflow_server.uri)
        assert seen.forgotten == []


@pytest.mark.parametrize("moment", ["before its Job", "after its Job"])
@pytest.mark.parametrize("elsewhere", ["namespace", "cluster"])
async def test_a_run_whose_job_nothing_on_it_names_is_left_to_the_reaper_of_its_place(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    moment: str,
    elsewhere: str,
) -> None:
    other = unique("other")
    cluster.call(lambda store: store.create(NAMESPACES, {"metadata": {"name": other}}))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig.read_text().replace("127.0.0.1", "localhost"))
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON)
        work = replace(work, spec=replace(work.spec, namespace=other))
        await start_and_die(work, monkeypatch, moment)
    there = "default" if elsewhere == "namespace" else other
    config = work.cluster if elsewhere == "namespace" else ClusterConfig(kubeconfig=str(kubeconfig))
    async with (
        await ClusterClient.open(config) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
    ):
        found = await find_forgotten(
            client, opened, there, OnlyThisTaskIsOver(work), minimum_age_seconds=0, now=time.time() + 60
        )
        assert found == []
    seen = await visited(work, mlflow_server.uri, other)
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == ("KILLED", "KILLED")
    assert len(seen.forgotten) == (moment == "before its Job")
    assert [each.verdict for each in seen.findings] == ([Verdict.REAPED] if not seen.forgotten else [])


async def test_a_run_that_somebody_closed_meanwhile_is_left_as_it_is(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, "pass")
        await start_and_die(work, monkeypatch, "before its Job")
    async with (
        await ClusterClient.open(work.cluster) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
    ):
        (seen,) = await find_forgotten(
            client, opened, "default", OnlyThisTaskIsOver(work), minimum_age_seconds=0, now=time.time() + 60
        )
        mlflow_server.call("POST", "runs/update", run_id=seen.run.run_id, status="FINISHED", end_time=1)
        assert await close_forgotten(Runs(opened, pytest.fail), [seen]) == []
    child, _ = await child_and_parent(mlflow_server, work)
    assert child.status == "FINISHED"


async def test_what_ends_between_the_reapers_look_and_its_deletion_is_closed_by_the_same_visit(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, lasts_until(tmp_path / "go"))
        started = await work.start()
        tasks, warnings = EveryTaskIsOver(), list[str]()
        async with (
            await ClusterClient.open(work.cluster) as client,
            MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
        ):
            found = await find(client, "default", tasks, minimum_age_seconds=0)
            (seen,) = (finding for finding in found if finding.identity == work.identity)
            assert seen.verdict is Verdict.REAP
            (tmp_path / "go").touch()
            await finish(work, started)
            (done,) = await reap_all(client, [seen], tasks, Runs(opened, warnings.append))
        assert (done.verdict, warnings) == (Verdict.CLOSED, [])
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == ("FINISHED", "FINISHED")


@pytest.mark.parametrize(
    ("died", "status"), [("before its Job", "KILLED"), ("before its Job went", "FAILED")]
)
async def test_a_run_that_nobody_will_close_is_closed(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    died: str,
    status: str,
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, "pass")
        if died == "before its Job":
            await start_and_die(work, monkeypatch, "before its Job")
        else:
            started = await work.start()
            await finish(work, started)
    async with (
        await ClusterClient.open(work.cluster) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
    ):
        if died != "before its Job":
            await client.delete(JOBS, "default", started.workload.name, propagation="Background")

        async def forgotten(tasks: TaskStates, server: ClusterClient = client) -> list[ForgottenRun]:
            found = await find_forgotten(
                server, opened, "default", tasks, minimum_age_seconds=0, now=time.time() + 60
            )
            return [each for each in found if each.identity == work.identity]

        assert await forgotten(EveryTaskIs(TaskState.ALIVE)) == []
        assert await forgotten(EveryTaskIs(TaskState.GONE)) == []  # perhaps another Airflow's
        (mine,) = await forgotten(EveryTaskIsOver())
        await close_forgotten(Runs(opened, pytest.fail), [mine])
        assert await forgotten(EveryTaskIsOver()) == []
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == (status, status)
    assert child.tags["nighttrain.outcome"] == "unknown"


@pytest.mark.parametrize(("children", "status"), [(0, "KILLED"), (1, "FAILED")])
async def test_a_parent_that_nobody_will_settle_is_settled(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, children: int, status: str
) -> None:
    work = tracked(cluster, mlflow_server, "pass")
    async with MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as client:
        tree = RunTree(client)
        experiment = await tree.ensure_experiment(work.experiment_name)
        parent = await open_parent(tree, experiment, work.run_key.parent)
        if children:  # whoever closed it did not come as far as to its parent
            run = await tree.open_attempt(experiment, work.run_key, name="train", parent_run_id=parent)
            await tree.close(run.run_id, "FAILED")
        for age, expected in ((3600.0, "RUNNING"), (0.0, status)):
            await settle_parents(Runs(client, pytest.fail), minimum_age_seconds=age, now=time.time() + 1)
            assert (await tree.get(parent)).status == expected


@pytest.mark.parametrize(("code", "status"), [("pass", "FINISHED"), ("raise SystemExit(3)", "FAILED")])
async def test_a_run_that_was_opened_again_after_its_result_was_stored_is_closed_as_it_ended(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, code: str, status: str
) -> None:
    """By a process that took the ended attempt over and died: its Job is settled, and no workload to reap."""
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, code)
        ended = await to_the_end(work)
    mlflow_server.call("POST", "runs/update", run_id=ended.run_id, status="RUNNING", end_time=0)
    async with (
        await ClusterClient.open(work.cluster) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
    ):
        found = await find_forgotten(
            client, opened, "default", EveryTaskIsOver(), minimum_age_seconds=0, now=time.time() + 60
        )
        mine = [each for each in found if each.identity == work.identity]
        await close_forgotten(Runs(opened, pytest.fail), mine)
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == (status, status)
    assert child.tags["nighttrain.outcome"] != "unknown"


async def test_reaping_while_mlflow_is_away_removes_the_workload_and_says_so(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON)
        started = await work.start()
        await mlflow.begin()
        (warning,) = await reap_everything(work, mlflow.uri)
    assert started.workload.name in warning
    assert "could not be closed" in warning


async def test_a_visit_while_mlflow_is_away_removes_what_nobody_waits_for_and_tells(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    warnings: list[str] = []
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON)
        await work.start()
        await mlflow.begin()
        seen = await visited(work, mlflow.uri, warn=warnings.append)
    assert [each.verdict for each in seen.findings if each.identity == work.identity] == [Verdict.REAPED]
    assert isinstance(seen.tracking_error, TrackingUnreachableError)
    assert len(warnings) == 1  # asked once, and not for each run
    assert seen.forgotten == []
