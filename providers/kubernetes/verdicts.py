"""Where a wait ends what it waits for: first what is known is written on the workload, then it is ended.

Each step is one call that the cluster takes or refuses, so that a crash between two, or a second process that
does the same, changes nothing: the first outcome that is written holds.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ClusterForbiddenError,
    ObjectConflictError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.identity import OUTCOME_ANNOTATION
from nighttrain.providers.kubernetes.kinds import JOB, kind_named
from nighttrain.providers.kubernetes.objects import mapping, metadata
from nighttrain.providers.kubernetes.outcome import Lingering, Outcome, noted_outcome, outcome_note
from nighttrain.providers.kubernetes.reads import read_object
from nighttrain.providers.kubernetes.resources import PODS

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.client import ClusterClient
    from nighttrain.providers.kubernetes.workload import Workload

Json = dict[str, Any]
_log = logging.getLogger(__name__)

# A Job's status moves a few times at its pod's end; more conflicts than this are somebody else's loop.
NOTE_ROUNDS = 20


async def note_outcome(client: ClusterClient, workload: Workload, outcome: Outcome) -> Outcome | None:
    """Write the outcome on the workload and return what holds: one that is written already stays.

    :returns: ``None`` if the workload is gone
    :raises ClusterError: the cluster refused or cannot be asked
    """
    kind = kind_named(workload.kind)
    for _ in range(NOTE_ROUNDS):
        obj = await read_object(client, workload)
        if obj is None:
            return None
        noted = noted_outcome(obj)
        if noted is not None:
            return noted
        version = metadata(obj).get("resourceVersion")
        note = {OUTCOME_ANNOTATION: outcome_note(outcome)}
        body: Json = {"metadata": {"resourceVersion": version, "annotations": note}}
        if kind is JOB and mapping(obj.get("spec")).get("backoffLimit"):
            body["spec"] = {"backoffLimit": 0}  # what has ended is not started again
        try:
            await client.patch(kind.resource, workload.namespace, workload.name, body)
        except ObjectNotFoundError:
            return None
        except ObjectConflictError:  # its status moved, or somebody else was faster
            continue
        return outcome
    raise WorkloadConflictError(f"{workload.described} changes faster than its outcome can be written on it")


async def send_away(client: ClusterClient, workload: Workload, lingering: Lingering) -> Outcome | None:
    """Keep the main container's outcome, then tell what outlives it to go.

    :returns: the attempt's outcome; ``None`` to look again: the workload is gone, or its pod is replaced
    :raises ClusterError: the cluster refused or cannot be asked
    """
    outcome = lingering.outcome
    if outcome is not None:
        outcome = await note_outcome(client, workload, outcome)
        if outcome is None:
            return None
    if lingering.going:
        return outcome
    try:
        # Not found, or another one of that name: it went by itself.
        with contextlib.suppress(ObjectNotFoundError, ObjectConflictError):
            await client.delete(PODS, workload.namespace, lingering.pod_name, uid=lingering.pod_uid)
    except ClusterForbiddenError as error:
        if outcome is None:
            raise
        words = (
            f"Pod {lingering.pod_name} runs on although its main container has ended, and nighttrain may not "
            f"delete it: {error} Until then: kubectl delete pod -n {workload.namespace} {lingering.pod_name}"
        )
        _log.warning("%s", words)
        outcome = replace(outcome, message=f"{outcome.message} {words}".strip())
    return outcome
