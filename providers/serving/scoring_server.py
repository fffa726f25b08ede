"""What runs inside a serving pod: this very file, passed to ``python -c``.

It needs Python and mlflow, not nighttrain. It downloads one pinned version, compares its sha256 manifest with
the one recorded at registration, and only then lets MLflow's own scoring server load it, in this process:
there is no child to outlive it and no second import of mlflow (about 5 s). A digest that differs ends it with
exit code 78.

On SIGTERM it goes on serving for the drain time, because the cluster takes a moment to stop sending, then
finishes what is under way. Answers given while it drains, and answers on a connection older than the
connection time, end their connection: clients which keep connections open follow a switch or a rollback.

``/metrics`` counts what was asked of the model, for all processes of the pod, in Prometheus' text format. It
is written here because neither mlflow nor what it needs brings a client library of Prometheus.

With ``--fetch-into`` it downloads and compares, and ends: so an init container brings a version to another
model server, which then never sees an artifact that is not the registered one.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import hashlib
import importlib
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

# EX_CONFIG of sysexits.h. The rollout takes it as final: no restart makes the artifact another one.
EXIT_DIGEST_MISMATCH = 78

# MLflow's download adds this file; it is no part of what was registered.
ADDED_BY_DOWNLOAD = frozenset({"registered_model_meta"})

# Longer than clients and load balancers keep an idle connection (httpx 5 s, most balancers 60 s): they close
# first, so no request meets a connection that this side is just closing.
KEEP_ALIVE_SECONDS = 75

# Connections remembered before those past their time are forgotten: some hundred kilobytes.
_REMEMBERED = 10_000

# MLflow's client reads certificates from a file; the Deployment brings them as text.
_CA_VARIABLE, _CA_PATH_VARIABLE = "NIGHTTRAIN_MLFLOW_CA", "MLFLOW_TRACKING_SERVER_CERT_PATH"

_MODEL_VARIABLE, _SOCKETS_VARIABLE = "NIGHTTRAIN_MODEL_FOLDER", "NIGHTTRAIN_SOCKETS"
_COUNTS_VARIABLE = "NIGHTTRAIN_COUNTS_FOLDER"

_SCORING, _METRICS = "/invocations", "/metrics"

# Golden requests go to both versions alike, clients' by their share: counted together they would blame the
# version with the smaller share for what fails at both.
_GOLDEN = (b"x-nighttrain-golden", b"1")

# Seconds. From two milliseconds, the least that MLflow's server takes, to sixty seconds, where it gives a
# request up (MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT). Each is at most half as much again as the one before: a
# model that became slower by half has its percentiles in another bucket.
BUCKETS = (
    *(0.002, 0.0025, 0.0035, 0.005, 0.007, 0.01, 0.015, 0.02, 0.025, 0.035, 0.05, 0.07, 0.1, 0.15, 0.2),
    *(0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.5, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0),
)
_BOUNDS = tuple(round(seconds * 1e9) for seconds in BUCKETS)

# The places of a process's counts: one for each status from 100 to 599, then these, then the buckets.
_FIRST_STATUS, _LAST_STATUS = 100, 599
_IN_FLIGHT, _NO_ANSWER, _RAISED, _NANOSECONDS, _FIRST_BUCKET = range(500, 505)
_PLACES = _FIRST_BUCKET + len(BUCKETS) + 1

# What MLflow's server answers a well-formed request.
_EXPECTED_CODES = frozenset({"200", "400", "500", "504", "none"})

# MLflow answers 400 where the model itself raised, as it does to what it cannot read; only the text differs.
_MODEL_RAISED = b"unexpected error while evaluating the model"


def manifest_digest(folder: str | Path) -> str:
    """The sha256 over the lines ``<sha256>  <path>`` of every file, sorted by path."""
    root = Path(folder)
    entries = list(root.rglob("*"))
    if links := [path for path in entries if path.is_symlink()]:
        raise ValueError(f"{links[0]} is a link: an artifact consists of plain files")
    files = {path.relative_to(root).as_posix(): path for path in entries if path.is_file()}
    whole = hashlib.sha256()
    for name in sorted(files.keys() - ADDED_BY_DOWNLOAD):
        whole.update(f"{_sha256(files[name])}  {name}\n".encode())
    return whole.hexdigest()


def _sha256(path: Path) -> str:
    content = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            content.update(piece)
    return content.hexdigest()


class Counts:
    """What this process has counted, in a file that the pod's other processes read and that outlives it.

    Only this process's event loop writes it, one machine word at a time: counting needs no lock. A lock on
    the file says that the process lives; the system lets go of it however the process ends.

    :param folder: the same for every process of the pod
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._file, self._own = tempfile.mkstemp(".counts", dir=folder)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        os.ftruncate(self._file, 8 * _PLACES)
        self.own = memoryview(mmap.mmap(self._file, 8 * _PLACES)).cast("Q")

    def of_the_pod(self) -> list[int]:
        """The sum over its processes. What a dead one had under way got no answer."""
        read = [self._read(path) for path in self._folder.glob("*.counts")]
        return [sum(place) for place in zip([0] * _PLACES, *read, strict=True)]

    def _read(self, path: Path) -> list[int]:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 8 * _PLACES:
                return [0] * _PLACES  # just made
            with (
                mmap.mmap(file.fileno(), 8 * _PLACES, access=mmap.ACCESS_READ) as shared,
                memoryview(shared) as raw,
                raw.cast("Q") as places,
            ):
                counts = places.tolist()
            if str(path) != self._own and _is_free(file.fileno()):
                counts[_NO_ANSWER] += counts[_IN_FLIGHT]
                counts[_IN_FLIGHT] = 0
        return counts


