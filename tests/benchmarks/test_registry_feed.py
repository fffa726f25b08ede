"""What many that follow a registry cost MLflow, and how soon each of them is told.

One real MLflow of two workers with ten sensors and watchers to a model. Requests are counted in the process,
where both sides hand them to httpx. On each side the triggers wait in one event loop. "nighttrain": half of
them sensors (``RegistryTrigger``), half watchers (``ModelChangeTrigger``, as Airflow's triggerer runs
them), of stages, aliases and one tag. "naive": as many sensors that ask for their model by themselves, half
for a stage, half for an alias.

The naive ones get what helps them: each its own connection, which MLflow keeps open between two looks; one
request a look, the cheapest that MLflow has for it; the same interval; as long for an answer as MLflow's own
client gives it; no retries, which would add to the queue. What is answered later than an interval, or not, is
counted.

First nothing happens for some intervals: requests an interval. Then moves, each of another model than the
last, at moments that have nothing to do with the polls: the time from MLflow's answer to the event, of each
that follows what was moved; and the requests that a move adds, for the model's history, which says who made
it. Stages send no webhook; aliases are moved with webhooks and without. A webhook goes the whole way: MLflow
itself delivers it to the real receiver on this machine, which changes the nudge that the hub reads once a
second (from memory here; Airflow's database in real life, another millisecond).

Not in it: Airflow's own way from a trigger's event to the DAG run, which is the same for every trigger (its
triggerer hands events over once a second, its scheduler looks once in a few seconds): ``registry_to_dag``.

Commands: ``./run bench -k registry_feed``: 50; ``--full``: 1,000 of 100 models; ``--waiting N`` others.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from nighttrain.providers.registry.feed.webhooks import PATH, register
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.sensors.registry_condition import Awaited, RegistryCondition
from nighttrain.sensors.triggers import ModelChangeTrigger, RegistryTrigger
from nighttrain.sensors.webhook_receiver import WebhookReceiver

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(3600)]

INTERVAL = 5.0
QUIET_INTERVALS = 6
MOVES, MOVES_IN_SMALL = 30, 10
BETWEEN_MOVES = INTERVAL * 0.382
"""The golden section of the interval: no part of it has more of the moves than another."""

WORKERS = 2
"""Of MLflow: as many as the machine has cores that these numbers are from."""

KEEP_ALIVE_SECONDS = 60
"""uvicorn's own 5 s are the interval: each look would open a connection, or meet one that is being closed."""

NAIVE_TIMEOUT = 120.0
"""For one answer, as MLflow's own client has it."""

WARM_UP = 6 * INTERVAL
"""Of the naive: until their queue before MLflow is as long as it stays."""

GIVE_UP = 24 * INTERVAL
"""After a move: who was not told by then is counted."""

UNMET = 1_000_000
TAG = ("verdict", "accepted")


@dataclass
class Moved:
    """One move, and when each of those that follow it was told."""

    version: str
    missing: set[int]
    answered: float = 0.0
    told: list[float] = field(default_factory=list)
    by_all: asyncio.Event = field(default_factory=asyncio.Event)

    def delays(self) -> list[float]:
        """A poll may see a move before its own answer is here."""
        return [max(0.0, when - self.answered) for when in self.told]


