"""One HTTP request, whatever answers it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

Json = dict[str, Any]

# A batch of predictions is smaller; reading more JSON at once would hold up whoever shares this process.
MAX_ANSWER = 1 << 20

VERSION_HEADER = "x-model-version"


class CannotTell(Exception):
    """Why something could not be measured, for people."""


class Answer(NamedTuple):
    """What came of one request.

    :param failure: why there is no whole answer; empty if there is one
    """

    status: int
    body: bytes
    seconds: float
    failure: str
    late: bool
    version: str

    @property
    def why(self) -> str:
        """Why it is no answer to build on; empty if it is one."""
        return self.failure or ("" if 200 <= self.status < 300 else f"HTTP {self.status}")


def send(
    url: str,
    *,
    timeout: float,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    limit: int = MAX_ANSWER,
) -> Answer:
    """One request on a connection of its own. No redirect is followed, no proxy is used.

    :param body: what to POST; without it, GET
    :param timeout: seconds until the end of the answer, not only between two of its bytes
    """
    began, over = time.perf_counter(), threading.Event()
    status, answer, failure, version = 0, b"", "", ""
    try:
        parts = urlsplit(url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
        connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    except (KeyError, ValueError, http.client.HTTPException):
        return Answer(0, b"", 0.0, f"{url} is no address", False, "")

    opened: list[socket.socket] = []  # the connection itself forgets it once the answer has begun

    def end() -> None:
        over.set()
        for each in opened:
            with contextlib.suppress(OSError):  # it ended at this very moment
                each.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.connect()
        opened.append(connection.sock)
        connection.request("GET" if body is None else "POST", target, body, headers or {})
        response = connection.getresponse()
        status, version = response.status, unquote(response.headers.get(VERSION_HEADER, ""))
        answer = response.read(limit + 1)
        if len(answer) > limit:
            failure = f"the answer has more than {limit:,} bytes"
        elif response.length:
            failure = "the answer was cut"
    except (OSError, http.client.HTTPException, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError):
            over.set()
    finally:
        timer.cancel()
        connection.close()
    late = over.is_set()
    failure = f"no answer within {timeout:g} seconds" if late else failure
    return Answer(status, answer, time.perf_counter() - began, failure, late, version)


def beside(*calls: Callable[[], None], seconds: float) -> None:
    """Make all calls at once, and wait for them so long."""
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
