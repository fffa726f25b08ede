"""Nothing survives a cluster, however its server ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nighttrain.providers.local.janitor import Janitor, kill_marked, marked_processes

# A cluster in a process of its own; it prints its id once a stubborn pod and its runaway child run.
SERVER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from embedded import Running, script
from nighttrain.providers.local.resources import PODS

CODE = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
print("up", flush=True)
time.sleep(600)
'''

async def main():
    async with Running(Path(sys.argv[1])) as cluster:
        cluster.store.create(PODS, script("stubborn", CODE, grace=600))
        pod = await cluster.pod_phase("stubborn", "Running")
        seen = 0
        async for piece in cluster.kubelet.open_log(pod, follow=True):
            seen += piece.count(b"up")
            if seen == 2:
                break
        print(cluster.kubelet.cluster_id, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def start_server(directory: Path) -> tuple[subprocess.Popen[str], str]:
    helpers = str(Path(__file__).parents[2])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(directory), helpers], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def eventually_gone(cluster_id: str) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not marked_processes(cluster_id):
            return True
        time.sleep(0.02)
    return False


def test_a_killed_server_leaves_nothing(tmp_path: Path) -> None:
    server, cluster_id = start_server(tmp_path)
    with server:
        assert re.fullmatch(r"[0-9a-f]{32}", cluster_id)
        assert len(marked_processes(cluster_id)) == 2
        janitors = [pid for pid in os.listdir("/proc") if pid.isdigit() and cluster_id in command_line(pid)]
        assert len(janitors) == 1
        server.send_signal(signal.SIGKILL)
    assert eventually_gone(cluster_id)
    end = time.monotonic() + 10
    while (os.path.exists(f"/proc/{janitors[0]}") or list(tmp_path.iterdir())) and time.monotonic() < end:
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []
    assert not os.path.exists(f"/proc/{janitors[0]}")


def test_an_interrupted_server_leaves_nothing(tmp_path: Path) -> None:
    server, cluster_id = start_server(tmp_path)
    with server:
        server.send_signal(signal.SIGINT)
    assert not marked_processes(cluster_id)
    assert list(tmp_path.iterdir()) == []


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_dismissed_janitor_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    janitor = Janitor("f" * 32, tmp_path)
    janitor.dismiss()
    assert not os.path.exists(f"/proc/{janitor.pid}")
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize("count", [0, 3])
def test_only_marked_processes_are_killed(count: int) -> None:
    cluster_id = os.urandom(16).hex()
    command = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    marked = [subprocess.Popen(command, env={"NIGHTTRAIN_CLUSTER": cluster_id}) for _ in range(count)]
    other = subprocess.Popen(command, env={"NIGHTTRAIN_CLUSTER": "another"})
    assert kill_marked(cluster_id) == count
    assert [process.wait(5) for process in marked] == [-signal.SIGKILL] * count
    assert other.poll() is None
    other.kill()
    other.wait(5)
