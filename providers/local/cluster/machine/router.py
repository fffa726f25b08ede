"""A stand-in for a gateway: HTTP/1.1 by host, path and headers, shared out by weight, mirrored.

It is here so that a rollout can be tried on one machine, and does what recordings of a real gateway show:
nothing is tried twice, and what cannot be routed is answered 404, 500, 502 or 503. TLS, HTTP/2, upgrades and
timeouts are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import re
    import socket
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

    from nighttrain.providers.local.cluster.machine.network import Address

# A head is at most this long, as with most servers; a piece of a body too.
_LIMIT = 64 * 1024
# Model servers close connections that rest for five seconds (uvicorn's default). One that rested for less is
# not about to be closed, so that no request on it is lost to a race.
_REST_SECONDS = 2.0
# A pod on the same machine accepts at once or never.
_CONNECT_SECONDS = 5.0
# What belongs to one connection and not to the request (RFC 9110, 7.6.1). Transfer-Encoding stays, as bodies
# are passed on the way they come.
_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"expect"}

_Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Backend:
    """A Service that requests may go to.

    :param weight: its share of its rule's requests, relative to the other weights
    :param endpoints: where its ready pods listen; None: there is no such Service
    """

    weight: int
    endpoints: tuple[Address, ...] | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One match of a route's rule, and what becomes of the requests that fit.

    :param host: as in ``hostnames``, ``*.test`` included; empty: any
    :param headers: names in lower case and values, all of which have to be there
    :param mirrors: who gets copies, of which fraction of the requests
    :param set_headers: headers that the request gets in place of its own
    :param broken: it asks for what this gateway does not do; every request is answered 500
    """

    host: str
    path: re.Pattern[str]
    headers: tuple[tuple[str, str], ...]
    backends: tuple[Backend, ...]
    mirrors: tuple[tuple[Backend, float], ...]
    set_headers: tuple[tuple[str, str], ...]
    broken: bool

    def fits(self, request: Head) -> bool:
        host = request.get("host").rsplit(":", 1)[0].lower()
        return (
            (self.host in ("", host) or (self.host[0] == "*" and host.endswith(self.host[1:])))
            and self.path.match(request.first[1].partition("?")[0]) is not None
            and all(request.get(name) == value for name, value in self.headers)
        )


