"""The ConfigMap that brings a workload's files: it belongs to the workload and goes when it goes.

The workload comes first, so that the ConfigMap can name it as its owner. Until it is there the pod waits;
whoever adopts the workload of a worker that died in between makes up for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ClusterError,
    ClusterForbiddenError,
    ClusterRequestError,
    ObjectExistsError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import CONFIGMAPS
from nighttrain.providers.kubernetes.values.identity import PREFIX
from nighttrain.providers.kubernetes.values.objects import items, mapping, metadata, name_of, text, uid_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.job.kinds import WorkloadKind
    from nighttrain.providers.plain_json import Json

# The garbage collector removes what belonged to a workload within a second or two of it, or within a minute
# where the cluster is busy.
COLLECTED_SECONDS = 60.0
LOOK_SECONDS = 0.5


async def ensure_files(
    client: ClusterClient,
    files: Mapping[str, str] | None,
    obj: Json,
    kind: WorkloadKind,
    *,
    adopted: bool = False,
) -> None:
    """Make sure that the workload's files are in the cluster. Nothing to do without files, or once it has
    ended.

    :param obj: the workload's object
    :param adopted: it existed already. A new one whose files the cluster refuses is removed: it could only
        wait for them
    :raises WorkloadConflictError: its name is taken by a ConfigMap that belongs to something else
    :raises ClusterError: the cluster refused or cannot be asked
    """
    if not files or kind.has_ended(obj):
        return
    try:
        await _create(client, files, obj, kind)
    except (ClusterForbiddenError, ClusterRequestError, WorkloadConflictError) as error:
        transient = isinstance(error, ClusterRequestError) and error.is_busy
        if not adopted and not transient:
            with contextlib.suppress(ClusterError):
                await client.delete(kind.resource, _namespace(obj), name_of(obj), uid=uid_of(obj))
        raise


async def _create(client: ClusterClient, files: Mapping[str, str], obj: Json, kind: WorkloadKind) -> None:
    body = config_map(files, obj, kind)
    namespace, name = _namespace(obj), name_of(obj)
    try:
        async with asyncio.timeout(COLLECTED_SECONDS):
            while True:
                try:
                    await client.create(CONFIGMAPS, namespace, body)
                    return
                except ObjectExistsError:
                    pass
                if await _is_there(client, namespace, obj, kind):
                    return
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError as error:
        raise WorkloadConflictError(
            f"ConfigMap {name} in namespace {namespace} belongs to an earlier {kind.name} of this name and "
            "is not removed: does the cluster's garbage collector run? Delete the ConfigMap, then retry"
        ) from error


async def _is_there(client: ClusterClient, namespace: str, obj: Json, kind: WorkloadKind) -> bool:
    """True if the ConfigMap is the workload's, and not an earlier one's of this name on its way out."""
    name = name_of(obj)
    try:
        found = await client.get(CONFIGMAPS, namespace, name)
    except ObjectNotFoundError:
        return False
    owners = [each for each in items(metadata(found).get("ownerReferences")) if each.get("kind") == kind.name]
    if any(owner.get("uid") == uid_of(obj) for owner in owners):
        return True
    if not any(owner.get("name") == name for owner in owners):
        raise WorkloadConflictError(
            f"ConfigMap {name} in namespace {namespace} belongs to something else: delete or rename it, "
            "then retry"
        )
    return False


def config_map(files: Mapping[str, str], obj: Json, kind: WorkloadKind) -> Json:
    """The ConfigMap of a workload's files, named as the workload and owned by it."""
    labels = mapping(metadata(obj).get("labels"))
    owner = {
        "apiVersion": kind.resource.api_version,
        "kind": kind.name,
        "name": name_of(obj),
        "uid": uid_of(obj),
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name_of(obj),
            "namespace": _namespace(obj),
            "labels": {name: value for name, value in labels.items() if name.startswith(PREFIX)},
            "ownerReferences": [owner],
        },
        "data": dict(files),
        "immutable": True,
    }


def _namespace(obj: Json) -> str:
    return text(metadata(obj).get("namespace"))
