"""A mistake is told at once, an outage is waited out: which is which, before real sockets and real TLS."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from helpers.certificates import Authority, Pair
from helpers.mlflow_server import free_port
from helpers.server_proxy import ServerProxy
from nighttrain.providers.errors import (
    PERMANENT,
    ConfigurationError,
    TrackingBusyError,
    TrackingError,
    TrackingMisconfiguredError,
    TrackingRequestError,
    TrackingUnauthorizedError,
    TrackingUnreachableError,
)
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.run_tree import RunTree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer
    from helpers.scripted_http import Scripted

pytestmark = pytest.mark.usefixtures("no_pauses")


async def failure(uri: str, **options: Any) -> TrackingError:
    async with MLflowClient(TrackingConfig(uri, **options)) as client:
        with pytest.raises(TrackingError) as caught:
            await client.get("experiments/search", {"max_results": 1})
    return caught.value


def is_mistake(error: TrackingError) -> bool:
    """Exactly one of the two, and what Airflow and Dagster do about it follows."""
    mistake = isinstance(error, TrackingMisconfiguredError)
    assert mistake != isinstance(error, TrackingUnreachableError), type(error)
    assert mistake == isinstance(error, PERMANENT)
    return mistake


# Names and ports


async def test_an_unknown_host() -> None:
    error = await failure("http://no-such-host.invalid:5000")
    assert is_mistake(error)
    assert "'no-such-host.invalid'" in str(error)


@pytest.mark.parametrize(
    ("number", "mistake"),
    [
        (socket.EAI_NONAME, True),
        (socket.EAI_NODATA, True),
        (socket.EAI_AGAIN, False),
        (socket.EAI_FAIL, False),
    ],
)
async def test_what_a_resolver_says(monkeypatch: pytest.MonkeyPatch, number: int, mistake: bool) -> None:
    def answer(*_: object, **__: object) -> None:
        raise socket.gaierror(number, "as the resolver says")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    assert is_mistake(await failure("http://mlflow.example:5000", retry_seconds=0)) is mistake


async def test_nothing_listens() -> None:
    assert not is_mistake(await failure(f"http://127.0.0.1:{free_port()}"))


async def test_no_answer_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert not is_mistake(await failure(uri, timeout_seconds=0.2, retry_seconds=0))


# What servers of another kind say before they are asked.
BANNERS = {
    "ssh": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "smtp": b"220 mail ESMTP\r\n",
    "mysql": b"J\x00\x00\x00\n8.0.36\x00" + b"\x01" * 60,
    "gRPC": bytes.fromhex("000018040000000000000100001000000200000001"),
}


@pytest.mark.parametrize("kind", BANNERS)
async def test_a_port_where_something_else_listens(kind: str) -> None:
    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(BANNERS[kind])
            self.rfile.readline()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        port = server.server_address[1]
        error = await failure(f"http://127.0.0.1:{port}", timeout_seconds=1, retry_seconds=0)
        server.shutdown()
    assert is_mistake(error)
    assert "check the port" in str(error)


# TLS


@asynccontextmanager
async def over_tls(certificate: Pair, server: MLflowServer | None = None) -> AsyncIterator[ServerProxy]:
    async with ServerProxy(
        server.uri if server else "http://127.0.0.1:1", "none", server=certificate
    ) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("company")


@pytest.fixture
def ca_certificate(authority: Authority, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.pem)
    return str(path)


async def test_a_certificate_that_nobody_trusts(authority: Authority) -> None:
    async with over_tls(authority.issue("mlflow")) as proxy:
        error = await failure(proxy.url)
    assert is_mistake(error)
    assert "ca_certificate" in str(error)
    assert error.__cause__ is not None


@pytest.mark.parametrize("wrong", [{"days": -1}, {"addresses": ("127.0.0.9",)}])
async def test_an_expired_certificate_and_one_of_another_host(
    authority: Authority, ca_certificate: str, wrong: dict[str, Any]
) -> None:
    async with over_tls(authority.issue("mlflow", **wrong)) as proxy:
        error = await failure(proxy.url, ca_certificate=ca_certificate)
    assert is_mistake(error)
    assert "certificate" in str(error)


async def test_http_spoken_to_a_tls_port(authority: Authority) -> None:
    async with over_tls(authority.issue("mlflow")) as proxy:
        error = await failure(proxy.url.replace("https://", "http://"))
    assert is_mistake(error)
    assert "write https://" in str(error)


async def test_https_spoken_to_a_port_without_tls(scripted: Scripted) -> None:
    scripted.says(200)
    error = await failure(scripted.uri.replace("http://", "https://"))
    assert is_mistake(error)
    assert "write http://" in str(error)


async def test_a_server_that_hangs_up_is_away(scripted: Scripted) -> None:
    """The same end of a connection as a TLS port's, from one that speaks none."""
    scripted.answers.append(None)
    assert not is_mistake(await failure(scripted.uri))
    assert len(scripted.requests) > 1


