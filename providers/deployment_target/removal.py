"""Take an endpoint down, with all that was made for it and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ClusterForbiddenError,
    ConfigurationError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import HTTPROUTES, SERVICES, Resource
from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.routes import is_ours
from nighttrain.providers.serving.rollouts.store import RolloutStore

if TYPE_CHECKING:
    from nighttrain.providers.deployment_target.standing import Standing
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.base import Progress


async def take_down(client: ClusterClient, standing: Standing, tell: Progress) -> bool:
    """Delete the rollout's state, the route, the Service and every version; False if there was nothing.

    It may be repeated. Everything is looked at before the first deletion. The state goes first: it is what
    tells whether a rollout has begun meanwhile, and what a rollout under way ends without.

    :raises RolloutUnderWayError: a rollout in steps is under way
    :raises WorkloadConflictError: an object of that name is not nighttrain's; nothing was deleted
    :raises ConfigurationError: the endpoint is another serving system's; nothing was deleted
    """
    name, namespace, kept = standing.name, standing.namespace, standing.kept
    deployments = KubernetesDeployments(client)
    service = await deployments.service(name, namespace)
    versions = await deployments.versions(name, namespace)
    route = await _route(client, name, namespace)
    if kept is not None and service is None and not versions and standing.version:
        raise ConfigurationError(
            "name",
            name,
            f"it is on {standing.backend['type']}, whose objects nighttrain does not delete: delete them "
            f"with kubectl, and then ConfigMap {name}-rollout",
        )
    if kept is not None:
        await RolloutStore(client).remove(kept)
        tell(f"{name}: the state of its last rollout is deleted")
    if route is not None:
        await _delete(client, HTTPROUTES, route)
        tell(f"{name}: its HTTPRoute is deleted")
    if service is not None:
        await _delete(client, SERVICES, service)
        tell(f"{name}: its Service is deleted; no request reaches it any more")
    for each in versions:
        await deployments.remove(name, namespace, each.version)
        tell(f"{name}: version {each.version} is deleted")
    return any((kept, route, service, versions))


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


async def _delete(client: ClusterClient, resource: Resource, found: Json) -> None:
    held = metadata(found)
    try:
        await client.delete(
            resource, held["namespace"], held["name"], uid=held["uid"], propagation="Background"
        )
    except ObjectNotFoundError:
        return
