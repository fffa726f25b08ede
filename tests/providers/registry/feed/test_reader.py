"""What a poll asks MLflow, and that it sees what is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from helpers.fake_registry import FakeRegistry, fake_registry
from nighttrain.providers.errors import TrackingError
from nighttrain.providers.registry.feed.changes import ChangeKind, Interest
from nighttrain.providers.registry.feed.reader import REREAD_SECONDS, SETTLED_SECONDS, RegistryReader, Scope
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from nighttrain.providers.registry.feed.model_state import ModelState

MODELS, VERSIONS = "registered-models/search", "model-versions/search"


class Polls:
    """A reader, a clock that a test moves, and what each poll asked."""

    def __init__(self, registry: FakeRegistry, *interests: Interest) -> None:
        self.registry, self.scope = registry, Scope.of(interests)
        self.client = MLflowClient(TrackingConfig(registry.uri, retry_seconds=0))
        self.seconds = 0.0
        self.reader = RegistryReader(self.client, clock=lambda: self.seconds)
        self.asked: list[str] = []

    async def poll(self, *, seconds: float = 5) -> dict[str, ModelState]:
        self.seconds += seconds
        self.registry.now += int(seconds * 1000)
        before = len(self.registry.asked)
        try:
            return await self.reader.read(self.scope)
        finally:
            self.asked = self.registry.asked[before:]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as running:
        yield running


@pytest.fixture
async def follow(registry: FakeRegistry) -> AsyncIterator[Callable[..., Polls]]:
    made: list[Polls] = []

    def start(*interests: Interest) -> Polls:
        made.append(Polls(registry, *interests))
        return made[-1]

    yield start
    for each in made:
        await each.client.aclose()


def stage(name: str, key: str = "Production") -> Interest:
    return Interest(name, ChangeKind.STAGE, key)


def alias(name: str, key: str = "champion") -> Interest:
    return Interest(name, ChangeKind.ALIAS, key)


async def test_a_hundred_models_take_two_requests_and_one_for_each_tag(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    names = [f"model-{number:03}" for number in range(100)]
    for name in names:
        registry.stage(name, registry.version(name), "Production")
    tags = [Interest(name, ChangeKind.TAG, "verdict", "accepted") for name in names]
    polls = follow(*map(stage, names), *map(alias, names), *tags)
    await polls.poll()
    assert len(polls.asked) == 3, "the first reads every version"
    for _ in range(2):
        await polls.poll()
        assert polls.asked == [MODELS, VERSIONS, VERSIONS]
        for name in names[:60]:  # a burst
            registry.stage(name, registry.version(name), "Production", archive=True)
        state = await polls.poll()
        assert polls.asked.count(MODELS) == 1
        assert len(polls.asked) <= 4, "a second page of updates"
        assert all(len(state[name].holders("Production")) == 1 for name in names)
        await polls.poll()
        assert polls.asked == [MODELS, VERSIONS, VERSIONS], "the overlap is asked for in one page"
    await polls.poll(seconds=SETTLED_SECONDS)
    await polls.poll()
    assert polls.asked == [MODELS, VERSIONS, VERSIONS]


async def test_who_follows_aliases_alone_asks_for_no_version(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    registry.alias("m", "champion", registry.version("m"))
    polls = follow(alias("m"))
    assert (await polls.poll())["m"].aliases == {"champion": "1"}
    assert polls.asked == [MODELS]


async def test_a_deleted_holder_is_noticed(registry: FakeRegistry, follow: Callable[..., Polls]) -> None:
    for _ in range(3):
        registry.version("m")
    registry.stage("m", 1, "Production")
    polls = follow(stage("m"))
    await polls.poll()
    registry.stage("m", 3, "Production")
    assert (await polls.poll())["m"].holders("Production") == ("3", "1")
    registry.delete_version("m", 3)
    assert (await polls.poll())["m"].holders("Production") == ("1",)
    assert len(polls.asked) == 3
    await polls.poll()
    assert len(polls.asked) == 2, "once is enough"


async def test_a_deletion_that_hides_behind_a_transition_is_noticed(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    for _ in range(4):
        registry.version("m")
    registry.stage("m", 4, "Production")
    polls = follow(stage("m"), stage("m", "Staging"))
    await polls.poll()
    registry.stage("m", 2, "Production")
    await polls.poll()
    registry.delete_version("m", 2)
    registry.now += 1
    registry.stage("m", 1, "Staging")
    state = (await polls.poll())["m"]
    assert (state.holders("Production"), state.holders("Staging")) == (("4",), ("1",))


async def test_a_transition_with_an_earlier_clock_is_seen(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    """Another of MLflow's processes, whose clock is behind."""
    for _ in range(2):
        registry.version("m")
    polls = follow(stage("m"))
    registry.stage("m", 1, "Production")
    await polls.poll(seconds=0)
    registry.now -= 20_000
    registry.stage("m", 2, "Production")
    assert set((await polls.poll(seconds=0))["m"].holders("Production")) == {"1", "2"}


async def test_updates_of_the_same_millisecond_are_seen(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    for name in ("a", "b"):
        registry.version(name)
    polls = follow(stage("a"), stage("b"))
    await polls.poll(seconds=SETTLED_SECONDS)
    registry.stage("b", 1, "Production")
    await polls.poll(seconds=0)
    registry.stage("a", 1, "Production")
    assert (await polls.poll(seconds=0))["a"].holders("Production") == ("1",)


async def test_a_failed_poll_is_as_if_it_had_not_been(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    for _ in range(30):
        registry.version("m")
    tag = Interest("m", ChangeKind.TAG, "k", "v")
    polls = follow(stage("m"), tag)
    await polls.poll(seconds=SETTLED_SECONDS)
    for number in range(1, 31):
        registry.now += 1
        registry.stage("m", number, "Production")
    for answered in range(4):
        registry.fail_after = answered
        with pytest.raises(TrackingError):
            await polls.poll(seconds=2 * SETTLED_SECONDS)
        registry.fail_after = None
        if answered < 3:
            continue
    assert len((await polls.poll())["m"].holders("Production")) == 30


async def test_a_model_that_is_made_again_is_read_anew(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    registry.stage("m", registry.version("m"), "Production")
    polls = follow(stage("m"))
    await polls.poll()
    registry.delete_model("m")
    assert (await polls.poll())["m"].versions == {}
    registry.version("m")
    assert (await polls.poll())["m"].holders("Production") == ()


async def test_everything_is_read_anew_now_and_then(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    registry.version("m")
    polls = follow(stage("m"))
    await polls.poll()
    registry.version("m")
    await polls.poll()
    registry.models["m"].versions[1].stage = "Production"  # as no server would: nothing tells of it
    assert (await polls.poll(seconds=REREAD_SECONDS / 2))["m"].holders("Production") == ()
    assert (await polls.poll(seconds=REREAD_SECONDS / 2))["m"].holders("Production") == ("1",)


async def test_names_that_fill_no_address_do_not_make_more_requests(
    registry: FakeRegistry, follow: Callable[..., Polls]
) -> None:
    names = [f"{'x' * 200}-{number:03}" for number in range(100)]
    for name in names:
        registry.version(name)
    polls = follow(*map(stage, names))
    assert len(await polls.poll()) == 100
    await polls.poll()
    assert polls.asked == [MODELS, VERSIONS]
