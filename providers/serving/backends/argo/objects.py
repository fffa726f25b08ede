"""What one look reads of an endpoint on Argo Rollouts, and where its Rollout stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import (
    items,
    mapping,
    metadata,
    status,
    text,
    whole,
)
from nighttrain.providers.serving.backends.argo.steps import steps_of, weight_at
from nighttrain.providers.serving.backends.manifests import version_labels
from nighttrain.providers.serving.backends.plain.objects import fence_of, percent_of, version_of

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target

HASH_LABEL = "rollouts-pod-template-hash"
"""Argo's own on pods, ReplicaSets, and in the selectors of the Services that it moves."""

PLUGIN = "argoproj-labs/gatewayAPI"
"""The router whose weights can be read back, and were recorded."""

STABLE_HASH = "stable_hash"
"""In :attr:`Target.names`: the stable version's pod template, by Argo's hash."""

STABLE_TEMPLATE = "stable_template"
"""In :attr:`Target.names`: the pod template to come back to, as JSON. What a ReplicaSet holds of it has the
API's defaults in it, and would be a change of the Rollout for good."""

CANDIDATE_TEMPLATE = "candidate_template"
"""In :attr:`Target.names`, on a way back: the pod template that the candidate had when it served, as JSON."""

ROLLOUT = "rollout"
"""In :attr:`Target.names`: the Rollout's name; and in :attr:`Look.resource_versions` the Rollout's."""

SERVICE = "service"
"""In :attr:`Look.resource_versions`: the endpoint's Service, which makes shares by replicas."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """An endpoint's objects, as one look read them.

    :param replica_sets: of the Rollout
    :param services: by name: the endpoint's, the stable version's, the candidate's
    :param route: the HTTPRoute that Argo's plugin writes; ``None`` without a router
    :param steady: the Rollout did not change while the others were read
    """

    rollout: Json | None
    replica_sets: Sequence[Json] = ()
    services: Mapping[str, Json] = field(default_factory=dict)
    route: Json | None = None
    pods: Sequence[Json] = ()
    steady: bool = True

    @property
    def routed(self) -> bool:
        """A router makes the shares."""
        return bool(canary_of(self.rollout).get("trafficRouting"))

    def set_of(self, pod_hash: str) -> Json | None:
        """The ReplicaSet of a pod template."""
        found = (each for each in self.replica_sets if hash_of(each) == pod_hash)
        return next(found, None) if pod_hash else None

    def pods_of(self, pod_hash: str) -> list[Json]:
        """The pods of a pod template."""
        return [pod for pod in self.pods if hash_of(pod) == pod_hash]


class Stage(StrEnum):
    """Where a Rollout stands in a rollout of ours."""

    GONE = "there is no Rollout"
    STABLE = "its template is the stable version's"
    STEPS = "it goes through its steps with the candidate"
    ABORTED = "it has been aborted; its template is the candidate's still"
    EVERYTHING = "the candidate has everything, or is to have it"
    RETURNING = "its template is the stable version's; the candidate has everything still"
    OTHER = "its template is neither version's"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a Rollout asks for.

    :param weight: the candidate's weight by the step that it is at
    :param followed: its status is about the candidate
    """

    stage: Stage
    weight: int = 0
    followed: bool = False


def hash_of(obj: Json) -> str:
    """The hash of the pod template that an object belongs to."""
    return text(mapping(metadata(obj).get("labels")).get(HASH_LABEL))


def canary_of(rollout: Json | None) -> Json:
    """``spec.strategy.canary``."""
    spec = mapping(rollout.get("spec")) if rollout else {}
    return mapping(mapping(spec.get("strategy")).get("canary"))


def template_of(obj: Json | None) -> Json:
    """``spec.template``."""
    return mapping(mapping(obj.get("spec")).get("template")) if obj else {}


def is_observed(rollout: Json) -> bool:
    """The status is about the spec as it is now. Argo writes the generation as a text.

    The controller moves it by one itself after every new template, so that the number which a patch answered
    may never be observed.
    """
    seen = text(status(rollout).get("observedGeneration"))
    return seen.isdecimal() and int(seen) == whole(metadata(rollout).get("generation"))


def candidate_hash(target: Target, objects: Objects) -> str:
    """The hash of the candidate's pod template; empty while the status is about another one.

    For a moment after a new template generations agree and the hash is still the old one.
    """
    found = text(status(objects.rollout).get("currentPodHash")) if objects.rollout else ""
    held = objects.set_of(found)
    own = held is not None and version_of(held) == target.candidate
    return found if own and found != target.names.get(STABLE_HASH) else ""


def find(target: Target, objects: Objects) -> Found:
    """Where the Rollout stands."""
    rollout = objects.rollout
    if rollout is None:
        return Found(stage=Stage.GONE)
    state, version = status(rollout), version_of(template_of(rollout))
    if version == target.stable:
        held = objects.set_of(text(state.get("stableRS")))
        left = held is not None and version_of(held) == target.candidate
        return Found(stage=Stage.RETURNING if left and not state.get("promoteFull") else Stage.STABLE)
    if version != target.candidate:
        return Found(stage=Stage.OTHER)
    pod_hash = candidate_hash(target, objects)
    index = whole(state.get("currentStepIndex"))
    if target.stable is None:
        # The first version of a Rollout goes through no step.
        return Found(stage=Stage.EVERYTHING, weight=100, followed=bool(pod_hash))
    if not pod_hash or index is None:
        return Found(stage=Stage.STEPS)
    if text(state.get("stableRS")) == pod_hash:
        return Found(stage=Stage.EVERYTHING, weight=100, followed=True)
    if state.get("abort") is True:
        return Found(stage=Stage.ABORTED, followed=True)
    return Found(stage=Stage.STEPS, weight=weight_at(steps_of(rollout), index), followed=True)


def selected(target: Target, objects: Objects) -> int | None:
    """What the endpoint's Service selects: 0 the stable version, 100 the candidate; ``None`` for both."""
    service = objects.services.get(target.endpoint)
    selector = mapping(mapping(service.get("spec")).get("selector")) if service else {}
    for version, share in ((target.stable, 0), (target.candidate, 100)):
        if version and version_labels(target.endpoint, version).items() <= selector.items():
            return share
    return None


def asked_percent(target: Target, objects: Objects, found: Found) -> int:
    """The candidate's share that the objects ask for.

    Where Argo aborted by itself it is the share that this rollout had asked for: nobody changed that.
    """
    if found.stage in (Stage.EVERYTHING, Stage.RETURNING):
        return 100
    own = fence_of(target, objects.rollout)
    if found.stage is Stage.ABORTED:
        return (percent_of(objects.rollout) or 0) if own else 0
    if found.stage is not Stage.STEPS or not found.followed:
        return 0
    if not objects.routed and selected(target, objects) is not None:
        return selected(target, objects) or 0
    return found.weight


def pause_reasons(rollout: Json) -> list[str]:
    """Why the controller waits."""
    return [text(each.get("reason")) for each in items(status(rollout).get("pauseConditions"))]
