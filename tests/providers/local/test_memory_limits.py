"""Memory limits: who uses more is killed, who only reserves or shares memory is not."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from helpers.cluster_without_http import (
    Recording,
    Running,
    condition,
    pod_steps,
    process_ends,
    reasons,
    script,
)
from nighttrain.providers.local.cluster.machine.mounts import Namespaces
from nighttrain.providers.local.cluster.store.resources import EVENTS, JOBS, PODS

if TYPE_CHECKING:
    from pathlib import Path

EVERY = pytest.mark.parametrize("mode", list(Namespaces))


def limited(name: str, code: str, limit: str = "64Mi", **options: Any) -> dict[str, Any]:
    return script(name, code, resources={"limits": {"memory": limit}}, **options)


def terminated(found: dict[str, Any], state: str = "state") -> dict[str, Any]:
    return dict(found["status"]["containerStatuses"][0][state]["terminated"])


@EVERY
async def test_out_of_memory_as_recorded(mode: Namespaces, tmp_path: Path) -> None:
    recording = Recording("job-oom")
    before = threading.enumerate()  # of the whole test run, which may hold other clusters
    async with Running(tmp_path, namespaces=mode) as cluster:
        cluster.store.create(JOBS, recording.manifest())
        await cluster.until(JOBS, "oom", lambda found: condition(found, "Failed"))
        assert reasons(cluster.history(EVENTS)) == recording.event_reasons()
        steps = pod_steps(cluster.history(PODS))[0]
        assert steps[-1] == pod_steps(recording.changes("pods"))[0][-1]
        assert steps[-1][1][0][1:4] == ("terminated", "OOMKilled", 137)
    left = [each for each in threading.enumerate() if each not in before]
    assert "memory-limits" not in [each.name for each in left]


async def test_the_children_of_a_container_count_also_without_their_parent(tmp_path: Path) -> None:
    """The one that grows has lost its parent and is in a session of its own."""
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "  time.sleep(0.3)\n"  # seen once with its parent
        "  os.setsid()\n"
        "  if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(0.3)\n"
        "    x = [bytearray(8 << 20) for _ in range(32)]\n"
        "    time.sleep(60)\n"
        "  time.sleep(0.2); os._exit(0)\n"
        "time.sleep(60)"
    )
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, limited("family", code))
        done = await cluster.pod_phase("family", "Failed")
        assert terminated(done)["reason"] == "OOMKilled"
        await process_ends(int(await cluster.log(done)))


async def test_memory_that_is_reserved_shared_or_read_from_files_is_not_used(tmp_path: Path) -> None:
    code = (
        "import mmap, os, sys, time\n"
        "reserved = mmap.mmap(-1, 1 << 30)\n"
        "data = bytearray(40 << 20)\n"  # 40 MiB, shared by four processes that only read it
        "children = [os.fork() for _ in range(2)]\n"
        "time.sleep(0.5)\n"
        "if 0 not in children: [os.waitpid(child, 0) for child in children]\n"
    )
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, limited("frugal", code))
        done = await cluster.pod_phase("frugal", "Succeeded", "Failed")
        assert terminated(done)["reason"] == "Completed"


async def test_other_ends_keep_their_reasons(tmp_path: Path) -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, limited("killed", kill))
        cluster.store.create(PODS, script("free", "x = bytearray(128 << 20)"))
        assert terminated(await cluster.pod_phase("killed", "Failed"))["reason"] == "Error"
        assert terminated(await cluster.pod_phase("free", "Succeeded"))["reason"] == "Completed"


async def test_a_container_restarts_after_it_ran_out_of_memory(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "if os.path.exists('once'): raise SystemExit\n"
        "open('once', 'w').close()\nx = [bytearray(8 << 20) for _ in range(64)]\nimport time; time.sleep(60)"
    )
    async with Running(tmp_path) as cluster:
        cluster.store.create(PODS, limited("again", code, spec={"restartPolicy": "OnFailure"}))
        done = await cluster.pod_phase("again", "Succeeded")
        assert terminated(done, "lastState")["reason"] == "OOMKilled"
        assert done["status"]["containerStatuses"][0]["restartCount"] == 1
