"""One look at an endpoint on KServe: a pure function over the objects that were read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import is_deleting, metadata
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.backends.kserve import knative_look, standard_look
from nighttrain.providers.serving.backends.kserve.objects import (
    Objects,
    canaries_of,
    candidate_service,
    found_asked,
    predictor_of,
)
from nighttrain.providers.serving.backends.kserve.plan import Mode, Plan, form_of
from nighttrain.providers.serving.backends.kserve.stamp import OTHER, Asked, Stamp, read_stamp
from nighttrain.providers.serving.backends.plain.strays import changed
from nighttrain.providers.serving.backends.traffic import Look

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target

SERVICE, STAMP = "inferenceservice", "stamp"
"""In :attr:`Look.resource_versions`: the InferenceService, and the ConfigMap beside it."""

# Where nothing exists there is nothing that a process which comes too late could change: whatever was decided
# about it holds already.
_NOTHING_THERE = 2**62


def read(target: Target, objects: Objects) -> Look:
    """Say what the objects show. Total: whatever they hold, it returns; in doubt nothing is so."""
    plan, service = Plan.of(target), objects.service
    if service is None:
        return _nothing(target, plan, objects)
    found, stamp = found_asked(target, plan, service), read_stamp(target, objects.stamp)
    if plan.mode is Mode.KNATIVE:
        ready = knative_look.readiness(target, objects, found)
        stable_ready = knative_look.stable_is_ready(target, objects)
        routed, unseen = knative_look.routed(target, objects)
        promoted = knative_look.is_promoted(target, objects, found)
        undone = knative_look.is_undone(target, objects, found)
    else:
        ready = standard_look.readiness(target, plan, objects, found)
        stable_ready = standard_look.stable_is_ready(target, plan, objects)
        routed, unseen = standard_look.routed(target, plan, objects)
        promoted = standard_look.is_promoted(target, plan, objects, found)
        undone = standard_look.is_undone(target, plan, objects, found)
    if is_deleting(service):
        ready = _failed("It is being deleted", "Its InferenceService is being deleted by somebody.")
    if 0 < found.percent < 100 and routed is not None and routed != found.percent:
        unseen = _not_followed(found, routed, ready)
        routed = None
    versions = {SERVICE: service, STAMP: objects.stamp}
    return Look(
        readiness=ready,
        stable_ready=stable_ready,
        asked_percent=found.percent,
        routed_percent=routed,
        unseen=unseen,
        promoted=promoted,
        undone=undone,
        fence=stamp.fence_of(found) if stamp else 0,
        strayed=_strayed(plan, service, found, stamp),
        resource_versions={
            name: str(metadata(each).get("resourceVersion")) for name, each in versions.items() if each
        },
    )


def _nothing(target: Target, plan: Plan, objects: Objects) -> Look:
    left = candidate_service(target, plan) in objects.deployments or objects.pods_of(target.candidate)
    gone = None if target.stable is None else f"somebody deleted InferenceService {target.endpoint}"
    return Look(
        readiness=_failed("no InferenceService", "Its InferenceService does not exist: somebody deleted it."),
        stable_ready=False,
        routed_percent=0.0 if target.stable is None else None,
        undone=target.stable is None and not left,
        fence=_NOTHING_THERE,
        strayed=gone,
    )


def _failed(detail: str, why: str) -> Readiness:
    return Readiness(ready=False, detail=detail, failure=why)


def _not_followed(found: Asked, routed: float, ready: Readiness) -> str:
    why = "" if ready.ready else "; the candidate is not ready, and gets no weight until it is"
    return f"{found.percent} percent are asked for and {routed:g} percent are routed{why}"


def _strayed(plan: Plan, service: Json, found: Asked, stamp: Stamp | None) -> str | None:
    """What another hand did to what this rollout had written."""
    if stamp is None or stamp.explains(found):
        return None
    asked = f"{stamp.asked.stage}, {stamp.asked.percent} percent"
    if found != OTHER:
        field = "spec.predictor" if plan.mode is Mode.KNATIVE else "spec.canary"
        return changed(service, field, f"{found.stage}, {found.percent} percent", asked)
    shown = {
        "predictor": form_of(predictor_of(service)).get("model"),
        "canary": [each.get("trafficPercent") for each in canaries_of(service)],
    }
    return changed(service, "spec", shown, asked)