class _RefusalError(Exception):
    """The gateway answers by itself, with this status."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        phrase = status.phrase
        self.answer = (
            f"HTTP/1.1 {status.value} {phrase}\r\nContent-Type: text/plain\r\n"
            f"Content-Length: {len(phrase)}\r\n\r\n{phrase}"
        ).encode()


class Head:
    """The first line and the fields of a request or an answer; these keep their order and spelling.

    :raises ValueError: it is not HTTP/1.x
    """

    def __init__(self, raw: bytes) -> None:
        first, *lines = raw[:-4].split(b"\r\n")
        self.first = first.decode("latin-1").split(" ", 2)
        self.fields = [line.partition(b":")[::2] for line in lines]
        self._known: dict[str, str] = {}
        for name, value in self.fields:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
            self._known[key] = f"{self._known[key]}, {text}" if key in self._known else text
        if len(self.first) < 2 or b"HTTP/1." not in first or not all(name for name, _ in self.fields):
            raise ValueError("not HTTP/1.x")

    def get(self, name: str) -> str:
        return self._known.get(name, "")

    @property
    def keeps(self) -> bool:
        """Whether its connection may be used again."""
        return "HTTP/1.1" in self.first and "close" not in self.get("connection").lower()

    def encode(self, more: tuple[tuple[str, str], ...]) -> bytes:
        """As it is passed on: without the fields of this connection, ``more`` in place of its own."""
        dropped = _HOP | {name.lower().encode() for name, _ in more}
        lines = [b":".join(each) for each in self.fields if each[0].lower() not in dropped]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in more]
        return b"\r\n".join([" ".join(self.first).encode("latin-1"), *lines, b"", b""])

    def body(self, reader: asyncio.StreamReader, silent: int | None) -> AsyncIterator[bytes]:
        """The body in pieces, as it comes.

        :param silent: how long it is where the head says nothing; None: until the connection ends
        :raises ValueError: the head contradicts itself
        """
        coding, length = self.get("transfer-encoding").lower(), self.get("content-length")
        if coding not in ("", "chunked") or (coding and length) or (length and not length.isdecimal()):
            raise ValueError("not one length")
        return _chunks(reader) if coding else _pieces(reader, int(length) if length else silent)

    @property
    def is_bounded(self) -> bool:
        return bool(self.get("transfer-encoding") or self.get("content-length"))


async def _pieces(reader: asyncio.StreamReader, left: int | None) -> AsyncIterator[bytes]:
    while left != 0:
        piece = await reader.read(_LIMIT if left is None else min(left, _LIMIT))
        if not piece and left is not None:
            raise EOFError
        if not piece:
            return
        left = None if left is None else left - len(piece)
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = int(line.split(b";")[0], 16)
        async for piece in _pieces(reader, size + 2 if size else 0):
            yield piece
    while line != b"\r\n":  # trailers
        line = await reader.readuntil(b"\r\n")
        yield line


class _Client(asyncio.StreamReaderProtocol):
    """A client that goes away ends what is done for it: a server that hangs holds nothing up."""

    task: asyncio.Task[None] | None = None

    def eof_received(self) -> bool:
        super().eof_received()
        return False  # close: half-closed clients are not served

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.task is not None:
            self.task.cancel()


class Router:
    """Answers requests by the rules as they are at that moment.

    :param seed: of the random choice of backends and endpoints; None: others each time
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._idle: dict[Address, list[tuple[float, _Streams]]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, listener: socket.socket, rules: Callable[[], list[Rule]]) -> asyncio.Server:
        """Serve what comes in on a listening socket; of ``rules()`` the first that fits counts."""
        loop = asyncio.get_running_loop()

        def connected() -> _Client:
            def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                client.task = self._start(self._serve(reader, writer, rules))

            client = _Client(asyncio.StreamReader(_LIMIT, loop), serve)
            return client

        return await loop.create_server(connected, sock=listener)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End what is under way; the listeners are closed by whoever has them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _since, (_reader, writer) in [each for idle in self._idle.values() for each in idle]:
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rules: Callable[[], list[Rule]]
    ) -> None:
        """One client's requests, one after the other."""
        try:
            while await self._answer(reader, writer, rules):
                pass
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            # Cut in the middle, or no HTTP: nobody may take what came for the whole.
            writer.transport.abort()
        finally:
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rules: Callable[[], list[Rule]]
    ) -> bool:
        """One request. :return: whether the connection can be used again"""
        request = Head(await reader.readuntil(b"\r\n\r\n"))
        body = request.body(reader, 0)
        if request.get("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            rule = next((each for each in rules() if each.fits(request)), None)
            if rule is None:
                raise _RefusalError(HTTPStatus.NOT_FOUND)
            weights = [each.weight for each in rule.backends]
            if rule.broken or not any(weights):
                raise _RefusalError(HTTPStatus.INTERNAL_SERVER_ERROR)
            address = self._endpoint(self._random.choices(rule.backends, weights)[0])
            upstream = await self._connect(address)
        except _RefusalError as refusal:
            async for _piece in body:
                pass  # the next request begins behind it
            writer.write(refusal.answer)
            await writer.drain()
            return request.keeps
        try:
            await self._ask(request, body, rule, upstream[1])
            return await self._relay(request.first[0], address, upstream, writer) and request.keeps
        except BaseException:
            upstream[1].transport.abort()
            raise

    def _endpoint(self, backend: Backend) -> Address:
        if backend.endpoints is None:
            raise _RefusalError(HTTPStatus.INTERNAL_SERVER_ERROR)
        if not backend.endpoints:
            raise _RefusalError(HTTPStatus.SERVICE_UNAVAILABLE)
        return self._random.choice(backend.endpoints)

    async def _connect(self, address: Address) -> _Streams:
        """A connection that rests, or a new one."""
        now = asyncio.get_running_loop().time()
        while self._idle[address]:
            since, streams = self._idle[address].pop()
            if now - since < _REST_SECONDS and not streams[0].at_eof():
                return streams
            streams[1].close()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await asyncio.open_connection(*address, limit=_LIMIT)
        except OSError:  # which a time-out is, too
            raise _RefusalError(HTTPStatus.BAD_GATEWAY) from None

    async def _ask(
        self, request: Head, body: AsyncIterator[bytes], rule: Rule, server: asyncio.StreamWriter
    ) -> None:
        """Pass the request on, and its copies."""
        mirrors = [each for each, fraction in rule.mirrors if self._random.random() < fraction]
        head = request.encode(rule.set_headers)
        copy = [head]
        server.write(head)
        async for piece in body:
            if mirrors:
                copy.append(piece)
            # The server may have answered and closed before it had all; its answer is read all the same.
            with contextlib.suppress(ConnectionError):
                server.write(piece)
                await server.drain()
        for backend in mirrors:
            self._start(self._mirror(b"".join(copy), backend, request.first[0]))

    async def _mirror(self, request: bytes, backend: Backend, method: str) -> None:
        """Send a copy; nobody waits for it, and nobody sees the answer."""
        with contextlib.suppress(_RefusalError, OSError, EOFError, ValueError):
            address = self._endpoint(backend)
            upstream = await self._connect(address)
            try:
                upstream[1].write(request)
                await self._relay(method, address, upstream, None)
            except BaseException:
                upstream[1].transport.abort()
                raise

    async def _relay(
        self, method: str, address: Address, upstream: _Streams, writer: asyncio.StreamWriter | None
    ) -> bool:
        """Pass the answer on as it comes. :return: whether the client sees where it ends"""
        reader = upstream[0]
        try:
            answer = Head(await reader.readuntil(b"\r\n\r\n"))
            while answer.first[1].startswith("1"):
                answer = Head(await reader.readuntil(b"\r\n\r\n"))
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            if writer is not None:
                writer.write(_RefusalError(HTTPStatus.BAD_GATEWAY).answer)
            upstream[1].transport.abort()
            return True
        bare = method == "HEAD" or answer.first[1] in ("204", "304")
        body = _pieces(reader, 0) if bare else answer.body(reader, None)
        bounded, keeps = bare or answer.is_bounded, answer.keeps
        answer.first[0] = "HTTP/1.1"
        if writer is not None:
            writer.write(answer.encode(() if bounded else (("Connection", "close"),)))
        async for piece in body:
            if writer is not None:
                writer.write(piece)
                await writer.drain()
        if keeps and bounded:
            self._idle[address].append((asyncio.get_running_loop().time(), upstream))
        else:
            upstream[1].close()
        return bounded
