"""What one look reads of an endpoint, and what its annotations remember of the rollout."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ClusterForbiddenError, ObjectNotFoundError
from nighttrain.providers.kubernetes.api.resources import ENDPOINTSLICES, PODS
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, text
from nighttrain.providers.serving.backends.base import Readiness
from nighttrain.providers.serving.backends.pods import desired_replicas, judge
from nighttrain.providers.serving.spec import (
    CANDIDATE_ANNOTATION,
    ENDPOINT_LABEL,
    FENCE_ANNOTATION,
    MIRROR_ANNOTATION,
    PERCENT_ANNOTATION,
    PREVIOUS_ANNOTATION,
    REPLACED_ANNOTATION,
    SCALED_UP_ANNOTATION,
    SHARE_REPLICAS_ANNOTATION,
    STABLE_ANNOTATION,
    VERSION_LABEL,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
    from nighttrain.providers.serving.backends.traffic import Target

# What a version's Deployment remembers of a rollout until that is over.
OF_A_ROLLOUT = frozenset({REPLACED_ANNOTATION, SCALED_UP_ANNOTATION, SHARE_REPLICAS_ANNOTATION})

SLICE_SERVICE_LABEL = "kubernetes.io/service-name"

# Where nothing exists there is nothing that a process which comes too late could change: whatever was decided
# about it holds already.
NOTHING_THERE = 2**62

GONE = Readiness(
    ready=False,
    detail="no such Deployment",
    failure="Its Deployment does not exist: it was never started, or somebody deleted it.",
)


@dataclass(frozen=True, kw_only=True)
class Objects:
    """An endpoint's objects, as one look read them.

    :param pods: of every version
    :param slices: of the endpoint's Service; ``None`` where they may not be read
    """

    service: Json | None
    stable: Json | None
    candidate: Json | None
    pods: Sequence[Json]
    slices: Sequence[Json] | None = None

    def pods_of(self, version: str | None) -> list[Json]:
        """The pods of one version, also those on their way out."""
        return [pod for pod in self.pods if version and version_of(pod) == version]


async def read_objects(deployments: KubernetesDeployments, client: ClusterClient, target: Target) -> Objects:
    """Read what one look needs, all at once.

    :raises WorkloadConflictError: an object of that name is not this endpoint's
    """
    endpoint, namespace = target.endpoint, target.namespace

    async def stable() -> Json | None:
        if target.stable is None:
            return None
        return await deployments.deployment(endpoint, namespace, target.stable)

    service, old, new, pods, slices = await asyncio.gather(
        deployments.service(endpoint, namespace),
        stable(),
        deployments.deployment(endpoint, namespace, target.candidate),
        client.list(PODS, namespace, label_selector=f"{ENDPOINT_LABEL}={endpoint}"),
        read_slices(client, namespace, endpoint),
    )
    return Objects(service=service, stable=old, candidate=new, pods=pods["items"], slices=slices)


async def read_slices(client: ClusterClient, namespace: str, service: str) -> list[Json] | None:
    """The EndpointSlices of a Service; ``None`` where they may not be read."""
    try:
        listed = await client.list(
            ENDPOINTSLICES, namespace, label_selector=f"{SLICE_SERVICE_LABEL}={service}"
        )
    except (ClusterForbiddenError, ObjectNotFoundError):
        return None
    return list(listed["items"])


def version_of(obj: Json) -> str:
    """The version that an object belongs to."""
    return text(mapping(metadata(obj).get("labels")).get(VERSION_LABEL))


def annotations_of(obj: Json | None) -> dict[str, str]:
    """The object's annotations; none where there is no object."""
    return mapping(metadata(obj).get("annotations")) if obj else {}


def fence_of(target: Target, obj: Json | None) -> int:
    """The revision of this rollout's state that changed the object last; 0 if none did.

    The candidate stands beside it: another rollout of the endpoint counts from the beginning.
    """
    version, _, revision = annotations_of(obj).get(FENCE_ANNOTATION, "").partition("/")
    return int(revision) if version == target.candidate and revision.isdecimal() else 0


def fence_text(target: Target, fence: int) -> str:
    """The fence as it is written on an object."""
    return f"{target.candidate}/{fence}"


def percent_of(obj: Json | None, annotation: str = PERCENT_ANNOTATION) -> int | None:
    """A share that this or another rollout wrote beside what makes it; ``None`` for none."""
    given = annotations_of(obj).get(annotation, "")
    return int(given) if given.isdecimal() and int(given) <= 100 else None


def mirror_of(obj: Json | None) -> int:
    """The share of requests that are to be copied."""
    return percent_of(obj, MIRROR_ANNOTATION) or 0


def candidate_readiness(target: Target, objects: Objects) -> Readiness:
    """How far the candidate is."""
    if objects.candidate is None:
        return GONE
    return judge(objects.candidate, objects.pods_of(target.candidate))


def stable_is_ready(target: Target, objects: Objects) -> bool:
    """True if the stable version answers, at the size that its Deployment asks for."""
    return objects.stable is not None and judge(objects.stable, objects.pods_of(target.stable)).ready


def is_marked_stable(target: Target, objects: Objects) -> bool:
    """True once the endpoint's Service names the candidate as the stable version, and no rollout."""
    held = annotations_of(objects.service)
    return held.get(STABLE_ANNOTATION) == target.candidate and CANDIDATE_ANNOTATION not in held


def is_settled(deployment: Json | None) -> bool:
    """True if a version's Deployment remembers nothing of a rollout: the next would take it for its own."""
    return not OF_A_ROLLOUT & annotations_of(deployment).keys()


def nothing_is_left(target: Target, objects: Objects) -> bool:
    """True if the candidate is gone with its pods, or is again the version before that it had been."""
    held = annotations_of(objects.service)
    if CANDIDATE_ANNOTATION in held or PERCENT_ANNOTATION in held or SHARE_REPLICAS_ANNOTATION in held:
        return False
    if held.get(PREVIOUS_ANNOTATION) == target.candidate:
        kept = target.names.get(KEPT_REPLICAS)
        size = desired_replicas(objects.candidate) if objects.candidate else None
        return is_settled(objects.candidate) and (size is None or kept is None or str(size) == kept)
    return objects.candidate is None and not objects.pods_of(target.candidate)


KEPT_REPLICAS = "kept_replicas"
"""In :attr:`Target.names`: how many replicas the candidate had, where it was up before the rollout."""

FULL_REPLICAS = "replicas"
"""In :attr:`Target.names`: how many replicas were asked for; else it gets as many as the stable version."""

HEALTH_PATH = "health_path"
"""In :attr:`Target.names`: a path that the model server answers cheaply."""
