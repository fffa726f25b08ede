"""One rollout on a real API server and a real MLflow, by processes that die, among hands that interfere."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from helpers.dying_client import CrashError
from helpers.mortal_processes import Life, MortalProcess
from helpers.played_endpoint import PlayedControllers, PlayedGateway, RestingPlan
from helpers.unsure_mlflow import Unsure
from nighttrain.providers.errors import (
    ClusterError,
    NothingToRollBackToError,
    ObjectNotFoundError,
    RolloutFailedError,
    TrackingError,
)
from nighttrain.providers.kubernetes.api.resources import (
    DEPLOYMENTS,
    GATEWAY_CLASSES,
    GATEWAYS,
    HTTPROUTES,
    SERVICES,
)
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric
from nighttrain.providers.serving.analysis.values import Counts, Sample
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.by_replicas import ReplicaShares
from nighttrain.providers.serving.backends.plain.by_route import GatewayRoutes
from nighttrain.providers.serving.backends.plain.routes import RouteSettings
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.registry_side import MLflowRegistrar
from nighttrain.providers.serving.rollouts.state import Names, Order, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.providers.serving.strategy import Approval, Strategy, Weight

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.api.connection import ClusterConfig
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.backends.traffic import Addresses

ENDPOINT = "delay"

# An undisturbed rollout makes about as many calls; what is planned for later does not happen in each.
CALLS = 320

# Enough for a verdict after two measurements, whichever way it is.
REQUESTS = 2_000

# Nobody comes before; then somebody ends what waits for a person.
PATIENT_SLEEPS, MOST_SLEEPS = 50, 1_000

_ERRORS = Metric(name="errors", kind=Kind.ERRORS, source={"type": "played"})


@dataclass(frozen=True)
class Kill:
    """A process dies at its n-th call."""

    at: int
    answered: bool


@dataclass(frozen=True)
class Hand:
    """What a person or an autoscaler does before the n-th call of all.

    :param what: an order, or ``scale``, ``delete``, ``edit``
    """

    at: int
    what: str
    version: str = ""
    replicas: int = 0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Everything that happens in one rollout; printed by a test that fails.

    :param bad: the candidate's answers fail
    :param kept: a version that an earlier rollout kept: none, the candidate itself, or a third one
    :param attempts: how often the processes' clients try a call
    :param asks: the engine asks the route who answers
    :param routed: shares by a Gateway's route, and not by replicas
    :param unsure: MLflow's n-th answers that do not come, counted over all processes, and whether it acted
    """

    seed: int
    bad: bool
    kept: str
    new_form: bool
    starts_in: float
    approval: bool
    attempts: int
    asks: bool
    outages: frozenset[int]
    kills: tuple[Kill, ...]
    hands: tuple[Hand, ...]
    faults: tuple[Fault, ...]
    routed: bool
    unsure: tuple[Unsure, ...]


def schedule_of(seed: int) -> Schedule:
    """A schedule by chance; the same seed gives the same."""
    chance = random.Random(seed)
    return Schedule(
        seed=seed,
        bad=chance.random() < 0.35,
        kept=chance.choice(["", "", "2", "3"]),
        new_form=chance.random() < 0.5,
        starts_in=chance.choice([0.0, 1.0, 4.0]),
        approval=chance.random() < 0.2,
        attempts=chance.choice([1, 2, 5]),
        asks=chance.random() < 0.5,
        outages=frozenset(chance.randrange(12) for _ in range(chance.choice([0, 0, 3]))),
        kills=tuple(
            Kill(chance.randrange(1, chance.choice([40, CALLS])), chance.random() < 0.5)
            for _ in range(chance.randrange(1, 5))
        ),
        hands=tuple(_hand(chance) for _ in range(chance.choice([0, 1, 1, 2, 3]))),
        faults=tuple(_fault(chance) for _ in range(chance.randrange(4))),
        # Drawn last: what the seeds before were stays so.
        routed=chance.random() < 0.5,
        unsure=tuple(
            Unsure(chance.randrange(1, chance.choice([20, 120])), acted=chance.random() < 0.5)
            for _ in range(chance.choice([0, 0, 1, 3]))
        ),
    )


def _hand(chance: random.Random) -> Hand:
    what = chance.choice([*Order, "scale", "scale", "scale", "delete", "edit"])
    at, version = chance.randrange(1, CALLS), chance.choice(["1", "2"])
    return Hand(at, str(what), version, chance.randrange(1, 5))


def _fault(chance: random.Random) -> Fault:
    aim: dict[str, Any] = {"nth": chance.randrange(1, CALLS), "count": chance.choice([1, 1, 3, 8])}
    if chance.random() < 0.4:
        aim |= {"verb": chance.choice(["create", "update", "patch", "delete"])}
        aim["nth"] = chance.randrange(1, 25)
    kind = chance.choice([500, 503, 429, "reset", "drop"])
    if isinstance(kind, int):
        return Fault.answer(kind, **aim)
    return Fault.reset(**aim) if kind == "reset" else Fault.drop_reply(**aim)


