"""What a serving system must be able to do for a rollout, and the values that go to and fro."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from nighttrain.providers.serving.spec import ServingSpec


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """How far a version is.

    :param detail: one line for people who wait
    :param failure: set once it is certain that the version will not become ready: why, and what to do
    :param doubt: what looks wrong but may pass by itself; the reason given if the time runs out
    """

    ready: bool
    detail: str
    failure: str | None = None
    doubt: str | None = None


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
    """What an endpoint serves.

    :param candidate_version: what the last rollout is bringing up, until it is switched to or aborted
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"versions": [asdict(version) for version in self.versions]}


class ServingBackend(Protocol):
    """One serving system. Every method may be repeated; all state is in the serving system itself."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def splits_traffic(self) -> bool:
        """Whether two versions can share the requests by weight."""
        ...

    async def check(self, spec: ServingSpec) -> None:
        """Raise if this spec cannot go to this endpoint; nothing is changed."""
        ...

    async def deploy(self, spec: ServingSpec) -> bool:
        """Bring the version up without traffic, or adopt it. False: it was there, just so.

        :raises WorkloadConflictError: the name is taken by an object that is not this version
        """
        ...

    async def readiness(self, endpoint: str, namespace: str, version: str) -> Readiness:
        """How far the version is."""
        ...

    async def last_lines(self, endpoint: str, namespace: str, version: str) -> tuple[str, ...]:
        """What the version printed last; best effort, empty if it cannot be had."""
        ...

    async def switch(self, endpoint: str, namespace: str, version: str) -> None:
        """Send all requests to the version; the one that had them becomes the previous one."""
        ...

    async def revert(self, endpoint: str, namespace: str, version: str) -> None:
        """Undo ``deploy``: a new version goes; one that serves, or served last, gets its old form back."""
        ...

    async def status(self, endpoint: str, namespace: str) -> EndpointStatus | None:
        """What the endpoint serves; None if nothing was ever switched to."""
        ...

    async def remove(self, endpoint: str, namespace: str, version: str) -> None:
        """Take a version down that gets no requests. Requests under way may finish."""
        ...
