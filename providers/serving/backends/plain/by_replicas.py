"""Plain Deployments behind one Service: a share is the candidate's part of the ready pods.

The Service selects the stable version's pods, the candidate's, or those of both; the number of candidates
makes the share. How many pods the stable version has is left to autoscalers and people.
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
from nighttrain.providers.kubernetes.values.objects import metadata, status, whole
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.backends.plain.changes import SERVICE, Changes, Sleep, resource_version
from nighttrain.providers.serving.backends.plain.objects import (
    FULL_REPLICAS,
    HEALTH_PATH,
    Objects,
    annotations_of,
    candidate_readiness,
    is_marked_stable,
    percent_of,
    read_objects,
    version_of,
)
from nighttrain.providers.serving.backends.plain.replica_look import (
    asked_percent,
    look_at_replicas,
    selector_for,
)
from nighttrain.providers.serving.backends.plain.shares import is_ready, replicas_for_share
from nighttrain.providers.serving.backends.plain.version_services import service_address, version_address
from nighttrain.providers.serving.backends.pods import desired_replicas
from nighttrain.providers.serving.backends.traffic import (
    Addresses,
    Capabilities,
    Look,
    Progress,
    Target,
    Weights,
)
from nighttrain.providers.serving.spec import (
    PERCENT_ANNOTATION,
    SCALED_DOWN_ANNOTATION,
    SHARE_REPLICAS_ANNOTATION,
    ServingSpec,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient


class ReplicaShares:
    """The backend for a cluster without any router: weights by replicas.

    :param sleep: what waiting is done with
    """

    name = "plain Deployments behind one Service"

    def __init__(self, client: ClusterClient, *, sleep: Sleep = asyncio.sleep) -> None:
        self._client = client
        self._deployments = KubernetesDeployments(client)
        self._changes = Changes(client, self._deployments, sleep)

    async def capabilities(self, namespace: str) -> Capabilities:
        """Shares by replicas; nothing is copied, and no header is looked at."""
        return Capabilities(
            weights=Weights.BY_REPLICAS, split_seen_in="the ready endpoints of the endpoint's Service"
        )

    async def begin(self, spec: ServingSpec) -> Target:
        """Find the version that serves; nothing is changed."""
        return await self._changes.begin(spec)

    async def bring_up(self, spec: ServingSpec, target: Target, fence: int, tell: Progress) -> None:
        """Bring one pod of the candidate up without requests, and scale all but the stable version to zero.

        A share is made of all ready pods of the endpoint, so a version that an earlier rollout kept warm
        would get requests, too. It is scaled to zero, and scaled up again if this rollout is undone.

        :raises RolloutFailedError: an earlier rollout left the requests with a version that is not the stable
            one, and the stable one cannot take them
        """
        await self._changes.return_requests(
            target, await self._read(target), fence, tell, {PERCENT_ANNOTATION: "0"}
        )
        await self._changes.bring_up(spec, target, tell, replicas=1)
        await self._empty_others(target, tell)
        objects = await self._read(target)
        if objects.service is None:
            await self._changes.stamp_deployment(target, objects.candidate, fence)
        else:
            changed: dict[str, str | None] = {PERCENT_ANNOTATION: "0", SHARE_REPLICAS_ANNOTATION: None}
            await self._changes.patch_service(target, objects.service, None, fence, changed)

    async def _empty_others(self, target: Target, tell: Progress | None = None) -> bool:
        """Scale every version but the two to zero; False if there was none with pods to come."""
        found = False
        for other in await self._changes.others(target):
            size = desired_replicas(other)
            if size == 0:
                continue
            found = True
            name = metadata(other)["name"]
            if tell:
                tell(
                    f"{name}: scaled from {size} to zero replicas while this rollout lasts: shares are made "
                    f"of pods. Until it ends, version {target.stable} is the way back"
                )
            # A second scaling within one rollout keeps the first number.
            kept = annotations_of(other).get(SCALED_DOWN_ANNOTATION, str(size))
            await self._changes.scale(other, 0, {SCALED_DOWN_ANNOTATION: kept})
        return found

    async def look(self, target: Target) -> Look:
        """See where things stand."""
        try:
            return look_at_replicas(target, await self._read(target))
        except WorkloadConflictError as error:
            return Look(
                readiness=Readiness(ready=False, detail=str(error)), stable_ready=False, strayed=str(error)
            )

    async def set_traffic(
        self, target: Target, seen: Look, fence: int, *, percent: int, mirror_percent: int = 0
    ) -> None:
        """Ask for a share, once the candidate has as many ready pods as it takes; until then ask for pods.

        It is to be repeated until a look says that the share was asked for. The way back to 0 percent is one
        patch, whatever the pods do.

        :raises ConfigurationError: copies were asked for
        :raises RolloutFailedError: there is nothing to share the requests with
        """
        if mirror_percent:
            raise ConfigurationError(
                "strategy.steps",
                mirror_percent,
                f"{self.name} cannot copy requests; leave the shadow step out",
            )
        objects = await self._read(target)
        if target.stable is None:
            await self._first_traffic(target, objects, fence, percent)
            return
        if objects.service is None:
            raise RolloutFailedError(f"somebody deleted Service {target.endpoint}")
        if metadata(objects.service)["resourceVersion"] != resource_version(seen, SERVICE):
            raise ObjectConflictError(f"Service {target.endpoint} has changed since it was looked at")
        asked = percent_of(objects.service) or 0
        same = asked == percent == asked_percent(target, objects.service)
        changed: dict[str, str | None] = {PERCENT_ANNOTATION: str(percent)}
        if percent and not await self._is_sized(target, objects, percent, force=same):
            return
        await self._changes.patch_service(
            target, objects.service, seen, fence, changed, selector_for(target, percent)
        )

    async def _is_sized(self, target: Target, objects: Objects, percent: int, *, force: bool) -> bool:
        """Tell whether the pods make the share by now; if not, ask for them.

        :param force: the share is being routed already: it stays so while pods come and go
        """
        candidate = objects.candidate
        if candidate is None:
            raise RolloutFailedError(f"the Deployment of version {target.candidate} is gone")
        wanted = self._size(target, objects, percent)
        have = desired_replicas(candidate)
        enough = have >= wanted if percent == 100 else have == wanted
        if not enough:
            await self._changes.scale(candidate, wanted, {SHARE_REPLICAS_ANNOTATION: str(wanted)})
            return force
        if force:
            return True
        if percent < 100 and await self._empty_others(target):
            return False
        readiness = candidate_readiness(target, objects)
        if percent < 100:
            return readiness.ready and not self._strangers(target, objects)
        return readiness.answers and (whole(status(candidate).get("readyReplicas")) or 0) >= wanted

    @staticmethod
    def _strangers(target: Target, objects: Objects) -> bool:
        """True if pods of another version would get requests, too."""
        known = {target.stable, target.candidate}
        return any(is_ready(pod) and version_of(pod) not in known for pod in objects.pods)

    @staticmethod
    def _size(target: Target, objects: Objects, percent: int) -> int:
        stable = desired_replicas(objects.stable) if objects.stable else 0
        if percent == 100:
            return int(target.names.get(FULL_REPLICAS) or max(1, stable))
        if stable == 0:
            raise RolloutFailedError(
                f"{target.endpoint}: version {target.stable} has no pods, so that any share of version "
                f"{target.candidate} would be everything: scale it up, or use blue_green()"
            )
        return replicas_for_share(percent, stable)

    async def _first_traffic(self, target: Target, objects: Objects, fence: int, percent: int) -> None:
        """Where nothing served before: everything, or nothing."""
        service, candidate = objects.service, objects.candidate
        if percent == 0:
            if service is not None:
                await self._changes.remove_first_service(service)
            await self._changes.stamp_deployment(target, candidate, fence)
            return
        if percent != 100 or candidate is None:
            raise RolloutFailedError(f"{target.endpoint}: there is no version to share the requests with")
        wanted = self._size(target, objects, 100)
        if desired_replicas(candidate) < wanted:
            await self._changes.scale(candidate, wanted)
        elif (whole(status(candidate).get("readyReplicas")) or 0) < wanted:
            return
        elif service is None:
            await self._changes.first_service(target, candidate, fence)
        else:
            changed: dict[str, str | None] = {PERCENT_ANNOTATION: "100"}
            await self._changes.patch_service(
                target, service, None, fence, changed, selector_for(target, 100)
            )

    async def promote(self, target: Target, seen: Look, fence: int) -> None:
        """Make the candidate the stable version; the one before is kept, up and ready, for a rollback.

        :raises RolloutFailedError: it does not have every request
        """
        objects = await self._read(target)
        if is_marked_stable(target, objects):
            await self._changes.settle(objects.candidate)
            return
        if asked_percent(target, objects.service) != 100:
            raise RolloutFailedError(f"version {target.candidate} does not have 100 percent of the requests")
        await self._trim(target, objects)
        await self._changes.switch(target, objects, seen, fence)

    async def _trim(self, target: Target, objects: Objects) -> None:
        """Take back the pods that only a share above a half needed, unless somebody changed their number."""
        candidate, full = objects.candidate, self._size(target, objects, 100)
        if candidate is None:
            return
        written = annotations_of(candidate).get(SHARE_REPLICAS_ANNOTATION)
        if desired_replicas(candidate) > full and written == str(desired_replicas(candidate)):
            await self._changes.scale(candidate, full, {SHARE_REPLICAS_ANNOTATION: None})

    async def undo(self, target: Target, seen: Look, fence: int) -> None:
        """Remove the candidate, which has no requests any more."""
        objects = await self._read(target)
        if asked_percent(target, objects.service) or seen.routed_percent != 0:
            return
        if objects.candidate is not None and objects.service is not None and target.stable is not None:
            service = await self._changes.patch_service(target, objects.service, seen, fence, {})
            objects = replace(objects, service=service)
        await self._changes.take_down(target, objects, fence)

    async def addresses(self, target: Target) -> Addresses:
        """The endpoint's Service, and one for each version."""
        service = await self._deployments.service(target.endpoint, target.namespace)
        stable, candidate = await asyncio.gather(
            *(
                version_address(self._client, target.endpoint, target.namespace, version)
                for version in (target.stable, target.candidate)
            )
        )
        route = service_address(service) or candidate
        if route is None:
            raise RolloutFailedError(f"{target.endpoint}: there is no Service to send requests to")
        return Addresses(
            route=route,
            stable=stable,
            candidate=candidate,
            health_path=target.names.get(HEALTH_PATH, "/ping"),
        )

    async def last_lines(self, target: Target) -> tuple[str, ...]:
        """The last lines of the candidate's newest pod; empty if they cannot be had."""
        return await self._deployments.last_lines(target.endpoint, target.namespace, target.candidate)

    async def _read(self, target: Target) -> Objects:
        return await read_objects(self._deployments, self._client, target)
