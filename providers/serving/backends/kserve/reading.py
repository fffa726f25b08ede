"""Reads what one look needs. The InferenceService comes first: KServe writes its status last."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError, ObjectNotFoundError, WorkloadConflictError
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    HTTPROUTES,
    INFERENCE_SERVICES,
    KNATIVE_REVISIONS,
    PODS,
)
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, name_of, status, text
from nighttrain.providers.serving.backends.kserve.objects import Objects
from nighttrain.providers.serving.backends.kserve.patches import MODE_ANNOTATION
from nighttrain.providers.serving.backends.kserve.plan import Mode
from nighttrain.providers.serving.backends.kserve.stamp import stamp_name
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MANAGED_BY, MANAGED_BY_LABEL, MODEL_ANNOTATION

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.api.resources import Resource
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.spec import ServingSpec

# KServe's own label on whatever it makes for an InferenceService.
_SERVICE_LABEL = "serving.kserve.io/inferenceservice"


async def read_objects(client: ClusterClient, mode: Mode, endpoint: str, namespace: str) -> Objects:
    """Read an endpoint's objects."""
    selector = f"{_SERVICE_LABEL}={endpoint}"

    async def listed(resource: Resource, wanted: bool) -> dict[str, Json]:
        if not wanted:
            return {}
        found = await client.list(resource, namespace, label_selector=selector)
        return {name_of(each): each for each in found["items"]}

    async def route() -> Json | None:
        return await _get(client, HTTPROUTES, namespace, endpoint) if mode is Mode.STANDARD else None

    service = await _get(client, INFERENCE_SERVICES, namespace, endpoint)
    stamp, deployments, found, revisions, pods = await asyncio.gather(
        _get(client, CONFIGMAPS, namespace, stamp_name(endpoint)),
        listed(DEPLOYMENTS, mode is Mode.STANDARD),
        route(),
        listed(KNATIVE_REVISIONS, mode is Mode.KNATIVE),
        client.list(PODS, namespace, label_selector=f"{ENDPOINT_LABEL}={endpoint}"),
    )
    return Objects(
        service=service,
        stamp=stamp,
        deployments=deployments,
        route=found,
        revisions=revisions,
        pods=pods["items"],
    )


async def read_service(client: ClusterClient, spec: ServingSpec) -> Json | None:
    """The endpoint's InferenceService, if it is ours and this model's.

    :raises WorkloadConflictError: it was not made by nighttrain
    :raises ConfigurationError: it serves another model
    """
    found = await _get(client, INFERENCE_SERVICES, spec.namespace, spec.endpoint)
    if found is None:
        return None
    labels = mapping(metadata(found).get("labels"))
    if labels.get(MANAGED_BY_LABEL) != MANAGED_BY or labels.get(ENDPOINT_LABEL) != spec.endpoint:
        raise WorkloadConflictError(
            f"InferenceService {spec.endpoint} exists and was not made by nighttrain: choose another "
            "endpoint name, or remove it"
        )
    model = mapping(metadata(found).get("annotations")).get(MODEL_ANNOTATION)
    if model != spec.model_name:
        raise ConfigurationError(
            "endpoint",
            spec.endpoint,
            f"it serves the model {model!r}; choose another endpoint for {spec.model_name!r}",
        )
    return found


def mode_of(service: Json) -> Mode:
    """How KServe deploys it.

    :raises ConfigurationError: in a way that splits nothing
    """
    annotations = mapping(metadata(service).get("annotations"))
    return Mode.of(text(status(service).get("deploymentMode")) or text(annotations.get(MODE_ANNOTATION)))


async def _get(client: ClusterClient, resource: Resource, namespace: str, name: str) -> Json | None:
    try:
        return await client.get(resource, namespace, name)
    except ObjectNotFoundError:
        return None
