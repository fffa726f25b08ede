"""The interface of a serving system to a rollout in steps, and the values that go to and fro.

A backend looks, and changes one thing at a time. It decides nothing: what follows is the engine's. Whether a
rollout is promoted or undone is a pure function over the objects that one look saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.base import Readiness
    from nighttrain.providers.serving.spec import ServingSpec

Progress = Callable[[str], None]


class Weights(StrEnum):
    """How a serving system can share requests between two versions."""

    EXACT = "exact"
    BY_REPLICAS = "by replicas"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a serving system can do here, as it was found, for refusing a strategy before anything changes.

    :param shadow: requests can be copied to the candidate, whose answers nobody sees
    :param shadow_shares: so can a share of them, not only all
    :param no_shadow_because: why requests cannot be copied, in words
    :param headers: testers can choose a version by a header
    :param split_seen_in: where the effective split is read back, in words for people
    """

    weights: Weights
    split_seen_in: str
    shadow: bool = False
    shadow_shares: bool = False
    no_shadow_because: str = ""
    headers: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """One rollout's endpoint and its two versions. Plain values: it is part of the rollout's state.

    :param stable: what serves when the rollout begins; ``None`` where nothing does yet
    :param names: what the backend has to remember of it, e.g. the names of its objects
    :param shares: below 100 that the strategy will ask for, in that order; the engine fills them in, for a
        serving system that has to be told before the candidate comes up
    """

    endpoint: str
    namespace: str
    model_name: str
    candidate: str
    stable: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    shares: tuple[int, ...] = ()

    def turned(self) -> Target:
        """From the candidate back to the stable version, which there has to be."""
        return replace(self, candidate=self.stable or "", stable=self.candidate, shares=())

    def not_serving(self, found: str) -> str:
        """Why there is no way back from this target, in words.

        :param found: the version that serves now; empty for none
        """
        serves = f"it serves version {found}" if found else "no version is seen to serve there"
        return f"{serves}, and the way back is from version {self.candidate}: roll the version before out"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at the serving system saw.

    :param readiness: of the candidate
    :param stable_ready: the stable version answers, at the size it is to have
    :param asked_percent: the candidate's share as the objects ask for it, 0 to 100
    :param routed_percent: the candidate's share where the effective split is read back; ``None`` where it
        cannot be seen, or not yet. A share that is not seen is never reported
    :param unseen: why ``routed_percent`` cannot be seen, or not yet, in words, where that is known
    :param mirrored_percent: the share of requests that are copied to the candidate
    :param promoted: the candidate is the stable version now, ready, and gets every request
    :param undone: the stable version has every request, at full size, and nothing of the candidate is left
    :param fence: the revision of the rollout's state that changed the objects last; 0 if none did
    :param strayed: who or what changed what this rollout had written, in words; the rollout then stops
    :param resource_versions: of the objects that the next change is bound to, by a name of the backend's
    """

    readiness: Readiness
    stable_ready: bool
    asked_percent: int = 0
    routed_percent: float | None = None
    unseen: str | None = None
    mirrored_percent: int = 0
    promoted: bool = False
    undone: bool = False
    fence: int = 0
    strayed: str | None = None
    resource_versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where requests can be sent, by whoever is in the cluster's network.

    :param url: base address, without a path of the model server's
    :param named_url: the same by name, for who can resolve the cluster's names
    :param headers: to be sent with each request, e.g. ``Host``
    """

    url: str
    named_url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """The ways to an endpoint's versions.

    :param route: where clients send their requests, and the split is made
    :param stable: the stable version alone
    :param candidate: the candidate alone, whatever its share
    :param health_path: a path that each version answers cheaply to a GET
    """

    route: Address
    stable: Address | None
    candidate: Address | None
    health_path: str = "/ping"


class TrafficBackend(Protocol):
    """One serving system under a rollout in steps.

    Every method may be repeated, by another process too. Those that change something take the look that
    decided it, and bind their patch to the resourceVersion seen then; they stamp ``fence`` on what they
    patch, also where nothing else would change, so that a process which decided earlier and comes later is
    refused with ``ObjectConflictError``.
    """

    @property
    def name(self) -> str:
        """The serving system's name, for messages."""
        ...

    async def capabilities(self, namespace: str) -> Capabilities:
        """Find out what the serving system can do here; nothing is changed."""
        ...

    async def begin(self, spec: ServingSpec) -> Target:
        """Find the version that serves, and the names to use; nothing is changed.

        :raises ConfigurationError: this spec cannot go to this endpoint
        """
        ...

    async def bring_up(self, spec: ServingSpec, target: Target, fence: int, tell: Progress) -> None:
        """Bring the candidate up without requests, or adopt it.

        :raises WorkloadConflictError: a name is taken by an object that is not this endpoint's
        """
        ...

    async def look(self, target: Target) -> Look:
        """See where things stand."""
        ...

    async def set_traffic(
        self, target: Target, seen: Look, fence: int, *, percent: int, mirror_percent: int = 0
    ) -> None:
        """Ask for the candidate's share of the requests, and of their copies.

        :raises ObjectConflictError: somebody changed the objects since ``seen``
        """
        ...

    async def promote(self, target: Target, seen: Look, fence: int) -> None:
        """Go one step towards ``promoted``, once the candidate has 100 percent.

        :raises ObjectConflictError: somebody changed the objects since ``seen``
        """
        ...

    async def undo(self, target: Target, seen: Look, fence: int) -> None:
        """Go one step towards ``undone``, once the candidate has 0 percent.

        :raises ObjectConflictError: somebody changed the objects since ``seen``
        """
        ...

    async def addresses(self, target: Target) -> Addresses:
        """Where the route and each version are reached."""
        ...

    async def last_lines(self, target: Target) -> tuple[str, ...]:
        """The lines that the candidate printed last; best effort, empty if they cannot be had."""
        ...


@runtime_checkable
class ReturningBackend(TrafficBackend, Protocol):
    """A serving system where the version before is gone once another one is promoted.

    Going back is then a rollout of its own, to the form that the promoted rollout's target remembers.
    """

    async def way_back(self, promoted: Target) -> Target:
        """The target of a rollout back to what a promoted one replaced; nothing is changed.

        :raises ConfigurationError: the endpoint is not at rest, or does not serve what was promoted
        :raises WorkloadConflictError: it was not made by nighttrain
        """
        ...

    async def bring_back(self, target: Target, fence: int, tell: Progress) -> None:
        """As ``bring_up``, by what a target of :meth:`way_back` says alone: whoever drives can do it."""
        ...
