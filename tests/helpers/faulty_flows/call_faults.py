"""Faults at the boundary of single calls: every request to Kubernetes and MLflow passes through here.

A :class:`Schedule` belongs to the thread that made it current, so several may run at once. Calls in other
threads are left alone. The servers stay real: a fault decides what happens to a request
on its way, or to the process that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

import aiohttp
import httpx

from helpers.http_server import QuietHandler, serving
from nighttrain.providers import bridge
from nighttrain.providers.kubernetes.api.session import Session

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

CRASHES = ("crash_before", "crash_after")
STATUSES = ("409", "429", "500")
REFUSALS = ("reply_lost", "timeout_done", "timeout_not_done", *STATUSES)
STREAM_FAULTS = ("cut", "410")
NO_ANSWER = "no_answer"

ASK = "airflow ask"
"""A process that is told to end asks Airflow for its task's state."""


TASK = "task"
"""The process that Airflow starts for a task: its worker, or its trigger's triggerer."""


class Crash(BaseException):
    """The process is gone: nothing after this happens in it."""


@dataclass(frozen=True)
class Fault:
    """From the ``nth`` call of this label on, ``times`` calls in a row of one process meet ``kind``.

    :param label: of a call, or a pattern (``mlflow *``)
    :param process: which of the flow's processes makes the call
    """

    label: str
    nth: int
    kind: str
    times: int = 1
    process: str = TASK

    def __str__(self) -> str:
        return f"{self.kind} x{self.times} at {self.label!r} #{self.nth} of the {self.process}"


@dataclass
class Schedule:
    """The faults of one process, and what it called and met so far. It may be started again and again."""

    faults: tuple[Fault, ...] = ()
    dead: bool = False
    calls: list[str] = field(default_factory=list)
    struck: list[tuple[Fault, str]] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None
    _seen: Counter[int] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def revive(self) -> None:
        """Another process takes over."""
        self.dead = False

    def meet(self, label: str) -> str | None:
        """Count a call; the kind of fault that it meets."""
        with self._lock:
            if self.dead:
                raise Crash
            self.calls.append(label)
            for place, fault in enumerate(self.faults):
                if not fnmatchcase(label, fault.label):
                    continue
                self._seen[place] += 1
                if fault.nth <= self._seen[place] < fault.nth + fault.times:
                    self.struck.append((fault, label))
                    return fault.kind
        return None

    def die(self) -> Crash:
        """End the process: its loop's tasks are cancelled, and whatever they still try raises."""
        self.dead = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a thread of it; its loop may have ended
            if self.loop is not None:
                with contextlib.suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(_cancel_tasks)
        else:
            _cancel_tasks()
        return Crash()

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[None]:
        """A write to Airflow's database: it happens or not, and the process may die on either side of it."""
        kind = self.meet(label)
        if kind == "crash_before":
            raise self.die()
        yield
        if kind == "crash_after":
            raise self.die()


def _cancel_tasks() -> None:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()


class _Current(threading.local):
    schedule: Schedule | None = None


# By thread and not by context: the watch that several waits share runs in an empty context of its own.
current = _Current()


def kinds_for(label: str) -> tuple[str, ...]:
    """The faults that a call can meet."""
    if label == ASK:
        return (*CRASHES, NO_ANSWER)
    if label.startswith("airflow"):
        return CRASHES
    if label.endswith((" watch", " log")):
        return (*CRASHES, *REFUSALS, *STREAM_FAULTS)
    return (*CRASHES, *REFUSALS)


def class_of(label: str) -> str:
    """What sort of call it is: faults of every kind are to strike every sort."""
    if label.startswith("airflow"):
        return "airflow read" if label == ASK else "airflow write"
    system, method, what = label.split(" ", 2)
    if label.endswith((" watch", " log")):
        return f"{system} {what.rpartition(' ')[2]}"
    reads = method == "GET" or what.endswith(("/search", "dry-run"))
    return f"{system} {'read' if reads else 'write'}"


def _kubernetes_label(method: str, path: str, query: Any) -> str:
    parts = path.split("/namespaces/", 1)[-1].split("/")
    kind = parts[1] if len(parts) > 1 else path
    what = "one" if len(parts) > 2 else "all"
    if query.get("watch"):
        what = "watch"
    elif parts[-1] == "log":
        what = "log"
    elif query.get("dryRun"):
        what = "dry-run"
    return f"k8s {method} {kind} {what}"


def _mlflow_label(request: httpx.Request) -> str:
    path = re.sub(r"^/(api|ajax-api)/2\.0/(mlflow/)?", "", request.url.path)
    path = re.sub(r"[0-9a-f]{32}", "<id>", path)
    path = re.sub(r"(?<=artifacts/)\d+/.*", "<path>", path)
    return f"mlflow {request.method} {path}"


class _Answers(QuietHandler):
    """Answers each request with the status that its path names, as an API server would word it."""

    protocol_version = "HTTP/1.1"
    reasons: ClassVar = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"}

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        code = int(self.path.strip("/"))
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        content = json.dumps({**status, "reason": self.reasons[code], "message": "injected"}).encode()
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _answer  # noqa: N815


@contextlib.contextmanager
def injecting() -> Iterator[None]:  # noqa: C901
    """While this is open, calls made in a context with a schedule meet its faults."""
    ask_cluster = Session.request
    ask_mlflow = httpx.AsyncHTTPTransport.handle_async_request

    async def cluster(self: Session, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        schedule = current.schedule
        if schedule is None:
            return await ask_cluster(self, method, path, **options)
        schedule.loop = asyncio.get_running_loop()
        label = _kubernetes_label(method, path, options["query"])
        kind = schedule.meet(label)
        match kind:
            case "crash_before":
                raise schedule.die()
            case "timeout_not_done":
                raise TimeoutError("injected")
            case "409" | "410" | "429" | "500":
                return await self._http.request(method, f"{address}/{kind}")
        response = await ask_cluster(self, method, path, **options)
        match kind:
            case None:
                return response
            case "cut":
                # Its reader has begun. (Later, a stream may have ended by itself.)
                asyncio.get_running_loop().call_soon(response.close)
                return response
        # The server has done it once the answer begins.
        response.close()
        if kind == "crash_after":
            raise schedule.die()
        raise TimeoutError("injected") if kind == "timeout_done" else aiohttp.ServerDisconnectedError("lost")

    async def mlflow(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        schedule = current.schedule
        if schedule is None:
            return await ask_mlflow(self, request)
        kind = schedule.meet(_mlflow_label(request))
        match kind:
            case "crash_before":
                raise schedule.die()
            case "timeout_not_done":
                raise httpx.ConnectTimeout("injected", request=request)
            case "409" | "429" | "500":
                headers = {"Retry-After": "0"} if kind == "429" else {}
                return httpx.Response(int(kind), json={}, headers=headers, request=request)
        response = await ask_mlflow(self, request)
        if kind is None:
            return response
        await response.aread()
        await response.aclose()
        if kind == "crash_after":
            raise schedule.die()
        lost = httpx.ReadTimeout if kind == "timeout_done" else httpx.ReadError
        raise lost("injected", request=request)

    enter_bridge = bridge._run_in_thread

    def enter(work: Coroutine[Any, Any, Any]) -> Any:
        schedule = current.schedule

        async def inside() -> Any:
            current.schedule = schedule
            return await work

        return enter_bridge(inside())

    with (
        serving(_Answers) as address,
        patch.object(bridge, "_run_in_thread", enter),
        patch.object(Session, "request", cluster),
        patch.object(httpx.AsyncHTTPTransport, "handle_async_request", mlflow),
    ):
        yield
