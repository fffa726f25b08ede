"""Standard mode: what a look says. Pure functions over Deployments, the HTTPRoute and the status.

``Ready`` alone says nothing of success: an update to a version that never becomes ready leaves it True, and
KServe 0.20 reports a share in its status that its route does not make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import (
    condition,
    is_deleting,
    items,
    mapping,
    metadata,
    status,
    text,
    whole,
)
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.backends.http_routes import rule_weights, why_not_accepted
from nighttrain.providers.serving.backends.kserve.objects import (
    Objects,
    candidate_service,
    label_of,
    predictor_of,
    stable_service,
)
from nighttrain.providers.serving.backends.kserve.stamp import EVERYTHING, NOTHING, Asked
from nighttrain.providers.serving.backends.pods import desired_replicas, judge

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.kserve.plan import Plan
    from nighttrain.providers.serving.backends.traffic import Target


def readiness(target: Target, plan: Plan, objects: Objects, found: Asked) -> Readiness:
    """How far the candidate is."""
    if found == NOTHING:
        gone = "The InferenceService does not name it: it was never started, or somebody took it back."
        return Readiness(ready=False, detail="not in the InferenceService", failure=gone)
    deployment = objects.deployments.get(candidate_service(target, plan))
    if deployment is None or not _is_of(deployment, target.candidate):
        return Readiness(ready=False, detail="KServe has not made its Deployment yet")
    judged = judge(deployment, objects.pods_of(target.candidate))
    if judged.ready or judged.doubt or found != EVERYTHING or objects.service is None:
        return judged
    return Readiness(
        ready=False, detail=judged.detail, failure=judged.failure, doubt=_load_failure(objects.service)
    )


def stable_is_ready(target: Target, plan: Plan, objects: Objects) -> bool:
    """True if the stable version answers, at the size that its Deployment asks for."""
    deployment = objects.deployments.get(stable_service(target, plan))
    if target.stable is None or deployment is None or not _is_of(deployment, target.stable):
        return False
    return judge(deployment, objects.pods_of(target.stable)).ready


def routed(target: Target, plan: Plan, objects: Objects) -> tuple[float | None, str | None]:
    """The candidate's share by the HTTPRoute's weights, and why it cannot be seen."""
    if objects.route is None:
        return None, f"there is no HTTPRoute {target.endpoint}: KServe makes it with enableGatewayApi"
    if why := why_not_accepted(objects.route):
        return None, why
    shares = set()
    known = {stable_service(target, plan): 0.0, candidate_service(target, plan): 1.0}
    for weights in rule_weights(objects.route):
        total = sum(weights.values())
        if not total or not weights.keys() <= known.keys():
            return None, f"HTTPRoute {target.endpoint} leads to {', '.join(sorted(weights)) or 'nowhere'}"
        if why := _other_pods(target, plan, objects, [name for name in weights if weights[name]]):
            return None, why
        shares.add(100 * sum(known[name] * weight for name, weight in weights.items()) / total)
    if len(shares) != 1:
        return None, f"the rules of HTTPRoute {target.endpoint} share the requests in different ways"
    share = shares.pop()
    entry = _canary_status(plan, objects.service)
    if share and entry is not None and entry.get("ready") is not True:
        return None, "the HTTPRoute has a weight for the candidate, and the status says that it is not ready"
    return share, None


def _other_pods(target: Target, plan: Plan, objects: Objects, names: list[str]) -> str | None:
    """Why what is behind a Service is not the version that belongs there."""
    for name in names:
        own = name == candidate_service(target, plan)
        version = target.candidate if own else target.stable
        deployment = objects.deployments.get(name)
        if deployment is None or not _is_of(deployment, version):
            return f"behind Service {name} is not version {version}"
    return None


def splits(target: Target, plan: Plan, objects: Objects) -> bool | None:
    """Whether KServe makes weights of ``spec.canary`` (from 0.21), or only says so (0.20).

    From 0.21 the route's weights are percentages as soon as there is an entry, also while it is not ready or
    has 0 percent; and they are written before the status names the entry. ``None``: it cannot be told yet.
    """
    rules = rule_weights(objects.route) if objects.route else []
    if rules and all(sum(weights.values()) == 100 for weights in rules):
        return True
    return False if rules and _canary_status(plan, objects.service) is not None else None


def is_promoted(target: Target, plan: Plan, objects: Objects, found: Asked) -> bool:
    """The candidate alone is left, at full size, with every request."""
    if found != EVERYTHING or not _is_settled(objects):
        return False
    name = candidate_service(target, plan)
    alone = objects.route is not None and _leads_only_to(objects.route, name)
    return alone and _is_whole(target.candidate, objects.deployments.get(name), objects)


def is_undone(target: Target, plan: Plan, objects: Objects, found: Asked) -> bool:
    """The stable version alone is left, at full size, with every request."""
    name, gone = stable_service(target, plan), candidate_service(target, plan)
    if target.stable is None or found != NOTHING or not _is_settled(objects):
        return False
    if gone in objects.deployments or objects.pods_of(target.candidate):
        return False
    alone = objects.route is not None and _leads_only_to(objects.route, name)
    return alone and _is_whole(target.stable, objects.deployments.get(name), objects)


def _is_settled(objects: Objects) -> bool:
    """KServe has followed: it says Ready, and nothing of a canary."""
    service = objects.service
    if service is None or is_deleting(service) or status(service).get("canaryStatuses"):
        return False
    return all(condition(service, kind) for kind in ("Ready", "PredictorReady", "IngressReady"))


def _is_whole(version: str, deployment: Json | None, objects: Objects) -> bool:
    if deployment is None or not _is_of(deployment, version):
        return False
    # The status repeats the generation of the Deployment that KServe looked at, not the InferenceService's.
    followed = status(objects.service).get("observedGeneration") == metadata(deployment).get("generation")
    full = whole(predictor_of(objects.service).get("minReplicas")) or 1
    if not followed or desired_replicas(deployment) < full:
        return False
    return judge(deployment, objects.pods_of(version)).ready


def _is_of(deployment: Json, version: str | None) -> bool:
    template = mapping(mapping(deployment.get("spec")).get("template"))
    return label_of(template) == version


def _leads_only_to(route: Json, name: str) -> bool:
    rules = rule_weights(route)
    return not why_not_accepted(route) and bool(rules) and all(set(rule) == {name} for rule in rules)


def _canary_status(plan: Plan, service: Json | None) -> Json | None:
    entries = items(status(service).get("canaryStatuses")) if service else []
    return next((each for each in entries if each.get("name") == plan.candidate_name), None)


def _load_failure(service: Json) -> str | None:
    model = mapping(status(service).get("modelStatus"))
    failed = mapping(model.get("lastFailureInfo"))
    if model.get("transitionStatus") != "BlockedByFailedLoad":
        return None
    return f"KServe says {text(failed.get('reason'))}, exit code {failed.get('exitCode')}"
