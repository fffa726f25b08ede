"""The changes that both plain backends make to an endpoint's Service and Deployments, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ObjectConflictError, ObjectNotFoundError, RolloutFailedError
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS, SERVICES
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, name_of
from nighttrain.providers.serving.backends.kubernetes_deployment import switch_patch, whole_selector
from nighttrain.providers.serving.backends.manifests import build_service, version_labels
from nighttrain.providers.serving.backends.plain.objects import (
    FULL_REPLICAS,
    HEALTH_PATH,
    KEPT_REPLICAS,
    OF_A_ROLLOUT,
    annotations_of,
    fence_of,
    fence_text,
    is_settled,
    stable_is_ready,
)
from nighttrain.providers.serving.backends.plain.version_services import ensure_version_service
from nighttrain.providers.serving.backends.pods import desired_replicas
from nighttrain.providers.serving.backends.traffic import Look, Progress, Target
from nighttrain.providers.serving.spec import (
    CANDIDATE_ANNOTATION,
    FENCE_ANNOTATION,
    PERCENT_ANNOTATION,
    SCALED_DOWN_ANNOTATION,
    SHARE_REPLICAS_ANNOTATION,
    STABLE_ANNOTATION,
    SWITCHED_ANNOTATION,
    VERSION_LABEL,
    ServingSpec,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
    from nighttrain.providers.serving.backends.plain.objects import Objects

# Between the moment in which a version is seen to have lost its requests and its end: recorded gateways and
# nodes follow within two seconds, and this is more than twice as long.
DRAIN_SECONDS = 5.0

_OF_A_STABLE = frozenset({STABLE_ANNOTATION, SWITCHED_ANNOTATION})

# What the Service remembers of a rollout until it is over.
_MARKS = frozenset({CANDIDATE_ANNOTATION, PERCENT_ANNOTATION, SHARE_REPLICAS_ANNOTATION})

SERVICE = "service"
"""In :attr:`Look.resource_versions`: the endpoint's Service."""

Sleep = Callable[[float], Awaitable[None]]


def resource_version(seen: Look, name: str) -> str:
    """The resourceVersion that a look saw.

    :raises ObjectConflictError: it saw no such object
    """
    if name not in seen.resource_versions:
        raise ObjectConflictError(f"the look that decided this saw no {name}: look again")
    return seen.resource_versions[name]


