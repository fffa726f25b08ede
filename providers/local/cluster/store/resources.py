"""The kinds of object the embedded cluster serves, and how each one behaves."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

VERBS = ("create", "delete", "get", "list", "patch", "update", "watch")
SUBRESOURCE_VERBS = ("get", "patch", "update")


class Custom(Protocol):
    """A version of a kind, as its CustomResourceDefinition describes it."""

    @property
    def schema(self) -> dict[str, Any]: ...

    @property
    def list_kind(self) -> str: ...

    def check(self, resource: ResourceType, new: dict[str, Any], old: dict[str, Any] | None) -> None:
        """:raises ApiError: the object breaks its schema, or no new one is taken any more"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceType:
    """One row of the API: where a kind lives, and the few ways in which kinds differ.

    :param subresources: names served below an object, for example ``status``
    :param has_generation: a change of ``spec`` counts up ``metadata.generation``
    :param graceful: a delete is a request to the kubelet, which has the last word
    :param custom: what a CustomResourceDefinition says about it; None for built-in kinds

    What a definition may change later is no part of a kind's identity, and neither is the version:
    all of them show the same objects.
    """

    group: str
    version: str = field(compare=False)
    plural: str
    singular: str = field(compare=False)
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = field(default=(), compare=False)
    categories: tuple[str, ...] = field(default=(), compare=False)
    subresources: tuple[str, ...] = field(default=(), compare=False)
    verbs: tuple[str, ...] = field(default=VERBS, compare=False)
    has_generation: bool = field(default=False, compare=False)
    graceful: bool = field(default=False, compare=False)
    custom: Custom | None = field(default=None, compare=False)

    @property
    def api_version(self) -> str:
        """As in an object's ``apiVersion``: ``v1`` or ``batch/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As in messages: ``pods`` or ``jobs.batch``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        """As in messages about invalid objects: ``Pod`` or ``Job.batch``."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def list_kind(self) -> str:
        """The kind of a list of them."""
        return (self.custom.list_kind if self.custom is not None else "") or f"{self.kind}List"

    @property
    def has_status(self) -> bool:
        """True if ``.status`` is written through a sub-resource of its own."""
        return "status" in self.subresources


def _kind(
    group: str, kind: str, *subresources: str, short: tuple[str, ...] = (), **more: Any
) -> ResourceType:
    """A built-in kind: all of them are of a version v1, with a plural that ends in s."""
    singular = kind.lower()
    return ResourceType(
        group=group,
        version="v1",
        plural=f"{singular}s",
        singular=singular,
        kind=kind,
        short_names=short,
        subresources=subresources,
        **more,
    )


_ALL = ("all",)
NAMESPACES = _kind("", "Namespace", "status", short=("ns",), namespaced=False)
NODES = _kind("", "Node", "status", short=("no",), namespaced=False)
PODS = _kind(
    *("", "Pod", "eviction", "log", "status"),
    short=("po",),
    categories=_ALL,
    has_generation=True,
    graceful=True,
)
SERVICES = _kind("", "Service", "status", short=("svc",), categories=_ALL)
CONFIGMAPS = _kind("", "ConfigMap", short=("cm",))
SECRETS = _kind("", "Secret")
SERVICEACCOUNTS = _kind("", "ServiceAccount", short=("sa",))
PERSISTENTVOLUMECLAIMS = _kind("", "PersistentVolumeClaim", "status", short=("pvc",))
EVENTS = _kind("", "Event", short=("ev",))
JOBS = _kind("batch", "Job", "status", categories=_ALL, has_generation=True)
DEPLOYMENTS = _kind(
    "apps", "Deployment", "scale", "status", short=("deploy",), categories=_ALL, has_generation=True
)
REPLICASETS = _kind(
    "apps", "ReplicaSet", "scale", "status", short=("rs",), categories=_ALL, has_generation=True
)
ENDPOINTSLICES = _kind("discovery.k8s.io", "EndpointSlice", has_generation=True)
LEASES = _kind("coordination.k8s.io", "Lease")
CUSTOMRESOURCEDEFINITIONS = _kind(
    *("apiextensions.k8s.io", "CustomResourceDefinition", "status"),
    short=("crd", "crds"),
    categories=("api-extensions",),
    namespaced=False,
    has_generation=True,
)

BUILT_IN = (
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    CONFIGMAPS,
    SECRETS,
    SERVICEACCOUNTS,
    EVENTS,
    JOBS,
    DEPLOYMENTS,
    REPLICASETS,
    ENDPOINTSLICES,
    LEASES,
    PERSISTENTVOLUMECLAIMS,
    CUSTOMRESOURCEDEFINITIONS,
)


class ResourceTable:
    """The kinds being served, looked up by path or by kind. CustomResourceDefinitions add rows."""

    def __init__(self, types: tuple[ResourceType, ...] = BUILT_IN) -> None:
        self._by_path: dict[tuple[str, str, str], ResourceType] = {}
        self._by_kind: dict[tuple[str, str], ResourceType] = {}
        for type_ in types:
            self.add(type_)

    def add(self, type_: ResourceType) -> None:
        self._by_path[type_.group, type_.version, type_.plural] = type_
        self._by_kind[type_.api_version, type_.kind] = type_

    def remove_custom(self, qualified: str) -> None:
        """Serve no version of a custom kind any more."""
        for type_ in [each for each in self if each.custom is not None and each.qualified == qualified]:
            del self._by_path[type_.group, type_.version, type_.plural]
            del self._by_kind[type_.api_version, type_.kind]

    def by_path(self, group: str, version: str, plural: str) -> ResourceType | None:
        return self._by_path.get((group, version, plural))

    def by_kind(self, api_version: str, kind: str) -> ResourceType | None:
        return self._by_kind.get((api_version, kind))

    def groups(self) -> dict[str, list[str]]:
        """Group name -> versions: groups in the order of the table, the most mature version first."""
        groups: dict[str, list[str]] = {}
        for type_ in self._by_path.values():
            versions = groups.setdefault(type_.group, [])
            if type_.version not in versions:
                versions.append(type_.version)
        return {group: sorted(versions, key=_maturity) for group, versions in groups.items()}

    def of(self, group: str, version: str) -> list[ResourceType]:
        """The kinds of one group and version, by plural name."""
        found = [t for t in self._by_path.values() if (t.group, t.version) == (group, version)]
        return sorted(found, key=lambda t: t.plural)

    def __iter__(self) -> Iterator[ResourceType]:
        return iter(list(self._by_path.values()))


def _maturity(version: str) -> tuple[int, int, int, str]:
    """The API's order of versions: v2, v1, v1beta2, v1beta1, v1alpha1, and other names at the end."""
    match = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if match is None:
        return 3, 0, 0, version
    stage = {None: 0, "beta": 1, "alpha": 2}[match.group(2)]
    return stage, -int(match.group(1)), -int(match.group(3) or 0), version
