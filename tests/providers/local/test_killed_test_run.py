"""A test run that is killed leaves nothing of the clusters that its fixtures started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# What a user's own test looks like: the cluster is a fixture, its folders are temporary.
_TEST = """
import sys
import time

import httpx
import pytest

from nighttrain.providers.local.cluster.server import EmbeddedCluster


@pytest.fixture
def cluster():
    with EmbeddedCluster(images={"py": sys.executable}) as cluster:
        yield cluster


def test_that_is_killed(cluster):
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with httpx.Client(base_url=cluster.url, headers=headers) as http:
        pods = "/api/v1/namespaces/default/pods"
        for number in range(2):
            # The second ignores SIGTERM and has a child of its own.
            command = "sleep 600" if number else "trap '' TERM; sleep 600 & (setsid sleep 600 &) ; wait"
            mount = [{"name": "v", "mountPath": "/nt-killed-run"}]
            container = {"name": "m", "image": "py", "command": ["sh", "-c", command], "volumeMounts": mount}
            spec = {"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]}
            http.post(pods, json={"metadata": {"name": f"p{number}"}, "spec": spec}).raise_for_status()
        end = time.monotonic() + 20
        while {each["status"]["phase"] for each in http.get(pods).json()["items"]} != {"Running"}:
            assert time.monotonic() < end
            time.sleep(0.05)
    print(f"RUNNING {cluster.port}", flush=True)
    time.sleep(600)
"""


def _of(folder: Path) -> set[int]:
    """Processes whose environment or command line names the folder."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in text:
                found.add(int(entry.name))
    return found


def _marked(cluster: bytes) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if cluster in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def _cluster_ids(processes: set[int]) -> set[bytes]:
    ids = set()
    for process in processes:
        try:
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ids |= {each.split(b"=", 1)[1] for each in variables if each.startswith(b"NIGHTTRAIN_CLUSTER=")}
    return ids


def _eventually(holds: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_killed_test_run_leaves_no_process_socket_mount_or_file(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(_TEST)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    mounts = Path("/proc/self/mountinfo").read_text()
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "test_user.py"]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            said = next((line for line in run.stdout if "RUNNING " in line), "")
            assert said, "the inner test run did not get as far as running pods"
            port = int(said.split("RUNNING ")[1])
            started = _of(scratch) - {run.pid}
            [cluster] = _cluster_ids(started)
            assert len(_marked(cluster)) >= 5
            assert list(scratch.iterdir())
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait(20)
    assert _eventually(lambda: not _marked(cluster) and not _of(scratch)), (_marked(cluster), _of(scratch))
    assert _eventually(lambda: not list(scratch.iterdir())), list(scratch.rglob("*"))[:10]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["scratch", "test_user.py"]
    assert not Path("/nt-killed-run").exists()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", port)) != 0