class Followers:
    """Those of one side that follow a stage or an alias of a model, by number."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._last: dict[tuple[str, str], Moved] = {}

    def add(self, number: int, what: str, name: str) -> None:
        self._of[what, name].add(number)

    def tell(self, number: int, what: str, name: str, version: str) -> None:
        moved = self._last.get((what, name))
        if moved and moved.version == version and number in moved.missing:
            moved.missing.remove(number)
            moved.told.append(time.perf_counter())
            if not moved.missing:
                moved.by_all.set()

    def expect(self, what: str, name: str, version: str) -> Moved:
        moved = self._last[what, name] = Moved(version, set(self._of[what, name]))
        assert moved.missing, f"nobody follows the {what} of {name}"
        return moved


@dataclass
class Looks:
    """Of the naive, since they are warm."""

    answered: int = 0
    late: int = 0
    failed: int = 0

    def __str__(self) -> str:
        looks = self.answered + self.failed
        return f"{looks:,} looks, {self.late:,} answered later than an interval, {self.failed:,} failed"


@dataclass
class Setting:
    mlflow: MLflowServer
    models: list[str]
    waiting: int
    moves: int
    nudge: str = "none yet"
    sent: int = 0
    held: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(lambda: 1))
    delays: dict[str, list[float]] = field(default_factory=dict)
    untold: Counter[str] = field(default_factory=Counter)
    requests: dict[str, float] = field(default_factory=dict)
    added: dict[str, float] = field(default_factory=dict)
    looks: Looks = field(default_factory=Looks)


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
    options = ["--workers", str(WORKERS), "--uvicorn-opts", f"--timeout-keep-alive {KEEP_ALIVE_SECONDS}"]
    with running_mlflow(tmp_path / "mlflow", *options, **settings) as mlflow:
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
    added = ", ".join(f"{what} {requests:.0f}" for what, requests in setting.added.items())
    show(
        f"{setting.waiting:,} that follow {len(setting.models)} models, one look in {INTERVAL:.0f} s",
        ("side", "waiting", "requests/interval", *(f"{what}, p50 / p99 s" for what in WHAT)),
        rows,
        f"{setting.moves} moves each, from MLflow's answer to the event of each that follows\n"
        f"naive: {setting.looks}\n"
        f"nighttrain: requests that a move adds: {added}\n"
        f"not told within {GIVE_UP:.0f} s: {dict(setting.untold) or 'nobody'}",
    )
    assert setting.requests["nighttrain"] <= 3.5, "two, and one for the filter on tags; a poll more or less"
    assert setting.requests["naive"] > setting.requests["nighttrain"]
    assert not [row for row in setting.untold if row.startswith("nighttrain")]


WHAT = ("stage", "alias", "alias with webhooks")


def spread(delays: list[float] | None) -> str:
    if not delays:
        return ""
    percents = quantiles(delays, n=100, method="inclusive")
    return f"{percents[49]:.2f} / {percents[98]:.2f}"


async def naive(setting: Setting) -> None:
    """Each asks for itself."""
    followers, looks = Followers(), Looks()
    context = ssl.create_default_context()  # once, not a thousand times the same certificates

    async def follow(number: int) -> None:
        name = setting.models[number % len(setting.models)]
        what, look = [("stage", look_at_stage), ("alias", look_at_alias)][number // len(setting.models) % 2]
        followers.add(number, what, name)
        async with httpx.AsyncClient(
            base_url=f"{setting.mlflow.uri}/api/2.0/mlflow/",
            timeout=NAIVE_TIMEOUT,
            limits=httpx.Limits(keepalive_expiry=None),
            verify=context,
            trust_env=False,
        ) as client:
            await asyncio.sleep(INTERVAL * number / setting.waiting)
            held = None
            while True:
                began = time.perf_counter()
                try:
                    now = await look(client, name)
                except httpx.HTTPError:  # it looks again after its interval, as a sensor does
                    looks.failed += 1
                else:
                    looks.answered += 1
                    looks.late += time.perf_counter() - began > INTERVAL
                    if held not in (None, now):
                        followers.tell(number, what, name, now)
                    held = now
                await asyncio.sleep(INTERVAL)

    tasks = [asyncio.create_task(follow(number)) for number in range(setting.waiting)]
    try:
        await asyncio.sleep(WARM_UP)
        looks = setting.looks
        await quiet(setting, "naive")
        await moves(setting, "naive", "stage", move_stage, followers)
        await moves(setting, "naive", "alias", move_alias, followers)
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not ended, f"{len(ended)} follow no longer: {ended[0].exception()!r}"


async def look_at_stage(client: httpx.AsyncClient, name: str) -> str:
    body = {"name": name, "stages": ["Production"]}
    answer = (await client.post("registered-models/get-latest-versions", json=body)).raise_for_status()
    return str(answer.json()["model_versions"][0]["version"])


async def look_at_alias(client: httpx.AsyncClient, name: str) -> str:
    asked = {"name": name, "alias": "champion"}
    answer = (await client.get("registered-models/alias", params=asked)).raise_for_status()
    return str(answer.json()["model_version"]["version"])


async def shared(setting: Setting) -> None:
    followers = Followers()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(setting.waiting // 2):
            name = setting.models[number % len(setting.models)]
            await stack.enter_async_context(watcher(name, number, len(setting.models), followers))
        sensors = [
            asyncio.create_task(first_event(sensor(setting.models[number % len(setting.models)], number)))
            for number in range(setting.waiting - setting.waiting // 2)
        ]
        try:
            await asyncio.sleep(3 * INTERVAL)  # the first look tells what is held
            await quiet(setting, "nighttrain")
            await moves(setting, "nighttrain", "stage", move_stage, followers)
            await moves(setting, "nighttrain", "alias", move_alias, followers)
            async with webhooks(setting):
                await asyncio.sleep(INTERVAL + 1)
                row = "alias with webhooks"
                await moves(setting, "nighttrain", "alias", move_alias, followers, row=row)
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
async def watcher(name: str, number: int, models: int, followers: Followers) -> AsyncIterator[None]:
    followed = {"stage": "Production"} if number // models % 2 else {"alias": "champion"}
    # Airflow runs no two watchers alike: many DAGs on one asset share one. These differ in nothing but this.
    trigger = ModelChangeTrigger(model_name=name, poll_seconds=INTERVAL + number * 1e-6, **followed)  # type: ignore[arg-type]
    followers.add(number, *followed, name)
    async with Triggerer(trigger, AssetStore()) as triggerer:

        class Arriving(list[dict[str, Any]]):
            def append(self, event: dict[str, Any]) -> None:
                followers.tell(number, event["kind"], event["model_name"], event["version"])

        triggerer.events = Arriving()
        yield


async def quiet(setting: Setting, side: str) -> None:
    before = setting.sent
    await asyncio.sleep(QUIET_INTERVALS * INTERVAL)
    setting.requests[side] = (setting.sent - before) / QUIET_INTERVALS


Move = Callable[[Setting, str, str], float]


def move_stage(setting: Setting, name: str, version: str) -> float:
    body = {"name": name, "version": version, "stage": "Production", "archive_existing_versions": True}
    return post(setting, "model-versions/transition-stage", body)


def move_alias(setting: Setting, name: str, version: str) -> float:
    return post(setting, "registered-models/alias", {"name": name, "alias": "champion", "version": version})


def post(setting: Setting, path: str, body: dict[str, Any]) -> float:
    """On a connection of its own. :return: when the answer was there"""
    url = f"{setting.mlflow.uri}/api/2.0/mlflow/{path}"
    httpx.post(url, json=body, trust_env=False, timeout=NAIVE_TIMEOUT, verify=False).raise_for_status()  # noqa: S501
    return time.perf_counter()


async def moves(
    setting: Setting, side: str, what: str, move: Move, followers: Followers, *, row: str | None = None
) -> None:
    """Moves at moments that have nothing to do with the polls, and when each that follows was told."""
    threads = ThreadPoolExecutor(setting.moves)  # an overloaded MLflow keeps several moves waiting
    lasting: dict[str, asyncio.Task[Moved]] = {}

    async def one(name: str, before: asyncio.Task[Moved] | None) -> Moved:
        if before:
            await before
        setting.held[what, name] = setting.held[what, name] % 3 + 1
        moved = followers.expect(what, name, str(setting.held[what, name]))
        loop = asyncio.get_running_loop()
        moved.answered = await loop.run_in_executor(threads, move, setting, name, moved.version)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(moved.by_all.wait(), GIVE_UP)
        return moved

    made, sent, began = [], setting.sent, time.perf_counter()
    for number in range(setting.moves):
        name = setting.models[number % len(setting.models)]
        lasting[name] = asyncio.create_task(one(name, lasting.get(name)))
        made.append(lasting[name])
        await asyncio.sleep(BETWEEN_MOVES)
    ended = await asyncio.gather(*made)
    if side == "nighttrain":
        polls = setting.requests[side] * (time.perf_counter() - began) / INTERVAL
        setting.added[row or what] = (setting.sent - sent - polls) / setting.moves
    for moved in ended:
        setting.delays.setdefault(f"{side}: {row or what}", []).extend(moved.delays())
        if moved.missing:
            setting.untold[f"{side}: {row or what}"] += len(moved.missing)


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
