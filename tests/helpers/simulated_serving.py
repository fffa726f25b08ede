"""A serving system, its traffic, a registry and a clock, in memory: rollouts of hours in milliseconds.

It keeps to what real ones do: patches are refused when the object has changed, a route follows its object
with a lag, versions need a while to become ready, and whoever calls may be killed before or after the call
had its effect.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ClusterError,
    ClusterUnreachableError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    PromotedSinceError,
    TrackingUnauthorizedError,
    TrackingUnreachableError,
)
from nighttrain.providers.serving.analysis.values import Counts, Sample
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.backends.traffic import (
    Address,
    Addresses,
    Capabilities,
    Look,
    Progress,
    Target,
    Weights,
)
from nighttrain.providers.serving.rollouts.state import Holders

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.sources.base import Memory, Window
    from nighttrain.providers.serving.rollouts.state import Event, Names, State
    from nighttrain.providers.serving.spec import ServingSpec


class Killed(BaseException):
    """The process is gone; nothing after it runs."""


@dataclass
class Version:
    """How one version behaves.

    :param starts_in: seconds until it is ready; ``None`` for never
    :param errors: the share of its answers that fail
    """

    starts_in: float | None = 5.0
    errors: float = 0.0
    up_since: float | None = None

    def is_ready(self, now: float) -> bool:
        if self.up_since is None or self.starts_in is None:
            return False
        return now >= self.up_since + self.starts_in


@dataclass
class World:
    """Everything outside the process that drives a rollout.

    :param registry_refuses: the registrar's calls that the credentials do not allow
    """

    seed: int = 0
    now: float = 1_000_000.0
    requests_a_second: float = 50.0
    lag: float = 2.0
    stable: str | None = "1"
    versions: dict[str, Version] = field(default_factory=lambda: {"1": Version(up_since=0.0)})
    asked: int = 0
    mirrored: int = 0
    fence: int = 0
    resource_version: int = 1
    history: list[tuple[float, int]] = field(default_factory=list)
    holders: dict[str, str] = field(default_factory=lambda: {"champion": "1"})
    notes: list[str] = field(default_factory=list)
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    exposed: int = 0
    sources_down: bool = False
    cluster_down_until: float = 0.0
    calls: int = 0
    kill_before: int | None = None
    kill_after: int | None = None
    fails_at: frozenset[int] = frozenset()
    failure: ClusterError = field(default_factory=lambda: ClusterUnreachableError("connection refused"))
    broken_route: bool = False
    registry_down: bool = False
    registry_refuses: frozenset[str] = frozenset()
    killed: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.history.append((0.0, self.asked))

    async def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.01)

    def begins(self) -> None:
        """A call leaves the process."""
        self.calls += 1
        self.now += 0.005
        if self.calls == self.kill_before:
            raise Killed
        if self.calls in self.fails_at or self.now < self.cluster_down_until:
            raise self.failure

    def ends(self) -> None:
        """Its answer comes back."""
        if self.calls == self.kill_after:
            raise Killed

    def change_route(self, asked: int, mirrored: int, fence: int) -> None:
        self.asked, self.mirrored, self.fence = asked, mirrored, fence
        self.resource_version += 1
        self.history.append((self.now, asked))

    def routed(self) -> int:
        """The share that the route makes, which follows what is asked for with a lag."""
        return next(share for since, share in reversed(self.history) if since <= self.now - self.lag)

    def count(self, candidate: str, seconds: float, share: float) -> tuple[Counts, Counts]:
        """Requests of so many seconds, divided by the share."""
        total = round(self.requests_a_second * seconds)
        chosen = sum(self.random.random() < share for _ in range(total))
        self.exposed += chosen
        errors = self.versions[candidate].errors if candidate in self.versions else 1.0
        stable = self.versions[self.stable].errors if self.stable else 0.0
        return (
            Counts(requests=chosen, bad=sum(self.random.random() < errors for _ in range(chosen))),
            Counts(
                requests=total - chosen,
                bad=sum(self.random.random() < stable for _ in range(total - chosen)),
            ),
        )

    @property
    def faults(self) -> list[str]:
        """What must not be there once a rollout has ended."""
        found = []
        if self.asked not in (0, 100):
            found.append(f"the candidate has {self.asked} percent")
        if self.mirrored:
            found.append("requests are copied")
        return found


class SimulatedBackend:
    """The serving system as a rollout sees it."""

    name = "a simulated serving system"

    def __init__(self, world: World, *, weights: Weights = Weights.EXACT) -> None:
        self.world = world
        self.weights = weights

    async def capabilities(self, namespace: str) -> Capabilities:
        return Capabilities(weights=self.weights, split_seen_in="the route", shadow=True, shadow_shares=True)

    async def begin(self, spec: ServingSpec) -> Target:
        self.world.begins()
        return Target(
            endpoint=spec.endpoint,
            namespace=spec.namespace,
            model_name=spec.model_name,
            candidate=spec.version,
            stable=self.world.stable,
        )

    async def bring_up(self, spec: ServingSpec, target: Target, fence: int, tell: Progress) -> None:
        self.world.begins()
        version = self.world.versions.setdefault(target.candidate, Version())
        if version.up_since is None:
            version.up_since = self.world.now
        self.world.ends()

    async def look(self, target: Target) -> Look:
        world = self.world
        world.begins()
        version = world.versions.get(target.candidate)
        up = version is not None and version.up_since is not None
        ready = version is not None and version.is_ready(world.now)
        serves = world.stable == target.candidate
        stable_up = target.stable is None or (
            target.stable in world.versions and world.versions[target.stable].up_since is not None
        )
        return Look(
            readiness=Readiness(
                ready=ready, detail="ready" if ready else "starts", failure=None if up else "it is gone"
            ),
            stable_ready=stable_up,
            asked_percent=world.asked,
            routed_percent=float(world.asked),
            mirrored_percent=world.mirrored,
            promoted=serves and ready,
            undone=not up and not serves and stable_up and world.asked == 0,
            fence=world.fence,
            resource_versions={"route": str(world.resource_version)},
        )

    def _check(self, seen: Look) -> None:
        if seen.resource_versions["route"] != str(self.world.resource_version):
            raise ObjectConflictError("the route has changed")

    async def set_traffic(
        self, target: Target, seen: Look, fence: int, *, percent: int, mirror_percent: int = 0
    ) -> None:
        self.world.begins()
        self._check(seen)
        self.world.change_route(percent, mirror_percent, fence)
        self.world.ends()

    async def promote(self, target: Target, seen: Look, fence: int) -> None:
        self.world.begins()
        self._check(seen)
        assert self.world.asked == 100
        assert self.world.routed() == 100, "promoted before the requests had followed"
        self.world.stable = target.candidate
        self.world.ends()

    async def undo(self, target: Target, seen: Look, fence: int) -> None:
        self.world.begins()
        self._check(seen)
        assert self.world.routed() == 0, "taken down under requests"
        version = self.world.versions.get(target.candidate)
        if version:
            version.up_since = None
        self.world.ends()

    async def addresses(self, target: Target) -> Addresses:
        return Addresses(route=Address(url="http://route"), stable=None, candidate=None)

    async def last_lines(self, target: Target) -> tuple[str, ...]:
        return ()


class Traffic:
    """A source that counts the simulated requests between two measurements."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def measure(self, metric: Metric, window: Window, memory: Memory) -> tuple[Sample, Memory]:
        sample = Sample(metric=metric.name, at=window.at, seconds=window.seconds)
        if self.world.sources_down:
            return replace(sample, error="connection refused"), memory
        if not window.seconds:
            return sample, memory
        share = self.world.routed() / 100
        candidate, stable = self.world.count(window.candidate, window.seconds, share)
        return replace(sample, candidate=candidate, stable=stable), memory


