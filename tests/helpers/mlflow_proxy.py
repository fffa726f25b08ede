"""What may stand before a real MLflow: a proxy that checks tokens, and a server that signs addresses only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import httpx

from helpers.http_server import QuietHandler, serving

PASSED_ON = ("content-type", "x-mlflow-workspace")


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    raw_query: str = ""
    """As it came: a field may be there twice."""
    body: bytes = b""


Answer = tuple[int, dict[str, str], bytes]
Judge = Callable[[Asked], "Answer | None"]


def refused(status: int, code: str) -> Answer:
    """As MLflow words it."""
    body = json.dumps({"error_code": code, "message": code.lower()}).encode()
    return status, {"content-type": "application/json"}, body


@dataclass
class Proxy:
    """Passes requests on to MLflow, unless ``judge`` answers; credentials end here."""

    upstream: str
    judge: Judge
    asked: list[Asked] = field(default_factory=list)
    uri: str = ""

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if (judged := self.judge(asked)) is not None:
            return judged
        query = f"?{asked.raw_query}" if asked.raw_query else ""
        reply = httpx.request(
            asked.method,
            f"{self.upstream}{asked.path}{query}",
            content=asked.body,
            headers={name: value for name, value in asked.headers.items() if name in PASSED_ON},
            trust_env=False,
            verify=False,  # noqa: S501 - plain HTTP: spares 30 ms for the authorities of each client
            timeout=60,
        )
        return reply.status_code, {"content-type": reply.headers.get("content-type", "")}, reply.content


@contextlib.contextmanager
def proxy(upstream: str, judge: Judge) -> Iterator[Proxy]:
    """A proxy on a port of its own."""
    made = Proxy(upstream, judge)

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            query = dict(parse_qsl(parts.query))
            asked = Asked(self.command, parts.path, query, headers, parts.query, body)
            status, fields, content = made.answer(asked)
            self.send_response(status)
            for name, value in {**fields, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = answer  # noqa: N815

    with serving(Handler) as made.uri:
        yield made
