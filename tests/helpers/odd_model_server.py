"""A model server that answers as a test wants, in every way that real ones fail."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from helpers.http_server import QuietHandler

# So long a server that hangs, or sends without end, goes on if nobody leaves.
FOREVER_SECONDS = 30.0


@dataclass
class ModelServer:
    """What the server does; may be changed while it runs.

    :param predict: from a request's JSON to the prediction, or to a whole answer as bytes
    :param ways: how requests are answered, in turn and again from the first: ``answer``, ``500``, any other
        status, ``hang``, ``cut``, ``half``, ``drip``, ``endless``, or seconds to wait before the answer
    :param page: what it tells on ``/metrics``
    """

    url: str = ""
    predict: Callable[[Any], Any] = lambda asked: asked
    ways: tuple[str | float, ...] = ("answer",)
    page: bytes = b""
    asked: list[Any] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_way(self) -> str | float:
        with self.lock:
            return self.ways[(len(self.asked) - 1) % len(self.ways)]


def _handler(server: ModelServer) -> type[QuietHandler]:
    class Handler(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            server.paths.append(self.path)
            self._send(200, server.page, "text/plain; version=0.0.4")

        def do_POST(self) -> None:  # noqa: N802
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with server.lock:
                server.asked.append(asked)
                server.paths.append(self.path)
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                self._answer(server.next_way(), asked)
            finally:
                with server.lock:
                    server.at_once -= 1

        def _answer(self, way: str | float, asked: Any) -> None:
            if isinstance(way, float):
                time.sleep(way)
                way = "answer"
            if way == "answer":
                said = server.predict(asked)
                whole = said if isinstance(said, bytes) else json.dumps({"predictions": said}).encode()
                self._send(200, whole, "application/json")
            elif way == "hang":
                server.over.wait(FOREVER_SECONDS)
            elif way == "half":
                self.send_response(200)
                self.send_header("content-length", "100")
                self.end_headers()
                self.wfile.write(b'{"predictions": [')
            elif way in ("drip", "endless"):
                self.send_response(200)
                self.end_headers()
                piece, pause = (b" ", 0.05) if way == "drip" else (b" " * 65536, 0.0)
                with contextlib.suppress(OSError):
                    while not server.over.wait(pause):
                        self.wfile.write(piece)
            elif way.isdecimal():
                self.send_response(int(way))
                self.send_header("location", "http://127.0.0.1:1/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()
            self.close_connection = True  # "cut": without a word

        def _send(self, status: int, body: bytes, kind: str) -> None:
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

    return Handler


@contextlib.contextmanager
def model_server(**given: Any) -> Iterator[ModelServer]:
    """A server with these fields of :class:`ModelServer`."""
    described = ModelServer(**given)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(described))
    server.daemon_threads = True
    server.request_queue_size = 128
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    described.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield described
    finally:
        described.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
