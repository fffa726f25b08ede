"""Jobs on the embedded cluster, next to what a real cluster did with the same manifests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from helpers.cluster_without_http import (
    Recording,
    Running,
    condition,
    final_counts,
    job,
    job_steps,
    pod_steps,
    reasons,
)
from nighttrain.providers.local.cluster.store.lifecycle import Propagation
from nighttrain.providers.local.cluster.store.resources import EVENTS, JOBS, PODS

if TYPE_CHECKING:
    from pathlib import Path


def finished(obj: dict[str, Any] | None) -> bool:
    return bool(condition(obj, "Complete") or condition(obj, "Failed"))


def pods_of(cluster: Running) -> list[dict[str, Any]]:
    return cluster.store.list(PODS)[0]


async def running_pod(cluster: Running) -> dict[str, Any]:
    """The Job's only pod, once it runs."""
    with cluster.store.watch(PODS) as watcher:
        async for _type, pod in watcher:
            if (pod.get("status") or {}).get("phase") == "Running" and "deletionTimestamp" not in pod[
                "metadata"
            ]:
                return pod
    raise AssertionError("the watch ended")


# What happens on a real cluster too, but not at the same moments: a Job there is looked at once a second.
_STREAMS = pytest.mark.parametrize(
    "scenario",
    [
        "job-success",
        "job-exit-3",
        "job-backoff",
        "job-deadline",
        "job-fail-fast",
        "command-missing",
        "init-failed",
    ],
)


@_STREAMS
async def test_job_ends_as_recorded(scenario: str, tmp_path: Path) -> None:
    recording = Recording(scenario)
    async with Running(tmp_path) as cluster:
        name = cluster.store.create(JOBS, recording.manifest())["metadata"]["name"]
        await cluster.until(JOBS, name, finished)
        assert job_steps(cluster.history(JOBS)) == job_steps(recording.changes("jobs"))
        assert final_counts(cluster.history(JOBS)) == final_counts(recording.changes("jobs"))
        assert pod_steps(cluster.history(PODS)) == pod_steps(recording.changes("pods"))
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()


@pytest.mark.parametrize("propagation", ["foreground", "background"])
async def test_deleted_job_as_recorded(propagation: str, tmp_path: Path) -> None:
    recording = Recording(f"job-deleted-{propagation}")
    async with Running(tmp_path) as cluster:
        manifest = recording.manifest()
        manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = (
            2 if propagation == "foreground" else 1
        )
        name = cluster.store.create(JOBS, manifest)["metadata"]["name"]
        pod = await running_pod(cluster)
        log = b""
        async for piece in cluster.kubelet.open_log(pod, follow=True):
            log += piece
            if b"ready" in log:
                break
        cluster.store.delete(JOBS, "default", name, propagation=Propagation(propagation.capitalize()))
        await cluster.gone(JOBS, name)
        await cluster.gone(PODS, pod["metadata"]["name"])
        assert job_steps(cluster.history(JOBS)) == job_steps(recording.changes("jobs"))
        assert pod_steps(cluster.history(PODS)) == pod_steps(recording.changes("pods"))
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()


async def test_deleted_pod_is_replaced_as_recorded(tmp_path: Path) -> None:
    recording = Recording("job-pod-deleted")
    async with Running(tmp_path) as cluster:
        name = cluster.store.create(JOBS, recording.manifest())["metadata"]["name"]
        pod = await running_pod(cluster)
        cluster.store.delete(PODS, "default", pod["metadata"]["name"])
        await cluster.until(JOBS, name, finished)
        assert job_steps(cluster.history(JOBS)) == job_steps(recording.changes("jobs"))
        assert final_counts(cluster.history(JOBS)) == final_counts(recording.changes("jobs"))
        await cluster.gone(PODS, pod["metadata"]["name"])
        assert pod_steps(cluster.history(PODS)) == pod_steps(recording.changes("pods"))
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()


async def test_suspended_and_resumed_as_recorded(tmp_path: Path) -> None:
    recording = Recording("job-suspend-resume")

    def suspend(value: bool) -> None:
        def write(obj: dict[str, Any]) -> None:
            obj["spec"]["suspend"] = value

        cluster.store.mutate(JOBS, "default", name, write)

    async with Running(tmp_path) as cluster:
        name = cluster.store.create(JOBS, recording.manifest())["metadata"]["name"]
        await cluster.until(JOBS, name, lambda obj: condition(obj, "Suspended"))
        suspend(False)
        first = await running_pod(cluster)
        suspend(True)
        await cluster.gone(PODS, first["metadata"]["name"])
        suspend(False)
        await cluster.until(JOBS, name, finished)
        assert job_steps(cluster.history(JOBS)) == job_steps(recording.changes("jobs"))
        assert final_counts(cluster.history(JOBS)) == final_counts(recording.changes("jobs"))
        assert pod_steps(cluster.history(PODS)) == pod_steps(recording.changes("pods"))
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()


