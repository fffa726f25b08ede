"""What stands before a real API server and not before the embedded one: TLS, certificates, rights."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import ipaddress
import json
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ["kubernetes.test", "kubernetes.default.svc"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes

    def data(self) -> tuple[str, str]:
        """As kubeconfigs hold them."""
        return base64.b64encode(self.certificate).decode(), base64.b64encode(self.key).decode()


class Authority:
    """A cluster's own certificate authority. Like many, it writes no key identifiers."""

    def __init__(self, name: str = "cluster") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        basic = (x509.BasicConstraints(ca=True, path_length=None), True)
        self.pem = self._sign(self._name, self._key, [basic], days=10)

    def issue(self, name: str, *, addresses: tuple[str, ...] = ("127.0.0.1",), days: int = 1) -> Pair:
        """A certificate for a server or a user."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in NAMES]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        pem = self._sign(subject, key, [(x509.SubjectAlternativeName(names), False)], days=days)
        plain = serialization.NoEncryption()
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        return Pair(pem, key.private_bytes(*form))

    def data(self) -> str:
        return base64.b64encode(self.pem).decode()

    def _sign(self, subject: x509.Name, key: Any, extensions: list[Any], days: int) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(days=5))
        builder = builder.not_valid_after(now + dt.timedelta(days=days))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class Seen:
    """One request that came, and the user as the API server would know it."""

    method: str
    path: str
    query: dict[str, str]
    token: str
    certificate: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def status(code: int, reason: str, message: str) -> web.Response:
    """A refusal in the API's form."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return web.json_response(body | {"reason": reason, "code": code}, status=code)


Judge = Callable[[Seen], web.Response | None]


class Front:
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
        self.seen: list[Seen] = []
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
            _load(context, self._server)
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
        seen = Seen(request.method, request.path, dict(request.query), token, certificate)
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
        cluster: dict[str, Any] = {"server": self.url}
        if authority is not None:
            cluster["certificate-authority-data"] = authority.data()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "k", "user": "u", "namespace": "default"}}],
            "clusters": [{"name": "k", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        }


def _load(context: ssl.SSLContext, pair: Pair) -> None:
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, "crt"), Path(folder, "key")
        certificate.write_bytes(pair.certificate)
        key.write_bytes(pair.key)
        context.load_cert_chain(certificate, key)


class WebProxy:
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
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
