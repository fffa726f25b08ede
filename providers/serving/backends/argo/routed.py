"""The share that is routed: by the HTTPRoute's weights, or by the ready pods that a Service selects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import mapping, metadata, status, text, whole
from nighttrain.providers.serving.backends.argo.objects import (
    HASH_LABEL,
    Found,
    Objects,
    Stage,
    is_observed,
    selected,
)
from nighttrain.providers.serving.backends.http_routes import rule_weights, why_not_accepted
from nighttrain.providers.serving.backends.plain.objects import version_of

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target


def routed_percent(
    target: Target, objects: Objects, found: Found, asked: int
) -> tuple[float | None, str | None]:
    """The candidate's share where it is read back, and why it cannot be seen.

    Never the status's weights: they repeat what was asked, whatever the route says.
    """
    if objects.rollout is None:
        return (0.0, None) if target.stable is None else (None, "there is no Rollout")
    share, why = _by_route(target, objects) if objects.routed else _by_replicas(target, objects)
    if share is None or asked in (0, 100) or found.stage is not Stage.STEPS:
        return share, why
    if not is_settled(objects.rollout):
        return None, f"Argo is on its way to {asked} percent; {share:g} percent are routed by now"
    if share != asked if objects.routed else share in (0, 100):
        return None, f"{asked} percent are asked for and {share:g} percent are routed"
    return share, why


def is_settled(rollout: Json) -> bool:
    """True if it waits at a step, with everything done that belongs to it."""
    state = status(rollout)
    return is_observed(rollout) and state.get("phase") == "Paused" and bool(state.get("pauseConditions"))


def route_share(target: Target, objects: Objects) -> float | None:
    """The candidate's share of the HTTPRoute's weights, by whose pods each Service selects."""
    shares = set()
    for weights in rule_weights(objects.route) if objects.route else []:
        total = sum(weights.values())
        versions = {name: _version_behind(objects, name) for name, weight in weights.items() if weight}
        if not total or not set(versions.values()) <= {target.stable, target.candidate} - {None}:
            return None
        own = sum(weights[name] for name, version in versions.items() if version == target.candidate)
        shares.add(100 * own / total)
    return shares.pop() if len(shares) == 1 else None


def _by_route(target: Target, objects: Objects) -> tuple[float | None, str | None]:
    if objects.route is None:
        return None, "there is no HTTPRoute of that name; Argo waits for it, and does not say so"
    share = route_share(target, objects)
    if share is None:
        weights = "; ".join(str(each) for each in rule_weights(objects.route))
        return None, f"HTTPRoute {metadata(objects.route).get('name')} does not lead to the two: {weights}"
    why = why_not_accepted(objects.route)
    return (None, why) if why else (share, None)


def _version_behind(objects: Objects, name: str) -> str | None:
    service = objects.services.get(name)
    selector = mapping(mapping(service.get("spec")).get("selector")) if service else {}
    held = objects.set_of(text(selector.get(HASH_LABEL)))
    return version_of(held) if held else None


def _by_replicas(target: Target, objects: Objects) -> tuple[float | None, str | None]:
    if target.endpoint not in objects.services:
        return None, f"there is no Service {target.endpoint}"
    ready: dict[str, int] = {}
    for each in objects.replica_sets:
        state = status(each)
        if (whole(state.get("observedGeneration")) or 0) < (whole(metadata(each).get("generation")) or 0):
            return None, "a ReplicaSet has not followed its last change yet"
        count = whole(state.get("readyReplicas")) or 0
        ready[version_of(each)] = ready.get(version_of(each), 0) + count
    pinned = selected(target, objects)
    if pinned is not None:
        version = target.candidate if pinned else target.stable
        return (float(pinned), None) if ready.get(version or "") else (None, f"no pod of {version} is ready")
    total = sum(ready.values())
    others = total - sum(ready.get(version or "", 0) for version in (target.stable, target.candidate))
    if not total or others:
        return None, f"pods of other versions are ready: {others}" if others else "no pod is ready"
    return 100 * ready.get(target.candidate, 0) / total, None
