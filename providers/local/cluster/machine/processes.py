"""One container is one process group of this machine, with an environment, a folder and a log of its own.

Like the first process of a real container, it does not receive SIGTERM unless it handles it: the kernel drops
signals with a default action for process 1, so a program without a handler runs until its grace period ends.
Only the first process is told; the whole group is killed when it ends, or when the grace period does. A
process that starts a session of its own outlives its container, and ends with the cluster. Where the machine
allows it, a container has a mount namespace of its own, for its volumes and its termination message.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.machine.mounts import Mount, MountNamespaces, SpawnError, SubPathError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nighttrain.providers.local.cluster.machine.images import ImageEnvironment

# Every process of a cluster carries it; the janitor finds them by it.
CLUSTER_VARIABLE = "NIGHTTRAIN_CLUSTER"

# What a container needs to run the host's libraries: where they are and how many threads they use.
_HOST_VARIABLES = re.compile(r"LD_LIBRARY_PATH|(OPENBLAS|OMP|MKL|NUMEXPR|GOTO)_\w+|TZ|SSL_CERT_(FILE|DIR)")

# The longest line kept in one piece; what a container runtime uses too.
_LONGEST_LINE = 16 * 1024

# How much is read from a container at once: enough to keep up with a loud one, little enough to stay fair.
_CHUNK = 64 * 1024


class StartError(Exception):
    """The command cannot be run at all. The message is what a container runtime says."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
            f"runc create failed: unable to start container process: {detail}"
        )


class ContainerLog:
    """A container's output, one timestamp a line, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False
        self._file = path.open("ab", buffering=0)
        self._rest = b""
        # Set by the next change, and replaced then: take it before reading, wait for it after.
        self.changed = asyncio.Event()

    def write(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        while len(rest) > _LONGEST_LINE:
            lines.append(rest[:_LONGEST_LINE])
            rest = rest[_LONGEST_LINE:]
        self._rest = rest
        self._append(lines)

    def close(self) -> None:
        if self.closed:
            return
        if self._rest:
            self._append([self._rest])
        self.closed = True
        self._file.close()
        self._notify()

    def _append(self, lines: list[bytes]) -> None:
        if lines:
            # Each line has a time of its own, later than the one before: followers tell lines apart by it.
            stamp = timestamp_nanoseconds().encode()
            base, nanoseconds = stamp[:-10], int(stamp[-10:-1])
            self._file.write(
                b"".join(
                    b"%s%09dZ %s\n" % (base, min(nanoseconds + number, 999_999_999), line)
                    for number, line in enumerate(lines)
                )
            )
            self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def tail(self, lines: int, limit: int) -> str:
        """The last lines, at most ``limit`` bytes, without timestamps."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # A line's timestamp takes 31 bytes of the file and none of the answer.
            file.seek(max(0, size - limit - 32 * (lines + 1)))
            data = file.read().splitlines(keepends=True)
        if size > limit + 32 * (lines + 1) and len(data) > 1:
            data = data[1:]
        texts = [line.partition(b" ")[2] for line in data[-lines:]]
        return b"".join(texts)[-limit:].decode(errors="replace")


@dataclass(frozen=True)
class ExitStatus:
    """A container's end: its exit code as Kubernetes counts it (128 + signal), and when."""

    code: int
    finished_at: float