async def test_a_tls_server_that_goes_away_in_the_handshake() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert not is_mistake(await failure(f"https://127.0.0.1:{port}", retry_seconds=0))


# Answers


@pytest.mark.parametrize(
    ("status", "body", "mistake"),
    [
        (200, "<html>Sign in</html>", True),
        (200, "OK", True),
        (301, "", True),
        (302, "", True),
        (307, "", True),
        (400, "<html>The plain HTTP request was sent to HTTPS port</html>", True),
        (401, "", True),
        (403, "<html>Forbidden by the proxy</html>", True),
        (404, "<html>default backend - 404</html>", True),
        (404, '{"detail": "Not Found"}', True),
        (404, '{"error_code": "ENDPOINT_NOT_FOUND", "message": "no API found"}', True),
        (405, "", True),
        (402, "<html>pay</html>", True),
        (418, "<html>I'm a teapot</html>", True),
        (451, "<html>blocked</html>", True),
        (501, "<html>not implemented</html>", True),
        (505, "<html>not supported</html>", True),
        (407, "", True),
        (408, "", False),
        (409, "", False),
        (429, "", False),
        (500, "<html>oops</html>", False),
        (500, '{"error_code": "INTERNAL_ERROR", "message": "bug"}', False),
        (502, "<html>Bad Gateway</html>", False),
        (503, '{"error_code": "TEMPORARILY_UNAVAILABLE"}', False),
        (504, "", False),
        (520, "", False),
    ],
)
async def test_what_an_answer_shows(scripted: Scripted, status: int, body: str, mistake: bool) -> None:
    scripted.says(status, body, **({"location": "https://login/?next=1"} if 300 <= status < 400 else {}))
    error = await failure(scripted.uri)
    assert is_mistake(error) is mistake
    assert len(scripted.requests) == 1 or not mistake
    assert isinstance(error, TrackingBusyError) or mistake
    assert isinstance(error, TrackingUnauthorizedError) == (status in (401, 403))


async def test_json_of_something_else(scripted: Scripted) -> None:
    scripted.says(200, '{"status": "healthy"}')
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        answer = await client.get("experiments/get-by-name", {"experiment_name": "a"})
        with pytest.raises(TrackingMisconfiguredError, match=r"no 'experiment' in the JSON"):
            answer["experiment"]


async def test_a_field_that_is_null_and_a_body_that_is_not_what_it_says(scripted: Scripted) -> None:
    scripted.says(200, '{"experiment": null}')
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        with pytest.raises(TrackingMisconfiguredError, match=r"no 'experiment' in the JSON"):
            await RunTree(client).ensure_experiment("a")
    scripted.answers.clear()
    scripted.says(200, "no gzip", **{"content-encoding": "gzip"})
    assert is_mistake(await failure(scripted.uri))


async def test_what_mlflow_itself_refuses_is_neither(scripted: Scripted) -> None:
    scripted.says(400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "no"}')
    error = await failure(scripted.uri)
    assert isinstance(error, TrackingRequestError)
    assert not isinstance(error, TrackingMisconfiguredError | TrackingUnreachableError)


# Credentials that cannot be sent


@pytest.mark.parametrize("token", ["s3cr3t-word\n", "s3cr3t-wörd", "s3cr3t\tword"])
def test_a_token_that_no_header_takes(token: str) -> None:
    with pytest.raises(ConfigurationError, match="token: it has a character") as caught:
        TrackingConfig("http://mlflow", token=token)
    assert "s3cr3t" not in str(caught.value)
