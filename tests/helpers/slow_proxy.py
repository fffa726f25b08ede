"""MLflow behind a proxy that holds up every question and every answer, each for another while."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from helpers.http_server import QuietHandler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def slow_proxy(upstream: str, *, seconds: float, seed: int = 0) -> Iterator[str]:
    """The address of the proxy.

    :param seconds: the longest that a question, and again its answer, is held up
    """
    dice, lock = random.Random(seed), threading.Lock()
    client = httpx.Client(base_url=upstream, trust_env=False, timeout=60)

    def hold_up() -> None:
        with lock:
            pause = dice.uniform(0, seconds)
        time.sleep(pause)

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            hold_up()
            reply = client.request(
                self.command, self.path, content=body, headers={"content-type": "application/json"}
            )
            hold_up()
            self.send_response(reply.status_code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        do_GET = do_POST = answer  # noqa: N815

    with client, serving(Handler) as address:
        yield address
