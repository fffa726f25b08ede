"""The process that ends a cluster's containers when its server is gone, however it went.

It holds the reading end of a pipe whose only writing end is the server's. End of file means that the server
is gone, SIGKILL included; a line says that it stopped in order. Run as ``python janitor.py CLUSTER_ID
DIRECTORY``; it imports nothing of this project, so that it starts in a few milliseconds and survives a change
of the code.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# The same name as in processes.py, which this file must not import.
_VARIABLE = "NIGHTTRAIN_CLUSTER"

# A process that forks while it is hunted is found in a later round; each round kills all it sees.
_ROUNDS = 50


class Janitor:
    """The server's side: starts the process, and lets it go.

    :param cluster_id: the marker's value, unique to the cluster
    :param directory: removed together with the processes; None if there is nothing to remove
    """

    def __init__(self, cluster_id: str, directory: Path | None) -> None:
        self.cluster_id = cluster_id
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-E", __file__, cluster_id, str(directory or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            # A session of its own: Ctrl-C in the terminal must not take the janitor before the server.
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def dismiss(self) -> None:
        """Everything was ended in order: the janitor ends without doing anything."""
        if self._process.poll() is None and self._process.stdin is not None:
            try:
                self._process.stdin.write(b"stopped\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass
        if self._process.stdin is not None:
            self._process.stdin.close()
        # It only has to read a line; a janitor that cannot do that in five seconds is not working.
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def marked_processes(cluster_id: str) -> list[int]:
    """The living processes whose environment carries the cluster's marker."""
    marker = f"{_VARIABLE}={cluster_id}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read()
        except OSError:
            continue
        if marker in environment.split(b"\0"):
            found.append(int(entry))
    return found


def kill_marked(cluster_id: str) -> int:
    """SIGKILL every process of the cluster; the number killed."""
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        living = marked_processes(cluster_id)
        if not living:
            break
        for pid in living:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            except ProcessLookupError:
                continue
        time.sleep(0.01)  # a killed process keeps its environment until the kernel is done with it
    return len(killed)


def _main(cluster_id: str, directory: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stdin.buffer.read().startswith(b"stopped"):
        return
    kill_marked(cluster_id)
    if directory:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
