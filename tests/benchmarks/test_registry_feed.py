"""What many that follow a registry cost MLflow, and how soon they are told.

One real MLflow with ten sensors and watchers to a model. Requests are counted in the process, where both
sides hand them to httpx. On each side the triggers wait in one event loop. "nighttrain": half of them
sensors (``RegistryTrigger``), half watchers (``ModelChangeTrigger``, as Airflow's triggerer runs them), of
stages, aliases and one tag. "naive": as many sensors that ask for their model by themselves, as nighttrain's
own did before: one request an interval each for an alias, two for a stage.

First nothing happens for some intervals: requests an interval. Then moves, one after the other: the time
from MLflow's answer to the event. Stages send no webhook; aliases are moved with webhooks and without. A
webhook goes the whole way: MLflow's own delivery to the real receiver on this machine, which changes the
nudge that the hub reads once a second (from memory here; Airflow's database in real life, another
millisecond).

Not in it: Airflow's own way from a trigger's event to the DAG run, which is the same for every trigger (its
triggerer hands events over once a second, its scheduler looks once in a few seconds).

Commands: ``./run bench -k registry_feed``: 50; ``--full``: 1,000 of 100 models; ``--waiting N`` others.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from helpers.airflow_connections import connect_mlflow
from helpers.asgi_server import serving_app
from helpers.mlflow_server import MLflowServer, running_mlflow
from helpers.watched_triggers import AssetStore, Triggerer
from nighttrain.providers.errors import TrackingError
from nighttrain.providers.registry.feed.webhooks import PATH, register
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.sensors.registry_condition import Awaited, RegistryCondition
from nighttrain.sensors.triggers import ModelChangeTrigger, RegistryTrigger
from nighttrain.sensors.webhook_receiver import WebhookReceiver

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(3600)]

INTERVAL = 5.0
QUIET_INTERVALS = 6
MOVES, MOVES_IN_SMALL = 30, 10
NAIVE_MOVES = 5
"""A thousand that ask for themselves queue up before MLflow: each move takes as long as the queue."""

UNMET = 1_000_000
TAG = ("verdict", "accepted")


@dataclass
class Setting:
    mlflow: MLflowServer
    models: list[str]
    waiting: int
    moves: int
    nudge: str = "none yet"
    sent: int = 0
    delays: dict[str, list[float]] = field(default_factory=dict)
    requests: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def setting(
    request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setting]:
    full = request.config.getoption("--full", default=False)
    (waiting,) = request.config.getoption("--waiting", default=[])[:1] or [1000 if full else 50]
    settings = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    with running_mlflow(tmp_path / "mlflow", **settings) as mlflow:
        connect_mlflow(monkeypatch, mlflow.uri)
        monkeypatch.setattr(
            "nighttrain.sensors.triggers.registry.Settling.wait", lambda self: asyncio.sleep(0)
        )
        models = [f"model-{number:03}" for number in range(max(1, waiting // 10))]
        experiment = mlflow.experiment()
        run_id = mlflow.run(experiment)
        model_id = mlflow.logged_model(experiment, run_id)
        for name in models:
            for _ in range(3):
                mlflow.version(name, run_id, model_id)
            mlflow.stage(name, "1", "Production")
            mlflow.call("POST", "registered-models/alias", name=name, alias="champion", version="1")
        made = Setting(mlflow, models, waiting, MOVES if full else MOVES_IN_SMALL)

        async def read_nudge() -> str | None:
            return made.nudge

        send = httpx.AsyncClient.send

        async def counting(client: httpx.AsyncClient, *arguments: Any, **more: Any) -> httpx.Response:
            made.sent += 1
            return await send(client, *arguments, **more)

        monkeypatch.setattr(httpx.AsyncClient, "send", counting)
        for module in ("registry", "model_changes"):
            monkeypatch.setattr(f"nighttrain.sensors.triggers.{module}.read_nudge", read_nudge)
        yield made


def test_registry_feed(show: Any, setting: Setting) -> None:
    asyncio.run(naive(setting))
    asyncio.run(shared(setting))
    rows = []
    for side, requests in setting.requests.items():
        cells = [spread(setting.delays.get(f"{side}: {what}")) for what in WHAT]
        rows.append((side, f"{setting.waiting:,}", f"{requests:.1f}", *cells))
    show(
        f"{setting.waiting:,} that follow {len(setting.models)} models, one look in {INTERVAL:.0f} s",
        ("side", "waiting", "requests/interval", *(f"{what}, p50 / p99 s" for what in WHAT)),
        rows,
        f"{setting.moves} moves each, {NAIVE_MOVES} of the naive; from MLflow's answer to the event",
    )
    assert setting.requests["nighttrain"] <= 3.5, "two, and one for the filter on tags; a poll more or less"
    assert setting.requests["naive"] > setting.requests["nighttrain"]


WHAT = ("stage", "alias", "alias with webhooks")


def spread(delays: list[float] | None) -> str:
    if not delays:
        return ""
    percents = quantiles(delays, n=100, method="inclusive")
    return f"{percents[49]:.2f} / {percents[98]:.2f}"


async def naive(setting: Setting) -> None:
    """Each asks for itself."""
    events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    async with MLflowClient(TrackingConfig(setting.mlflow.uri)) as client:
        registry = ModelRegistry(client)

        async def follow(number: int) -> None:
            name = setting.models[number % len(setting.models)]
            awaited, key = [(Awaited.STAGE, "Production"), (Awaited.ALIAS, "champion")][
                number // len(setting.models) % 2
            ]
            condition = RegistryCondition(model_name=name, awaited=awaited, key=key)
            await asyncio.sleep(INTERVAL * number / setting.waiting)
            held = None
            while True:
                await asyncio.sleep(INTERVAL)
                try:
                    now = await condition.holder(registry)
                except TrackingError:  # too many ask: it waits, as a sensor does
                    continue
                if now and now.version != held:
                    events.put_nowait((f"{awaited.value} {name}", now.version))
                held = now and now.version

        tasks = [asyncio.create_task(follow(number)) for number in range(setting.waiting)]
        try:
            await asyncio.sleep(2 * INTERVAL)
            await quiet(setting, "naive")
            for what, move in (("stage", move_stage), ("alias", move_alias)):
                await moves(setting, f"naive: {what}", what, move, events, NAIVE_MOVES)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def shared(setting: Setting) -> None:
    events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(setting.waiting // 2):
            name = setting.models[number % len(setting.models)]
            await stack.enter_async_context(watcher(name, number, len(setting.models), events))
        sensors = [
            asyncio.create_task(first_event(sensor(setting.models[number % len(setting.models)], number)))
            for number in range(setting.waiting - setting.waiting // 2)
        ]
        try:
            await asyncio.sleep(3 * INTERVAL)
            while not events.empty():
                events.get_nowait()  # the first look tells what is held
            await quiet(setting, "nighttrain")
            await moves(setting, "nighttrain: stage", "stage", move_stage, events)
            await moves(setting, "nighttrain: alias", "alias", move_alias, events)
            async with webhooks(setting):
                await asyncio.sleep(INTERVAL + 1)
                await moves(setting, "nighttrain: alias with webhooks", "alias", move_alias, events)
        finally:
            for task in sensors:
                task.cancel()
            await asyncio.gather(*sensors, return_exceptions=True)


async def first_event(trigger: RegistryTrigger) -> None:
    await anext(aiter(trigger.run()))


def sensor(name: str, number: int) -> RegistryTrigger:
    """One that waits to the end: for a version that never comes."""
    kinds = [(Awaited.STAGE, "Production", None), (Awaited.ALIAS, "champion", None), (Awaited.TAG, *TAG)]
    awaited, key, value = kinds[number % len(kinds)]
    condition = RegistryCondition(
        model_name=name, awaited=awaited, key=key, value=value, newer_than=str(UNMET)
    )
    return RegistryTrigger(
        mlflow_conn_id="mlflow_default", condition=condition.to_dict(), poll_seconds=INTERVAL
    )


@contextlib.asynccontextmanager
async def watcher(
    name: str, number: int, models: int, events: asyncio.Queue[tuple[str, str]]
) -> AsyncIterator[None]:
    followed = {"stage": "Production"} if number // models % 2 else {"alias": "champion"}
    # Airflow runs no two watchers alike: many DAGs on one asset share one. These differ in nothing but this.
    trigger = ModelChangeTrigger(model_name=name, poll_seconds=INTERVAL + number * 1e-6, **followed)  # type: ignore[arg-type]
    async with Triggerer(trigger, AssetStore()) as triggerer:

        class Arriving(list[dict[str, Any]]):
            def append(self, event: dict[str, Any]) -> None:
                events.put_nowait((f"{event['kind']} {event['model_name']}", event["version"]))

        triggerer.events = Arriving()
        yield


async def quiet(setting: Setting, side: str) -> None:
    before = setting.sent
    await asyncio.sleep(QUIET_INTERVALS * INTERVAL)
    setting.requests[side] = (setting.sent - before) / QUIET_INTERVALS


Move = Callable[[Setting, str, str], None]


def move_stage(setting: Setting, name: str, version: str) -> None:
    body = {"name": name, "version": version, "stage": "Production", "archive_existing_versions": True}
    post(setting, "model-versions/transition-stage", body)


def move_alias(setting: Setting, name: str, version: str) -> None:
    post(setting, "registered-models/alias", {"name": name, "alias": "champion", "version": version})


def post(setting: Setting, path: str, body: dict[str, Any]) -> None:
    """On a connection of its own: MLflow closes those that were idle."""
    url = f"{setting.mlflow.uri}/api/2.0/mlflow/{path}"
    httpx.post(url, json=body, trust_env=False, timeout=120, verify=False).raise_for_status()  # noqa: S501


async def moves(
    setting: Setting,
    row: str,
    what: str,
    move: Move,
    events: asyncio.Queue[tuple[str, str]],
    count: int | None = None,
) -> None:
    """Moves at moments that have nothing to do with the polls, and the first event of each."""
    delays = setting.delays.setdefault(row, [])
    for number in range(count or setting.moves):
        name = setting.models[0]
        version = str(2 + number % 2)
        await asyncio.sleep(INTERVAL * ((number * 0.618) % 1) / 4)
        await asyncio.to_thread(move, setting, name, version)
        began = time.perf_counter()
        async with asyncio.timeout(60 * INTERVAL):
            while (await events.get()) != (f"{what} {name}", version):
                pass
        delays.append(time.perf_counter() - began)
        await asyncio.sleep(INTERVAL / 10)
        while not events.empty():
            events.get_nowait()
    # As it was, for the next.
    await asyncio.to_thread(move, setting, setting.models[0], "1")
    await asyncio.sleep(2.5 * INTERVAL)
    while not events.empty():
        events.get_nowait()


@contextlib.asynccontextmanager
async def webhooks(setting: Setting) -> AsyncIterator[None]:
    """The real receiver, registered at MLflow."""
    secret = secrets.token_hex()

    def nudge() -> None:
        setting.nudge = secrets.token_hex()

    app = WebhookReceiver(secret=lambda: secret, nudge=nudge)
    with serving_app(app) as uri:
        async with MLflowClient(TrackingConfig(setting.mlflow.uri)) as client:
            found = await register(client, name="bench", url=f"{uri}{PATH}", secret=secret)
        assert not found.problem, found.problem
        yield
