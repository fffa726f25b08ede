"""Reads what one look needs. The InferenceService comes first: KServe writes its status last."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError, WorkloadConflictError
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HTTPROUTES,
    INFERENCE_SERVICES,
    KNATIVE_REVISIONS,
    PODS,
)
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, name_of, status, text
from nighttrain.providers.serving.backends.finding import found
from nighttrain.providers.serving.backends.kserve.objects import Objects
from nighttrain.providers.serving.backends.kserve.patches import MODE_ANNOTATION
from nighttrain.providers.serving.backends.kserve.plan import Mode
from nighttrain.providers.serving.backends.kserve.stamp import stamp_name
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MANAGED_BY, MANAGED_BY_LABEL, MODEL_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.traffic import Target
    from nighttrain.providers.serving.spec import ServingSpec

# KServe's own label on whatever it makes for an InferenceService.
_SERVICE_LABEL = "serving.kserve.io/inferenceservice"


async def read_objects(client: ClusterClient, mode: Mode, endpoint: str, namespace: str) -> Objects:
    """Read an endpoint's objects."""
    selector = f"{_SERVICE_LABEL}={endpoint}"
    service = await found(client.get(INFERENCE_SERVICES, namespace, endpoint))
    stamp, pods = await asyncio.gather(
        found(client.get(CONFIGMAPS, namespace, stamp_name(endpoint))),
        client.list(PODS, namespace, label_selector=f"{ENDPOINT_LABEL}={endpoint}"),
    )
    both = Objects(service=service, stamp=stamp, pods=pods["items"])
    if mode is Mode.KNATIVE:
        revisions = await client.list(KNATIVE_REVISIONS, namespace, label_selector=selector)
        return replace(both, revisions={name_of(each): each for each in revisions["items"]})
    deployments, route = await asyncio.gather(
        client.list(DEPLOYMENTS, namespace, label_selector=selector),
        found(client.get(HTTPROUTES, namespace, endpoint)),
    )
    return replace(both, deployments={name_of(each): each for each in deployments["items"]}, route=route)


async def read_service(client: ClusterClient, spec: ServingSpec | Target) -> Json | None:
    """The endpoint's InferenceService, if it is ours and this model's.

    :raises WorkloadConflictError: it was not made by nighttrain
    :raises ConfigurationError: it serves another model
    """
    service = await found(client.get(INFERENCE_SERVICES, spec.namespace, spec.endpoint))
    if service is None:
        return None
    labels = mapping(metadata(service).get("labels"))
    if labels.get(MANAGED_BY_LABEL) != MANAGED_BY or labels.get(ENDPOINT_LABEL) != spec.endpoint:
        raise WorkloadConflictError(
            f"InferenceService {spec.endpoint} exists and was not made by nighttrain: choose another "
            "endpoint name, or remove it"
        )
    model = mapping(metadata(service).get("annotations")).get(MODEL_ANNOTATION)
    if model != spec.model_name:
        raise ConfigurationError(
            "endpoint",
            spec.endpoint,
            f"it serves the model {model!r}; choose another endpoint for {spec.model_name!r}",
        )
    return service


def mode_of(service: Json) -> Mode:
    """How KServe deploys it.

    :raises ConfigurationError: in a way that splits nothing
    """
    annotations = mapping(metadata(service).get("annotations"))
    return Mode.of(text(status(service).get("deploymentMode")) or text(annotations.get(MODE_ANNOTATION)))
