"""The interface of a serving system to a rollout, and the values that go to and fro."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nighttrain.providers.serving.spec import ServingSpec

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """The state of a version on its way to ready.

    :param ready: every replica is of the present form and ready
    :param answers: at least one is, and none of an older form is left
    :param detail: one line for people who wait
    :param failure: set once it is certain that the version will not become ready: why, and what to do
    :param doubt: what looks wrong but may pass by itself; the reason given if the time runs out
    """

    ready: bool
    detail: str
    failure: str | None = None
    doubt: str | None = None
    answers: bool = False


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """One version that is up, whether it gets requests or not."""

    version: str
    ready_replicas: int
    replicas: int
    artifact_digest: str
    image: str
    deployed_at: str


@dataclass(frozen=True, kw_only=True)
class EndpointStatus:
    """The versions behind an endpoint, and the one that serves.

    :param candidate_version: what the last rollout is bringing up, until it is switched to or aborted
    :param selected_version: where the Service sends requests; not the stable version where somebody changed
        it, and None where what it selects is no version
    :param ready_replicas: ready pods of the stable version that get the requests
    :param url: the address inside the cluster, by name
    :param cluster_ip_url: the same by IP address, for who cannot resolve the cluster's names
    """

    endpoint: str
    namespace: str
    model_name: str
    stable_version: str
    previous_version: str | None
    candidate_version: str | None
    url: str
    cluster_ip_url: str
    ready_replicas: int
    replicas: int
    switched_at: str
    versions: tuple[VersionStatus, ...] = ()
    selected_version: str | None = None

    @property
    def answers(self) -> bool:
        """True if at least one pod of the stable version is there for the requests."""
        return self.replicas > 0 and self.ready_replicas > 0

    def describe(self) -> str:
        """One line for people: what serves, or why nobody does."""
        stable = f"version {self.stable_version}"
        if self.selected_version != self.stable_version:
            if self.candidate_version is not None and self.selected_version == self.candidate_version:
                return f"{stable} is kept ready while a rollout sends all to version {self.selected_version}"
            elsewhere = f"version {self.selected_version}" if self.selected_version else "something else"
            return f"{stable} gets no requests: somebody changed the Service, which selects {elsewhere}"
        if self.stable_version not in {version.version for version in self.versions}:
            return f"nobody serves: the Deployment of {stable} is gone"
        if self.replicas == 0:
            return f"nobody serves: {stable} is scaled to zero replicas"
        if self.ready_replicas == 0:
            return f"nobody serves: 0/{self.replicas} replicas of {stable} are ready"
        return f"{stable} serves from {self.ready_replicas}/{self.replicas} replicas"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"versions": [asdict(version) for version in self.versions]}


class ServingBackend(Protocol):
    """One serving system. Every method may be repeated; all state is in the serving system itself."""

    @property
    def name(self) -> str:
        """The serving system's name, for messages."""
        ...

    async def check(self, spec: ServingSpec) -> None:
        """Raise if this spec cannot go to this endpoint; nothing is changed."""
        ...

    async def deploy(self, spec: ServingSpec, tell: Progress) -> bool:
        """Bring the version up without traffic, or adopt it. False: it was there, just so.

        Replicas of what exists are left as they are, unless there are none.

        :raises WorkloadConflictError: the name is taken by an object that is not this version
        """
        ...

    async def scale_up(
        self, endpoint: str, namespace: str, version: str, replicas: int, tell: Progress
    ) -> bool:
        """Give a version replicas that somebody scaled to zero, and leave any other as it is.

        :return: whether it was scaled up, now or by an earlier try; ``revert`` takes that back
        """
        ...

    async def readiness(self, endpoint: str, namespace: str, version: str) -> Readiness:
        """Look at the version on its way to ready."""
        ...

    async def last_lines(self, endpoint: str, namespace: str, version: str) -> tuple[str, ...]:
        """The lines that the version printed last; best effort, empty if they cannot be had."""
        ...

    async def switch(self, endpoint: str, namespace: str, version: str) -> None:
        """Send all requests to the version; the one that had them becomes the previous one."""
        ...

    async def revert(self, endpoint: str, namespace: str, version: str) -> None:
        """Undo ``deploy`` and ``scale_up``: a new version goes; one in use is again as it was."""
        ...

    async def status(self, endpoint: str, namespace: str) -> EndpointStatus | None:
        """The endpoint's state; None if nothing was ever switched to."""
        ...

    async def remove(self, endpoint: str, namespace: str, version: str) -> None:
        """Take a version down that gets no requests. Requests under way may finish."""
        ...
