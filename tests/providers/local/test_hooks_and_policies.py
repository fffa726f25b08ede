"""Hooks after the start, policies of containers and Jobs, and what is left to other controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.cluster_without_http import Running, condition, job, script
from nighttrain.providers.local.cluster.store.resources import EVENTS, JOBS, PODS

if TYPE_CHECKING:
    from pathlib import Path

FOREVER = "import time; time.sleep(60)"


def statuses(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in (found.get("status") or {}).get("containerStatuses") or []}


async def started(cluster: Running) -> None:
    """Until a process has been started, whatever the pod's status says."""
    with cluster.store.watch(EVENTS) as watcher:
        async for _type, event in watcher:
            if event["reason"] == "Started":
                return


async def test_a_containers_restart_policy_comes_before_the_pods(tmp_path: Path) -> None:
    code = "import os, sys\nn = len(os.listdir('tmp'))\nopen(f'tmp/{n}', 'w').close()\nsys.exit(1 - n)"
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("again", code, restartPolicy="OnFailure"))
        done = await cluster.pod_phase("again", "Succeeded")
        assert statuses(done)["main"]["restartCount"] == 1
        never = script("once", "raise SystemExit(1)", restartPolicy="Never", spec={"restartPolicy": "Always"})
        cluster.store.create(PODS, never)
        failed = await cluster.pod_phase("once", "Failed")
        assert statuses(failed)["main"]["restartCount"] == 0


async def test_another_schedulers_pod_waits_for_it(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("theirs", FOREVER, spec={"schedulerName": "mine"}))
        cluster.store.create(PODS, script("ours", "1"))
        await cluster.pod_phase("ours", "Succeeded")
        left = cluster.store.get(PODS, "default", "theirs")
        assert "nodeName" not in left["spec"]
        assert left["status"]["phase"] == "Pending"
        assert cluster.events("theirs") == []


async def test_another_controllers_job_is_left_alone(tmp_path: Path) -> None:
    async with Running(tmp_path) as cluster:
        cluster.store.create(JOBS, job("theirs", "1", managedBy="example.com/queue"))
        cluster.store.create(JOBS, job("ours", "1", managedBy="kubernetes.io/job-controller"))
        await cluster.until(JOBS, "ours", lambda obj: condition(obj, "Complete"))
        owners = {each["metadata"]["ownerReferences"][0]["name"] for each in cluster.store.list(PODS)[0]}
        assert owners == {"ours"}
        assert cluster.store.get(JOBS, "default", "theirs")["status"] == {}
