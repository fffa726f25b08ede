"""An API server that answers what a test tells it to: for what no real one does on demand."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from helpers.kubeconfigs import kubeconfig

TOKEN = "t0ken-of-the-test"


@dataclass
class Answer:
    """One scripted answer; ``lines`` are streamed and, if ``cut``, the connection is dropped after them."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    lines: list[str] | None = None
    cut: bool = False
    hold: float = 0.0


def refusal(code: int, reason: str, message: str) -> Answer:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return Answer(code, body | {"message": message})


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class ScriptedServer:
    """Answers in the order given, whatever is asked; the last answer repeats."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []
        self._asked = asyncio.Condition()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def asked(self, times: int) -> None:
        """Return when so many requests have come."""
        async with self._asked:
            await self._asked.wait_for(lambda: len(self.requests) >= times)

    def kubeconfig(self, token: str = TOKEN) -> dict[str, Any]:
        return kubeconfig(self.url, context="c", namespace="team", token=token)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.requests.append(
            Request(
                request.method,
                request.path,
                dict(request.query),
                dict(request.headers),
                json.loads(text) if text else None,
            )
        )
        async with self._asked:
            self._asked.notify_all()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer.lines is None:
            return web.json_response(answer.body, status=answer.status, headers=answer.headers)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await response.prepare(request)
        for line in answer.lines:
            await response.write(line.encode())
        if answer.hold:
            await asyncio.sleep(answer.hold)
        if answer.cut and request.transport is not None:
            request.transport.abort()
        return response
