"""A scripted HTTP server, and a proxy that loses answers: faults a real MLflow does not have on demand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import pytest

from helpers.http_server import QuietHandler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Scripted:
    """Answers in order, the last one for ever: (status, headers, body), or ``None`` to cut the connection."""

    answers: list[tuple[int, dict[str, str], bytes] | None] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    upstream: str = ""
    lose: str = ""
    """Forward everything to ``upstream``, but lose the first answer to this path, after it was acted upon."""
    refuse: str = ""
    """Forward everything to ``upstream``, but forbid this path."""
    uri: str = ""

    def says(self, status: int, body: bytes | str = b"{}", **headers: str) -> None:
        self.answers.append(
            (
                status,
                {key.replace("_", "-"): value for key, value in headers.items()},
                body if isinstance(body, bytes) else body.encode(),
            )
        )


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(QuietHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            script.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
            if script.refuse and script.refuse in self.path:
                answer = (403, {"content-type": "application/json"}, b'{"error_code": "PERMISSION_DENIED"}')
            elif script.upstream:
                reply = httpx.request(
                    self.command,
                    script.upstream + self.path,
                    content=body,
                    headers={"content-type": "application/json"},
                    trust_env=False,
                    timeout=30,
                )
                answer = (reply.status_code, {"content-type": "application/json"}, reply.content)
                if script.lose and script.lose in self.path:
                    script.lose = ""
                    self.close_connection = True
                    return
            else:
                found = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
                if found is None:
                    self.close_connection = True
                    return
                answer = found
            status, headers, content = answer
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

    with serving(Handler) as script.uri:
        yield script
