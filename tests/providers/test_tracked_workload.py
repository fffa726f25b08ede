"""A workload and its run together: attempts, retries, and those that start at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from helpers.server_proxy import ServerProxy
from helpers.tracked_training import FAILS_ONCE, TRAINING, finish, outage, runs_of, to_the_end, tracked
from nighttrain.providers.kubernetes.api.client import ClusterConfig
from nighttrain.providers.kubernetes.job import checked
from nighttrain.providers.kubernetes.job.pod_template import build_pod_template

if TYPE_CHECKING:
    import pytest

    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.local.cluster.server import EmbeddedCluster


Json = dict[str, Any]


async def test_a_new_attempts_pod_is_built_once(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(spec: WorkloadSpec) -> Any:
        built.append(spec)
        return build_pod_template(spec)

    monkeypatch.setattr(checked, "build_pod_template", build)
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING)
        started = await work.start()
        outcome = await finish(work, started)
        await work.attempt(started).settle(outcome)
        await work.attempt(started).mark_consumed(outcome)
    assert (len(built), outcome.succeeded) == (1, True)


async def test_a_retry_has_a_run_of_its_own_and_is_told_the_one_before(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, FAILS_ONCE)
        first, second = [await to_the_end(work) for _ in range(2)]
        runs = {run.run_id: run for run in await runs_of(mlflow_server, work)}
    assert len(runs) == 3
    assert (runs[first.run_id].status, runs[second.run_id].status) == ("FAILED", "FINISHED")
    assert runs[first.run_id].tags["nighttrain.superseded_by"] == second.run_id
    assert runs[first.run_id].params["resumed"] == "None"
    assert runs[second.run_id].params["resumed"] == first.run_id
    assert runs[first.run_id].params["host"] != runs[second.run_id].params["host"]
    assert runs[second.parent_run_id].status == "FINISHED"
    assert second.parent_run_id == first.parent_run_id


async def test_a_training_that_is_asked_for_anew_is_not_told_what_was_before(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, FAILS_ONCE)
        first = await to_the_end(work)
        cleared = await to_the_end(replace(work, epoch="1"))
        runs = {run.run_id: run for run in await runs_of(mlflow_server, work)}
    assert runs[cleared.run_id].params["resumed"] == "None"
    assert runs[cleared.run_id].tags["nighttrain.previous_run"] == first.run_id


async def test_processes_that_start_at_once_have_one_job_and_one_run(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING)
        started = await asyncio.gather(*(work.start() for _ in range(4)))
        assert len({each.workload.uid for each in started}) == 1
        (run_id,) = {each.run_id for each in started}
        outcome = await finish(work, started[0])
        await work.attempt(started[0]).settle(outcome)
        runs = await runs_of(mlflow_server, work)
    assert {run.run_id for run in runs} == {run_id, started[0].parent_run_id}
    assert {run.status for run in runs} == {"FINISHED"}


async def test_a_success_is_not_taken_for_another_spec(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING)
        first = await to_the_end(work)
        again = await work.start()
        assert (again.workload.uid, again.run_id) == (first.workload.uid, first.run_id)
        other = replace(work, spec=replace(work.spec, arguments=["--rate", "0.2"]))
        second = await to_the_end(other)
    assert second.workload.uid != first.workload.uid
    assert second.run_id != first.run_id


def inject_a_proxy_first(created: Json) -> None:
    """As the webhook of a service mesh or a policy may do with a Job's template."""
    if created.get("kind") == "Job":
        proxy = {"name": "proxy", "image": "py", "command": ["python", "-S", "-c", "pass"]}
        created["spec"]["template"]["spec"]["containers"].insert(0, proxy)


async def test_what_a_webhook_puts_first_into_a_job_is_not_the_training(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with (
        outage(mlflow_server, begun=False) as mlflow,
        ServerProxy(cluster.url, cluster.token, webhook=inject_a_proxy_first) as proxy,
    ):
        through = ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="any"))
        work = replace(tracked(cluster, mlflow, TRAINING), cluster=through)
        closed = await to_the_end(work)
        child, parent = sorted(await runs_of(mlflow_server, work), key=lambda run: "rmse" not in run.metrics)
    assert (child.run_id, child.status, child.metrics) == (closed.run_id, "FINISHED", {"rmse": 1.5})
    assert (closed.parent_run_id, parent.status) == (parent.run_id, "FINISHED")
