"""The receiver over HTTP: MLflow's own deliveries, and what is none of them."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography.fernet import Fernet
from fastapi import FastAPI

from helpers.asgi_server import serving_app
from helpers.mlflow_server import MLflowServer, running_mlflow, unique
from helpers.webhook_deliveries import Delivery, delivery
from nighttrain.providers import commands
from nighttrain.providers.registry.feed.deliveries import (
    FRESH_SECONDS,
    LARGEST_BODY,
    REMEMBERED,
    DeliveryCheck,
)
from nighttrain.providers.registry.feed.webhooks import PATH, SECRET_VARIABLE
from nighttrain.sensors.webhook_plugin import URL_PREFIX, WebhookPlugin
from nighttrain.sensors.webhook_receiver import WebhookReceiver

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "a secret of more than sixteen characters"
NOW = 1_700_000_000.0
BODY = {"entity": "model_version_alias", "action": "created", "data": {"name": "m"}}


@dataclass
class Receiving:
    """A receiver on a port of its own, and how often it told somebody to look."""

    uri: str = ""
    now: float = NOW
    secret: str = SECRET
    looks: int = 0
    broken: bool = False
    nudged: threading.Condition = field(default_factory=threading.Condition)

    def nudge(self) -> None:
        if self.broken:
            raise OSError("database is locked")
        with self.nudged:
            self.looks += 1
            self.nudged.notify_all()

    def post(self, sent: Delivery) -> int:
        answer = httpx.post(f"{self.uri}{PATH}", content=sent.body, headers=sent.headers, trust_env=False)
        assert SECRET not in answer.text
        return answer.status_code


@contextmanager
def receiver(clock: Callable[[], float] | None = None) -> Iterator[Receiving]:
    running = Receiving()
    app = WebhookReceiver(
        secret=lambda: running.secret, nudge=running.nudge, clock=clock or (lambda: running.now)
    )
    with serving_app(app) as running.uri:
        yield running


@pytest.fixture
def receiving() -> Iterator[Receiving]:
    with receiver() as running:
        yield running


def test_a_genuine_one_is_taken_once(receiving: Receiving) -> None:
    sent = delivery(SECRET, NOW, BODY)
    assert [receiving.post(sent), receiving.post(sent)] == [202, 200]
    assert receiving.looks == 1
    assert receiving.post(delivery(SECRET, NOW, BODY)) == 202
    assert receiving.looks == 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (delivery("another secret", NOW, BODY), 401),
        (delivery("", NOW, BODY), 401),
        (Delivery({}, b"{}"), 401),
        (Delivery(delivery(SECRET, NOW, BODY).headers, b"{}"), 401),
        (Delivery({**delivery(SECRET, NOW, BODY).headers, "x-mlflow-delivery-id": "x"}, b"{}"), 401),
        (Delivery({**delivery(SECRET, NOW, BODY).headers, "x-mlflow-timestamp": "1e9"}, b"{}"), 401),
        (Delivery({**delivery(SECRET, NOW, BODY).headers, "x-mlflow-signature": "v2,AA=="}, b"{}"), 401),
        (delivery(SECRET, NOW - FRESH_SECONDS - 1, BODY), 400),
        (delivery(SECRET, NOW + FRESH_SECONDS + 1, BODY), 400),
        (delivery(SECRET, NOW, {"pad": "x" * LARGEST_BODY}), 413),
    ],
)
def test_what_is_not_mlflows_own_and_fresh_causes_no_look(
    receiving: Receiving, sent: Delivery, status: int
) -> None:
    assert receiving.post(sent) == status
    assert receiving.looks == 0


def test_only_posts_are_taken(receiving: Receiving) -> None:
    assert httpx.get(f"{receiving.uri}{PATH}", trust_env=False).status_code == 405


def test_without_a_secret_nothing_is_taken(receiving: Receiving) -> None:
    receiving.secret = ""
    assert receiving.post(delivery("", NOW, BODY)) == 503
    receiving.secret = SECRET
    receiving.now += 61  # it is read again
    assert receiving.post(delivery(SECRET, receiving.now, BODY)) == 202


def test_what_could_not_be_passed_on_is_taken_when_it_comes_again(receiving: Receiving) -> None:
    sent = delivery(SECRET, NOW, BODY)
    receiving.broken = True
    assert receiving.post(sent) == 503
    receiving.broken = False
    assert (receiving.post(sent), receiving.looks) == (202, 1)


def test_what_is_remembered_is_bounded() -> None:
    now = NOW
    check = DeliveryCheck(clock=lambda: now)
    for _ in range(REMEMBERED + 10):
        sent = delivery(SECRET, now, BODY)
        assert check.accept(SECRET, sent.headers, sent.body).looks
    assert len(check._taken) == REMEMBERED
    now += 2 * FRESH_SECONDS + 1
    sent = delivery(SECRET, now, BODY)
    check.accept(SECRET, sent.headers, sent.body)
    assert len(check._taken) == 1


def test_the_plugin_is_where_the_command_says() -> None:
    """In a FastAPI application, as Airflow mounts it."""
    (described,) = WebhookPlugin.fastapi_apps
    api_server = FastAPI()
    api_server.mount(described["url_prefix"], described["app"])
    with serving_app(api_server) as uri:
        assert httpx.get(f"{uri}{PATH}", trust_env=False).status_code == 405
        assert httpx.post(f"{uri}{URL_PREFIX}/other", trust_env=False).status_code == 404


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    settings = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    with running_mlflow(tmp_path_factory.mktemp("mlflow-webhooks"), **settings) as server:
        yield server


def command(uri: str, mlflow: str, *more: str) -> int:
    return commands.main(["webhooks", "register", "--airflow-url", uri, "--mlflow-uri", mlflow, *more])


@pytest.mark.slow
@pytest.mark.mlflow
def test_mlflows_own_deliveries_arrive(
    mlflow: MLflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = secrets.token_hex()
    monkeypatch.setenv(SECRET_VARIABLE, secret)
    with receiver(clock=time.time) as receiving:
        receiving.secret = secret
        assert command(receiving.uri, mlflow.uri) == 0
        first = capsys.readouterr()
        assert command(receiving.uri, mlflow.uri) == 0
        again = capsys.readouterr()
        assert ("Registered nighttrain" in first.out, "Changed nighttrain" in again.out) == (True, True)
        assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" in first.out
        assert secret not in first.out + first.err + again.out + again.err
        assert receiving.looks == 2, "a delivery to try each"
        assert len(mlflow.call("GET", "webhooks")["webhooks"]) == 1

        name = unique("m")
        experiment = mlflow.experiment()
        run_id = mlflow.run(experiment)
        mlflow.version(name, run_id, mlflow.logged_model(experiment, run_id))
        mlflow.call("POST", "registered-models/alias", name=name, alias="champion", version="1")
        mlflow.call("POST", "model-versions/set-tag", name=name, version="1", key="k", value="v")
        with receiving.nudged:
            assert receiving.nudged.wait_for(lambda: receiving.looks == 6, timeout=30), receiving.looks
    remove = ["webhooks", "remove", "--mlflow-uri", mlflow.uri]
    assert [commands.main(remove), commands.main(remove)] == [0, 0]
    assert mlflow.call("GET", "webhooks").get("webhooks", []) == []


@pytest.mark.slow
@pytest.mark.mlflow
def test_what_to_do_is_said_where_the_delivery_does_not_arrive(
    mlflow: MLflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    with receiver(clock=time.time) as receiving:
        receiving.secret = "another one than MLflow has"
        assert command(receiving.uri, mlflow.uri) == 1
    assert f"give Airflow's API server the same {SECRET_VARIABLE}" in capsys.readouterr().err
    assert command("https://user:word@airflow.example", mlflow.uri) == 1
    assert "leave user and password out" in capsys.readouterr().err
    assert command(receiving.uri, mlflow.uri, "--events", "model_version.transitioned") == 1
    assert "--events" in capsys.readouterr().err
    monkeypatch.setenv(SECRET_VARIABLE, "short")
    assert command(receiving.uri, mlflow.uri) == 1
    assert "openssl rand" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.mlflow
def test_an_mlflow_at_its_defaults_says_what_to_set(
    mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    for uri, setting in (
        ("http://airflow.example", "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https"),
        ("https://127.0.0.1:8080", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"),
    ):
        assert command(uri, mlflow_server.uri) == 1
        assert setting in capsys.readouterr().err
    assert Path(mlflow_server.log).exists()