class AskedRoute:
    """The route, asked for its versions."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def __call__(self, addresses: Addresses, count: int) -> list[str | None]:
        world = self.world
        world.begins()
        if world.broken_route and world.asked:
            return [None] * count
        up = (name for name, version in world.versions.items() if version.up_since is not None)
        candidate = next((name for name in up if name != world.stable), world.stable)
        routed = world.routed()
        return [candidate if world.random.random() * 100 < routed else world.stable for _ in range(count)]


class MemoryRegistrar:
    """Aliases and the history, in memory."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.before: dict[str, str] = {}

    def _begins(self, call: str) -> None:
        self.world.begins()
        if self.world.registry_down:
            raise TrackingUnreachableError("MLflow does not answer")
        if call in self.world.registry_refuses:
            raise TrackingUnauthorizedError(f"MLflow answered 403 to {call}")

    async def holders(self, model_name: str, names: Names) -> Holders:
        self._begins("holders")
        return Holders(alias=self.world.holders.get(str(names.alias), ""))

    async def move(self, state: State) -> None:
        self._begins("move")
        alias = str(state.names.alias)
        if self.world.holders.get(alias, "") not in (state.replaces, state.target.candidate):
            raise PromotedSinceError("somebody else moved it")
        self.world.holders[alias] = state.target.candidate
        self.world.ends()

    async def give_back(self, state: State) -> None:
        self._begins("give_back")
        alias = str(state.names.alias)
        if self.world.holders.get(alias) == state.target.candidate:
            self.world.holders[alias] = str(state.target.stable)
        self.world.ends()

    async def note(self, state: State, event: Event) -> None:
        self._begins("note")
        text = f"{event.text} ({event.number})"
        if text not in self.world.notes:
            self.world.notes.append(text)
        self.world.ends()


class ConfigMaps:
    """The part of an API server that keeps a rollout's state."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def get(self, resource: object, namespace: str, name: str) -> dict[str, Any]:
        self.world.begins()
        if name not in self.world.objects:
            raise ObjectNotFoundError(name)
        return copy.deepcopy(self.world.objects[name])

    async def create(self, resource: object, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.world.begins()
        name = body["metadata"]["name"]
        if name in self.world.objects:
            raise ObjectExistsError(name)
        return self._put(name, body)

    async def replace(
        self, resource: object, namespace: str, name: str, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        self.world.begins()
        held = self.world.objects.get(name)
        if held is None:
            raise ObjectNotFoundError(name)
        if held["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ObjectConflictError(name)
        return self._put(name, body)

    def _put(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        kept = copy.deepcopy(dict(body))
        number = int(self.world.objects.get(name, {}).get("metadata", {}).get("resourceVersion", "0")) + 1
        kept["metadata"] = {**kept["metadata"], "resourceVersion": str(number)}
        self.world.objects[name] = kept
        self.world.ends()
        return copy.deepcopy(kept)
