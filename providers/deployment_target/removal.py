"""Take an endpoint down, with all that was made for it and nothing else."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from nighttrain.providers.deployment_target.other_systems import ARGO, KSERVE, Made, left_behind, made_on
from nighttrain.providers.deployment_target.standing import PLAIN_BACKENDS
from nighttrain.providers.errors import (
    ClusterForbiddenError,
    ConfigurationError,
    ObjectConflictError,
    ObjectNotFoundError,
    RolloutUnderWayError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    HTTPROUTES,
    SERVICES,
)
from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.routes import is_ours
from nighttrain.providers.serving.rollouts.store import RolloutStore, state_name

if TYPE_CHECKING:
    from nighttrain.providers.deployment_target.standing import Standing
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.base import Progress
    from nighttrain.providers.serving.rollouts.store import Kept


async def take_down(client: ClusterClient, standing: Standing, tell: Progress) -> bool:
    """Delete the rollout's state, the route, the Service and every version; False if there was nothing.

    It may be repeated. Everything is looked at before the first deletion. The state goes first: it is what
    tells whether a rollout has begun meanwhile, and what a rollout under way ends without.

    :raises RolloutUnderWayError: a rollout in steps is under way
    :raises WorkloadConflictError: an object of that name is not nighttrain's; nothing was deleted
    :raises ConfigurationError: it is on a serving system that this does not clear; nothing was deleted
    """
    name, namespace, kept = standing.name, standing.namespace, standing.kept
    system = standing.backend["type"]
    if kept is not None and system in (KSERVE, ARGO):
        made = await made_on(client, name, namespace, kept.state, system)
        await _forget(client, kept)
        tell(f"{name}: the state of its last rollout is deleted")
        await _delete_all(client, name, made, tell)
        return True
    if system not in PLAIN_BACKENDS:
        raise ConfigurationError(
            "name",
            name,
            f"it is on {system}, whose objects nighttrain does not delete: delete them "
            f"with kubectl, and then ConfigMap {state_name(name)}",
        )
    deployments = KubernetesDeployments(client)
    service = await deployments.service(name, namespace)
    versions = await deployments.versions(name, namespace)
    route = await _route(client, name, namespace)
    if kept is not None:
        await _forget(client, kept)
        tell(f"{name}: the state of its last rollout is deleted")
    if route is not None:
        await _remove_route(client, route)
        tell(f"{name}: its HTTPRoute is deleted")
    if service is not None:
        await _remove_service(client, service)
        tell(f"{name}: its Service is deleted; no request reaches it any more")
    for each in versions:
        await deployments.remove(name, namespace, each.version)
        tell(f"{name}: version {each.version} is deleted")
    return any((kept, route, service, versions))


async def take_down_rest(client: ClusterClient, name: str, namespace: str, tell: Progress) -> bool:
    """Delete what a deletion that was interrupted left on another serving system; False if nothing."""
    if await RolloutStore(client).read(name, namespace) is not None:
        return False
    made = await left_behind(client, name, namespace)
    await _delete_all(client, name, made, tell)
    return bool(made)


async def _delete_all(client: ClusterClient, name: str, made: list[Made], tell: Progress) -> None:
    for each in made:
        await each.delete(client)
        tell(f"{name}: its {each} is deleted")


async def _route(client: ClusterClient, name: str, namespace: str) -> Json | None:
    """The endpoint's own HTTPRoute, if there is one, and if there are HTTPRoutes at all.

    :raises WorkloadConflictError: somebody else's leads to the endpoint
    """
    try:
        route = await client.get(HTTPROUTES, namespace, name)
    except (ObjectNotFoundError, ClusterForbiddenError):  # who may not read routes has made none
        return None
    if is_ours(route, name):
        return route
    rules = items(mapping(route.get("spec")).get("rules"))
    if any(ref.get("name") == name for rule in rules for ref in items(rule.get("backendRefs"))):
        raise WorkloadConflictError(
            f"HTTPRoute {name} was not made by nighttrain and leads to this endpoint: take the endpoint out "
            "of it first. Nothing was deleted"
        )
    return None


async def _forget(client: ClusterClient, kept: Kept) -> None:
    """Delete the state of the last rollout, unless it goes on or another one has begun."""
    state, target = kept.state, kept.state.target
    if not state.ended:
        raise RolloutUnderWayError(
            f"{state.describe()}, begun by {state.actor}. Wait for it, or end it: "
            f"nighttrain rollout abort {target.endpoint}"
        )
    name, seen = state_name(target.endpoint), kept.resource_version
    try:
        await client.delete(
            CONFIGMAPS, target.namespace, name, resource_version=seen, propagation="Background"
        )
    except ObjectNotFoundError:
        return
    except ObjectConflictError as error:
        raise RolloutUnderWayError(f"{target.endpoint}: a rollout has just begun") from error


async def _remove_route(client: ClusterClient, route: Json) -> None:
    held = metadata(route)
    with suppress(ObjectNotFoundError):
        place = (held["namespace"], held["name"])
        await client.delete(HTTPROUTES, *place, uid=held["uid"], propagation="Background")


async def _remove_service(client: ClusterClient, service: Json) -> None:
    held = metadata(service)
    with suppress(ObjectNotFoundError):
        place = (held["namespace"], held["name"])
        await client.delete(SERVICES, *place, uid=held["uid"], propagation="Background")
