"""The registry's triggers: one poll for all of them, and a watcher that loses nothing when its process
dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable, VariableResult

from helpers.airflow_connections import connect_mlflow
from helpers.fake_registry import FakeRegistry, fake_registry
from helpers.polling import until_async
from helpers.watched_triggers import AssetStore, Triggerer
from nighttrain.sensors.common.nudges import NUDGE_VARIABLE
from nighttrain.sensors.registry_condition import Awaited, RegistryCondition
from nighttrain.sensors.triggers import ModelChangeTrigger, RegistryTrigger
from nighttrain.sensors.triggers.model_changes import CURSOR_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = "registered-models/search"
POLL = 0.05


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    with fake_registry() as running:
        connect_mlflow(monkeypatch, running.uri)
        yield running


def watch(**followed: Any) -> ModelChangeTrigger:
    return ModelChangeTrigger(model_name="m", **{"poll_seconds": POLL, **followed})


def told(events: list[dict[str, Any]]) -> list[tuple[int, str, str | None]]:
    return [(event["sequence"], event["version"], event["previous_version"]) for event in events]


async def test_a_watcher_announces_each_move(registry: FakeRegistry) -> None:
    registry.alias("m", "champion", registry.version("m"))
    registry.version("m")
    async with Triggerer(watch(alias="champion"), AssetStore()) as triggerer:
        await triggerer.until(lambda events: len(events) == 1)
        registry.alias("m", "champion", 2)
        await triggerer.until(lambda events: len(events) == 2)
        registry.alias("m", "champion", None)
        await asyncio.sleep(3 * POLL)
        registry.alias("m", "champion", 2)
        await triggerer.until(lambda events: len(events) == 3)
    assert told(triggerer.events) == [(1, "1", None), (2, "2", "1"), (3, "2", None)]
    event = triggerer.events[1]
    assert (event["model_name"], event["kind"], event["key"]) == ("m", "alias", "champion")
    assert (event["author"], event["changed_at_clock"]) == (None, "noticed")
    assert event["changed_at"].startswith("20")


@pytest.mark.parametrize(
    ("followed", "versions"),
    [
        ({"stage": "production"}, ["2"]),
        ({"alias": "champion"}, ["1"]),
        ({"versions": True}, ["2", "3"]),
        ({"tag": "verdict", "value": "accepted"}, ["1"]),
    ],
)
async def test_what_happened_meanwhile_is_announced(
    registry: FakeRegistry, followed: dict[str, Any], versions: list[str]
) -> None:
    for _ in range(2):
        registry.version("m")
    store = AssetStore()
    async with Triggerer(watch(**followed), store) as triggerer:
        await until_async(lambda: CURSOR_KEY in store.values)
    registry.now += 1000
    registry.stage("m", 2, "Production")
    registry.version("m")
    registry.alias("m", "champion", 1)
    registry.tag("m", 1, "verdict", "accepted")
    first = len(triggerer.events)
    async with Triggerer(watch(**followed), store) as triggerer:
        await triggerer.until(lambda events: first + len(events) >= len(versions))
        await asyncio.sleep(3 * POLL)
    assert [event["version"] for event in triggerer.events] == versions[first:]


async def test_an_event_that_was_not_stored_comes_again_as_it_was(registry: FakeRegistry) -> None:
    """The process dies after it handed over, and before Airflow had stored the event; then more happens."""
    registry.alias("m", "champion", registry.version("m"))
    registry.version("m")
    store = AssetStore()
    async with Triggerer(watch(alias="champion"), store, store=False) as lost:
        await lost.until(lambda events: len(events) == 1)
        registry.alias("m", "champion", 2)
        await asyncio.sleep(3 * POLL)
    assert told(lost.events) == [(1, "1", None)], "one after the other"
    async with Triggerer(watch(alias="champion"), store) as triggerer:
        await triggerer.until(lambda events: len(events) == 2)
        await until_async(lambda: not json.loads(store.values[CURSOR_KEY])["sending"])
    assert told(triggerer.events) == [(1, "1", None), (2, "2", "1")]
    async with Triggerer(watch(alias="champion"), store) as quiet:
        await asyncio.sleep(5 * POLL)
    assert quiet.events == []


async def test_the_cursor_of_the_version_before_is_followed_on(registry: FakeRegistry) -> None:
    registry.alias("m", "champion", registry.version("m"))
    registry.version("m")
    store = AssetStore()
    former = {"name": "m", "aliases": {"champion": "1"}, "stages": {}, "holders": {}, "latest_version": "1"}
    await store.aset("nighttrain.registry.m", former)
    async with Triggerer(watch(alias="champion"), store) as triggerer:
        await asyncio.sleep(5 * POLL)
        assert triggerer.events == []
        registry.alias("m", "champion", 2)
        await triggerer.until(lambda events: len(events) == 1)
    assert told(triggerer.events) == [(1, "2", "1")]


async def test_run_by_itself_it_announces_too(registry: FakeRegistry) -> None:
    """As ``dag.test()`` runs a trigger."""
    registry.alias("m", "champion", registry.version("m"))
    events = watch(alias="champion").run()
    event = await anext(events)
    assert event.payload["version"] == "1"
    await events.aclose()  # type: ignore[attr-defined]


def waiting(count: int, version: str, **more: Any) -> list[RegistryTrigger]:
    condition = RegistryCondition(
        model_name="m", awaited=Awaited.ALIAS, key="champion", version=version, **more
    ).to_dict()
    return [
        RegistryTrigger(mlflow_conn_id="mlflow_default", condition=condition, poll_seconds=POLL)
        for _ in range(count)
    ]


async def first_event(trigger: RegistryTrigger) -> dict[str, Any]:
    async for event in trigger.run():
        return dict(event.payload)
    raise AssertionError("it ended without an event")


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the silence after a task was deferred, which is another test's."""
    monkeypatch.setattr("nighttrain.sensors.triggers.registry.Settling.wait", lambda self: asyncio.sleep(0))