async def test_deleted_pod_of_a_job_without_retries_fails_it(tmp_path: Path) -> None:
    recording = Recording("job-pod-deleted-failed")
    async with Running(tmp_path) as cluster:
        name = cluster.store.create(JOBS, recording.manifest())["metadata"]["name"]
        pod = await running_pod(cluster)
        cluster.store.delete(PODS, "default", pod["metadata"]["name"])
        await cluster.until(JOBS, name, finished)
        assert job_steps(cluster.history(JOBS)) == job_steps(recording.changes("jobs"))
        assert pod_steps(cluster.history(PODS)) == pod_steps(recording.changes("pods"))
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()


async def test_force_deleted_pod_is_killed_and_replaced(tmp_path: Path) -> None:
    recording = Recording("job-pod-force-deleted")
    async with Running(tmp_path) as cluster:
        name = cluster.store.create(JOBS, recording.manifest())["metadata"]["name"]
        pod = await running_pod(cluster)
        cluster.store.delete(PODS, "default", pod["metadata"]["name"], grace_period_seconds=0)
        await cluster.until(JOBS, name, finished)
        assert job_steps(cluster.history(JOBS)) == job_steps(recording.changes("jobs"))
        assert final_counts(cluster.history(JOBS)) == final_counts(recording.changes("jobs"))
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()


async def test_ttl_removes_the_finished_job_and_its_pod(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(JOBS, job("ttl", "1", ttlSecondsAfterFinished=0))
        await cluster.until(JOBS, "ttl", finished)
        await cluster.gone(JOBS, "ttl")
        assert pods_of(cluster) == []


async def test_on_failure_restarts_count_against_the_limit(tmp_path: Path) -> None:
    manifest = job("onfail", "raise SystemExit(1)", backoffLimit=2)
    manifest["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    async with Running(tmp_path) as cluster:
        cluster.store.create(JOBS, manifest)
        ended = await cluster.until(JOBS, "onfail", finished)
        failed = condition(ended, "Failed")
        assert failed is not None
        assert failed["reason"] == "BackoffLimitExceeded"
        assert ended["status"]["failed"] == 1


async def test_parallel_job_runs_no_more_than_asked_at_a_time(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(JOBS, job("many", "1", completions=5, parallelism=2))
        ended = await cluster.until(JOBS, "many", finished)
        assert ended["status"]["succeeded"] == 5
        assert len(pods_of(cluster)) == 5
        most = max((obj.get("status") or {}).get("active", 0) for _type, obj in cluster.history(JOBS))
        assert most == 2


async def test_an_ignored_eviction_is_not_a_failure(tmp_path: Path) -> None:
    """podReplacementPolicy Failed: the replacement comes once the first pod has ended."""
    manifest = job("evict", "import time; time.sleep(60)", podReplacementPolicy="Failed")
    manifest["spec"]["podFailurePolicy"] = {
        "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    }

    def disrupt(pod: dict[str, Any]) -> None:
        pod["status"]["conditions"].append(
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        )

    async with Running(tmp_path) as cluster:
        cluster.store.create(JOBS, manifest)
        first = await running_pod(cluster)
        cluster.store.mutate(PODS, "default", first["metadata"]["name"], disrupt)
        cluster.store.delete(PODS, "default", first["metadata"]["name"])
        await cluster.gone(PODS, first["metadata"]["name"])
        second = await running_pod(cluster)
        assert second["metadata"]["uid"] != first["metadata"]["uid"]
        current = cluster.store.get(JOBS, "default", "evict")
        assert "failed" not in current["status"]
        assert condition(current, "FailureTarget") is None


async def test_many_jobs_leave_nothing_open(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        for number in range(40):
            manifest = job(f"quick-{number}", "")
            manifest["spec"]["template"]["spec"]["containers"][0]["command"] = ["true"]
            cluster.store.create(JOBS, manifest)
        async with asyncio.timeout(20):
            for number in range(40):
                await cluster.until(JOBS, f"quick-{number}", lambda obj: condition(obj, "Complete"))
        assert all(obj["status"]["succeeded"] == 1 for obj in cluster.store.list(JOBS)[0])
