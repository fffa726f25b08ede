"""Addresses of a cluster's own on loopback, and the proxy that balances a Service over its ready pods.

On Linux all of 127.0.0.0/8 answers on loopback. A cluster takes one 127.B.0.0/16 of it: the node is
127.B.0.1, pods are 127.B.1.1 and up, Services 127.B.200.1 and up. Nothing translates ports, so a program in a
pod must listen on its pod's address (``status.podIP``): two that listen on every address get in each other's
way.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Outside what other software uses by habit: 127.0.0.x and 127.0.1.1 are taken on many systems.
_FIRST_BLOCK, _LAST_BLOCK = 64, 127

# Services have the upper part of the block: 55 times 254 addresses; pods the 199 times 254 below.
_FIRST_SERVICE = 200

# The port of a kubelet; holding it on the node's address is what reserves the block.
_RESERVED_PORT = 10250

# Connections that wait to be accepted while the event loop is busy; the kernel's own limit cuts it if lower.
_BACKLOG = 4096

# How much is passed on at a time.
_PIECE = 256 * 1024

# Long enough for connections to end, short against a client's time-out.
_REST_SECONDS = 0.1

# A pod on the same machine accepts at once or never.
_CONNECT_SECONDS = 5.0

Address = tuple[str, int]


class NetworkError(Exception):
    """No block of addresses is free, or the platform has only one loopback address."""


class AddressPool:
    """Addresses NET.BLOCK.x.x, each handed out once; the one given back longest ago comes again first."""

    def __init__(self, block: int, first: int, last: int, *, net: int = 127) -> None:
        prefix = f"{net}.{block}."
        self._range = (prefix, range(first, last + 1))
        self._fresh = (f"{prefix}{high}.{low}" for high in range(first, last + 1) for low in range(1, 255))
        self._returned: dict[str, None] = {}
        self._used: set[str] = set()

    def take(self) -> str:
        for address in self._fresh:
            if address not in self._used:
                break
        else:
            if not self._returned:
                raise NetworkError("every address of the cluster is in use")
            address = next(iter(self._returned))
            del self._returned[address]
        self._used.add(address)
        return address

    def claim(self, address: str) -> bool:
        """Take a certain address; False if it is in use or not of this range."""
        if address in self._used or not self.owns(address):
            return False
        self._returned.pop(address, None)
        self._used.add(address)
        return True

    def owns(self, address: str) -> bool:
        prefix, third = self._range
        parts = address.split(".")
        return (
            address.startswith(prefix)
            and len(parts) == 4
            and all(part.isdecimal() for part in parts)
            and int(parts[2]) in third
            and 0 < int(parts[3]) < 255
        )

    def give_back(self, address: str) -> None:
        if address in self._used:
            self._used.discard(address)
            self._returned[address] = None


def unreached_services() -> AddressPool:
    """Addresses for the Services of an API server alone. Nobody listens there: it is the range that kubeadm
    gives a new cluster, and so one that nothing on this machine has by habit."""
    return AddressPool(96, 0, 255, net=10)


class ClusterNetwork:
    """One cluster's addresses and proxies. Made before the event loop runs; closed with :meth:`close`.

    :param block: the second number of its addresses, 127.BLOCK.x.x, if that block is still free
    :raises NetworkError: no block is free
    """

    def __init__(self, block: int | None = None) -> None:
        self._reservation, self.block = _reserve(block)
        self.host_ip = f"127.{self.block}.0.1"
        self.pods = AddressPool(self.block, 1, _FIRST_SERVICE - 1)
        self.services = AddressPool(self.block, _FIRST_SERVICE, 254)
        self._proxies: dict[Address, ServiceProxy] = {}

    def serve(self, address: Address, backends: Iterable[Address]) -> None:
        """Balance connections to ``address`` over ``backends``; with none, connections are refused.

        :raises OSError: the port cannot be bound
        """
        proxy = self._proxies.get(address)
        if proxy is None:
            proxy = self._proxies[address] = ServiceProxy(address)
        proxy.set_backends(list(backends))

    def unserve(self, address: Address) -> None:
        """Take no more connections on ``address``; those under way go on."""
        proxy = self._proxies.pop(address, None)
        if proxy is not None:
            proxy.stop_listening()

    async def close(self) -> None:
        for proxy in self._proxies.values():
            await proxy.close()
        self._proxies.clear()
        self._reservation.close()


def _reserve(wanted: int | None) -> tuple[socket.socket, int]:
    blocks = random.sample(range(_FIRST_BLOCK, _LAST_BLOCK + 1), _LAST_BLOCK - _FIRST_BLOCK + 1)
    if wanted is not None and wanted in blocks:
        blocks.insert(0, wanted)
    refused: OSError | None = None
    for block in blocks:
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            holder.bind((f"127.{block}.0.1", _RESERVED_PORT))
            holder.listen(1)
        except OSError as error:
            refused = error
            holder.close()
            continue
        return holder, block
    raise NetworkError(
        f"none of 127.{_FIRST_BLOCK}.0.1 to 127.{_LAST_BLOCK}.0.1 can be bound at port {_RESERVED_PORT}: "
        f"{refused}; "
        "the embedded cluster needs Linux, where the whole of 127.0.0.0/8 is loopback"
    )


class ServiceProxy:
    """Listens on one Service port while there are ready pods, and passes each connection on to one at random."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._backends: list[Address] = []
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def set_backends(self, backends: list[Address]) -> None:
        self._backends = backends
        if backends and self._listener is None:
            self._listener = listen(self._address)
            self._loop.add_reader(self._listener, self._accept)
        elif not backends:
            self.stop_listening()

    def stop_listening(self) -> None:
        if self._listener is not None:
            # What the kernel accepted but nobody took yet is served, not reset.
            self._accept()
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def close(self) -> None:
        self._backends = []
        self.stop_listening()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                client, _peer = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                # Out of descriptors: the rest waits in the backlog while connections end.
                self._loop.remove_reader(self._listener)
                self._loop.call_later(_REST_SECONDS, self._resume, self._listener)
                return
            self._serve(client)

    def _resume(self, listener: socket.socket) -> None:
        if listener is self._listener:
            self._loop.add_reader(listener, self._accept)

    def _serve(self, client: socket.socket) -> None:
        client.setblocking(False)
        task = self._loop.create_task(self._connect(client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connect(self, client: socket.socket) -> None:
        """Pass it on to a pod that takes it: one that is just going refuses, and the next is asked."""
        with client:
            backend = await self._reach_backend()
            if backend is None:
                return
            with backend:
                try:
                    async with asyncio.TaskGroup() as both:
                        both.create_task(_pass_on(client, backend))
                        both.create_task(_pass_on(backend, client))
                except* OSError:
                    for end in (client, backend):
                        # With a linger time of zero the kernel sends RST instead of FIN.
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _reach_backend(self) -> socket.socket | None:
        for address in random.sample(self._backends, len(self._backends)):
            backend = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            backend.setblocking(False)
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await self._loop.sock_connect(backend, address)
            except BaseException as error:
                backend.close()
                if not isinstance(error, OSError):  # which a time-out is, too
                    raise
            else:
                return backend
        return None


def listen(address: Address) -> socket.socket:
    """A listening socket. :raises OSError: the port cannot be bound"""
    # Named TCP outright: asyncio turns Nagle's algorithm off only then.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


async def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """One direction, to its end: half a close is passed on as half a close."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _PIECE):
        await loop.sock_sendall(target, data)
    target.shutdown(socket.SHUT_WR)