@pytest.mark.usefixtures("unsettled")
async def test_a_hundred_sensors_and_watchers_share_one_poll(registry: FakeRegistry) -> None:
    for _ in range(2):
        registry.version("m")
    sensors = [asyncio.create_task(first_event(trigger)) for trigger in waiting(100, "2")]
    async with Triggerer(watch(alias="champion"), AssetStore()) as triggerer:
        await until_async(lambda: len(registry.asked) >= 5)
        assert set(registry.asked) == {MODELS}
        registry.alias("m", "champion", 2)
        await asyncio.gather(*sensors)
        await triggerer.until(lambda events: len(events) == 1)
    assert [sensor.result() for sensor in sensors] == [{"model_name": "m", "version": "2"}] * 100
    polls = len(registry.asked)
    await asyncio.sleep(5 * POLL)
    assert len(registry.asked) == polls, "nobody follows: nobody asks"
    assert polls < 30


@pytest.mark.parametrize(
    ("condition", "change"),
    [
        ({"awaited": Awaited.STAGE, "key": "Production"}, lambda r: r.stage("m", 2, "Production")),
        ({"awaited": Awaited.ALIAS, "key": "champion"}, lambda r: r.alias("m", "champion", 2)),
        ({"awaited": Awaited.TAG, "key": "k", "value": "v"}, lambda r: r.tag("m", 2, "k", "v")),
        ({"awaited": Awaited.VERSION}, lambda r: None),
    ],
)
@pytest.mark.usefixtures("unsettled")
async def test_each_condition_is_met(
    registry: FakeRegistry, condition: dict[str, Any], change: Callable[[FakeRegistry], None]
) -> None:
    registry.version("m")
    values = RegistryCondition(model_name="m", newer_than="1", **condition).to_dict()
    trigger = RegistryTrigger(mlflow_conn_id="mlflow_default", condition=values, poll_seconds=POLL)
    assert RegistryTrigger(**trigger.serialize()[1]).condition == values
    sensor = asyncio.create_task(first_event(trigger))
    await until_async(lambda: len(registry.asked) >= 2)
    assert not sensor.done()
    registry.now += 1000
    registry.version("m")
    change(registry)
    assert await asyncio.wait_for(sensor, 30) == {"model_name": "m", "version": "2"}


class Supervisor:
    """Answers as Airflow's supervisor does to a triggerer that asks for a variable."""

    def __init__(self) -> None:
        self.value: str | None = None

    async def asend(self, message: GetVariable) -> Any:
        assert message.key == NUDGE_VARIABLE
        if self.value is None:
            return ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND, detail={"key": message.key})
        return VariableResult(key=message.key, value=self.value)


@pytest.mark.parametrize("before", ["one", None])
async def test_a_nudge_shortens_the_wait(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    supervisor = Supervisor()
    supervisor.value = before
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    registry.alias("m", "champion", registry.version("m"))
    registry.version("m")
    async with Triggerer(watch(alias="champion", poll_seconds=3600.0), AssetStore()) as triggerer:
        await triggerer.until(lambda events: len(events) == 1)
        registry.alias("m", "champion", 2)
        await asyncio.sleep(1.5)
        assert len(triggerer.events) == 1, "what was there before is no nudge"
        supervisor.value = "two"
        await triggerer.until(lambda events: len(events) == 2, seconds=15)
