"""Container logs as the API serves them."""

from __future__ import annotations

from collections import deque
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store.errors import bad_request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from nighttrain.providers.local.cluster.machine.processes import ContainerLog
    from nighttrain.providers.local.cluster.node.podstatus import Container
    from nighttrain.providers.local.cluster.store.store import Object

# How much is sent in one piece: few enough system calls, little enough memory.
_PIECE = 64 * 1024

_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")


def choose_log(pod: Object, name: str, container: Container | None, *, previous: bool) -> ContainerLog | None:
    """The log to read; None if the pod is bound but not begun. Raises ApiError 400."""
    pod_name = pod["metadata"]["name"]
    if previous:
        if container is None or container.previous_log is None:
            raise bad_request(f'previous terminated container "{name}" in pod "{pod_name}" not found')
        return container.previous_log
    if container is None:
        return None
    if container.log is None:
        reason = (container.state.get("waiting") or {}).get("reason", "ContainerCreating")
        if reason in _PULL_REASONS:
            reason = "trying and failing to pull image"
        raise bad_request(f'container "{name}" in pod "{pod_name}" is waiting to start: {reason}')
    return container.log


def _since_stamp(seconds: int | None, moment: str | None) -> str:
    """The earliest timestamp wanted, in the log's own form."""
    if moment is None and seconds is None:
        return ""
    since = datetime.fromisoformat(moment) if moment else datetime.now(UTC) - timedelta(seconds=seconds or 0)
    return since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


async def nothing() -> AsyncIterator[bytes]:
    pieces: tuple[bytes, ...] = ()
    for piece in pieces:
        yield piece


async def read(
    log: ContainerLog,
    *,
    follow: bool = False,
    tail_lines: int | None = None,
    since_seconds: int | None = None,
    since_time: str | None = None,
    timestamps: bool = False,
    limit_bytes: int | None = None,
) -> AsyncIterator[bytes]:
    """A log in pieces; with ``follow`` until it ends."""
    left, since = limit_bytes, _since_stamp(since_seconds, since_time)
    async with aclosing(_pieces(log, follow, tail_lines, since, timestamps)) as pieces:
        async for piece in pieces:
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            if piece:
                yield piece
            if left == 0:
                return


async def _pieces(
    log: ContainerLog, follow: bool, tail_lines: int | None, since: str, timestamps: bool
) -> AsyncGenerator[bytes]:
    last: deque[bytes] | None = None if tail_lines is None else deque(maxlen=tail_lines)
    with log.path.open("rb") as file:
        while True:
            closed, changed = log.closed, log.changed
            batch = file.readlines(_PIECE)
            chosen = [_shown(line, timestamps) for line in batch if not since or _stamp_of(line) >= since]
            if last is not None:
                last.extend(chosen)
                if batch:
                    continue
                chosen, last = list(last), None
            if chosen:
                yield b"".join(chosen)
            elif not batch:
                if closed or not follow:
                    return
                await changed.wait()


def _shown(line: bytes, timestamps: bool) -> bytes:
    return line if timestamps else line.partition(b" ")[2]


def _stamp_of(line: bytes) -> str:
    return line.partition(b" ")[0].decode()
