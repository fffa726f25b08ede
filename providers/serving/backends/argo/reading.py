"""Reads what one look needs. The Rollout comes first and last: what lies between belongs to one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ObjectNotFoundError
from nighttrain.providers.kubernetes.api.resources import (
    HTTPROUTES,
    PODS,
    REPLICASETS,
    ROLLOUTS,
    SERVICES,
)
from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata, text, uid_of
from nighttrain.providers.serving.backends.argo.objects import PLUGIN, Objects, canary_of
from nighttrain.providers.serving.spec import ENDPOINT_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.api.resources import Resource
    from nighttrain.providers.plain_json import Json


async def read_objects(client: ClusterClient, endpoint: str, namespace: str, name: str) -> Objects:
    """Read an endpoint's objects.

    :param name: the Rollout's
    """
    selector = f"{ENDPOINT_LABEL}={endpoint}"
    before = await find_object(client, ROLLOUTS, namespace, name)
    names = service_names(endpoint, before)
    route_name = route_of(before)
    sets, pods, route, *services = await asyncio.gather(
        client.list(REPLICASETS, namespace, label_selector=selector),
        client.list(PODS, namespace, label_selector=selector),
        find_object(client, HTTPROUTES, namespace, route_name),
        *(find_object(client, SERVICES, namespace, each) for each in names),
    )
    rollout = await find_object(client, ROLLOUTS, namespace, name) if before else None
    return Objects(
        rollout=rollout,
        replica_sets=[each for each in sets["items"] if rollout is None or _is_of(each, rollout)],
        services={each: found for each, found in zip(names, services, strict=True) if found is not None},
        route=route,
        pods=pods["items"],
        steady=_version(before) == _version(rollout),
    )


async def find_object(
    client: ClusterClient, resource: Resource, namespace: str, name: str | None
) -> Json | None:
    """An object by name, if there is one."""
    if not name:
        return None
    found: Awaitable[Json] = client.get(resource, namespace, name)
    try:
        return await found
    except ObjectNotFoundError:
        return None


def service_names(endpoint: str, rollout: Json | None) -> list[str]:
    """The endpoint's Service, and those that a Rollout names for its two versions."""
    canary = canary_of(rollout)
    named = [text(canary.get(key)) for key in ("stableService", "canaryService")]
    return list(dict.fromkeys([endpoint, *(each for each in named if each)]))


def route_of(rollout: Json | None) -> str:
    """The HTTPRoute whose weights Argo's plugin writes; empty for none."""
    plugins = mapping(mapping(canary_of(rollout).get("trafficRouting")).get("plugins"))
    return text(mapping(plugins.get(PLUGIN)).get("httpRoute"))


def _is_of(obj: Json, rollout: Json) -> bool:
    owners = items(metadata(obj).get("ownerReferences"))
    return any(owner.get("uid") == uid_of(rollout) for owner in owners)


def _version(rollout: Json | None) -> object:
    return metadata(rollout).get("resourceVersion") if rollout else None
