"""The manifests that are sent: a Rollout for each endpoint, its Services, and the patch of a new version."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nighttrain.providers.kubernetes.api.resources import ROLLOUTS
from nighttrain.providers.kubernetes.values.objects import main_container_spec, mapping, metadata
from nighttrain.providers.serving.backends.argo.objects import PLUGIN, canary_of, template_of
from nighttrain.providers.serving.backends.argo.steps import steps_for, steps_of
from nighttrain.providers.serving.backends.manifests import PORT_NAME, build_deployment, version_labels
from nighttrain.providers.serving.backends.merge_patches import replacing
from nighttrain.providers.serving.backends.plain.objects import fence_text
from nighttrain.providers.serving.spec import (
    ENDPOINT_LABEL,
    FENCE_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_ANNOTATION,
    PERCENT_ANNOTATION,
)

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target
    from nighttrain.providers.serving.spec import ServingSpec


def stable_service(endpoint: str) -> str:
    """The name of the Service that Argo lets select the stable version."""
    return f"{endpoint}-stable"


def candidate_service(endpoint: str) -> str:
    """The name of the Service that Argo lets select the candidate."""
    return f"{endpoint}-canary"


def own_labels(endpoint: str) -> dict[str, str]:
    """The labels of what nighttrain makes."""
    return {ENDPOINT_LABEL: endpoint, MANAGED_BY_LABEL: MANAGED_BY}


def marks(target: Target, fence: int, percent: int) -> dict[str, str]:
    """The annotations of a change: whose it is, and the share that was asked for."""
    return {FENCE_ANNOTATION: fence_text(target, fence), PERCENT_ANNOTATION: str(percent)}


def build_template(spec: ServingSpec, rollout: Json | None) -> Json:
    """The pod template of a version, with the labels that a Rollout's selector asks for."""
    template: dict[str, Any] = build_deployment(spec)["spec"]["template"]
    selector = mapping(mapping(mapping(rollout).get("spec")).get("selector"))
    template["metadata"]["labels"] = {
        **mapping(selector.get("matchLabels")),
        **template["metadata"]["labels"],
        **version_labels(spec.endpoint, spec.version),
    }
    return template


def build_rollout(spec: ServingSpec, target: Target, fence: int, name: str, http_route: str | None) -> Json:
    """The Rollout of an endpoint that has none. Its first version goes through no step."""
    canary: dict[str, Any] = {
        "stableService": stable_service(spec.endpoint),
        "canaryService": candidate_service(spec.endpoint),
        "steps": steps_for(target.shares, routed=http_route is not None),
    }
    if http_route is not None:
        plugin = {PLUGIN: {"httpRoute": http_route, "namespace": spec.namespace}}
        canary["trafficRouting"] = {"plugins": plugin}
    return {
        "apiVersion": ROLLOUTS.api_version,
        "kind": ROLLOUTS.kind,
        "metadata": {
            "name": name,
            "labels": own_labels(spec.endpoint),
            "annotations": {MODEL_ANNOTATION: spec.model_name, **marks(target, fence, 0)},
        },
        "spec": {
            "replicas": spec.replicas or 1,
            "progressDeadlineSeconds": math.ceil(spec.startup_timeout_seconds),
            "selector": {"matchLabels": {ENDPOINT_LABEL: spec.endpoint}},
            "strategy": {"canary": canary},
            "template": build_template(spec, None),
        },
    }


def new_version(template: Json, target: Target, rollout: Json) -> Json:
    """The merge patch that starts a version: its template; and the steps, where the strategy is another.

    A new template begins the steps anew, whatever they were before.
    """
    body: dict[str, Any] = {"template": replacing(template_of(rollout), template)}
    steps = steps_for(target.shares, routed=bool(canary_of(rollout).get("trafficRouting")))
    if steps_of(rollout) != steps:
        body["strategy"] = {"canary": {"steps": steps}}
    return {"spec": body}


def build_service(spec: ServingSpec, name: str, *, annotations: dict[str, str] | None = None) -> Json:
    """A Service of every pod of the endpoint; Argo, or a rollout, narrows what it selects."""
    port = main_container_spec(build_template(spec, None))["ports"][0]["containerPort"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": spec.namespace,
            "labels": own_labels(spec.endpoint),
            "annotations": {MODEL_ANNOTATION: spec.model_name, **(annotations or {})},
        },
        "spec": {
            "type": "ClusterIP",
            "selector": {ENDPOINT_LABEL: spec.endpoint},
            "ports": [{"name": PORT_NAME, "port": port, "targetPort": PORT_NAME, "protocol": "TCP"}],
        },
    }


def is_ours(obj: Json, endpoint: str) -> bool:
    """True if nighttrain made the object for this endpoint."""
    return own_labels(endpoint).items() <= mapping(metadata(obj).get("labels")).items()
