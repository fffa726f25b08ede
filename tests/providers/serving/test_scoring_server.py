"""The launcher as the pod runs it: ``python -c``, real uvicorn; only the model is fake."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.launched_server import launched, ready
from helpers.polling import until_async
from nighttrain.providers.registry.artifacts import manifest_of_directory
from nighttrain.providers.serving.scoring_server import (
    EXIT_DIGEST_MISMATCH,
    manifest_digest,
    write_certificates,
)
from nighttrain.providers.serving.spec import ServingSpec

Make = Callable[..., ServingSpec]


@pytest.mark.parametrize("set_already", [None, "/etc/ours.pem"])
def test_the_certificates_become_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_already: str | None
) -> None:
    monkeypatch.setenv("NIGHTTRAIN_MLFLOW_CA", "a certificate")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", set_already or "")
    if set_already is None:
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    write_certificates(str(tmp_path))
    path = os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]
    assert path == (set_already or str(tmp_path / "mlflow-ca.pem"))
    assert set_already or Path(path).read_text() == "a certificate"


def test_both_ends_compute_the_same_digest(store: Any, tmp_path: Path) -> None:
    digest = store.add("1")
    folder = store.path / "airline-delay" / "1"
    assert manifest_digest(folder) == digest
    (folder / "registered_model_meta").write_text("added by the download")
    (folder / "code" / "registered_model_meta").write_text("not at the root: this one counts")
    (folder / "empty").mkdir()
    assert manifest_digest(folder) == manifest_of_directory(folder).digest != digest
    (folder / "link").symlink_to(folder / "MLmodel")
    with pytest.raises(ValueError, match="link"):
        manifest_digest(folder)


async def test_it_answers_with_the_version_and_ends_on_sigterm(
    store: Any, serving_spec: Callable[..., ServingSpec]
) -> None:
    spec = serving_spec("4", artifact_digest=store.add("4"))
    async with launched(spec) as server, httpx.AsyncClient() as client:
        await ready(client, server)
        answer = await client.post(f"{server.url}/invocations")
        assert answer.text == "version 4"
        assert (answer.headers["x-model-name"], answer.headers["x-model-version"]) == ("airline-delay", "4")
        assert "connection" not in answer.headers
        slow = asyncio.create_task(client.post(f"{server.url}/invocations", content=b"0.8"))
        await until_async((store.path / "asked").exists)
        server.process.send_signal(signal.SIGTERM)
        assert (await slow).text == "version 4"
        assert await server.process.wait() == 0


async def test_it_goes_on_while_it_drains_and_ends_its_connections(store: Any, serving_spec: Make) -> None:
    spec = serving_spec(artifact_digest=store.add("1"), drain_seconds=2.0)
    async with launched(spec) as server, httpx.AsyncClient() as client:
        await ready(client, server)
        server.process.send_signal(signal.SIGTERM)
        while (await client.get(f"{server.url}/ping")).headers.get("connection") != "close":
            pass
        assert (await client.post(f"{server.url}/invocations")).status_code == 200
        assert server.process.returncode is None
        assert await server.process.wait() == 0


async def test_a_connection_past_its_time_is_ended_politely(store: Any, serving_spec: Make) -> None:
    spec = serving_spec(artifact_digest=store.add("1"), connection_seconds=0.3)
    async with launched(spec) as server, httpx.AsyncClient() as client:
        await ready(client, server)
        closed = []
        while len(closed) < 20 or not any(closed):
            answer = await client.get(f"{server.url}/ping")
            assert answer.status_code == 200
            closed.append(answer.headers.get("connection") == "close")
            await asyncio.sleep(0.05)
        assert not closed[0]


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_a_pods_address_may_be_ipv6(store: Any, serving_spec: Make) -> None:
    spec = serving_spec(artifact_digest=store.add("1"))
    async with launched(spec, "::1") as server, httpx.AsyncClient() as client:
        await ready(client, server)
        assert (await client.post(f"{server.url}/invocations")).text == "version 1"
        server.process.send_signal(signal.SIGTERM)
        _, said = await server.process.communicate()
    assert (server.process.returncode, said) == (0, b"")


async def test_several_workers_end_together(store: Any, serving_spec: Make) -> None:
    spec = serving_spec(artifact_digest=store.add("1"), workers=2)
    async with launched(spec) as server, httpx.AsyncClient() as client:
        await ready(client, server)
        assert (await client.post(f"{server.url}/invocations")).text == "version 1"
        server.process.send_signal(signal.SIGTERM)
        assert await server.process.wait() == 0


async def test_another_artifact_is_not_loaded(store: Any, serving_spec: Make) -> None:
    actual = store.add("1", "broken")
    async with launched(serving_spec(artifact_digest="a" * 64)) as server:
        _, stderr = await server.process.communicate()
    said = stderr.decode()
    assert server.process.returncode == EXIT_DIGEST_MISMATCH
    assert "a" * 64 in said
    assert actual in said
    assert "what_the_model_needs" not in said


async def test_a_version_that_is_not_there_is_one_clear_line(store: Any, serving_spec: Make) -> None:
    async with launched(serving_spec("9")) as server:
        _, stderr = await server.process.communicate()
    assert server.process.returncode == 1
    assert (
        stderr.decode().strip()
        == "cannot download models:/airline-delay/9: LookupError: no version 9 of airline-delay"
    )
