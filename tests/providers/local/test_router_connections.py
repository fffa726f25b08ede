"""The router alone, before a server of the test's own that says and does exactly what is asked of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from helpers.polling import until_async
from nighttrain.providers.local.cluster.machine.router import Backend, Router, Rule

if TYPE_CHECKING:
    from collections.abc import Callable


class Front:
    """A router before one server, and a raw connection to it."""

    def __init__(self, answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def __aenter__(self) -> Front:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            with contextlib.suppress(OSError, EOFError):
                await self._answer(reader, writer)
            writer.close()

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        backend = Backend(1, (self._server.sockets[0].getsockname(),))
        rule = Rule("", re.compile("/"), (), (backend,), (), (("X-Set", "yes"),), broken=False)
        self.router = Router(seed=3)
        listener = socket.create_server(("127.0.0.1", 0))
        self._listening = await self.router.listen(listener, lambda: [rule])
        self.reader, self.writer = await asyncio.open_connection(*listener.getsockname())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.writer.close()
        self._listening.close()
        self._server.close()
        await self.router.close()
        # With the router's connections its servers' end, too.
        await asyncio.gather(*self._tasks)

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")


GET = b"GET / HTTP/1.1\r\nHost: m\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def test_an_answer_is_passed_on_piece_by_piece() -> None:
    """The second piece is written when the first has arrived: nothing waits for the whole."""
    arrived = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await arrived.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
        await reader.read()

    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(GET)
        assert b"transfer-encoding: chunked" in (await front.head()).lower()
        assert await front.reader.readuntil(b"first\r\n") == b"5\r\nfirst\r\n"
        arrived.set()
        assert await front.reader.readuntil(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"


async def test_a_request_with_a_body_in_chunks_arrives_as_it_was_sent() -> None:
    """With the header that the rule sets, without those of the connection."""
    got = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(EMPTY)

    body = b"4\r\nabcd\r\n0\r\n\r\n"
    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(
            b"POST /predict?x=1 HTTP/1.1\r\nHost: m\r\nConnection: keep-alive\r\nX-Set: no\r\n"
            b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert (await front.head()).startswith(b"HTTP/1.1 100 ")
        front.writer.write(body)
        assert (await front.head()).startswith(b"HTTP/1.1 200 ")
    head, _, rest = bytes(got).partition(b"\r\n\r\n")
    assert rest == body
    assert head.split(b"\r\n") == [
        b"POST /predict?x=1 HTTP/1.1",
        b"Host: m",
        b"Transfer-Encoding: chunked",
        b"X-Set: yes",
    ]


async def test_connections_to_servers_are_used_again() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(EMPTY)

    async with asyncio.timeout(10), Front(answer) as front:
        for method in (b"GET", b"HEAD", b"GET"):
            front.writer.write(GET.replace(b"GET", method))
            assert (await front.head()).startswith(b"HTTP/1.1 200 ")
        assert front.connections == 1


async def test_a_server_that_closes_after_each_answer_is_asked_anew() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EMPTY)

    async with asyncio.timeout(10), Front(answer) as front:
        for _ in range(3):
            front.writer.write(GET)
            assert (await front.head()).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.05)  # its end of the connection arrives
        assert front.connections == 3


async def test_an_answer_that_is_cut_is_not_taken_for_the_whole() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")

    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(GET)
        await front.head()
        with pytest.raises((ConnectionError, EOFError)):
            await front.reader.readexactly(10)


async def test_an_answer_before_the_end_of_the_request_is_passed_on() -> None:
    """A server may refuse a body that it has not read."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await reader.read()

    size = 8 * 1024 * 1024
    async with asyncio.timeout(20), Front(answer) as front:
        front.writer.write(b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % size)
        front.writer.write(bytes(size))
        assert (await front.head()).startswith(b"HTTP/1.1 413 ")


async def test_a_server_that_dies_in_the_middle_of_a_request_is_a_bad_gateway() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    size = 8 * 1024 * 1024
    async with asyncio.timeout(20), Front(answer) as front:
        front.writer.write(b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % size)
        front.writer.write(bytes(size))
        assert (await front.head()).startswith(b"HTTP/1.1 502 ")


async def test_a_client_that_goes_ends_its_request_at_the_server() -> None:
    """Or servers that hang would collect the requests of clients that have long given up."""
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        ended.set()

    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(GET)
        await until_async(lambda: front.connections)
        front.writer.close()
        await ended.wait()


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 1, 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + bytes(100_000) + b"\r\n\r\n",
    ],
)
async def test_what_is_no_request_reaches_no_server(request_: bytes) -> None:
    async def answer(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        pytest.fail("nobody may be asked")

    async with asyncio.timeout(10), Front(answer) as front:
        front.writer.write(request_)
        with contextlib.suppress(ConnectionError):
            assert await front.reader.read() == b""
        assert front.connections == 0
