"""Nothing survives a cluster, however its server ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers import importable_helpers
from nighttrain.providers.local.cluster.machine.janitor import Janitor, kill_marked, marked_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

# A cluster in a process of its own; it prints its id once a stubborn pod and its runaway child run. It hears
# SIGINT also where a shell that starts something in the background has it ignored, and ends with the tests.
SERVER = """
import asyncio, ctypes, os, signal, sys
from pathlib import Path
PR_SET_PDEATHSIG = 1
signal.signal(signal.SIGINT, signal.default_int_handler)
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[2]):
    sys.exit("the parent has gone already")
from helpers.cluster_without_http import Running, script
from nighttrain.providers.local.cluster.store.resources import PODS

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
    command = [sys.executable, "-c", SERVER, str(directory), str(os.getpid())]
    server = subprocess.Popen(command, env=importable_helpers(), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


@contextmanager
def serving(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    server, cluster_id = start_server(directory)
    with server:
        try:
            yield server, cluster_id
        except BaseException:
            server.kill()
            raise


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """As in what a shell without job control starts in the background: what is started inherits it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def eventually_gone(cluster_id: str) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not marked_processes(cluster_id):
            return True
        time.sleep(0.02)
    return False


def test_a_killed_server_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, cluster_id):
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
    with interrupts_ignored(), serving(tmp_path) as (server, cluster_id):
        server.send_signal(signal.SIGINT)
        server.wait(30)
    assert not marked_processes(cluster_id)
    assert list(tmp_path.iterdir()) == []


# A test run that is killed as soon as its server runs.
KILLED = """
import os, signal, sys
from pathlib import Path
from test_janitor import start_server
server, cluster_id = start_server(Path(sys.argv[1]))
print(server.pid, cluster_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_of_a_killed_test_run_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    found = importable_helpers(Path(__file__).parent)
    run = subprocess.run(command, env=found, stdout=subprocess.PIPE, text=True, check=False, timeout=30)
    pid, cluster_id = run.stdout.split()
    assert run.returncode == -signal.SIGKILL
    assert eventually_gone(cluster_id)
    end = time.monotonic() + 10
    while cluster_id in command_line(pid) or list(tmp_path.iterdir()):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert str(tmp_path) not in command_line(pid)


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
