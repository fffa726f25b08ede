"""What runs inside a serving pod: this very file, passed to ``python -c``.

It needs Python and mlflow, not nighttrain. It downloads one pinned version, compares its sha256 manifest with
the one recorded at registration, and only then lets MLflow's own scoring server load it, in this process:
there is no child to outlive it and no second import of mlflow (about 5 s). A digest that differs ends it with
exit code 78.

On SIGTERM it goes on serving for the drain time, because the cluster takes a moment to stop sending, then
finishes what is under way. Answers given while it drains, and answers on a connection older than the
connection time, end their connection: clients which keep connections open follow a switch or a rollback.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
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


def run(options: argparse.Namespace, folder: str) -> int:
    """Download, compare, serve."""
    named = f"models:/{options.model}/{options.version}"
    try:
        path = download(options.model, options.version, folder)
    except Exception as error:
        print(f"cannot download {named}: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    actual = manifest_digest(path)
    if actual != options.digest:
        print(  # noqa: T201
            f"{named}: the artifact is not the one that was registered: "
            f"expected sha256 {options.digest}, actual {actual}. Nothing was loaded.",
            file=sys.stderr,
        )
        return EXIT_DIGEST_MISMATCH
    if options.workers > 1:
        return supervise(options.workers, listen(options.port), path)
    load_and_serve(options, path, None)
    return 0


def load_and_serve(options: argparse.Namespace, path: str, sockets: list[socket.socket] | None) -> None:
    """Load the model, and only then take connections: whoever is answered is answered by the model."""
    server = importlib.import_module("mlflow.pyfunc.scoring_server")
    app = server.init(server.load_model_with_mlflow_config(path))
    headers = {"x-model-name": options.model, "x-model-version": options.version}
    connections = Connections(app, headers, options.connection_seconds)
    serve(connections, listen(options.port) if sockets is None else sockets, options.drain_seconds)


def _stop(*_: object) -> None:
    raise SystemExit(0)


def main() -> int:
    """The process's start; see the module's text."""
    parser = argparse.ArgumentParser(prog="scoring server")
    for name in ("--model", "--version", "--digest"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
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
        return run(options, os.path.join(folder, "model"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