def _is_free(descriptor: int) -> bool:
    try:
        # Shared: two that look at the same time do not take one another for the owner.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Request:
    """A request under way; whatever ends it first counts."""

    __slots__ = ("_began", "_counts", "_over")

    def __init__(self, counts: memoryview) -> None:
        counts[_IN_FLIGHT] += 1
        self._counts = counts
        self._began = time.perf_counter_ns()
        self._over = False

    def end(self, status: int | None, *, raised: bool = False) -> None:
        """Count it.

        :param status: None if nobody was there any more to be answered. Its time counts as well: to leave the
            longest out would make a model that hangs look fast
        """
        if self._over:
            return
        self._over = True
        counts, took = self._counts, time.perf_counter_ns() - self._began
        counts[_IN_FLIGHT] -= 1
        counts[_NO_ANSWER if status is None else min(status, _LAST_STATUS) - _FIRST_STATUS] += 1
        counts[_RAISED] += raised
        counts[_NANOSECONDS] += took
        counts[_FIRST_BUCKET + bisect_left(_BOUNDS, took)] += 1


class Metrics:
    """An ASGI layer that counts requests for predictions, and shows the pod's counts at ``/metrics``."""

    def __init__(self, app: Any, counts: Counts, model: str, version: str) -> None:
        self._app = app
        self._counts = counts
        self._labels = f'model="{_escaped(model)}",version="{_escaped(version)}"'

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"] if scope["type"] == "http" else None
        if path == _SCORING and _GOLDEN not in scope["headers"]:
            await self._count(scope, receive, send)
        elif path == _METRICS:
            text = exposition(self._counts.of_the_pod(), self._labels).encode()
            kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
            await send({"type": "http.response.start", "status": 200, "headers": [kind]})
            await send({"type": "http.response.body", "body": text})
        else:
            await self._app(scope, receive, send)

    async def _count(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        request, status, raised = _Request(self._counts.own), 0, False
        watch: asyncio.Future[None] | None = None

        async def incoming() -> Any:
            nonlocal watch
            if watch is not None:
                await asyncio.shield(watch)
                return {"type": "http.disconnect"}
            message = await receive()
            if not message.get("more_body"):
                # What may come now is that the client leaves. A model at work does not listen: somebody must.
                watch = asyncio.ensure_future(_left(receive, message))
                watch.add_done_callback(lambda _: request.end(None))
            return message

        async def outgoing(message: dict[str, Any]) -> None:
            nonlocal status, raised
            status = message.get("status", status)
            raised = raised or (status == 400 and _MODEL_RAISED in message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                request.end(status, raised=raised)
            await send(message)

        try:
            await self._app(scope, incoming, outgoing)
        finally:
            # An application that ends without an answer gets a 500 from the server; half an answer is none.
            request.end(None if status else 500)
            if watch is not None:
                watch.cancel()


async def _left(receive: Any, message: dict[str, Any]) -> None:
    while message["type"] != "http.disconnect":
        message = await receive()


def exposition(counts: list[int], labels: str) -> str:
    """Counts in Prometheus' text format, version 0.0.4.

    What may come is there from the beginning: Prometheus sees no rise in a series that appears with a value.

    :param labels: of every series, escaped
    """
    codes = {str(status): counts[status - _FIRST_STATUS] for status in range(_FIRST_STATUS, _LAST_STATUS + 1)}
    codes["none"] = counts[_NO_ANSWER]
    reasons = {
        "status_5xx": sum(count for code, count in codes.items() if code.startswith("5")),
        "model_raised": counts[_RAISED],
        "no_answer": counts[_NO_ANSWER],
    }
    shown = {code: count for code, count in codes.items() if count or code in _EXPECTED_CODES}
    within = list(accumulate(counts[_FIRST_BUCKET:]))
    buckets = zip((*BUCKETS, "+Inf"), within, strict=True)
    families = (
        ("requests_total counter", "Requests for predictions; code none: nobody was there to be answered.",
         [("", f',code="{code}"', count) for code, count in shown.items()]),
        ("request_errors_total counter", "Those of them that are the version's failures.",
         [("", f',reason="{reason}"', count) for reason, count in reasons.items()]),
        ("requests_in_flight gauge", "Requests for predictions under way.", [("", "", counts[_IN_FLIGHT])]),
        ("request_duration_seconds histogram",
         "From a request's head to the end of its answer, or until its client left.",
         [*(("_bucket", f',le="{bound}"', count) for bound, count in buckets),
          ("_sum", "", counts[_NANOSECONDS] / 1e9), ("_count", "", within[-1])]),
    )  # fmt: skip
    lines = []
    for family, text, series in families:
        name = f"nighttrain_{family.partition(' ')[0]}"
        lines += [f"# HELP {name} {text}", f"# TYPE nighttrain_{family}"]
        lines += [f"{name}{suffix}{{{labels}{more}}} {value}" for suffix, more, value in series]
    return "\n".join([*lines, ""])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Connections:
    """An ASGI layer that names the version in every answer, and ends connections when it is time."""

    def __init__(self, app: Any, headers: dict[str, str], lifetime: float) -> None:
        self.draining = False
        self._app = app
        self._headers = [(name.encode(), quote(value, safe=" ").encode()) for name, value in headers.items()]
        self._lifetime = lifetime
        self._since: dict[tuple[Any, ...], float] = {}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_old = self._too_old(tuple(scope.get("client") or ()))

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                closing = [(b"connection", b"close")] if too_old or self.draining else []
                message = {**message, "headers": [*message.get("headers", ()), *self._headers, *closing]}
            await send(message)

        await self._app(scope, receive, answer)

    def _too_old(self, client: tuple[Any, ...]) -> bool:
        now = time.monotonic()
        if len(self._since) > _REMEMBERED:
            self._since = {key: since for key, since in self._since.items() if now - since <= self._lifetime}
        if now - self._since.setdefault(client, now) <= self._lifetime:
            return False
        del self._since[client]
        return True


def serve(app: Connections, sockets: list[socket.socket], drain: float) -> None:
    """Serve until SIGTERM and the end of the drain time."""
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if app.draining or drain <= 0:
                super().handle_exit(sig, frame)
                return
            app.draining = True
            timer = threading.Timer(drain, super().handle_exit, (sig, frame))
            timer.daemon = True
            timer.start()

    config = uvicorn.Config(
        app, timeout_keep_alive=KEEP_ALIVE_SECONDS, log_level="warning", access_log=False, lifespan="off"
    )
    Server(config).run(sockets=sockets)


def listen(port: int) -> list[socket.socket]:
    """Listen on the pod's own address, and on its loopback (``kubectl port-forward`` comes from there).

    Pods of the embedded cluster share a network and have loopback addresses of their own: only there.
    """
    address = os.environ.get("POD_IP") or "127.0.0.1"
    sockets = [_socket(address, port)]
    if not (address.startswith("127.") or address == "::1"):
        try:
            sockets.append(_socket("::1" if ":" in address else "127.0.0.1", port))
        except OSError as error:
            print(f"not listening on loopback: {error}", file=sys.stderr)  # noqa: T201
    return sockets


def _socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=1024)


def write_certificates(folder: str) -> None:
    """Make a file of the CA that the Deployment brings, for MLflow's client; one that is set already wins."""
    text = os.environ.get(_CA_VARIABLE)
    if text and _CA_PATH_VARIABLE not in os.environ:
        path = Path(folder, "mlflow-ca.pem")
        path.write_text(text, encoding="ascii")
        os.environ[_CA_PATH_VARIABLE] = str(path)


def download(name: str, version: str, folder: str) -> str:
    """Fetch the version's files, without loading any of them."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    artifacts = importlib.import_module("mlflow.artifacts")
    return str(artifacts.download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=folder))


def supervise(workers: int, sockets: list[socket.socket], folder: str) -> int:
    """Run so many processes on the same sockets; if one ends, all end, and the pod is restarted."""
    descriptors = [server.fileno() for server in sockets]
    variables = {_MODEL_VARIABLE: folder, _SOCKETS_VARIABLE: ",".join(map(str, descriptors))}
    command = [sys.executable, *sys.orig_argv[1:]]
    children: list[subprocess.Popen[bytes]] = []
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        for child in children:
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    for _ in range(workers):
        children.append(subprocess.Popen(command, env=os.environ | variables, pass_fds=descriptors))
    if stopped:
        stop()
    # Whichever ends first; the others are then told.
    pid, status = os.wait()
    stop()
    for child in children:
        if child.pid != pid:
            child.wait()
    return os.waitstatus_to_exitcode(status)


def fetch(options: argparse.Namespace, folder: str) -> str:
    """Download and compare.

    :return: where the version's files are
    :raises SystemExit: they cannot be had, or are not those that were registered
    """
    named = f"models:/{options.model}/{options.version}"
    try:
        path = download(options.model, options.version, folder)
    except Exception as error:
        print(f"cannot download {named}: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None
    actual = manifest_digest(path)
    if actual != options.digest:
        print(  # noqa: T201
            f"{named}: the artifact is not the one that was registered: "
            f"expected sha256 {options.digest}, actual {actual}. Nothing was loaded.",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_DIGEST_MISMATCH)
    return path


def fetch_into(options: argparse.Namespace) -> None:
    """Bring the version to ``model`` in the folder, and the given files beside it, for any user to read."""
    target = Path(options.fetch_into)
    for name in ("model", "files", ".download"):
        shutil.rmtree(target / name, ignore_errors=True)  # of a try that was cut short
    path = fetch(options, str(target / ".download"))
    (target / "files").mkdir()
    for given in options.file:
        name, _, text = given.partition("=")
        (target / "files" / name).write_text(text, encoding="utf-8")
    for root in (Path(path), target / "files"):
        for each in (root, *root.rglob("*")):
            each.chmod(0o755 if each.is_dir() else 0o644)
    os.rename(path, target / "model")


def run(options: argparse.Namespace, folder: str) -> int:
    """Download, compare, serve."""
    path = fetch(options, os.path.join(folder, "model"))
    if options.workers > 1:
        return supervise(options.workers, listen(options.port), path)
    load_and_serve(options, path, None)
    return 0


def load_and_serve(options: argparse.Namespace, path: str, sockets: list[socket.socket] | None) -> None:
    """Load the model, and only then take connections: whoever is answered is answered by the model."""
    server = importlib.import_module("mlflow.pyfunc.scoring_server")
    app = server.init(server.load_model_with_mlflow_config(path))
    headers = {"x-model-name": options.model, "x-model-version": options.version}
    counted = Metrics(app, Counts(os.environ[_COUNTS_VARIABLE]), options.model, options.version)
    connections = Connections(counted, headers, options.connection_seconds)
    serve(connections, listen(options.port) if sockets is None else sockets, options.drain_seconds)


def _stop(*_: object) -> None:
    raise SystemExit(0)


def main() -> int:
    """The process's start; see the module's text."""
    parser = argparse.ArgumentParser(prog="scoring server")
    for name in ("--model", "--version", "--digest"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--fetch-into")
    parser.add_argument("--file", action="append", default=[], metavar="NAME=TEXT")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--drain-seconds", type=float, default=0.0)
    parser.add_argument("--connection-seconds", type=float, default=60.0)
    options = parser.parse_args()
    # The first process of a container does not end on SIGTERM unless it says so.
    signal.signal(signal.SIGTERM, _stop)
    if inherited := os.environ.get(_SOCKETS_VARIABLE):
        sockets = [socket.socket(fileno=int(number)) for number in inherited.split(",")]
        load_and_serve(options, os.environ[_MODEL_VARIABLE], sockets)
        return 0
    folder = tempfile.mkdtemp(prefix="nighttrain-model-")
    try:
        write_certificates(folder)
        if options.fetch_into:
            fetch_into(options)
            return 0
        # The other processes find it in their environment.
        os.environ[_COUNTS_VARIABLE] = os.path.join(folder, "counts")
        os.mkdir(os.environ[_COUNTS_VARIABLE])
        return run(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
