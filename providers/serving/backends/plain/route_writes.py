"""The one HTTPRoute of an endpoint: found, made, patched, and put back where a gateway does not bear it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    RolloutFailedError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import HTTPROUTES
from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata
from nighttrain.providers.serving.backends.plain.objects import (
    fence_of,
    fence_text,
    mirror_of,
    percent_of,
)
from nighttrain.providers.serving.backends.plain.route_look import backends_of
from nighttrain.providers.serving.backends.plain.route_requests import WATCHED_SECONDS, why_it_fails
from nighttrain.providers.serving.backends.plain.routes import (
    RouteSettings,
    build_route,
    check_adoptable,
    is_ours,
)
from nighttrain.providers.serving.spec import FENCE_ANNOTATION, MIRROR_ANNOTATION, PERCENT_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.plain.changes import Sleep
    from nighttrain.providers.serving.backends.plain.routes import Backends
    from nighttrain.providers.serving.backends.traffic import Address, Target

# Status writes of the gateway come between a look and a patch; after a conflict the route is read again.
_WRITES = 10


class RouteWrites:
    """Reads and writes the routes of endpoints."""

    def __init__(self, client: ClusterClient, settings: RouteSettings, sleep: Sleep) -> None:
        self._client = client
        self._settings = settings
        self._sleep = sleep

    async def find(self, target: Target) -> Json | None:
        """The route, whoever made it; ``None`` if there is none."""
        try:
            return await self._client.get(HTTPROUTES, target.namespace, target.endpoint)
        except ObjectNotFoundError:
            return None

    async def find_writable(self, target: Target, backends: Backends) -> Json | None:
        """The route, if there is one, and it may be written.

        :raises WorkloadConflictError: it is somebody else's
        :raises ConfigurationError: it is to be taken over, and cannot be
        """
        route = await self.find(target)
        if route is None or is_ours(route, target.endpoint):
            return route
        if not self._settings.adopt_route:
            raise WorkloadConflictError(
                f"HTTPRoute {target.endpoint} exists and was not made by nighttrain for this endpoint: "
                "choose another endpoint name, remove it, or take it over with adopt_route=True"
            )
        check_adoptable(route, self._settings, target.namespace, backends.names)
        return route

    async def create(self, target: Target, service: Json, fence: int) -> None:
        """Make the route, at rest.

        :raises ObjectConflictError: somebody made one meanwhile
        """
        body = build_route(self._settings, backends_of(target, service).endpoint, target.namespace)
        body["metadata"]["annotations"] = {FENCE_ANNOTATION: fence_text(target, fence)}
        try:
            await self._client.create(HTTPROUTES, target.namespace, body)
        except ObjectExistsError as error:
            raise ObjectConflictError(f"HTTPRoute {target.endpoint} was just made") from error

    async def remove(self, route: Json) -> None:
        """Take a route away that this rollout made, for an endpoint that had no version."""
        held = metadata(route)
        try:
            await self._client.delete(
                HTTPROUTES, held["namespace"], held["name"], uid=held["uid"], propagation="Background"
            )
        except ObjectNotFoundError:
            return

    async def write(
        self,
        target: Target,
        route: Json,
        fence: int,
        rules: list[Json] | None,
        percent: int | None,
        mirror: int = 0,
    ) -> None:
        """Patch rules and annotations at once, bound to the route as it was read.

        :param rules: ``None`` leaves them
        :param percent: ``None`` where no rollout is under way any more
        :raises ObjectConflictError: somebody changed the route since
        """
        marks = {
            PERCENT_ANNOTATION: None if percent is None else str(percent),
            MIRROR_ANNOTATION: str(mirror) if mirror else None,
        }
        await self._patch(target, route, fence, marks, rules)

    async def stamp(self, target: Target, route: Json, fence: int) -> None:
        """Stamp the fence, where it is not yet there.

        :raises ObjectConflictError: somebody changed the route since
        """
        if fence_of(target, route) != fence:
            await self._patch(target, route, fence, {}, None)

    async def _patch(
        self, target: Target, route: Json, fence: int, marks: dict[str, str | None], rules: list[Json] | None
    ) -> None:
        body: dict[str, Any] = {
            "metadata": {
                "resourceVersion": metadata(route)["resourceVersion"],
                "annotations": {**marks, FENCE_ANNOTATION: fence_text(target, fence)},
            }
        }
        if rules is not None:
            body["spec"] = {"rules": rules}
        await self._client.patch(HTTPROUTES, target.namespace, target.endpoint, body)

    async def write_watched(
        self,
        target: Target,
        route: Json,
        fence: int,
        rules: list[Json],
        percent: int,
        mirror: int,
        address: Address,
        path: str,
    ) -> None:
        """Write rules that the gateway may not know in spite of what it lists, and ask through the route.

        :param address: of the route
        :param path: what to ask for
        :raises RolloutFailedError: requests fail before, so that nothing could be told, or after it
        """
        if why := await why_it_fails(address, path, self._sleep, seconds=0):
            raise RolloutFailedError(
                f"{target.endpoint}: requests are copied only where the route can be tried from here, and it "
                f"fails before anything was changed: {why}. If the gateway has another address, give it"
            )
        await self.write(target, route, fence, rules, percent, mirror)
        try:
            why = await why_it_fails(address, path, self._sleep, seconds=WATCHED_SECONDS)
        except asyncio.CancelledError:
            await asyncio.shield(asyncio.ensure_future(self._put_back(target, route, fence, rules)))
            raise
        if why is None:
            return
        await self._put_back(target, route, fence, rules)
        raise RolloutFailedError(
            f"{target.endpoint}: Gateway {self._settings.gateway} says that it can copy requests, and with "
            f"copies in the route requests fail: {why}. The route is as it was before"
        )

    async def _put_back(self, target: Target, before: Json, fence: int, rules: list[Json]) -> None:
        """Write the rules of before, unless somebody has written others meanwhile."""
        for _ in range(_WRITES):
            now = await self.find(target)
            if now is None or not _are_those(now, rules):
                return
            try:
                await self.write(
                    target, now, fence, before["spec"]["rules"], percent_of(before), mirror_of(before)
                )
            except ObjectConflictError:
                continue
            return


def _are_those(route: Json, rules: list[Json]) -> bool:
    """Tell whether weights and filters are those that were written; the API adds defaults to them."""

    def shown(rule: Json) -> tuple[list[Any], list[Any]]:
        refs = [(ref.get("name"), ref.get("weight")) for ref in items(rule.get("backendRefs"))]
        return refs, [each.get("type") for each in items(rule.get("filters"))]

    found = items(mapping(route.get("spec")).get("rules"))
    return [shown(rule) for rule in found] == [shown(rule) for rule in rules]
