"""What one look reads of an endpoint on KServe, and what its spec asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import items, mapping, text, whole
from nighttrain.providers.serving.backends.kserve.plan import Mode, Plan, service_name, version_of
from nighttrain.providers.serving.backends.kserve.stamp import (
    EVERYTHING,
    NOTHING,
    OTHER,
    RETURNING,
    Asked,
    sharing,
)
from nighttrain.providers.serving.spec import VERSION_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target


@dataclass(frozen=True, kw_only=True)
class Objects:
    """An endpoint's objects, as one look read them.

    :param service: the InferenceService; ``None`` where there is none
    :param stamp: the ConfigMap that says what this or another rollout asked last
    :param deployments: by name; Standard mode
    :param route: the HTTPRoute that clients use; Standard mode
    :param revisions: by name; Knative mode
    :param pods: of the endpoint's versions
    """

    service: Json | None
    stamp: Json | None = None
    deployments: Mapping[str, Json] = field(default_factory=dict)
    route: Json | None = None
    revisions: Mapping[str, Json] = field(default_factory=dict)
    pods: Sequence[Json] = ()

    def pods_of(self, version: str | None) -> list[Json]:
        """The pods of one version."""
        return [pod for pod in self.pods if version and label_of(pod) == version]


def label_of(obj: Json) -> str:
    """The version that an object's labels name."""
    return text(mapping(mapping(obj.get("metadata")).get("labels")).get(VERSION_LABEL))


def predictor_of(service: Json | None) -> Json:
    """``spec.predictor``."""
    return mapping(mapping(service.get("spec")).get("predictor")) if service else {}


def canaries_of(service: Json | None) -> list[Json]:
    """``spec.canary``."""
    return items(mapping(service.get("spec")).get("canary")) if service else []


def found_asked(target: Target, plan: Plan, service: Json) -> Asked:
    """What the spec asks for, in the rollout's terms."""
    predictor = predictor_of(service)
    version, percent = version_of(predictor), whole(predictor.get("canaryTrafficPercent"))
    if plan.mode is Mode.KNATIVE:
        if version == target.candidate:
            return EVERYTHING if percent is None else sharing(percent)
        if version != target.stable:
            return OTHER
        return NOTHING if percent is None else RETURNING if percent == 0 else OTHER
    name, entries = text(predictor.get("name")), canaries_of(service)
    if (version, name) == (target.candidate, plan.candidate_name):
        return OTHER if entries else EVERYTHING
    if (version, name) != (target.stable, plan.stable_name):
        return OTHER
    if not entries:
        return NOTHING
    share = whole(entries[0].get("trafficPercent"))
    ours = len(entries) == 1 and _is_candidates(target, plan, mapping(entries[0].get("predictor")))
    return sharing(share) if ours and share is not None else OTHER


def _is_candidates(target: Target, plan: Plan, predictor: Json) -> bool:
    return (version_of(predictor), text(predictor.get("name"))) == (target.candidate, plan.candidate_name)


def stable_service(target: Target, plan: Plan) -> str:
    """The Service of the stable version, Standard mode."""
    return service_name(target.endpoint, plan.stable_name)


def candidate_service(target: Target, plan: Plan) -> str:
    """The Service of the candidate, Standard mode."""
    return service_name(target.endpoint, plan.candidate_name)
