"""Hooks after the start, policies of containers and Jobs, and what is left to other controllers."""

from __future__ import annotations

import asyncio
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


async def test_a_container_runs_once_its_post_start_hook_is_done(tmp_path: Path) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "sleep 1; echo done > hook"]}}}
    code = "import os, time\nwhile not os.path.exists('hook'): time.sleep(0.05)\nprint('seen')"
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("hooked", code, lifecycle=hook))
        done = await cluster.pod_phase("hooked", "Succeeded")
        assert await cluster.log(done) == "seen\n"
        assert "FailedPostStartHook" not in dict(cluster.events("hooked"))


async def test_a_post_start_hook_holds_back_running(tmp_path: Path) -> None:
    manifest = script("held", FOREVER, lifecycle={"postStart": {"sleep": {"seconds": 1}}})
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, manifest)
        await started(cluster)
        assert cluster.store.get(PODS, "default", "held")["status"]["phase"] == "Pending"
        running = await cluster.pod_phase("held", "Running")
        assert statuses(running)["main"]["ready"]


async def test_a_post_start_hook_that_fails_ends_the_container(tmp_path: Path) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "echo secret; exit 3"]}}}
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, script("broken", FOREVER, grace=0, lifecycle=hook))
        failed = await cluster.pod_phase("broken", "Failed")
        assert statuses(failed)["main"]["state"]["terminated"]["exitCode"] == 137
        events = cluster.events("broken")
        assert events.index(("FailedPostStartHook", "PostStartHook failed")) < events.index(
            ("Killing", "FailedPostStartHook")
        )


async def test_a_deleted_pod_does_not_wait_for_its_post_start_hook(tmp_path: Path) -> None:
    manifest = script("gone", FOREVER, grace=0, lifecycle={"postStart": {"sleep": {"seconds": 50}}})
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, manifest)
        await started(cluster)
        async with asyncio.timeout(20):
            cluster.store.delete(PODS, "default", "gone")
            await cluster.gone(PODS, "gone")


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


async def test_a_success_policy_ends_the_job_with_its_first_rule_that_is_met(tmp_path: Path) -> None:
    code = "import os, time\ntime.sleep(0 if os.environ['JOB_COMPLETION_INDEX'] == '1' else 60)"
    rules = [{"succeededIndexes": "0,2"}, {"succeededIndexes": "0-1", "succeededCount": 1}]
    manifest = job("leader", code, grace=0, completionMode="Indexed", completions=3, parallelism=3)
    manifest["spec"]["successPolicy"] = {"rules": rules}
    async with Running(tmp_path) as cluster:
        cluster.store.create(JOBS, manifest)
        ended = await cluster.until(JOBS, "leader", lambda obj: condition(obj, "Complete"))
        for type_ in ("SuccessCriteriaMet", "Complete"):
            met = condition(ended, type_)
            assert met is not None
            assert (met["reason"], met["message"]) == ("SuccessPolicy", "Matched rules at index 1")
        assert ended["status"]["succeeded"] == 1
        assert ended["status"]["completedIndexes"] == "1"
        assert not ended["status"].get("active")
