"""Probes: is a container started, alive, ready?"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.machine.processes import (
    ContainerLog,
    ContainerProcess,
    StartError,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from nighttrain.providers.local.cluster.machine.mounts import MountNamespaces
    from nighttrain.providers.local.cluster.store.store import Object

# Enough of an answer for its status line and, if it fails, a look at why.
_ANSWER = 4096


@dataclass(frozen=True)
class ProbeTarget:
    """The part of a container that its probes need to know.

    :param folder: where the output of commands is kept for a moment
    """

    container: Object
    address: str
    env: dict[str, str]
    cwd: Path
    folder: Path
    namespaces: MountNamespaces
    process: ContainerProcess


class ProbeFailedError(Exception):
    """The probe failed; the message is what the event says."""


async def probe_once(probe: Object, target: ProbeTarget) -> None:
    """Run a probe once. Raises :class:`ProbeFailedError`."""
    seconds = float(probe.get("timeoutSeconds") or 1)
    what = ""
    try:
        async with asyncio.timeout(seconds):
            if "httpGet" in probe:
                what = f'Get "{http_url(probe["httpGet"], target)}": '
                await http_get(probe["httpGet"], target)
            elif "tcpSocket" in probe:
                await _tcp_connect(probe["tcpSocket"], target)
            else:
                await run_command(probe["exec"].get("command") or [], target)
    except TimeoutError as error:
        if what:
            raise ProbeFailedError(
                f"{what}context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            ) from error
        raise ProbeFailedError(f"command timed out after {seconds:g}s") from error


def port_number(port: int | str, container: Object) -> int:
    """A port by number or by the name it has in the container. Raises :class:`ProbeFailedError`."""
    if isinstance(port, int) or port.isdigit():
        return int(port)
    for each in container.get("ports") or []:
        if each.get("name") == port:
            return int(each["containerPort"])
    raise ProbeFailedError(f"couldn't find port: {port}")


def http_url(action: Object, target: ProbeTarget) -> str:
    scheme = (action.get("scheme") or "HTTP").lower()
    path = action.get("path") or "/"
    host = action.get("host") or target.address
    return f"{scheme}://{host}:{port_number(action['port'], target.container)}/{path.removeprefix('/')}"


async def http_get(action: Object, target: ProbeTarget) -> None:
    """GET; every status from 200 to 399 is success. Raises :class:`ProbeFailedError`."""
    url = http_url(action, target)
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    host, _, port = authority.rpartition(":")
    context = _unverified() if scheme == "https" else None
    try:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    except OSError as error:
        raise ProbeFailedError(f'Get "{url}": dial tcp {host}:{port}: connect: {_why(error)}') from error
    try:
        headers = {"Host": authority, "User-Agent": "kube-probe/1.36", "Accept": "*/*", "Connection": "close"}
        headers |= {each["name"]: each.get("value", "") for each in action.get("httpHeaders") or []}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"GET /{path} HTTP/1.1\r\n{lines}\r\n".encode())
        answer = await reader.read(_ANSWER)
    except OSError as error:
        raise ProbeFailedError(f'Get "{url}": {_why(error)}') from error
    finally:
        writer.transport.abort()
    parts = answer.split(b" ", 2)
    if not answer.startswith(b"HTTP/") or len(parts) < 2 or not parts[1].isdigit():
        raise ProbeFailedError(f'Get "{url}": EOF')
    status = int(parts[1])
    if not 200 <= status < 400:
        raise ProbeFailedError(f"HTTP probe failed with statuscode: {status}")


def _unverified() -> ssl.SSLContext:
    # As the kubelet does: a probe asks whether the container answers, not who it is.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _tcp_connect(action: Object, target: ProbeTarget) -> None:
    host, port = action.get("host") or target.address, port_number(action["port"], target.container)
    try:
        _reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        raise ProbeFailedError(f"dial tcp {host}:{port}: connect: {_why(error)}") from error
    writer.transport.abort()


async def run_command(command: list[str], target: ProbeTarget) -> None:
    """Run a command beside the container; exit code 0 is success. Raises :class:`ProbeFailedError`."""
    log = ContainerLog(target.folder / f".exec-{id(object())}.log")
    try:
        process = start(
            command,
            env=target.env,
            cwd=target.cwd,
            log=log,
            namespaces=target.namespaces,
            inside=target.process,
        )
    except (StartError, IndexError) as error:
        log.close()
        log.path.unlink(missing_ok=True)
        raise ProbeFailedError(f"command error: {error}") from error
    try:
        status = await process.wait()
        output = log.tail(10, 1024)
    finally:
        process.kill()
        log.path.unlink(missing_ok=True)
    if status.code != 0:
        raise ProbeFailedError(output or f"command terminated with exit code {status.code}")


def _why(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return (error.strerror or str(error)).lower()


async def keep_probing(
    probe: Object,
    target: ProbeTarget,
    *,
    passed: Callable[[], bool],
    failed: Callable[[str, bool], bool],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Probe at the probe's own pace until a callback returns True (it has seen enough).

    :param passed: called each time ``successThreshold`` successes in a row are reached or exceeded
    :param failed: called after every failure with its message and whether ``failureThreshold`` is reached
    """
    period = float(probe.get("periodSeconds") or 10)
    wanted, tolerated = int(probe.get("successThreshold") or 1), int(probe.get("failureThreshold") or 3)
    successes = failures = 0
    if probe.get("initialDelaySeconds"):
        await sleep(float(probe["initialDelaySeconds"]))
    while True:
        try:
            await probe_once(probe, target)
        except ProbeFailedError as failure:
            successes, failures = 0, failures + 1
            if failed(str(failure), failures >= tolerated):
                return
        else:
            successes, failures = successes + 1, 0
            if successes >= wanted and passed():
                return
        await sleep(period)
