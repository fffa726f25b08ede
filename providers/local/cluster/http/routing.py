"""Paths of the API: which object, list or sub-resource a URL means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.resources import ResourceTable, ResourceType


@dataclass(frozen=True, slots=True)
class Target:
    """A path's target. ``namespace`` is "" for kinds that have none and for lists over all namespaces."""

    resource: ResourceType
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def split(path: str) -> list[str]:
    return [unquote(part) for part in path.split("/") if part]


def find_target(table: ResourceTable, parts: list[str]) -> Target | None:
    """The target of ``/api/v1/...`` or ``/apis/GROUP/VERSION/...``; None if nothing is served there."""
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    # /namespaces/NAME/status and the like are about the namespace; everything else is about what is in it.
    if rest[0] == "namespaces" and len(rest) > 2 and table.by_path(group, version, rest[2]) is not None:
        namespace, rest = rest[1], rest[2:]
    resource = table.by_path(group, version, rest[0])
    if resource is None or len(rest) > 3 or (namespace and not resource.namespaced):
        return None
    name = rest[1] if len(rest) > 1 else ""
    if name and resource.namespaced and not namespace:
        return None
    return Target(resource, namespace, name, rest[2] if len(rest) > 2 else "")
