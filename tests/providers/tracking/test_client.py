from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from helpers.mlflow_server import free_port
from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingBusyError,
    TrackingError,
    TrackingMisconfiguredError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingUnauthorizedError,
    TrackingUnreachableError,
)
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer
    from helpers.scripted_http import Scripted

pytestmark = pytest.mark.usefixtures("no_pauses")


def once(uri: str, **options: Any) -> MLflowClient:
    return MLflowClient(TrackingConfig(uri, retry_seconds=0, **options))


@pytest.mark.parametrize(
    "uri",
    [
        "file:///tmp/mlruns",
        "sqlite:///mlflow.db",
        "mlruns",
        "./mlruns",
        "",
        "databricks",
        "http://",
        "http://h?x=1",
        "http://h:port",
    ],
)
def test_addresses_that_are_no_rest_server(uri: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^uri") as caught:
        TrackingConfig(uri)
    assert "http" in caught.value.fix or "?" in caught.value.fix or "port" in caught.value.fix.lower()


def test_a_database_address_gets_the_command_and_keeps_its_password() -> None:
    with pytest.raises(ConfigurationError, match=r"mlflow server --backend-store-uri") as caught:
        TrackingConfig("postgresql://user:hunter2@db/mlflow")
    assert "hunter2" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    config = TrackingConfig("https://me:hunter%402@mlflow.example:8443/prefix/", token="abc")
    assert (config.uri, config.username, config.password) == (
        "https://mlflow.example:8443/prefix",
        "me",
        "hunter@2",
    )
    assert "hunter" not in repr(config)
    assert "abc" not in repr(config)
    with pytest.raises(ConfigurationError, match=r"^registry_uri: give the user") as caught:
        TrackingConfig("http://a", registry_uri="http://me:hunter2@b")
    assert "hunter2" not in str(caught.value)


def test_a_missing_or_unusable_ca_file_is_found_before_a_call(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^ca_certificate.*no such file"):
        TrackingConfig("https://a", ca_certificate=str(tmp_path / "absent.pem"))


async def test_a_ca_file_that_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(ConfigurationError, match="not a usable PEM"):
        await once("https://127.0.0.1:1", ca_certificate=str(tmp_path / "ca.pem")).ping()


async def test_unreachable_names_the_address_and_what_to_check() -> None:
    port = free_port()
    async with once(f"http://me:hunter2@127.0.0.1:{port}") as client:
        with pytest.raises(
            TrackingUnreachableError, match=rf"http://127.0.0.1:{port} does not answer .*Check"
        ) as caught:
            await client.get("experiments/search")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("options", "header", "hint"),
    [
        ({}, None, "credentials are required"),
        ({"token": "abc"}, "Bearer abc", "the token is not accepted"),
        (
            {"username": "me", "password": "pw"},
            f"Basic {base64.b64encode(b'me:pw').decode()}",
            "password of user 'me'",
        ),
        (
            {"username": "me", "password": "pw", "token": "abc"},
            f"Basic {base64.b64encode(b'me:pw').decode()}",
            "'me'",
        ),
    ],
)
async def test_credentials(
    scripted: Scripted, options: dict[str, str], header: str | None, hint: str
) -> None:
    scripted.says(401, "You are not authenticated.")
    async with MLflowClient(TrackingConfig(scripted.uri, **options)) as client:
        with pytest.raises(TrackingUnauthorizedError, match=hint):
            await client.ping()
    assert [headers.get("authorization") for _, _, headers in scripted.requests] == [header]


@pytest.mark.parametrize(
    ("status", "body", "error", "text"),
    [
        (
            403,
            '{"error_code": "PERMISSION_DENIED", "message": "no"}',
            TrackingUnauthorizedError,
            "lack the right",
        ),
        (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}', TrackingNotFoundError, "gone"),
        (404, "<html>", TrackingMisconfiguredError, "no such call"),
        (
            400,
            '{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad"}',
            TrackingRequestError,
            "INVALID_PARAM",
        ),
        (500, '{"error_code": "INTERNAL_ERROR", "message": "bug"}', TrackingBusyError, "bug"),
        (200, "<html>hello", TrackingMisconfiguredError, "does not answer like MLflow"),
        (302, "", TrackingMisconfiguredError, "redirected to https://login"),
    ],
)
async def test_refusals_are_typed_and_not_repeated(
    scripted: Scripted, status: int, body: str, error: type[TrackingError], text: str
) -> None:
    scripted.says(status, body, **({"location": "https://login/x?secret=1"} if status == 302 else {}))
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        with pytest.raises(error, match=text):
            await client.get("runs/get")
    assert len(scripted.requests) == 1


async def test_overload_and_lost_connections_are_waited_out(scripted: Scripted) -> None:
    scripted.says(429, retry_after="1")
    scripted.answers.append(None)
    scripted.says(200, '{"ok": 1}')
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        assert await client.post("runs/search", {}) == {"ok": 1}
    assert len(scripted.requests) == 3


@pytest.mark.parametrize("path", ["runs/get", "runs/search", "runs/update", "runs/log-batch"])
async def test_what_conflicts_with_nothing_is_asked_again(scripted: Scripted, path: str) -> None:
    """Taken for a refusal, it left a run without its parent, and a cancelled one to the reaper."""
    scripted.says(409)
    scripted.says(200, '{"ok": 1}')
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        asked = client.get(path) if path == "runs/get" else client.post(path, {})
        assert await asked == {"ok": 1}
    assert len(scripted.requests) == 2


@pytest.mark.parametrize("lost", [True, False])
async def test_what_creates_is_not_repeated_when_it_may_have_happened(scripted: Scripted, lost: bool) -> None:
    if lost:
        scripted.answers.append(None)
    else:
        scripted.says(503)
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        with pytest.raises((TrackingUnreachableError, TrackingRequestError)):
            await client.post("runs/create", {}, idempotent=False)
        assert len(scripted.requests) == 1
        scripted.answers.clear()
        scripted.says(429)
        scripted.says(200)
        await client.post("runs/create", {}, idempotent=False)
    assert len(scripted.requests) == 3


async def test_parameters_are_quoted_and_nothing_is_sent_for_none(scripted: Scripted) -> None:
    scripted.says(200)
    async with MLflowClient(TrackingConfig(f"{scripted.uri}/prefix")) as client:
        await client.get("registered-models/get", {"name": "a&b=c #é", "none": None})
    assert scripted.requests[0][:2] == (
        "GET",
        "/prefix/api/2.0/mlflow/registered-models/get?name=a%26b%3Dc+%23%C3%A9",
    )


async def test_a_second_address_for_the_registry(scripted: Scripted) -> None:
    scripted.says(200)
    async with MLflowClient(
        TrackingConfig("http://127.0.0.1:1", token="t", registry_uri=scripted.uri)
    ) as client:
        registry = client.for_registry()
        await registry.get("registered-models/get")
        assert registry is client.for_registry()
        assert registry.for_registry() is registry
    assert scripted.requests[0][2]["authorization"] == "Bearer t"


@pytest.mark.mlflow
async def test_the_real_server(mlflow_server: MLflowServer) -> None:
    async with once(mlflow_server.uri) as client:
        await client.ping()
        assert client.for_registry() is client
        with pytest.raises(TrackingNotFoundError):
            await client.get("runs/get", {"run_id": "0" * 32})
        with pytest.raises(TrackingRequestError, match="no such call"):
            await client.get("no-such-thing")
        absent = client.stream("/model-versions/get-artifact", {"name": "x", "version": "1", "path": "y"})
        with pytest.raises(TrackingNotFoundError):
            await anext(absent)


@pytest.mark.mlflow
async def test_a_host_name_the_real_server_does_not_allow(mlflow_server: MLflowServer) -> None:
    # "127.1" is 127.0.0.1 written short: it arrives, but as a host name nobody allowed.
    async with once(mlflow_server.uri.replace("127.0.0.1", "127.1")) as client:
        with pytest.raises(TrackingUnauthorizedError, match=r"--allowed-hosts \"127\.1:\d+\""):
            await client.ping()
