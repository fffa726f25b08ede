"""Reading a workload and its pods, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import ObjectNotFoundError
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.kubernetes.job.kinds import kind_named
from nighttrain.providers.kubernetes.values.objects import items, uid_of

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.plain_json import Json


async def read_object(client: ClusterClient, workload: Workload) -> Json | None:
    """The workload's object; ``None`` when it is gone, even if another took its name."""
    try:
        obj = await client.get(kind_named(workload.kind).resource, workload.namespace, workload.name)
    except ObjectNotFoundError:
        return None
    return obj if uid_of(obj) == workload.uid else None


async def list_pods(client: ClusterClient, workload: Workload) -> list[Json]:
    """The workload's pods."""
    kind = kind_named(workload.kind)
    selector = f"{kind.pod_label}={workload.name}"
    listed = await client.list(PODS, workload.namespace, label_selector=selector)
    return [pod for pod in items(listed.get("items")) if kind.owns(pod, workload.uid)]
