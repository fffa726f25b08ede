"""What nighttrain made for an endpoint on KServe or Argo Rollouts, found by its marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ClusterForbiddenError, ObjectNotFoundError, WorkloadConflictError
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    INFERENCE_SERVICES,
    ROLLOUTS,
    SERVICES,
    Resource,
)
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, name_of
from nighttrain.providers.serving.backends.argo.manifests import candidate_service, is_ours, stable_service
from nighttrain.providers.serving.backends.argo.objects import ROLLOUT
from nighttrain.providers.serving.backends.finding import found
from nighttrain.providers.serving.backends.kserve.stamp import stamp_name

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.serving.rollouts.state import State

KSERVE, ARGO = "kserve", "argo_rollouts"


@dataclass(frozen=True, kw_only=True)
class Made:
    """An object of nighttrain's."""

    resource: Resource
    body: Json

    def __str__(self) -> str:
        return f"{self.resource.kind} {name_of(self.body)}"

    async def delete(self, client: ClusterClient) -> None:
        """Delete this one, and no later one of its name; what its serving system made of it goes with it."""
        place = (metadata(self.body)["namespace"], name_of(self.body))
        await found(
            client.delete(self.resource, *place, uid=metadata(self.body)["uid"], propagation="Background")
        )


async def made_on(client: ClusterClient, name: str, namespace: str, state: State, system: str) -> list[Made]:
    """What an endpoint's rollouts made there, in the order in which it is deleted: what is found by last.

    :param system: the serving system that the rollout's state names
    :raises WorkloadConflictError: what serves was not made by nighttrain
    """
    if system == KSERVE:
        service = await found(client.get(INFERENCE_SERVICES, namespace, name))
        _require_ours(service, INFERENCE_SERVICES, name)
        return await _on_kserve(client, name, namespace, service)
    rollout = await found(client.get(ROLLOUTS, namespace, state.target.names.get(ROLLOUT, name)))
    _require_ours(rollout, ROLLOUTS, name)
    return await _on_argo(client, name, namespace, rollout)


async def left_behind(client: ClusterClient, name: str, namespace: str) -> list[Made]:
    """The same of an endpoint whose rollout's state is gone: a deletion that ended half way leaves that."""
    if service := await _own(client, INFERENCE_SERVICES, name, namespace):
        return await _on_kserve(client, name, namespace, service)
    rollout = await _own(client, ROLLOUTS, name, namespace)
    return await _on_argo(client, name, namespace, rollout) if rollout else []


async def _own(client: ClusterClient, kind: Resource, name: str, namespace: str) -> Json | None:
    """The endpoint's, if it is ours; ``None`` where there is no such kind, or no right to read it."""
    try:
        body = await client.get(kind, namespace, name)
    except (ObjectNotFoundError, ClusterForbiddenError):
        return None
    return body if is_ours(body, name) else None


async def _on_kserve(client: ClusterClient, name: str, namespace: str, service: Json | None) -> list[Made]:
    stamp = await found(client.get(CONFIGMAPS, namespace, stamp_name(name)))
    own = [Made(resource=CONFIGMAPS, body=stamp)] if stamp and is_ours(stamp, name) else []
    return own + ([Made(resource=INFERENCE_SERVICES, body=service)] if service else [])


async def _on_argo(client: ClusterClient, name: str, namespace: str, rollout: Json | None) -> list[Made]:
    own: list[Made] = []
    for each in (name, stable_service(name), candidate_service(name)):
        service = await found(client.get(SERVICES, namespace, each))
        if service is not None and is_ours(service, name):
            own.append(Made(resource=SERVICES, body=service))
    return own + ([Made(resource=ROLLOUTS, body=rollout)] if rollout else [])


def _require_ours(obj: Json | None, kind: Resource, endpoint: str) -> None:
    if obj is None or is_ours(obj, endpoint):
        return
    by = mapping(metadata(obj).get("labels")).get("app.kubernetes.io/managed-by") or "somebody else"
    raise WorkloadConflictError(
        f"{kind.kind} {name_of(obj)} was not made by nighttrain for this endpoint (made by {by}): delete it "
        "the way it was made, and then repeat this. Nothing was deleted"
    )
