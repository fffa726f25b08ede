"""Mount namespaces for containers: whether this machine allows them, and how to start something in one."""

from __future__ import annotations

import asyncio
import enum
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SPAWNER = Path(__file__).with_name("spawner.py")

# The spawner starts in some 30 ms; on a machine where it takes longer than this, nothing else works either.
_START_SECONDS = 20.0


class Namespaces(enum.StrEnum):
    """The ways in which containers get mount namespaces."""

    AUTO = "auto"
    """As root where that is allowed, else through a user namespace."""
    USER = "user"
    """Through a user namespace, also for root."""
    NONE = "none"
    """Not at all, as on a machine whose kernel does not allow them."""


@dataclass(frozen=True)
class Mount:
    """Something that a container finds at a path.

    :param source: an absolute path of this machine: a folder or a file
    :param target: an absolute path in the container; made there, never on the machine, if it does not exist
    :param sub_path: what of the source is mounted, relative to it; made if it does not exist
    """

    source: str
    target: str
    read_only: bool = False
    sub_path: str = ""


class SpawnError(Exception):
    """Nothing was started: a mount failed, or there is no such program."""


class SubPathError(SpawnError):
    """A ``subPath`` leads out of its volume, or cannot be made."""


class MountNamespaces:
    """Starts processes in mount namespaces of their own, through a spawner process.

    :param directory: a folder of its own; what is mounted there is seen by nobody outside
    """

    def __init__(self, directory: Path, mode: Namespaces = Namespaces.AUTO) -> None:
        self._directory = directory
        self._mode = mode
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.refusal = "it was not started"
        """The reason why there are no mount namespaces; empty if there are."""

    @property
    def available(self) -> bool:
        return not self.refusal

    async def start(self) -> None:
        """Find out what this machine allows. Never raises for a machine that allows nothing."""
        if self._mode is Namespaces.NONE:
            self.refusal = "they are turned off"
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._launch)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-X",
                    "utf8",
                    str(_SPAWNER),
                    str(self._directory),
                    str(self._mode),
                ],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        self._socket = ours
        ours.settimeout(_START_SECONDS)
        try:
            self._answer()
        except (SpawnError, OSError) as error:
            self.close()
            self.refusal = str(error)
        else:
            self.refusal = ""

    def close(self) -> None:
        """End the spawner. What it started runs on."""
        self.refusal = self.refusal or "they have ended"
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                # It only has to see the end of its socket; the same patience as for the janitor.
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        output: int,
        mounts: Sequence[Mount] = (),
        inside: int | None = None,
    ) -> int:
        """Start a program in a session of its own, as a child of this process; its process number.

        :param output: a descriptor for its standard output and error
        :param inside: a process whose mount namespace it shares, instead of one of its own with ``mounts``
        :raises SubPathError: a mount's ``sub_path`` cannot be used
        :raises SpawnError: a mount failed, or the program cannot be run
        """
        request = {
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(cwd),
            "mounts": [asdict(each) for each in mounts],
            "inside": inside,
        }
        receive, send = os.pipe()
        try:
            try:
                answer = self._ask(request, [output, send])
            finally:
                os.close(send)
            pid = int(answer["pid"])
            # Its end of this pipe closes with exec.
            with open(receive, "rb", closefd=False) as file:
                report = file.read()
        finally:
            os.close(receive)
        if report:
            os.waitpid(pid, 0)
            failure = json.loads(report)
            kind = SubPathError if failure["kind"] == "subpath" else SpawnError
            raise kind(failure["message"])
        return pid

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        if self._process is not None and self._process.poll() is not None:
            # Killed by somebody, or for want of memory.
            self.close()
            self._launch()
        if self._socket is None:
            raise SpawnError(f"no mount namespace: {self.refusal}")
        body = json.dumps(request).encode()
        try:
            socket.send_fds(self._socket, [len(body).to_bytes(8, "big")], list(descriptors))
            self._socket.sendall(body)
            return self._answer()
        except OSError as error:
            # Half a message may be on its way: nothing can be asked any more.
            self.refusal = f"the process that starts containers has failed: {error}"
            self.close()
            raise SpawnError(self.refusal) from error

    def _answer(self) -> dict[str, Any]:
        size = int.from_bytes(self._exactly(8), "big")
        answer: dict[str, Any] = json.loads(self._exactly(size))
        if "error" in answer:
            raise SpawnError(answer["error"])
        return answer

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data)) if self._socket is not None else b""
            if not piece:
                raise ConnectionResetError("it ended")
            data += piece
        return data
