"""Plain Deployments behind a Gateway API route: exact weights, testers by a header, copies of requests.

A Service for each version takes the weights of one HTTPRoute. Where the candidate has no share the route
leads to the endpoint's Service, which selects the stable version for callers inside the cluster, too.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.changes import Changes, Sleep, resource_version
from nighttrain.providers.serving.backends.plain.gateways import (
    MIRROR,
    MIRROR_PERCENT,
    find_gateway,
    gateway_address,
    read_features,
)
from nighttrain.providers.serving.backends.plain.objects import (
    HEALTH_PATH,
    Objects,
    is_marked_stable,
    percent_of,
    read_objects,
    read_slices,
    version_of,
)
from nighttrain.providers.serving.backends.plain.replica_look import selector_for, selector_of
from nighttrain.providers.serving.backends.plain.route_look import ROUTE, backends_of, look_at_route
from nighttrain.providers.serving.backends.plain.route_writes import RouteWrites
from nighttrain.providers.serving.backends.plain.routes import (
    VERSION_HEADER,
    Backend,
    Backends,
    RouteSettings,
    adopted_rules,
    is_ours,
    read_split,
    rest_rules,
    rollout_rules,
    shared_refs,
)
from nighttrain.providers.serving.backends.plain.shares import has_ready, ready_endpoints
from nighttrain.providers.serving.backends.plain.version_services import (
    ensure_version_service,
    version_address,
)
from nighttrain.providers.serving.backends.traffic import (
    Address,
    Addresses,
    Capabilities,
    Look,
    Progress,
    Target,
    Weights,
)
from nighttrain.providers.serving.spec import PERCENT_ANNOTATION, ServingSpec

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json

_FILTERS_STAY = "of a route that is taken over only the weights are written"


class GatewayRoutes:
    """The backend for a cluster with a Gateway API implementation: exact weights.

    :param settings: where the endpoints' routes hang
    :param sleep: what waiting is done with
    """

    def __init__(
        self, client: ClusterClient, settings: RouteSettings, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        settings.validate()
        self._client = client
        self._settings = settings
        self._deployments = KubernetesDeployments(client)
        self._changes = Changes(client, self._deployments, sleep)
        self._routes = RouteWrites(client, settings, sleep)

    @property
    def name(self) -> str:
        """For messages."""
        return f"Gateway {self._settings.gateway}"

    async def capabilities(self, namespace: str) -> Capabilities:
        """Exact weights; copies where the GatewayClass lists them, and may be read.

        :raises ConfigurationError: there is no such Gateway or listener, or nothing tells where it is reached
        """
        gateway = await find_gateway(self._client, self._settings, namespace)
        features = await read_features(self._client, gateway)
        own = not self._settings.adopt_route
        if own:
            self._reached(gateway_address(gateway, self._settings, self._settings.hostnames))
        shadow = own and features.can(MIRROR)
        why = features.why_not(MIRROR) if own else _FILTERS_STAY
        return Capabilities(
            weights=Weights.EXACT,
            split_seen_in="the HTTPRoute's weights once the gateway has accepted them, and the answers",
            shadow=shadow,
            shadow_shares=shadow and features.can(MIRROR_PERCENT),
            no_shadow_because="" if shadow else why,
            headers=own,
        )

    async def begin(self, spec: ServingSpec) -> Target:
        """Find the version that serves; nothing is changed.

        :raises WorkloadConflictError: the route of that name is somebody else's, and is not to be taken over
        """
        target = await self._changes.begin(spec)
        service = await self._deployments.service(target.endpoint, target.namespace)
        await self._routes.find_writable(target, backends_of(target, service))
        return target

    async def bring_up(self, spec: ServingSpec, target: Target, fence: int, tell: Progress) -> None:
        """Bring the candidate up without requests; testers reach each version by a header.

        :raises WorkloadConflictError: a name is taken by an object that is not this endpoint's
        :raises RolloutFailedError: an earlier rollout left the requests with a version that is not the stable
            one, and the stable one cannot take them
        """
        service = await self._deployments.service(target.endpoint, target.namespace)
        # Before the candidate's mark: where that is, a route that is missing was deleted by somebody.
        route = await self._routes.find_writable(target, backends_of(target, service))
        if target.stable is not None and service is not None and route is None:
            await self._routes.create(target, service, fence)
        await self._changes.bring_up(spec, target, tell, replicas=None)
        objects = await self._read(target)
        if target.stable is None:
            await self._changes.stamp_deployment(target, objects.candidate, fence)
            return
        await self._changes.return_requests(target, objects, fence, tell, {PERCENT_ANNOTATION: None})

        async def lead_testers() -> None:
            route = await self._routes.find(target)
            if route is None:
                raise RolloutFailedError(f"HTTPRoute {target.endpoint} was deleted just now")
            rules = await self._rules(target, objects, route, 0, 0)
            await self._routes.write(target, route, fence, rules, 0)

        # No look decided this, and the gateway writes its status meanwhile.
        await self._deployments.written(lead_testers)

    async def look(self, target: Target) -> Look:
        """See where things stand."""
        try:
            objects, route = await asyncio.gather(self._read(target), self._routes.find(target))
        except WorkloadConflictError as error:
            taken = Readiness(ready=False, detail=str(error))
            return Look(readiness=taken, stable_ready=False, strayed=str(error))
        return look_at_route(target, objects, route, self._settings)

    async def set_traffic(
        self, target: Target, seen: Look, fence: int, *, percent: int, mirror_percent: int = 0
    ) -> None:
        """Ask for a share, once each Service that gets requests has a ready pod.

        It is to be repeated until a look says that the share was asked for. Copies are asked for only where
        the gateway lists them; requests are sent through the route then, and it is put back if they fail.

        :raises ConfigurationError: the gateway cannot copy requests, or that cannot be known
        :raises RolloutFailedError: the route is gone, or does not work with copies and was put back
        """
        objects, route = await asyncio.gather(self._read(target), self._routes.find(target))
        if target.stable is None:
            await self._first_traffic(target, objects, route, seen, fence, percent)
            return
        if route is None or objects.service is None:
            await self._without_route(target, objects, fence, percent + mirror_percent)
            return
        self._check_bound(target, route, seen)
        split = read_split(route, backends_of(target, objects.service))
        # A tester's rule for a version that somebody deleted would keep the route from being accepted.
        dangling = objects.candidate is None and (VERSION_HEADER, target.candidate) in _headers(route)
        if (split.percent, split.mirrored) == (percent, mirror_percent) and not dangling:
            await self._routes.write(target, route, fence, None, percent, mirror_percent)
            return
        await self._check_mirror(target, route, mirror_percent)
        rules = await self._rules(target, objects, route, percent, mirror_percent)
        if not await self._have_pods(target, percent, mirror_percent):
            return
        if mirror_percent in (0, split.mirrored):
            await self._routes.write(target, route, fence, rules, percent, mirror_percent)
            return
        address, path = await self._address(target, route), self._health(target)
        await self._routes.write_watched(target, route, fence, rules, percent, mirror_percent, address, path)

    async def _without_route(self, target: Target, objects: Objects, fence: int, asked: int) -> None:
        """Nothing is routed to the candidate: say so where the fence is looked for next."""
        if asked:
            raise RolloutFailedError(f"somebody deleted HTTPRoute or Service {target.endpoint}")
        if objects.service is not None:
            await self._changes.patch_service(target, objects.service, None, fence, {})
        else:
            await self._changes.stamp_deployment(target, objects.candidate, fence)

    async def _first_traffic(
        self, target: Target, objects: Objects, route: Json | None, seen: Look, fence: int, percent: int
    ) -> None:
        """Where nothing served before: the route leads to the endpoint's Service, once there is one."""
        service, candidate = objects.service, objects.candidate
        if percent == 0:
            if route is not None and is_ours(route, target.endpoint):
                await self._routes.remove(route)
            if service is not None:
                await self._changes.remove_first_service(service)
            await self._changes.stamp_deployment(target, candidate, fence)
            return
        if percent != 100 or candidate is None:
            raise RolloutFailedError(f"{target.endpoint}: there is no version to share the requests with")
        if not seen.readiness.answers:
            return
        # The fence comes with the last of the two objects: where it is, everything is asked for.
        if service is None:
            await self._changes.first_service(target, candidate, 0)
            return
        if selector_of(service) != selector_for(target, 100):
            await self._changes.patch_service(target, service, seen, 0, {}, selector_for(target, 100))
        if route is None:
            await self._routes.create(target, service, fence)
        else:
            await self._routes.stamp(target, route, fence)

    async def promote(self, target: Target, seen: Look, fence: int) -> None:
        """Make the candidate the stable version, then lead the route to the endpoint's Service again.

        :raises RolloutFailedError: it does not have every request
        """
        objects, route = await asyncio.gather(self._read(target), self._routes.find(target))
        if route is None or objects.service is None:
            raise RolloutFailedError(f"somebody deleted HTTPRoute or Service {target.endpoint}")
        if is_marked_stable(target, objects):
            await self._changes.settle(objects.candidate)
            # The endpoint's Service takes over from the version's own once it has its pods.
            if _has_only(target, objects, objects.service):
                await self._rest(target, route, objects.service, seen, fence)
        elif seen.asked_percent != 100:
            raise RolloutFailedError(f"version {target.candidate} does not have 100 percent of the requests")
        elif seen.routed_percent == 100:
            self._check_bound(target, route, seen)
            await self._routes.stamp(target, route, fence)
            await self._changes.switch(target, objects, seen, fence)

    async def undo(self, target: Target, seen: Look, fence: int) -> None:
        """Take the testers' rules off the route, and once that is followed remove the candidate."""
        if seen.asked_percent or seen.routed_percent != 0:
            return
        objects, route = await asyncio.gather(self._read(target), self._routes.find(target))
        if route is not None and target.stable is not None and objects.service is not None:
            self._check_bound(target, route, seen)
            if await self._rest(target, route, objects.service, seen, fence):
                return
            await self._routes.stamp(target, route, fence)
        await self._changes.take_down(target, objects, fence)

    async def _rest(self, target: Target, route: Json, service: Json, seen: Look, fence: int) -> bool:
        """Lead the route to the endpoint's Service alone; False if it does so already."""
        backends = backends_of(target, service)
        if read_split(route, backends).at_rest and percent_of(route) is None:
            return False
        self._check_bound(target, route, seen)
        rules = (
            rest_rules(self._settings, backends.endpoint)
            if is_ours(route, target.endpoint)
            else adopted_rules(route, backends.names, shared_refs(backends, 0))
        )
        await self._routes.write(target, route, fence, rules, None)
        return True

    async def addresses(self, target: Target) -> Addresses:
        """The gateway, and each version: by a header where the route has a rule, else by its own Service.

        :raises ConfigurationError: nothing tells where the gateway is reached
        """
        route = await self._routes.find(target)
        address = await self._address(target, route)
        stable, candidate = await asyncio.gather(
            self._version_address(target, route, address, target.stable),
            self._version_address(target, route, address, target.candidate),
        )
        return Addresses(route=address, stable=stable, candidate=candidate, health_path=self._health(target))

    async def _version_address(
        self, target: Target, route: Json | None, address: Address, version: str | None
    ) -> Address | None:
        if version is not None and (VERSION_HEADER, version) in _headers(route):
            return replace(address, headers={**address.headers, VERSION_HEADER: version})
        return await version_address(self._client, target.endpoint, target.namespace, version)

    async def _address(self, target: Target, route: Json | None) -> Address:
        gateway = await find_gateway(self._client, self._settings, target.namespace)
        given = mapping(route.get("spec")).get("hostnames") if route else None
        hostnames = given if isinstance(given, list) else self._settings.hostnames
        return self._reached(gateway_address(gateway, self._settings, hostnames))

    def _reached(self, address: Address | None) -> Address:
        if address is None:
            fix = f"{self.name} does not tell where it is reached: write its base URL"
            raise ConfigurationError("address", None, fix)
        return address

    def _health(self, target: Target) -> str:
        """A path that the route takes and the model server answers."""
        path = target.names.get(HEALTH_PATH, "/ping")
        return path if path.startswith(self._settings.path_prefix) else self._settings.path_prefix

    async def last_lines(self, target: Target) -> tuple[str, ...]:
        """The last lines of the candidate's newest pod; empty if they cannot be had."""
        return await self._deployments.last_lines(target.endpoint, target.namespace, target.candidate)

    # What a change needs

    async def _read(self, target: Target) -> Objects:
        return await read_objects(self._deployments, self._client, target)

    @staticmethod
    def _check_bound(target: Target, route: Json, seen: Look) -> None:
        if metadata(route)["resourceVersion"] != resource_version(seen, ROUTE):
            raise ObjectConflictError(f"HTTPRoute {target.endpoint} has changed since it was looked at")

    async def _rules(
        self, target: Target, objects: Objects, route: Json, percent: int, mirror: int
    ) -> list[Json]:
        backends = backends_of(target, objects.service)
        wanted = {target.stable: 0 <= percent < 100, target.candidate: percent > 0 or mirror > 0}
        there: dict[str | None, Backend] = {}
        for version, deployment in ((target.stable, objects.stable), (target.candidate, objects.candidate)):
            if deployment is not None:
                service = await ensure_version_service(self._client, deployment)
                port = service["spec"]["ports"][0]["port"]
                there[version] = Backend(name=metadata(service)["name"], port=port)
            elif wanted[version] and percent + mirror:
                raise RolloutFailedError(f"the Deployment of version {version} is gone")
        backends = replace(
            backends,
            stable=there.get(target.stable, backends.stable),
            candidate=there.get(target.candidate, backends.candidate),
        )
        if not is_ours(route, target.endpoint):
            return adopted_rules(route, backends.names, shared_refs(backends, percent))
        testers = {version: backend for version, backend in there.items() if version is not None}
        return rollout_rules(self._settings, backends, testers, percent, mirror)

    async def _have_pods(self, target: Target, percent: int, mirror: int) -> bool:
        """Tell whether every Service that is to get requests has a pod that answers them."""
        backends: Backends = backends_of(target, None)
        wanted = [backends.stable.name] if 0 < percent < 100 else []
        wanted += [backends.candidate.name] if percent + mirror else []
        for name in wanted:
            slices = await read_slices(self._client, target.namespace, name)
            if slices is not None and not has_ready(slices):
                return False
        return True

    async def _check_mirror(self, target: Target, route: Json, mirror: int) -> None:
        if not mirror:
            return
        if not is_ours(route, target.endpoint):
            raise ConfigurationError("strategy.steps", mirror, f"{_FILTERS_STAY}: leave the shadow step out")
        gateway = await find_gateway(self._client, self._settings, target.namespace)
        features = await read_features(self._client, gateway)
        for feature in (MIRROR, *([MIRROR_PERCENT] if mirror < 100 else [])):
            if not features.can(feature):
                why = f"{self.name} cannot copy requests: {features.why_not(feature)}"
                raise ConfigurationError("strategy.steps", mirror, why)


def _headers(route: Json | None) -> set[tuple[str, str]]:
    """Names and values of the headers that the route looks at."""
    return {
        (str(header.get("name")), str(header.get("value")))
        for rule in items(mapping(mapping(route).get("spec")).get("rules"))
        for match in items(rule.get("matches"))
        for header in items(match.get("headers"))
    }


def _has_only(target: Target, objects: Objects, service: Json) -> bool:
    """True once the endpoint's Service has pods of the candidate, and no others."""
    ready = ready_endpoints(service, objects.pods, objects.slices, version_of)
    return ready is not None and ready.keys() == {target.candidate}