class Changes:
    """Writes to the cluster for a backend, each time bound to the look that decided it."""

    def __init__(
        self, client: ClusterClient, deployments: KubernetesDeployments, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._client = client
        self._deployments = deployments
        self._sleep = sleep

    async def begin(self, spec: ServingSpec) -> Target:
        """Find the version that serves; nothing is changed."""
        spec.validate()
        await self._deployments.check(spec)
        service = await self._deployments.service(spec.endpoint, spec.namespace)
        found = await self._deployments.deployment(spec.endpoint, spec.namespace, spec.version)
        names = {HEALTH_PATH: spec.filled_server().readiness_path}
        if spec.replicas is not None:
            names[FULL_REPLICAS] = str(spec.replicas)
        if found is not None:
            names[KEPT_REPLICAS] = str(desired_replicas(found))
        return Target(
            endpoint=spec.endpoint,
            namespace=spec.namespace,
            model_name=spec.model_name,
            candidate=spec.version,
            stable=annotations_of(service).get(STABLE_ANNOTATION),
            names=names,
        )

    async def bring_up(
        self, spec: ServingSpec, target: Target, tell: Progress, *, replicas: int | None
    ) -> None:
        """Bring the candidate's Deployment up, or adopt it, and make a Service for each version.

        :param replicas: of a Deployment that is not there yet; as many as the stable version's, if not said
        """
        endpoint, namespace = target.endpoint, target.namespace
        await self._deployments.check(spec)
        found = await self._deployments.deployment(endpoint, namespace, target.candidate)
        if found is None and replicas is not None:
            spec = replace(spec, replicas=replicas)
        await self._deployments.deploy(spec, tell)
        for version in (target.stable, target.candidate):
            up = version and await self._deployments.deployment(endpoint, namespace, version)
            if up:
                await ensure_version_service(self._client, up)

    async def return_requests(
        self, target: Target, objects: Objects, fence: int, tell: Progress, changed: dict[str, str | None]
    ) -> None:
        """Have the Service select the stable version, where a rollout that stopped half-way left another one.

        :param changed: annotations, in the same patch
        :raises RolloutFailedError: the stable version cannot take the requests
        """
        service = objects.service
        if service is None or target.stable is None:
            return
        home = version_labels(target.endpoint, target.stable)
        selector = mapping(mapping(service.get("spec")).get("selector"))
        if selector == home:
            await self.patch_service(target, service, None, fence, changed)
            return
        if not stable_is_ready(target, objects):
            raise RolloutFailedError(
                f"Service {target.endpoint} selects {selector}, not the stable version {target.stable}, "
                "which is not ready: roll back to a version that is, or correct the Service"
            )
        tell(f"{target.endpoint}: an earlier rollout stopped; requests go back to version {target.stable}")
        await self.patch_service(target, service, None, fence, changed, home)

    async def others(self, target: Target) -> list[Json]:
        """The Deployments of every version but the two of the rollout."""
        known = {target.stable, target.candidate}
        versions = await self._deployments.versions(target.endpoint, target.namespace)
        found = [
            await self._deployments.deployment(target.endpoint, target.namespace, each.version)
            for each in versions
            if each.version not in known
        ]
        return [deployment for deployment in found if deployment is not None]

    async def patch_service(
        self, target: Target, service: Json, seen: Look | None, fence: int, changed: dict[str, str | None],
        selector: dict[str, str] | None = None,
    ) -> Json:  # fmt: skip
        """Change annotations, and the selector in the same patch; the fence is stamped with them.

        :param seen: the look that decided it; ``None`` binds to the Service as it was just read
        :raises ObjectConflictError: the Service has changed since
        """
        guard = metadata(service)["resourceVersion"] if seen is None else resource_version(seen, SERVICE)
        marks = {**changed, FENCE_ANNOTATION: fence_text(target, fence)}
        body: Json = {"metadata": {"resourceVersion": guard, "annotations": marks}}
        if selector is not None:
            body["spec"] = {"selector": whole_selector(service, selector)}
        return await self._client.patch(SERVICES, target.namespace, target.endpoint, body)

    async def stamp_deployment(self, target: Target, deployment: Json | None, fence: int) -> None:
        """Stamp the fence on the candidate, where there is no Service yet."""
        if deployment is not None and fence_of(target, deployment) != fence:
            marks = {FENCE_ANNOTATION: fence_text(target, fence)}
            body = {"metadata": {"annotations": marks}}
            await self._client.patch(DEPLOYMENTS, target.namespace, name_of(deployment), body)

    async def first_service(self, target: Target, deployment: Json, fence: int) -> None:
        """Make the Service of an endpoint that had no version: every request goes to the candidate.

        :raises ObjectConflictError: somebody made it meanwhile
        """
        body = build_service(deployment)
        marks = {name: held for name, held in annotations_of(body).items() if name not in _OF_A_STABLE}
        body["metadata"]["annotations"] = marks | {
            CANDIDATE_ANNOTATION: target.candidate,
            PERCENT_ANNOTATION: "100",
            FENCE_ANNOTATION: fence_text(target, fence),
        }
        await self._deployments.create_service(body)

    async def remove_first_service(self, service: Json) -> None:
        """Take the Service away that this rollout made: there is no version to go back to."""
        held = metadata(service)
        try:
            await self._client.delete(
                SERVICES,
                held["namespace"],
                held["name"],
                uid=held["uid"],
                resource_version=held["resourceVersion"],
                propagation="Background",
            )
        except ObjectNotFoundError:
            return

    async def scale(
        self, deployment: Json, replicas: int, marks: dict[str, str | None] | None = None
    ) -> None:
        """Give a Deployment another size, unless somebody changed it just now."""
        held = metadata(deployment)
        guarded = {"resourceVersion": held["resourceVersion"], "annotations": marks or {}}
        body: Json = {"metadata": guarded, "spec": {"replicas": replicas}}
        await self._client.patch(DEPLOYMENTS, held["namespace"], held["name"], body)

    async def switch(self, target: Target, objects: Objects, seen: Look, fence: int) -> None:
        """Make the candidate the stable version: annotations and selector in one patch.

        :raises RolloutFailedError: the candidate or the Service is gone
        """
        if objects.service is None or objects.candidate is None:
            raise RolloutFailedError(
                f"{target.endpoint}: its Service or the Deployment of version {target.candidate} is gone"
            )
        # What no rollback leads to any more; it had no requests since the rollout before this one.
        for other in await self.others(target):
            version = metadata(other)["labels"][VERSION_LABEL]
            await self._deployments.remove(target.endpoint, target.namespace, version)
        body = switch_patch(objects.service, target.endpoint, target.candidate) or {"metadata": {}}
        marks = dict.fromkeys((PERCENT_ANNOTATION, SHARE_REPLICAS_ANNOTATION))
        body["metadata"]["resourceVersion"] = resource_version(seen, SERVICE)
        body["metadata"]["annotations"] = {
            **body["metadata"].get("annotations", {}),
            **marks,
            FENCE_ANNOTATION: fence_text(target, fence),
        }
        await self._client.patch(SERVICES, target.namespace, target.endpoint, body)
        await self.settle(objects.candidate)

    async def settle(self, deployment: Json | None) -> None:
        """Have the candidate's Deployment forget the rollout, where a process ended before it did."""
        if deployment is not None and not is_settled(deployment):
            held, settled = metadata(deployment), {"metadata": {"annotations": dict.fromkeys(OF_A_ROLLOUT)}}
            await self._client.patch(DEPLOYMENTS, held["namespace"], held["name"], settled)

    async def take_down(self, target: Target, objects: Objects, fence: int) -> None:
        """Remove the candidate some time after its requests; what was scaled down for it returns.

        A version that an earlier rollout kept stays, as it was before this one.

        :raises ObjectConflictError: somebody changed the endpoint meanwhile
        """
        if objects.candidate is not None:
            await self._drain(target, objects.service)
        await self._deployments.revert(target.endpoint, target.namespace, target.candidate)
        kept = target.names.get(KEPT_REPLICAS)
        found = await self._deployments.deployment(target.endpoint, target.namespace, target.candidate)
        if found is not None:
            wanted = int(kept) if kept is not None else desired_replicas(found)
            if wanted != desired_replicas(found) or SHARE_REPLICAS_ANNOTATION in annotations_of(found):
                await self.scale(found, wanted, {SHARE_REPLICAS_ANNOTATION: None})
        for other in await self.others(target):
            before = annotations_of(other).get(SCALED_DOWN_ANNOTATION, "")
            if before.isdecimal():
                replicas = desired_replicas(other) or int(before)
                await self.scale(other, replicas, {SCALED_DOWN_ANNOTATION: None})
        service = await self._deployments.service(target.endpoint, target.namespace)
        if service is not None and _MARKS & annotations_of(service).keys():
            await self.patch_service(target, service, None, fence, dict.fromkeys(_MARKS))

    async def _drain(self, target: Target, service: Json | None) -> None:
        await self._sleep(DRAIN_SECONDS)
        now = await self._deployments.service(target.endpoint, target.namespace)
        versions = [metadata(each)["resourceVersion"] if each else None for each in (service, now)]
        if versions[0] != versions[1]:
            raise ObjectConflictError(f"Service {target.endpoint} was changed while its candidate drained")
