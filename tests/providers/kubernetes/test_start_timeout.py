"""A start time-out is decided against the cluster: what started meanwhile goes on, what did not is gone."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from helpers.clusters import connected
from helpers.polling import until_async
from helpers.server_proxy import SeenRequest, ServerProxy, api_refusal
from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.attempts.follow_to_end import follow_to_end
from nighttrain.providers.kubernetes.api.client import JOBS, PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import PODS as STORED_PODS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from aiohttp import web

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

K = OutcomeKind
Json = dict[str, Any]
NAMESPACE = "default"
_numbers = count()


def identity() -> WorkloadIdentity:
    run = f"start-{next(_numbers)}"
    return WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")


# With containers.


async def test_an_init_container_that_outlasts_the_time_out_leaves_no_training_behind(
    cluster: EmbeddedCluster, tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    slow = {"name": "fetch", "image": "py", "command": ["python", "-S", "-c", "import time; time.sleep(60)"]}
    spec = WorkloadSpec(
        image="py",
        cmds=["python", "-S", "-c", f"open({str(trained)!r}, 'w')"],
        init_containers=[slow],
        termination_grace_period=1,
    )
    who = identity()
    lines: list[str] = []
    async with connected(cluster) as client:
        job = await lifecycle.submit(client, check_workload(spec), who, epoch="0", namespace=NAMESPACE)
        outcome = await follow_to_end(client, job, timeouts=Timeouts(1), on_line=lines.append)
        assert (outcome.kind, outcome.reason) == (K.START_TIMEOUT, "StartupTimeout")
        assert "an init container runs (for longer than the start-up time-out of 1 s)" in outcome.explain()
        assert lines == []  # nothing ran: no log is waited for, and none was missed
        with pytest.raises(errors.StartTimeout):
            outcome.raise_for_failure()
        # Closing and the next attempt leave the Job, which the cluster ends; a later look sees the same.
        await lifecycle.cancel_if_live(client, job)
        assert (await lifecycle.observe(client, job)).outcome == outcome
        await lifecycle.mark_consumed(client, job, "0", outcome=outcome)
        second = await lifecycle.submit(client, check_workload(spec), who, epoch="0", namespace=NAMESPACE)
        assert second.attempt == 2
        await client.get(JOBS, NAMESPACE, job.name)
        await lifecycle.cancel(client, second)
    assert not trained.exists()


async def test_a_process_that_dies_after_the_deletion_leaves_the_time_out_and_no_cancelling(
    cluster: EmbeddedCluster,
) -> None:
    slow = {"name": "fetch", "image": "py", "command": ["python", "-S", "-c", "import time; time.sleep(60)"]}
    given = WorkloadSpec(
        image="py", cmds=["python", "-c", "pass"], init_containers=[slow], termination_grace_period=1
    )
    deleted = asyncio.Event()

    def watch(seen: SeenRequest) -> None:
        if seen.method == "DELETE" and "/pods/" in seen.path:
            deleted.set()

    async with asyncio.timeout(60), connected(cluster) as client:
        async with ServerProxy(cluster.url, cluster.token, judge=watch) as proxy:
            config = ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="any"))
            async with await ClusterClient.open(config) as dying:
                started = await lifecycle.submit(
                    dying, check_workload(given), identity(), epoch="0", namespace=NAMESPACE
                )
                waiting = asyncio.create_task(lifecycle.wait(dying, started, timeouts=Timeouts(1)))
                await deleted.wait()
                waiting.cancel()
                await asyncio.wait([waiting])
        outcome = await lifecycle.wait(client, started, timeouts=Timeouts(1))
    assert (outcome.kind, outcome.reason) == (K.START_TIMEOUT, "StartupTimeout")


async def test_without_a_pod_the_job_is_removed(cluster: EmbeddedCluster) -> None:
    spec = WorkloadSpec(image="py", cmds=["python"], queue_name="nobody-admits")
    async with connected(cluster) as client:
        job = await lifecycle.submit(client, check_workload(spec), identity(), epoch="0", namespace=NAMESPACE)
        async with asyncio.timeout(30):
            outcome = await lifecycle.wait(client, job, timeouts=Timeouts(0.5))
        assert outcome.kind is K.QUOTA_WAIT
        with pytest.raises(errors.ObjectNotFoundError):
            await client.get(JOBS, NAMESPACE, job.name)


# Without controllers and kubelets: the test decides what happens between the look and the deletion.


class World:
    """A Job, its pod, and a proxy through which the wait goes."""

    def __init__(self, idle_cluster: EmbeddedCluster, admin: ClusterClient) -> None:
        self._api, self.admin = idle_cluster, admin
        self.before: Callable[[SeenRequest], web.Response | None] = lambda _: None
        self.deletions: list[str] = []

    def judge(self, seen: SeenRequest) -> web.Response | None:
        if seen.method != "DELETE":
            return None
        self.deletions.append(seen.path.rsplit("/", 2)[-2])
        return self.before(seen)

    def patch(self, path: str, body: Json) -> None:
        """What a kubelet or controller writes, at this very moment."""
        headers = {
            "Authorization": f"Bearer {self._api.token}",
            "Content-Type": "application/merge-patch+json",
        }
        with httpx.Client(base_url=self._api.url, headers=headers, trust_env=False) as client:
            client.patch(f"{path}/status", json={"status": body}).raise_for_status()

    def force_delete(self, pod: str) -> None:
        """As ``kubectl delete pod --force`` does."""
        self._api.call(lambda store: store.delete(STORED_PODS, NAMESPACE, pod, grace_period_seconds=0))

    async def job(self) -> Workload:
        made = await self.admin.create(
            JOBS, NAMESPACE, build_job(check_workload(WorkloadSpec(image="i")), identity(), 1)
        )
        return Workload(NAMESPACE, made["metadata"]["name"], made["metadata"]["uid"], 1)

    async def pod(self, job: Workload) -> str:
        """A pod that has a node, and whose container is being created; its path."""
        found = await self.admin.get(JOBS, NAMESPACE, job.name)
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job.name,
            "uid": job.uid,
            "controller": True,
        }
        labels = found["spec"]["template"]["metadata"]["labels"]
        labels = {**labels, "batch.kubernetes.io/job-name": job.name}
        meta = {"name": f"{job.name}-p", "ownerReferences": [owner], "labels": labels}
        spec = {
            "restartPolicy": "Never",
            "nodeName": "node1",
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "image": "i"}],
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        await self.admin.create(PODS, NAMESPACE, body)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{job.name}-p"
        self.patch(path, phase("Pending", {"waiting": {"reason": "ContainerCreating"}}))
        return path


def phase(name: str, state: Json) -> Json:
    held = {"name": "main", "state": state, "ready": False, "restartCount": 0, "image": "i", "imageID": ""}
    return {"phase": name, "containerStatuses": [held]}


BEGAN = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
DONE = {
    "terminated": {
        "exitCode": 0,
        "reason": "Completed",
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:00:01Z",
    }
}
COMPLETE = {
    "conditions": [{"type": kind, "status": "True"} for kind in ("SuccessCriteriaMet", "Complete")],
    "succeeded": 1,
    "startTime": "2026-01-01T00:00:00Z",
    "completionTime": "2026-01-01T00:00:02Z",
}


@asynccontextmanager
async def world(idle_cluster: EmbeddedCluster) -> AsyncIterator[tuple[World, ClusterClient]]:
    async with connected(idle_cluster) as admin:
        made = World(idle_cluster, admin)
        async with ServerProxy(idle_cluster.url, idle_cluster.token, judge=made.judge) as proxy:
            config = ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="t"))
            async with await ClusterClient.open(config) as client:
                yield made, client


async def test_a_pod_that_starts_between_the_look_and_the_deletion_trains_to_its_end(
    idle_cluster: EmbeddedCluster,
) -> None:
    async with world(idle_cluster) as (made, client):
        job = await made.job()
        pod = await made.pod(job)

        def starts(_: SeenRequest) -> None:
            made.patch(pod, phase("Running", BEGAN))

        made.before = starts

        def ends(seen: Observation) -> None:
            if seen.detail == "the pod runs":
                made.patch(pod, phase("Succeeded", DONE))
                made.patch(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{job.name}", COMPLETE)

        async with asyncio.timeout(30):
            outcome = await lifecycle.wait(client, job, timeouts=Timeouts(0.5), on_observation=ends)
    assert (outcome.kind, outcome.exit_code) == (K.SUCCEEDED, 0)
    assert made.deletions == ["pods"]  # one, and it was refused


async def told_to_go(client: ClusterClient, job: Workload) -> None:
    version = (await client.list(PODS, NAMESPACE))["metadata"]["resourceVersion"]
    pod = await client.get(PODS, NAMESPACE, f"{job.name}-p")
    if "deletionTimestamp" in pod["metadata"]:
        return
    async for event in client.watch(PODS, NAMESPACE, resource_version=version):
        if event.object["metadata"].get("deletionTimestamp"):
            return


async def test_a_container_that_began_after_all_is_an_attempt_that_was_stopped(
    idle_cluster: EmbeddedCluster,
) -> None:
    async with world(idle_cluster) as (made, client):
        job = await made.job()
        pod = await made.pod(job)
        waiting = asyncio.create_task(lifecycle.wait(client, job, timeouts=Timeouts(0.2)))
        async with asyncio.timeout(30):
            await told_to_go(client, job)
            # The kubelet had started it before it heard of the deletion.
            made.patch(pod, phase("Running", BEGAN))
            outcome = await waiting
        assert (outcome.kind, outcome.reason) == (K.CANCELLED, "StartupTimeout")
        assert "It had begun at 2026-01-01T00:00:00Z" in outcome.explain()
        assert (await lifecycle.observe(client, job)).outcome == outcome


NEVER = {
    "terminated": {
        "exitCode": 137,
        "reason": "ContainerStatusUnknown",
        "startedAt": None,
        "finishedAt": None,
    }
}


async def test_a_pod_that_never_began_did_not_start_although_it_claims_137(
    idle_cluster: EmbeddedCluster,
) -> None:
    async with world(idle_cluster) as (made, client):
        job = await made.job()
        pod = await made.pod(job)
        waiting = asyncio.create_task(lifecycle.wait(client, job, timeouts=Timeouts(0.2)))
        async with asyncio.timeout(30):
            await told_to_go(client, job)
            made.patch(pod, phase("Failed", NEVER))
            outcome = await waiting
    assert (outcome.kind, outcome.exit_code, outcome.started_at) == (K.START_TIMEOUT, None, None)
    assert "ContainerCreating" in outcome.message


async def test_a_job_that_gets_its_pod_between_the_look_and_the_deletion_goes_on(
    idle_cluster: EmbeddedCluster,
) -> None:
    async with world(idle_cluster) as (made, client):
        job = await made.job()
        path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{job.name}"

        def comes(_: SeenRequest) -> None:
            made.patch(path, {"active": 1, "startTime": "2026-01-01T00:00:00Z"})
            made.before = lambda _: made.patch(path, COMPLETE)

        made.before = comes
        async with asyncio.timeout(30):
            outcome = await lifecycle.wait(client, job, timeouts=Timeouts(0.2))
    assert outcome.kind is K.SUCCEEDED
    assert made.deletions == ["jobs", "jobs"]


async def test_without_the_right_to_delete_pods_the_job_goes_and_the_right_is_named(
    idle_cluster: EmbeddedCluster,
) -> None:
    async with world(idle_cluster) as (made, client):
        job = await made.job()
        await made.pod(job)

        def forbids(seen: SeenRequest) -> web.Response | None:
            if "/pods/" not in seen.path:
                return None
            return api_refusal(403, "Forbidden", 'pods "p" is forbidden: User "airflow" cannot delete')

        made.before = forbids
        waiting = asyncio.create_task(lifecycle.wait(client, job, timeouts=Timeouts(0.2)))
        async with asyncio.timeout(30):
            await until_async(lambda: "jobs" in made.deletions)
            await asyncio.to_thread(made.force_delete, f"{job.name}-p")
            # There is no garbage collector here.
            await made.admin.patch(JOBS, NAMESPACE, job.name, {"metadata": {"finalizers": None}})
            outcome = await waiting
    assert outcome.kind is K.START_TIMEOUT
    assert "Grant delete on pods in namespace default" in outcome.explain()
