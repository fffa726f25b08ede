"""The end that a wait makes of a workload: first what is known is written on it, then it is ended.

Each step is one call that the cluster takes or refuses, so that a crash between two, or a second process that
does the same, changes nothing: the first outcome that is written holds.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nighttrain.providers.attempts.workload_objects import list_pods, read_object
from nighttrain.providers.errors import (
    ClusterForbiddenError,
    ObjectConflictError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.kubernetes.job.kinds import JOB, kind_named
from nighttrain.providers.kubernetes.outcome.decide import (
    noted_outcome,
    outcome_note,
    stopped_after_all,
    timed_out,
)
from nighttrain.providers.kubernetes.outcome.endings import grace, is_single, is_terminal, may_run
from nighttrain.providers.kubernetes.values.identity import GIVEN_UP_ANNOTATION, OUTCOME_ANNOTATION
from nighttrain.providers.kubernetes.values.objects import (
    by_age,
    is_deleting,
    main_container,
    mapping,
    metadata,
    name_of,
    text,
    uid_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.mirror.subscription import Subscription
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Lingering,
        Observation,
        Outcome,
    )
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.plain_json import Json

_log = logging.getLogger(__name__)

# A Job's status moves a few times at its pod's end; more conflicts than this are somebody else's loop.
NOTE_ROUNDS = 20
# A kubelet tells of a deleted pod's end within a second or two of it; one that is silent is not waited for.
LAST_WORDS_SECONDS = 20.0
# Where the watch does not tell, a list does.
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Look:
    """One reading of a workload and its pods, and how it stands by that."""

    obj: Json | None
    pods: list[Json]
    observation: Observation

    @property
    def current(self) -> Json | None:
        """Its newest pod that has not ended."""
        return next((pod for pod in reversed(by_age(self.pods)) if not is_terminal(pod)), None)


async def note_outcome(client: ClusterClient, workload: Workload, outcome: Outcome) -> Outcome | None:
    """Write the outcome on the workload and return what holds: one that is written already stays.

    :return: ``None`` if the workload is gone
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

    :return: the attempt's outcome; ``None`` to look again: the workload is gone, or its pod is replaced
    :raises ClusterError: the cluster refused or cannot be asked
    """
    outcome = lingering.outcome
    if outcome is not None:
        outcome = await note_outcome(client, workload, outcome)
        if outcome is None:
            return None
        outcome = lingering.explained(outcome)
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


async def give_up(
    client: ClusterClient,
    workload: Workload,
    view: Subscription,
    look: Look,
    seconds: float,
    clock: Callable[[], float],
) -> Outcome | None:
    """End a workload whose time is over, exactly as the look that decided saw it.

    Its pod is deleted, so that the Job stays; the workload itself where there is no pod, or more than one.

    :param seconds: the time-out that is over
    :return: how it ended; ``None`` to look again: it has changed meanwhile, and may have started
    :raises ClusterError: the cluster refused or cannot be asked
    """
    pod, obj = look.current, look.obj
    if obj is None:
        return None
    if is_deleting(obj):  # that it goes is decided already
        return timed_out(look.observation, look.pods, seconds)
    if pod is not None and is_deleting(pod):
        outcome = timed_out(look.observation, look.pods, seconds)
        return await note_outcome(client, workload, outcome) or outcome
    before = {uid_of(each) for each in [*view.pods, *look.pods] if _has_begun(each)} - {uid_of(pod)}
    of_many = workload.kind != JOB.name or not is_single(obj)
    if pod is not None and not of_many:
        await _announce(client, workload, timed_out(look.observation, look.pods, seconds))
    try:
        forbidden = await _delete_as_seen(client, workload, obj, None if of_many else pod)
    except (ObjectConflictError, ObjectNotFoundError):
        if pod is not None and not of_many:
            await _announce(client, workload, None)
        return None
    ran = pod is not None and _has_begun(pod)  # on a node that does not answer: nobody tells of its end
    begun = None if ran else await _begun_after_all(client, workload, view, pod, before, clock)
    if begun is None:
        outcome = timed_out(look.observation, look.pods, seconds)
    else:
        outcome = stopped_after_all(look.observation, begun, seconds)
    if forbidden:
        outcome = replace(outcome, message=f"{outcome.message} {forbidden}")
    return await note_outcome(client, workload, outcome) or outcome


async def _announce(client: ClusterClient, workload: Workload, outcome: Outcome | None) -> None:
    """Write on the workload what its pod is about to be deleted for, or that it is not: whoever comes after a
    crash finds a deleted pod, and nothing else that tells why.
    """
    note = None if outcome is None else outcome_note(outcome)
    body = {"metadata": {"annotations": {GIVEN_UP_ANNOTATION: note}}}
    with contextlib.suppress(ObjectNotFoundError):
        await client.patch(kind_named(workload.kind).resource, workload.namespace, workload.name, body)


async def _delete_as_seen(client: ClusterClient, workload: Workload, obj: Json, pod: Json | None) -> str:
    """Delete the pod, or the workload, if it has not changed; words about a right that is missing, if so."""
    kind, namespace = kind_named(workload.kind), workload.namespace
    if pod is not None:
        version = text(metadata(pod).get("resourceVersion"))
        try:
            await client.delete(PODS, namespace, name_of(pod), uid=uid_of(pod), resource_version=version)
        except ClusterForbiddenError as error:
            _log.warning(
                "Removing %s with its pod, which nighttrain may not delete: %s", workload.name, error
            )
            # It may start between the look and this: what became of it is looked at, and told, afterwards.
            await client.delete(kind.resource, namespace, workload.name, uid=workload.uid)
            return f"Its {workload.kind} was removed, since nighttrain may not delete its pod: {error}"
        return ""
    version = text(metadata(obj).get("resourceVersion"))
    await client.delete(kind.resource, namespace, workload.name, uid=workload.uid, resource_version=version)
    return ""


async def _begun_after_all(
    client: ClusterClient,
    workload: Workload,
    view: Subscription,
    deleted: Json | None,
    before: set[str],
    clock: Callable[[], float],
) -> Json | None:
    """Wait until what was deleted is gone; the pod whose main container had begun, if one had.

    :param deleted: the pod; ``None`` if it was the workload
    :param before: pods of earlier, which ran
    """
    until = clock() + LAST_WORDS_SECONDS + (_grace_of(deleted) if deleted else 0)
    last: dict[str, Json] = {}
    while True:
        gone = deleted is not None or await read_object(client, workload) is None
        listed = {uid_of(pod): pod for pod in await list_pods(client, workload)}
        last |= {uid_of(pod): pod for pod in view.pods} | listed
        fresh = [pod for uid, pod in last.items() if uid not in before]
        begun = next((pod for pod in by_age(fresh) if _has_begun(pod)), None)
        gone = gone and not any(map(may_run, listed.values()))
        if begun is not None or gone or clock() >= until:
            return begun
        await view.change(within=LOOK_SECONDS)


def _has_begun(pod: Json) -> bool:
    main = main_container(pod)
    return main is not None and main.began


def _grace_of(pod: Json) -> int:
    given = mapping(pod.get("spec")).get("terminationGracePeriodSeconds")
    return given if isinstance(given, int) else grace(pod)
