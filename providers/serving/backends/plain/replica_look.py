"""What one look at an endpoint whose shares are made by replicas says: a pure function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import mapping, metadata
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.changes import SERVICE
from nighttrain.providers.serving.backends.plain.objects import (
    NOTHING_THERE,
    Objects,
    annotations_of,
    candidate_readiness,
    fence_of,
    is_marked_stable,
    is_settled,
    nothing_is_left,
    percent_of,
    stable_is_ready,
    version_of,
)
from nighttrain.providers.serving.backends.plain.shares import ready_endpoints, share
from nighttrain.providers.serving.backends.plain.strays import changed
from nighttrain.providers.serving.backends.traffic import Look, Target
from nighttrain.providers.serving.spec import CANDIDATE_ANNOTATION, ENDPOINT_LABEL, STABLE_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json


def look_at_replicas(target: Target, objects: Objects) -> Look:
    """Read a look off the objects. Total: whatever they hold, it returns; in doubt nothing is so."""
    service = objects.service
    readiness = candidate_readiness(target, objects)
    stable_ready = stable_is_ready(target, objects)
    routed, unseen = routed_percent(target, objects)
    own = selector_of(service) == version_labels(target.endpoint, target.candidate)
    there = service or objects.candidate
    return Look(
        readiness=readiness,
        stable_ready=stable_ready,
        asked_percent=asked_percent(target, service),
        routed_percent=routed,
        unseen=unseen,
        promoted=is_marked_stable(target, objects)
        and own
        and readiness.ready
        and routed == 100
        and is_settled(objects.candidate),
        undone=_is_undone(target, objects, stable_ready=stable_ready, routed=routed),
        fence=fence_of(target, there) if there else NOTHING_THERE,
        strayed=strayed_service(target, service, selector_for(target, percent_of(service) or 0)),
        resource_versions={SERVICE: metadata(service)["resourceVersion"]} if service else {},
    )


def selector_of(service: Json | None) -> Json:
    """What a Service selects."""
    return mapping(mapping(service.get("spec")).get("selector")) if service else {}


def selector_for(target: Target, percent: int) -> dict[str, str]:
    """What the endpoint's Service selects for a share: one version's pods, or those of both."""
    if percent in (0, 100):
        version = target.candidate if percent else target.stable
        return version_labels(target.endpoint, version) if version else {}
    return {ENDPOINT_LABEL: target.endpoint}


def asked_percent(target: Target, service: Json | None) -> int:
    """The share that the selector makes: of a selector for both, what was asked of their replicas."""
    selector = selector_of(service)
    if selector == selector_for(target, 100):
        return 100
    if selector == {ENDPOINT_LABEL: target.endpoint}:
        return percent_of(service) or 0
    return 0


def routed_percent(target: Target, objects: Objects) -> tuple[float | None, str | None]:
    """The candidate's share of the ready endpoints, and why it cannot be seen."""
    if objects.service is None:
        return 0.0, None
    ready = ready_endpoints(objects.service, objects.pods, objects.slices, version_of)
    if ready is None:
        return None, "the Service's EndpointSlices do not show its ready pods yet"
    return share(ready, target.candidate), None


def strayed_service(target: Target, service: Json | None, written: dict[str, str]) -> str | None:
    """What another hand did to the endpoint's Service, since this rollout wrote it.

    :param written: the selector that this rollout wrote last
    """
    if service is None:
        gone = target.stable is not None
        return f"somebody deleted Service {target.endpoint}" if gone else None
    held = annotations_of(service)
    if not fence_of(target, service):
        return None
    mark, stable = held.get(CANDIDATE_ANNOTATION), held.get(STABLE_ANNOTATION)
    if stable == target.candidate and mark is None:
        written = selector_for(target, 100)
    elif stable != target.stable:
        return changed(service, f"the annotation {STABLE_ANNOTATION}", stable, target.stable)
    elif mark not in (None, target.candidate):
        return f"another rollout or rollback, of version {mark}, has begun"
    found = selector_of(service)
    return changed(service, "spec.selector", found, written) if written and found != written else None


def _is_undone(target: Target, objects: Objects, *, stable_ready: bool, routed: float | None) -> bool:
    if target.stable is None:
        return objects.service is None and nothing_is_left(target, objects)
    held = annotations_of(objects.service)
    back = selector_of(objects.service) == selector_for(target, 0)
    home = held.get(STABLE_ANNOTATION) == target.stable and back and routed == 0
    return home and stable_ready and nothing_is_left(target, objects)
