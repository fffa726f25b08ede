"""Writes an endpoint's InferenceService, and the stamp beside it, each bound to the look that decided.

First the stamp, then the InferenceService. A process that stopped between the two leaves a stamp whose
change is not there: the look says so, and it is made again. One that stopped there and comes back later is
refused, because whoever went on has written the InferenceService since: where what is asked now is there
already, so that nothing would be written, the change that was left is made first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import ObjectConflictError, ObjectExistsError, ObjectNotFoundError
from nighttrain.providers.kubernetes.api.resources import CONFIGMAPS, INFERENCE_SERVICES
from nighttrain.providers.kubernetes.values.objects import metadata
from nighttrain.providers.serving.backends.kserve import patches
from nighttrain.providers.serving.backends.kserve.look import SERVICE, STAMP
from nighttrain.providers.serving.backends.kserve.objects import Objects, found_asked
from nighttrain.providers.serving.backends.kserve.plan import Mode, Plan
from nighttrain.providers.serving.backends.kserve.stamp import (
    EVERYTHING,
    NOTHING,
    RETURNING,
    Asked,
    Stamp,
    read_stamp,
    sharing,
    stamp_object,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Look, Target


# What is asked for while the spec has the stable version's predictor, Knative mode.
_STABLE = (NOTHING, RETURNING)


def patch_for(plan: Plan, found: Asked, wanted: Asked) -> Json | None:
    """The merge patch that makes a spec ask for what is wanted; ``None`` where it does.

    :raises ObjectConflictError: Knative mode, the stable version for good before its revision is ready
    """
    if found == wanted:
        return None
    if plan.mode is Mode.KNATIVE:
        if wanted == RETURNING:
            return patches.back(plan)
        if wanted == NOTHING and found != RETURNING:
            # Without a percentage the latest ready revision gets everything: the rejected one.
            raise ObjectConflictError("the stable version's revision has to be ready first: look again")
        if wanted in (NOTHING, EVERYTHING):
            return patches.share(None)
        return patches.start(plan, wanted.percent) if found in _STABLE else patches.share(wanted.percent)
    if wanted == NOTHING:
        return patches.removal()
    return patches.promotion(plan) if wanted == EVERYTHING else patches.canary(plan, wanted.percent)


class Changes:
    """One change at a time."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client

    async def ask(
        self, target: Target, plan: Plan, objects: Objects, wanted: Asked, fence: int, seen: Look | None
    ) -> None:
        """Ask for something, and stamp the fence.

        :param objects: read now
        :param seen: the look that decided it; ``None`` binds to what was read now
        :raises ObjectConflictError: somebody changed the InferenceService or the stamp since
        """
        service = _bound(target, objects, seen)
        found, old = found_asked(target, plan, service), read_stamp(target, objects.stamp)
        version = str(metadata(service)["resourceVersion"])
        if old is not None and old.fence == fence and old.asked == found == wanted:
            return
        if old is not None and found == wanted and _is_left(old, found):
            version = await self._patch(target, plan, found, old.asked, version)
            found = old.asked
        await self._stamp(target, service, objects.stamp, _next(target, old, found, wanted, fence))
        await self._patch(target, plan, found, wanted, version)

    async def create(self, target: Target, plan: Plan, fence: int) -> None:
        """Make the InferenceService of an endpoint that has none, and stamp it.

        :raises ObjectConflictError: somebody made it meanwhile
        """
        body = patches.first_service(target, plan)
        try:
            made = await self._client.create(INFERENCE_SERVICES, target.namespace, body)
        except ObjectExistsError as error:
            raise ObjectConflictError(f"somebody made InferenceService {target.endpoint} just now") from error
        stamp = _next(target, None, EVERYTHING, EVERYTHING, fence)
        await self._stamp(target, made, None, stamp)

    async def delete(self, target: Target, objects: Objects, seen: Look) -> None:
        """Delete the InferenceService that this rollout made; what belongs to it goes with it."""
        service = _bound(target, objects, seen)
        try:
            await self._client.delete(
                INFERENCE_SERVICES,
                target.namespace,
                target.endpoint,
                uid=metadata(service)["uid"],
                resource_version=metadata(service)["resourceVersion"],
            )
        except ObjectNotFoundError:
            return

    async def _patch(self, target: Target, plan: Plan, found: Asked, wanted: Asked, version: str) -> str:
        patch = patch_for(plan, found, wanted)
        if patch is None:
            return version
        body = {"metadata": {"resourceVersion": version}, **patch}
        written = await self._client.patch(INFERENCE_SERVICES, target.namespace, target.endpoint, body)
        return str(metadata(written)["resourceVersion"])

    async def _stamp(self, target: Target, service: Json, held: Json | None, stamp: Stamp) -> None:
        version = str(metadata(held)["resourceVersion"]) if held else None
        body = stamp_object(target, service, stamp, version)
        try:
            if held is None:
                await self._client.create(CONFIGMAPS, target.namespace, body)
            else:
                await self._client.replace(CONFIGMAPS, target.namespace, metadata(body)["name"], body)
        except (ObjectExistsError, ObjectNotFoundError) as error:
            raise ObjectConflictError(f"somebody else wrote the stamp of {target.endpoint}") from error


def _bound(target: Target, objects: Objects, seen: Look | None) -> Json:
    """The InferenceService, if it and the stamp are still what the look saw."""
    if objects.service is None:
        raise ObjectConflictError(f"InferenceService {target.endpoint} is gone: look again")
    for name, obj in ((SERVICE, objects.service), (STAMP, objects.stamp)):
        version = str(metadata(obj).get("resourceVersion")) if obj else None
        if seen is not None and seen.resource_versions.get(name) != version:
            raise ObjectConflictError(f"the {name} of {target.endpoint} has changed since: look again")
    return objects.service


def _is_left(stamp: Stamp, found: Asked) -> bool:
    """True if a process stopped after it had stamped a share, and may still patch it."""
    shares = stamp.asked == sharing(stamp.asked.percent)
    return shares and found == stamp.asked_before != stamp.asked


def _next(target: Target, old: Stamp | None, found: Asked, wanted: Asked, fence: int) -> Stamp:
    """The stamp of a change, beside what is found before it."""
    return Stamp(
        candidate=target.candidate,
        fence=fence,
        asked=wanted,
        fence_before=old.fence_of(found) if old else 0,
        asked_before=found,
    )