class ContainerProcess:
    """A running container. Created by :func:`start`."""

    def __init__(self, pid: int, output: int, log: ContainerLog, reap: Callable[[], int]) -> None:
        self.pid = pid
        self.log = log
        self.out_of_memory = False
        """True if it was killed because it used more memory than it may."""
        self.started_at = time.time()
        self._loop = asyncio.get_running_loop()
        self._reap = reap
        self._output = output
        self._status: asyncio.Future[ExitStatus] = self._loop.create_future()
        # A pidfd becomes readable when the process ends: no thread, no polling, milliseconds.
        self._pidfd = os.pidfd_open(pid)
        os.set_blocking(output, False)
        self._loop.add_reader(output, self._read)
        self._loop.add_reader(self._pidfd, self._ended)

    @property
    def running(self) -> bool:
        return not self._status.done()

    @property
    def seconds(self) -> float:
        """The seconds that it has run, or ran."""
        return (self._status.result().finished_at if self._status.done() else time.time()) - self.started_at

    async def wait(self) -> ExitStatus:
        return await asyncio.shield(self._status)

    def handles_sigterm(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        caught = int(status.partition("SigCgt:")[2].split(maxsplit=1)[0], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    def terminate(self) -> None:
        """SIGTERM to the first process, if it handles it."""
        if self.running and self.handles_sigterm():
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if self.running:
            _kill_group(self.pid)

    async def stop(self, grace_seconds: float) -> ExitStatus:
        """SIGTERM, then SIGKILL after the grace period; with none left, SIGKILL at once."""
        if grace_seconds > 0:
            self.terminate()
            try:
                return await asyncio.wait_for(self.wait(), grace_seconds)
            except TimeoutError:
                pass
        self.kill()
        return await self.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._output, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self.log.write(data)
        else:
            self._close_output()

    def _close_output(self) -> None:
        if self._output >= 0:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = -1

    def _ended(self) -> None:
        finished = time.time()
        self._loop.remove_reader(self._pidfd)
        # Before it is reaped, while its number still is its own: the children end with the container.
        _kill_group(self.pid)
        code = self._reap()
        os.close(self._pidfd)
        while self._output >= 0 and _readable(self._output):
            self._read()
        self._close_output()
        self.log.close()
        if not self._status.done():
            self._status.set_result(ExitStatus(code if code >= 0 else 128 - code, finished))


def _readable(descriptor: int) -> bool:
    waiting: bytes = fcntl.ioctl(descriptor, 0x541B, b"\0\0\0\0")  # FIONREAD: the bytes waiting in the pipe
    return bool(struct.unpack("i", waiting)[0] > 0)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def start(
    argv: list[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: ContainerLog,
    namespaces: MountNamespaces | None = None,
    mounts: Sequence[Mount] = (),
    inside: ContainerProcess | None = None,
) -> ContainerProcess:
    """Run a command as a container.

    :param namespaces: gives it a mount namespace of its own, if the machine allows that
    :param mounts: what is mounted in that namespace, in this order
    :param inside: a running container whose mount namespace it shares instead
    :raises StartError: there is no such program, or a mount failed
    :raises SubPathError: a mount's ``sub_path`` cannot be used
    """
    receive, send = os.pipe()
    try:
        if namespaces is not None and namespaces.available:
            number = inside.pid if inside is not None else None
            pid = namespaces.spawn(argv, env=env, cwd=cwd, output=send, mounts=mounts, inside=number)
            return ContainerProcess(pid, receive, log, functools.partial(_reap, pid))
        if mounts:
            raise StartError("no mount namespace: " + (namespaces.refusal if namespaces else "none is given"))
        popen = _open(argv, env, cwd, send)
        return ContainerProcess(popen.pid, receive, log, popen.wait)
    except SubPathError:
        os.close(receive)
        raise
    except SpawnError as error:
        os.close(receive)
        raise StartError(str(error)) from error
    except StartError:
        os.close(receive)
        raise
    finally:
        os.close(send)


def _reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _open(argv: list[str], env: Mapping[str, str], cwd: Path, output: int) -> subprocess.Popen[bytes]:
    program = _resolve(argv[0], env, cwd)
    try:
        return subprocess.Popen(
            argv,
            executable=program,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = (
            os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        )
        raise StartError(f'exec: "{argv[0]}": {reason}') from error


def _resolve(program: str, env: Mapping[str, str], cwd: Path) -> str:
    if not cwd.is_dir():
        raise StartError(f'chdir to cwd ("{cwd}") set in config.json failed: no such file or directory')
    if "/" in program:
        path = cwd / program
        if not path.exists():
            raise StartError(f'exec: "{program}": stat {program}: no such file or directory')
        if path.is_dir() or not os.access(path, os.X_OK):
            raise StartError(f'exec: "{program}": permission denied')
        return str(path)
    found = shutil.which(program, path=env.get("PATH", ""))
    if found is None:
        raise StartError(f'exec: "{program}": executable file not found in $PATH')
    return found


def base_environment(
    image: ImageEnvironment, *, cluster_id: str, folder: Path, hostname: str
) -> dict[str, str]:
    """The environment of a container before its own variables: never the server's own."""
    env = {name: value for name, value in os.environ.items() if _HOST_VARIABLES.fullmatch(name)}
    env |= {
        "PATH": f"{image.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "HOSTNAME": hostname,
    }
    if image.pythonpath:
        env["PYTHONPATH"] = os.pathsep.join(str(path) for path in image.pythonpath)
    env |= image.env
    env[CLUSTER_VARIABLE] = cluster_id
    return env


_REFERENCES = re.compile(r"\$(?:(\$)|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")


def expand(text: str, lookup: Callable[[str], str | None]) -> str:
    """Replace ``$(NAME)`` as Kubernetes does: ``$$`` is a dollar, an unknown name stays as it is written."""

    def replace(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        value = lookup(match[2])
        return match[0] if value is None else value

    return _REFERENCES.sub(replace, text)


def timestamp_nanoseconds() -> str:
    """Now, as RFC 3339 with nine decimals, the form of a kubelet's log."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}Z"