@dataclass
class Scene:
    """The place of one schedule: a namespace, a model, and a time that nobody waits for.

    :param client: of those who interfere; faults do not strike them
    :param mlflow: the address that the processes know
    """

    schedule: Schedule
    client: ClusterClient
    config: ClusterConfig
    mlflow: str
    plan: RestingPlan
    model: str
    now: float = 1_000_000.0
    calls: int = 0
    sleeps: int = 0
    killed: int = 0
    failed_tries: list[str] = field(default_factory=list)
    done: list[Hand] = field(default_factory=list)
    edited: dict[str, Any] | None = None
    told: list[str] = field(default_factory=list)
    looks: int = 0

    def __post_init__(self) -> None:
        self.namespace = f"kill-{self.schedule.seed}"
        self.controllers = PlayedControllers(
            self.client, self.namespace, now=lambda: self.now, starts_in=self.schedule.starts_in
        )
        self.gateway = PlayedGateway(self.client, self.namespace, self.controllers)
        self._waiting = sorted(self.schedule.hands, key=lambda hand: hand.at)
        self.people = RolloutStore(self.client)

    def spec(self, version: str, *, form: str = "") -> ServingSpec:
        return ServingSpec(
            endpoint=ENDPOINT,
            namespace=self.namespace,
            image="model-server:1",
            model_name=self.model,
            version=version,
            artifact_digest="0" * 64,
            tracking_uri="http://mlflow.mlops.svc:5000",
            env_vars={"FORM": form},
            startup_timeout_seconds=60,
        )

    @property
    def candidate(self) -> ServingSpec:
        return self.spec("2", form="new" if self.schedule.new_form else "")

    @property
    def strategy(self) -> Strategy:
        analysis = Analysis(metrics=(_ERRORS,), interval_seconds=2.0)
        asks = (Approval(reason="look at it"),) if self.schedule.approval else ()
        steps = (Weight(percent=30, hold_seconds=4), *asks, Weight(percent=60, hold_seconds=4))
        return Strategy(steps=steps, analysis=analysis, watch_seconds=4)

    async def set_up(self) -> None:
        """Version 1 serves from two pods; an earlier rollout may have kept another."""
        if self.schedule.routed:
            await self._set_up_gateway()
        deployments = KubernetesDeployments(self.client)
        for version in (self.schedule.kept, "1"):
            if version:
                spec = replace(self.spec(version), replicas=2)
                await deployments.deploy(spec, self.told.append)
                await deployments.switch(ENDPOINT, self.namespace, version)
        await self.sleep(0)
        await self.sleep(self.schedule.starts_in)
        self.sleeps = 0

    async def sleep(self, seconds: float) -> None:
        """The time passes at once, and the controllers follow."""
        self.now += max(seconds, 0.01)
        self.sleeps += 1
        assert self.sleeps < MOST_SLEEPS, f"it does not end: {self.told[-20:]}"
        await self._undisturbed(self._follow)
        if self.sleeps >= PATIENT_SLEEPS and self.sleeps % 10 == 0:
            orders = [Order.RESUME, Order.PROMOTE, Order.PROMOTE, Order.ABORT]
            order = orders[self.sleeps // 10 % len(orders)]
            await self._undisturbed(lambda: self._act(Hand(self.calls, order)))

    async def _set_up_gateway(self) -> None:
        name = self.namespace
        spec = {"controllerName": "played.test/gateway"}
        await self.client.create(GATEWAY_CLASSES, None, {"metadata": {"name": name}, "spec": spec})
        listener = {"name": "http", "protocol": "HTTP", "port": 80}
        body = {"metadata": {"name": "gateway"}, "spec": {"gatewayClassName": name, "listeners": [listener]}}
        await self.client.create(GATEWAYS, self.namespace, body)

    async def _follow(self) -> None:
        if self.schedule.routed:
            await self.gateway.follow()
        await self.controllers.follow()

    async def between(self) -> None:
        """Before a call leaves a process."""
        self.calls += 1
        while self._waiting and self._waiting[0].at <= self.calls:
            hand = self._waiting.pop(0)
            await self._undisturbed(lambda hand=hand: self._act(hand))  # type: ignore[misc]

    async def _undisturbed(self, act: Callable[[], Awaitable[None]]) -> None:
        self.plan.rests += 1
        try:
            await act()
        finally:
            self.plan.rests -= 1

    async def _act(self, hand: Hand) -> None:
        with suppress(ObjectNotFoundError, NothingToRollBackToError, RolloutFailedError):
            kept = await self.people.read(ENDPOINT, self.namespace)
            if kept is None or kept.state.ended:
                return
            name = f"{ENDPOINT}-v{hand.version}"
            if hand.what == "scale":
                body = {"spec": {"replicas": hand.replicas}}
                await self.client.patch(DEPLOYMENTS, self.namespace, name, body)
            elif hand.what == "delete":
                gone = f"{ENDPOINT}-v2"
                await self.client.delete(DEPLOYMENTS, self.namespace, gone, propagation="Background")
            elif hand.what == "edit" and self.schedule.routed:
                await self._edit_route()
            elif hand.what == "edit":
                await self._edit(version_labels(ENDPOINT, hand.version))
            else:
                await self.people.order(ENDPOINT, self.namespace, Order(hand.what), by="ann")
            self.done.append(hand)

    async def _edit(self, selector: dict[str, str]) -> None:
        found = (await self.client.get(SERVICES, self.namespace, ENDPOINT))["spec"]["selector"]
        if found == selector:
            raise ObjectNotFoundError("nothing to edit")
        body = {"spec": {"selector": {**dict.fromkeys(found), **selector}}}
        await self.client.patch(SERVICES, self.namespace, ENDPOINT, body)
        self.edited = selector

    async def _edit_route(self) -> None:
        """Lead the route to the endpoint's Service alone, as a copy in Git might have it."""
        found = (await self.client.get(HTTPROUTES, self.namespace, ENDPOINT))["spec"]["rules"]
        rule = found[-1] | {"backendRefs": [{"name": ENDPOINT, "port": 80}]}
        if [each["name"] for each in found[-1]["backendRefs"]] == [ENDPOINT]:
            raise ObjectNotFoundError("nothing to edit")
        body = {"spec": {"rules": [rule]}}
        edited = await self.client.patch(HTTPROUTES, self.namespace, ENDPOINT, body)
        self.edited = edited["spec"]["rules"][0]

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        """The played source of the analysis."""
        self.looks += 1
        sample = Sample(metric=metric.name, at=window.at, seconds=window.seconds)
        if self.looks in self.schedule.outages:
            return replace(sample, error="connection refused"), memory
        if not window.seconds:
            return sample, memory
        bad = REQUESTS // 2 if self.schedule.bad else 0
        counts = Counts(requests=REQUESTS, bad=bad), Counts(requests=REQUESTS, bad=0)
        return replace(sample, candidate=counts[0], stable=counts[1]), memory

    async def ask(self, addresses: Addresses, count: int) -> list[str | None]:
        """The played route: each ready pod in turn."""
        found: list[str] = []

        async def look() -> None:
            found.extend(await self.controllers.answering(ENDPOINT))

        if self.schedule.routed:
            routed: list[str | None] = []

            async def look_through() -> None:
                routed.extend(await self.gateway.answers(count))

            await self._undisturbed(look_through)
            return routed or [None] * count
        await self._undisturbed(look)
        return [found[number % len(found)] if found else None for number in range(count)]

    async def run(self) -> State:
        """Begin and drive by one process after the other, until one comes to the end."""
        self.plan.add(*self.schedule.faults)
        kills: list[Kill | None] = [*self.schedule.kills]
        while True:
            kill = kills.pop(0) if kills else None
            life = Life(
                kill.at if kill else None, answered=bool(kill and kill.answered), between=self.between
            )
            try:
                end = await self._one_process(life)
                self.plan.clear()
                return end
            except CrashError:
                self.killed += 1
            except (ClusterError, TrackingError, RolloutFailedError) as error:
                # As Airflow does: the next try of the task.
                self.failed_tries.append(f"{type(error).__name__}: {error}")
                assert len(self.failed_tries) < 30, self.failed_tries[-3:]
                await self.sleep(5)

    def _backend(self, client: ClusterClient) -> ReplicaShares | GatewayRoutes:
        if self.schedule.routed:
            return GatewayRoutes(client, _SETTINGS, sleep=self.sleep)
        return ReplicaShares(client, sleep=self.sleep)

    async def _one_process(self, life: Life) -> State:
        async with MortalProcess(life, self.config, self.mlflow, attempts=self.schedule.attempts) as process:
            engine = RolloutEngine(
                self._backend(process.cluster),
                RolloutStore(process.cluster),
                MLflowRegistrar(ModelRegistry(process.tracking)),
                sources={"played": self},
                check_metric=_any_metric,
                ask_route=self.ask if self.schedule.asks else None,
                clock=lambda: self.now,
                sleep=self.sleep,
            )
            begun = await engine.begin(
                self.candidate,
                self.strategy,
                rollout_id="run-2",
                actor="deploy",
                names=Names(alias="champion"),
                tell=self.told.append,
            )
            assert begun is not None
            return await engine.drive(ENDPOINT, self.namespace, spec=self.candidate, tell=self.told.append)


_SETTINGS = RouteSettings(gateway="gateway", hostnames=("delay.test",), address="http://gateway.test")


def _any_metric(where: str, metric: Metric, golden: Golden | None) -> None:
    """The only source is played here."""
