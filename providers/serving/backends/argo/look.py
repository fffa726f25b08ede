"""One look at an endpoint on Argo Rollouts: a pure function over the objects that were read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import (
    any_condition,
    is_deleting,
    mapping,
    metadata,
    status,
    text,
    whole,
)
from nighttrain.providers.serving.backends.argo.objects import (
    ROLLOUT,
    SERVICE,
    STABLE_HASH,
    Found,
    Objects,
    Stage,
    asked_percent,
    candidate_hash,
    find,
    hash_of,
    is_observed,
    template_of,
)
from nighttrain.providers.serving.backends.argo.routed import is_settled, route_share, routed_percent
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.backends.http_routes import rule_weights
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.objects import NOTHING_THERE, fence_of, version_of
from nighttrain.providers.serving.backends.plain.strays import changed
from nighttrain.providers.serving.backends.pods import judge
from nighttrain.providers.serving.backends.traffic import Look
from nighttrain.providers.serving.spec import ENDPOINT_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target


def read(target: Target, objects: Objects) -> Look:
    """Say what the objects show. Total: whatever they hold, it returns; in doubt nothing is so."""
    found, rollout = find(target, objects), objects.rollout
    asked = asked_percent(target, objects, found)
    routed, unseen = routed_percent(target, objects, found, asked)
    service = None if objects.routed else objects.services.get(target.endpoint)
    versions = {ROLLOUT: rollout, SERVICE: service}
    return Look(
        readiness=_readiness(target, objects, found),
        stable_ready=_set_is_ready(objects.set_of(target.names.get(STABLE_HASH, ""))),
        asked_percent=asked,
        routed_percent=routed,
        unseen=unseen,
        promoted=_is_promoted(target, objects, found) and routed == 100,
        undone=_is_undone(target, objects, found) and routed == 0,
        fence=_fence(target, rollout, service),
        strayed=_strayed(target, objects, found, asked),
        resource_versions={
            name: str(metadata(each).get("resourceVersion")) for name, each in versions.items() if each
        },
    )


def stable_is_full(target: Target, objects: Objects) -> bool:
    """True if the stable version has as many ready pods as the whole endpoint is to have."""
    return _is_full(objects, objects.set_of(target.names.get(STABLE_HASH, "")))


def stable_answers(target: Target, objects: Objects) -> bool:
    """True if a pod of the stable version is ready."""
    held = objects.set_of(target.names.get(STABLE_HASH, ""))
    return bool(held and whole(status(held).get("readyReplicas")))


def _fence(target: Target, rollout: Json | None, service: Json | None) -> int:
    if rollout is None:
        return NOTHING_THERE if target.stable is None else 0
    fences = [fence_of(target, each) for each in (rollout, service) if each is not None]
    return min(fences)


def _readiness(target: Target, objects: Objects, found: Found) -> Readiness:
    rollout = objects.rollout
    if rollout is None or found.stage is Stage.GONE:
        return _failed("no Rollout", "Its Rollout does not exist: somebody deleted it.")
    if is_deleting(rollout):
        return _failed("being deleted", "Its Rollout is being deleted by somebody.")
    if found.stage in (Stage.STABLE, Stage.RETURNING, Stage.OTHER):
        gone = "The Rollout's template is another version's: it was never asked for, or was taken back."
        return _failed("not in the Rollout", gone)
    said = text(status(rollout).get("message"))
    if found.stage is Stage.ABORTED:
        return _failed("aborted", f"Argo Rollouts has aborted it: {said}")
    if is_observed(rollout) and any_condition(rollout, "InvalidSpec").get("status") == "True":
        return _failed("invalid", f"Argo Rollouts refuses the Rollout: {said}")
    held = objects.set_of(candidate_hash(target, objects))
    if held is None:
        return Readiness(ready=False, detail="Argo has not made its pods yet", doubt=said or None)
    judged = judge(_as_deployment(held), objects.pods_of(hash_of(held)))
    if judged.ready or judged.failure:
        return judged
    if is_observed(rollout) and any_condition(rollout, "Progressing").get("reason") == _TOO_LATE:
        return _failed(judged.detail, f"Argo Rollouts says {said}. {judged.doubt or ''}".rstrip())
    return judged


# It undoes nothing by itself.
_TOO_LATE = "ProgressDeadlineExceeded"


def _failed(detail: str, why: str) -> Readiness:
    return Readiness(ready=False, detail=detail, failure=why)


def _as_deployment(held: Json) -> Json:
    """A ReplicaSet in the words of a Deployment: every pod of it has its one form."""
    state = status(held)
    return {**held, "status": {**state, "updatedReplicas": state.get("replicas")}}


def _set_is_ready(held: Json | None) -> bool:
    return held is not None and judge(_as_deployment(held), ()).ready


def _is_full(objects: Objects, held: Json | None) -> bool:
    wanted = whole(mapping(objects.rollout.get("spec")).get("replicas")) if objects.rollout else None
    size = whole(mapping(held.get("spec")).get("replicas")) if held else None
    return size == (1 if wanted is None else wanted) and _set_is_ready(held)


def _is_settled_on(objects: Objects, pod_hash: str) -> bool:
    """Argo has followed: healthy, with one version that is both the stable and the present one."""
    rollout = objects.rollout
    if rollout is None or not pod_hash or is_deleting(rollout) or not is_observed(rollout):
        return False
    state = status(rollout)
    both = state.get("stableRS") == state.get("currentPodHash") == pod_hash
    return both and state.get("phase") == "Healthy" and _is_full(objects, objects.set_of(pod_hash))


def _is_promoted(target: Target, objects: Objects, found: Found) -> bool:
    return found.stage is Stage.EVERYTHING and _is_settled_on(objects, candidate_hash(target, objects))


def _is_undone(target: Target, objects: Objects, found: Found) -> bool:
    own = [each for each in objects.replica_sets if version_of(each) == target.candidate]
    if target.stable is None:
        return found.stage is Stage.GONE and not own
    gone = not any(_has_pods(each) for each in own if hash_of(each) != target.names.get(STABLE_HASH))
    settled = _is_settled_on(objects, target.names.get(STABLE_HASH, ""))
    return found.stage is Stage.STABLE and gone and settled


def _has_pods(held: Json) -> bool:
    """True if a ReplicaSet has pods, or is to have some."""
    counts = (mapping(held.get("spec")).get("replicas"), status(held).get("replicas"))
    return any(whole(count) for count in counts)


def _strayed(target: Target, objects: Objects, found: Found, asked: int) -> str | None:
    """What another hand did to what this rollout had written."""
    rollout = objects.rollout
    if rollout is None:
        gone = target.stable is not None
        return f"somebody deleted Rollout {target.names.get(ROLLOUT, target.endpoint)}" if gone else None
    if not fence_of(target, rollout):
        return None
    if found.stage is Stage.OTHER:
        version = version_of(template_of(rollout)) or "none of ours"
        return changed(rollout, "spec.template", f"version {version}", f"version {target.candidate}")
    if objects.routed:
        return _strayed_route(target, objects, found)
    return _strayed_service(target, objects)


def _strayed_route(target: Target, objects: Objects, found: Found) -> str | None:
    """Whether somebody else wrote the HTTPRoute since Argo did: it does not put that back."""
    rollout, route = objects.rollout, objects.route
    if rollout is None or route is None or not objects.steady:
        return None
    weights = mapping(mapping(status(rollout).get("canary")).get("weights"))
    written = whole(mapping(weights.get("canary")).get("weight"))
    share = route_share(target, objects)
    waits = found.stage is Stage.STEPS and found.followed and is_settled(rollout)
    if not waits or written != found.weight or share is None or share == written:
        return None
    return changed(route, "spec.rules", rule_weights(route), f"{written} percent, by Argo")


def _strayed_service(target: Target, objects: Objects) -> str | None:
    service = objects.services.get(target.endpoint)
    if service is None:
        return f"somebody deleted Service {target.endpoint}"
    found = mapping(mapping(service.get("spec")).get("selector"))
    both = {ENDPOINT_LABEL: target.endpoint}
    alone = [version_labels(target.endpoint, each) for each in (target.stable, target.candidate) if each]
    if not fence_of(target, service) or found in [both, *alone]:
        return None
    return changed(service, "spec.selector", found, both)
