"""Knative mode: what a look says. Pure functions over the status's ``traffic[]`` and the revisions.

``traffic[]`` names the old revision with the canary's percentage until the new one is ready: what counts is
whose revision an entry names, not its percentage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import clip
from nighttrain.providers.kubernetes.values.objects import (
    any_condition,
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
from nighttrain.providers.serving.backends.kserve.objects import Objects, label_of
from nighttrain.providers.serving.backends.kserve.stamp import EVERYTHING, NOTHING, RETURNING, Asked

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target

_ROUTING_LABEL = "serving.knative.dev/routingState"


def readiness(target: Target, objects: Objects, found: Asked) -> Readiness:
    """How far the candidate's revision is."""
    if found in (NOTHING, RETURNING):
        gone = "The InferenceService does not name it: it was never started, or somebody took it back."
        return Readiness(ready=False, detail="not in the InferenceService", failure=gone)
    latest = text(_component(objects.service).get("latestCreatedRevision"))
    revision = objects.revisions.get(latest)
    if revision is None or label_of(revision) != target.candidate:
        return Readiness(ready=False, detail="Knative has not made its revision yet")
    said = any_condition(revision, "Ready")
    if said.get("status") == "True":
        return Readiness(ready=True, answers=True, detail=f"revision {latest} is ready")
    words = clip(f"{text(said.get('reason'))} {text(said.get('message'))}".strip(), 400)
    detail = f"revision {latest}: {words}" if words else f"revision {latest} is not ready"
    if said.get("status") == "False":
        return Readiness(ready=False, detail=detail, doubt=f"Its revision {latest} is not ready: {words}")
    return Readiness(ready=False, detail=detail, doubt=_why_not(objects, target.candidate))


def stable_is_ready(target: Target, objects: Objects) -> bool:
    """True if the revisions of the stable version that have requests, or wait for them, are ready."""
    named = [text(each.get("revisionName")) for each in items(_component(objects.service).get("traffic"))]
    found = [objects.revisions[name] for name in named if name in objects.revisions]
    stable = [each for each in found if target.stable is not None and label_of(each) == target.stable]
    return bool(stable) and all(condition(each, "Ready") for each in stable)


def routed(target: Target, objects: Objects) -> tuple[float | None, str | None]:
    """The candidate's share by ``traffic[]``, and why it cannot be seen."""
    traffic = items(_component(objects.service).get("traffic"))
    if not traffic:
        return None, "the InferenceService's status has no traffic yet"
    if objects.service is None or not condition(objects.service, "RoutesReady"):
        return None, "Knative's route does not follow its traffic yet"
    share = 0
    for each in traffic:
        percent, name = whole(each.get("percent")) or 0, text(each.get("revisionName"))
        version = label_of(objects.revisions.get(name, {}))
        if percent and version not in (target.candidate, target.stable):
            return None, f"traffic names revision {name}, which is of neither version"
        share += percent if version == target.candidate else 0
    return float(share), None


def is_promoted(target: Target, objects: Objects, found: Asked) -> bool:
    """One revision has every request, for good, and it is the candidate's."""
    return found == EVERYTHING and _has_everything(target.candidate, objects)


def is_undone(target: Target, objects: Objects, found: Asked) -> bool:
    """One revision has every request, for good, and it is the stable version's; the candidate's get none."""
    if target.stable is None or found != NOTHING or not _has_everything(target.stable, objects):
        return False
    own = [each for each in objects.revisions.values() if label_of(each) == target.candidate]
    return all(_routing(each) == "reserve" or is_deleting(each) for each in own)


def returned(target: Target, objects: Objects) -> bool:
    """True once the stable version's new revision is ready, and is the latest one."""
    component = _component(objects.service)
    latest = text(component.get("latestReadyRevision"))
    if latest != component.get("latestCreatedRevision") or target.stable is None:
        return False
    revision = objects.revisions.get(latest)
    return revision is not None and label_of(revision) == target.stable and _is_ready(revision)


def rolled_out(service: Json) -> str | None:
    """The revision that has had every request; ``None`` where the split would not follow a percentage yet."""
    component = _component(service)
    latest = text(component.get("latestRolledoutRevision"))
    return latest if latest and latest == component.get("latestReadyRevision") else None


def revision_of(target: Target, objects: Objects, version: str | None) -> str | None:
    """A version's revision that has requests or waits for them."""
    for each in items(_component(objects.service).get("traffic")):
        name = text(each.get("revisionName"))
        if version is not None and label_of(objects.revisions.get(name, {})) == version:
            return name
    return None


def _has_everything(version: str, objects: Objects) -> bool:
    service, component = objects.service, _component(objects.service)
    if service is None or is_deleting(service):
        return False
    latest = text(component.get("latestReadyRevision"))
    traffic = [each for each in items(component.get("traffic")) if whole(each.get("percent"))]
    alone = [(each.get("percent"), each.get("revisionName")) for each in traffic] == [(100, latest)]
    revision = objects.revisions.get(latest)
    if not alone or latest != component.get("latestCreatedRevision") or revision is None:
        return False
    said = all(condition(service, kind) for kind in ("Ready", "PredictorReady", "RoutesReady"))
    return said and label_of(revision) == version and _is_ready(revision)


def _is_ready(revision: Json) -> bool:
    return condition(revision, "Ready") is not None and not is_deleting(revision)


def _routing(revision: Json) -> str:
    return text(mapping(metadata(revision).get("labels")).get(_ROUTING_LABEL))


def _component(service: Json | None) -> Json:
    return mapping(mapping(status(service).get("components")).get("predictor")) if service else {}


def _why_not(objects: Objects, version: str) -> str | None:
    """What the candidate's pods say of why they are not ready."""
    for pod in objects.pods_of(version):
        for entry in items(status(pod).get("containerStatuses")):
            waiting = mapping(mapping(entry.get("state")).get("waiting"))
            ended = mapping(mapping(entry.get("lastState")).get("terminated"))
            if waiting.get("reason") or ended.get("reason"):
                said = f"{text(waiting.get('reason'))} {text(ended.get('reason'))}".strip()
                return clip(f"Its container {text(entry.get('name'))} says {said}", 400)
    return None
