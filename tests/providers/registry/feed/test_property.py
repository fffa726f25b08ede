"""Each state that a poll could see reaches each consumer once and in order, whatever happens to whom.

Random lives of a registry, seen by consumers that die at every step of handing over, come back, are paused
and miss outages; with webhooks that are genuine, sent twice, out of order, old or forged.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.fake_registry import FakeRegistry, fake_registry
from helpers.webhook_deliveries import Delivery, delivery
from nighttrain.providers.registry.feed.changes import ChangeKind, Interest, View, compare
from nighttrain.providers.registry.feed.deliveries import DeliveryCheck
from nighttrain.providers.registry.feed.hub import Hub
from nighttrain.providers.registry.feed.model_state import KnownVersion, ModelState, Versions
from nighttrain.providers.registry.feed.outbox import Outbox
from nighttrain.providers.registry.feed.subscription import Subscription
from nighttrain.providers.tracking.client import TrackingConfig

MODELS = ("a", "b")
TAG = ("verdict", "accepted")
SECRET = "correct horse battery staple"
INTERESTS = [
    Interest(name, kind, key, value)
    for name in MODELS
    for kind, key, value in (
        (ChangeKind.ALIAS, "champion", None),
        (ChangeKind.STAGE, "Production", None),
        (ChangeKind.STAGE, "Archived", None),
        (ChangeKind.VERSION, "latest", None),
        (ChangeKind.TAG, *TAG),
    )
]

REGISTRY_STEPS = (
    "version",
    "stage",
    "stage",
    "archive",
    "alias",
    "alias",
    "tag",
    "delete",
    "describe",
    "unmake",
)
STEPS = (
    *REGISTRY_STEPS,
    *("poll", "poll", "poll", "outage", "half an outage", "hour"),
    *("restart", "pause", "crash before keeping", "crash before sending", "crash after sending"),
    *("webhook", "webhook twice", "webhook forged", "webhook old"),
)


@dataclass
class Consumer:
    """Follows one thing; ``kept`` is what survives it, ``arrived`` is where its changes go."""

    interest: Interest
    kept: str | None = None
    arrived: list[tuple[int, str | None, str | None]] = field(default_factory=list)
    expected: list[tuple[str | None, str | None]] = field(default_factory=list)
    view: View | None = None
    subscription: Subscription | None = None
    dies: str = ""

    def take(self) -> bool:
        """Hand over what the subscription has, one step after the other; it may die at one of them.

        :return: False where it died before it kept anything: as if it had not been there
        """
        outbox = Outbox.from_dict(json.loads(self.kept)) if self.kept else Outbox()
        waiting = self.subscription.waiting() if self.subscription else []
        for state in (None, *waiting):
            if state is not None:
                if self._dies("before keeping"):
                    return False
                outbox = outbox.seen(self.interest, *state)
                self.kept = json.dumps(outbox.to_dict())
            if not outbox.sending:
                continue
            if self._dies("before sending"):
                return True
            self.arrived += [(t.sequence, t.change.version, t.change.previous) for t in outbox.to_tell()]
            if self._dies("after sending"):
                return True
            outbox = outbox.arrived()
            self.kept = json.dumps(outbox.to_dict())
        return True

    def _dies(self, where: str) -> bool:
        if self.dies == where:
            self.dies, self.subscription = "", None
            return True
        return False

    def once(self) -> list[tuple[str | None, str | None]]:
        """What arrived, copies left out by their number."""
        seen: dict[int, tuple[str | None, str | None]] = {}
        for sequence, version, previous in self.arrived:
            assert seen.setdefault(sequence, (version, previous)) == (version, previous), "a copy differs"
        assert list(seen) == sorted(seen) == list(range(1, len(seen) + 1)), "out of order, or one is missing"
        return list(seen.values())


class Life:
    """The registry, one hub, and its consumers."""

    def __init__(self, registry: FakeRegistry, seed: int) -> None:
        self.registry, self.chance = registry, random.Random(seed)
        self.timer = 1000.0
        self.consumers = [Consumer(interest) for interest in INTERESTS]
        self.deliveries = DeliveryCheck(clock=lambda: self.timer)
        self.sent: list[Delivery] = []
        self.nudge: str | None = "0"
        self.hub = self._hub()

    def _hub(self) -> Hub:
        async def nudges() -> str | None:
            return self.nudge

        return Hub(
            TrackingConfig(self.registry.uri),
            nudges=nudges,
            clock=lambda: self.registry.now / 1000,
            timer=lambda: self.timer,
            retry_seconds=0,
        )

    async def step(self, step: str) -> None:
        self.timer += 1
        self.registry.now += self.chance.choice((0, 0, 1, 1000))  # often in the same millisecond
        if step in REGISTRY_STEPS:
            self.change(step)
        elif step.startswith("crash"):
            consumer = self.chance.choice(self.consumers)
            consumer.dies = step.removeprefix("crash ")
        elif step.startswith("webhook"):
            await self.webhook(step.removeprefix("webhook").strip())
        elif step == "restart":
            for consumer in self.consumers:
                self.leave(consumer)
            await self.hub.stop()
            self.hub = self._hub()
            await self.hub.nudged(self._nudges)
        elif step == "pause":
            self.leave(self.chance.choice(self.consumers))
        elif step == "hour":
            self.timer += self.chance.choice((61, 3601))
        else:
            await self.poll(step)

    def leave(self, consumer: Consumer) -> None:
        if consumer.subscription is not None:
            self.hub.remove(consumer.subscription)
            consumer.subscription = None

    def change(self, step: str) -> None:
        name, registry = self.chance.choice(MODELS), self.registry
        model = registry.models.get(name)
        if step == "version" or model is None or not model.versions:
            registry.version(name)
            return
        version = self.chance.choice(list(model.versions))
        match step:
            case "stage" | "archive":
                stage = self.chance.choice(("Production", "Staging", "Archived", "None"))
                registry.stage(name, version, stage, archive=step == "archive")
            case "alias":
                registry.alias(name, "champion", self.chance.choice((version, version, None)))
            case "tag":
                registry.tag(name, version, TAG[0], self.chance.choice((TAG[1], "rejected", None)))
            case "delete":
                registry.delete_version(name, version)
            case "describe":
                registry.describe(name, version)
            case "unmake":
                registry.now += 1  # two models of one name and one millisecond are one
                registry.delete_model(name)

    async def poll(self, step: str) -> None:
        """Everybody who is not paused is there; the poll may fail, and the consumers may die."""
        for consumer in self.consumers:
            if consumer.subscription is None and self.chance.random() < 0.9:
                consumer.subscription = Subscription(consumer.interest, 5)
                self.hub.add(consumer.subscription)
        self.registry.away = step == "outage"
        self.registry.fail_after = self.chance.randrange(4) if step == "half an outage" else None
        seen = await self.hub.poll()
        self.registry.away, self.registry.fail_after = False, None
        for consumer in self.consumers:
            if consumer.subscription is None:
                continue
            hub_side = consumer.subscription
            if consumer.take() and seen:
                self.expect(consumer)
            if consumer.subscription is None:
                self.hub.remove(hub_side)

    def expect(self, consumer: Consumer) -> None:
        """What the state of this moment is to tell, read from the registry itself."""
        consumer.view, changes = compare(
            consumer.interest, consumer.view, self.truth(consumer.interest.name), 0
        )
        consumer.expected += [(change.version, change.previous) for change in changes]

    def truth(self, name: str) -> ModelState:
        model = self.registry.models.get(name)
        if model is None:
            return ModelState(name, versions=Versions(), tagged={TAG: ()})
        known = {str(v.version): KnownVersion(v.stage, v.updated, v.created) for v in model.versions.values()}
        tagged = tuple(str(v.version) for v in model.versions.values() if v.tags.get(TAG[0]) == TAG[1])
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        return ModelState(name, model.created, model.updated, aliases, Versions(known), {TAG: tagged})

    async def webhook(self, how: str) -> None:
        genuine = delivery(SECRET, self.timer, {"entity": "model_version_alias", "action": "created"})
        taken = genuine
        if how == "forged":
            taken = self.chance.choice(forgeries(genuine, self.sent))
        elif how == "old":
            taken = delivery(SECRET, self.timer - 301, {"entity": "model_version_alias"})
        elif how == "twice" and self.sent:
            taken = self.chance.choice(self.sent)
        looks = self.deliveries.accept(SECRET, taken.headers, taken.body).looks
        first = taken is genuine
        assert looks == first, how
        if looks:
            self.sent.append(taken)
            self.nudge = f"{self.timer}"
        assert await self.hub.nudged(self._nudges) == looks

    async def _nudges(self) -> str | None:
        return self.nudge


def forgeries(genuine: Delivery, sent: list[Delivery]) -> list[Delivery]:
    other = delivery("another secret", float(genuine.headers["x-mlflow-timestamp"]), {"entity": "x"})
    later = {**genuine.headers, "x-mlflow-timestamp": str(int(genuine.headers["x-mlflow-timestamp"]) + 1)}
    renamed = {**genuine.headers, "x-mlflow-delivery-id": "another"}
    bare = {name: value for name, value in genuine.headers.items() if name != "x-mlflow-signature"}
    made = [
        other,
        Delivery(later, genuine.body),
        Delivery(renamed, genuine.body),
        Delivery(bare, genuine.body),
        Delivery(genuine.headers, genuine.body + b" "),
        Delivery({**genuine.headers, "x-mlflow-signature": "v1,"}, genuine.body),
        Delivery({**genuine.headers, "x-mlflow-signature": "v1,\u00e9"}, genuine.body),
    ]
    made += [Delivery({**each.headers, "x-mlflow-delivery-id": "fresh"}, each.body) for each in sent[-1:]]
    return made


async def live(registry: FakeRegistry, steps: list[str], seed: int) -> None:
    life = Life(registry, seed)
    try:
        await life.hub.nudged(life._nudges)
        for step in (*steps, "poll", "poll"):
            await life.step(step)
        for consumer in life.consumers:
            if consumer.subscription is None:
                consumer.dies = ""
                consumer.take()  # what was on its way arrives at last
            assert consumer.once() == consumer.expected, consumer.interest
    finally:
        await life.hub.stop()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.sampled_from(STEPS), max_size=40), seed=st.integers(0, 2**32))
def test_each_state_reaches_each_consumer_once_and_in_order(steps: list[str], seed: int) -> None:
    with fake_registry() as registry:
        asyncio.run(live(registry, steps, seed))


def test_long_lives() -> None:
    """Seeded, and longer than what Hypothesis draws."""
    for seed in range(10):
        chance = random.Random(seed)
        steps: list[Any] = [chance.choice(STEPS) for _ in range(300)]
        with fake_registry() as registry:
            asyncio.run(live(registry, steps, seed))
