"""A proxy in front of a server: TLS, client certificates, rights, refusals; and a forward proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from aiohttp import web

from helpers.kubeconfigs import kubeconfig
from helpers.tcp import pass_on

if TYPE_CHECKING:
    from helpers.certificates import Authority, Pair


@dataclass(frozen=True)
class SeenRequest:
    """One request that came, and the user as the API server would know it."""

    method: str
    path: str
    query: dict[str, str]
    token: str
    certificate: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def api_refusal(code: int, reason: str, message: str) -> web.Response:
    """A refusal in the API's form."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return web.json_response(body | {"reason": reason, "code": code}, status=code)


Judge = Callable[[SeenRequest], web.Response | None]


class ServerProxy:
    """Takes requests over TLS, refuses some, and passes the rest on to the embedded cluster with its token.

    :param server: the certificate to show; without it, plain HTTP
    :param clients: the authority of client certificates, which are then demanded
    :param judge: may answer in the cluster's place
    :param webhook: changes the objects that are created, as a mutating admission webhook does
    :param page: lists come in pages of so many objects, whether that was asked for or not
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        server: Pair | None = None,
        clients: Authority | None = None,
        judge: Judge = lambda _: None,
        webhook: Callable[[dict[str, Any]], None] | None = None,
        page: int | None = None,
    ) -> None:
        self._url, self._token, self._judge, self._page = url, token, judge, page
        self._server, self._clients, self._webhook = server, clients, webhook
        self.seen: list[SeenRequest] = []
        self.connections = 0
        self.cut = 0
        """So many requests meet a connection that is just being closed."""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._http = aiohttp.ClientSession(trust_env=False, auto_decompress=False)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        context = None
        if self._server is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server.load_into(context)
            if self._clients is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(cadata=self._clients.pem.decode())
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._http.close()

    def close_idle(self) -> int:
        """Close every connection, as a server does with those that rest too long; how many there were."""
        server = self._runner.server
        assert server is not None
        connections = list(server.connections)
        for connection in connections:
            connection.force_close()
            if connection.transport is not None:
                connection.transport.close()
        return len(connections)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.cut:
            self.cut -= 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        peer = (request.get_extra_info("peercert") or {}).get("subject", ())
        certificate = next((value for ((name, value),) in peer if name == "commonName"), "")
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        seen = SeenRequest(request.method, request.path, dict(request.query), token, certificate)
        self.seen.append(seen)
        if (answer := self._judge(seen)) is not None:
            return answer
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() in ("accept", "content-type", "user-agent")
        }
        headers["Authorization"] = f"Bearer {self._token}"
        body = await request.read()
        if self._webhook is not None and request.method == "POST" and body:
            created = json.loads(body)
            self._webhook(created)
            body = json.dumps(created).encode()
        target = self._url + request.raw_path
        if self._page is not None and request.method == "GET" and "watch" not in seen.query:
            target += f"{'&' if '?' in target else '?'}limit={self._page}"
        async with self._http.request(
            request.method,
            target,
            headers=headers,
            data=body or None,
            timeout=aiohttp.ClientTimeout(),
        ) as far:
            response = web.StreamResponse(status=far.status)
            response.content_type = far.content_type
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                async for piece in far.content.iter_any():
                    await response.write(piece)
            return response

    def kubeconfig(self, authority: Authority | None = None, **user: Any) -> dict[str, Any]:
        """A kubeconfig for this server, with these fields of the user."""
        return kubeconfig(self.url, authority=authority.data() if authority else None, **user)


class ForwardProxy:
    """A forward proxy: CONNECT to any name leads to one port of this machine."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.asked: list[list[str]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.asked.append(head)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await pass_on(reader, writer, far_reader, far_writer)
