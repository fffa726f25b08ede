"""Submit, adopt, wait for, cancel and settle the workload of an attempt, of whatever kind.

At most one live workload exists per identity: its name derives from that, and whoever comes second adopts.
Nothing is kept in this process: what a later worker needs is in the object's labels and annotations. What is
special to a kind is in :mod:`~nighttrain.providers.kubernetes.job.kinds`.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

from nighttrain.providers.attempts.attempt_run import (
    EXPERIMENT_ID_VARIABLE,
    RUN_CONTEXT_VARIABLE,
    RUN_ID_VARIABLE,
)
from nighttrain.providers.attempts.history import History, consumed_note, history_of, write_history
from nighttrain.providers.attempts.wait_for_end import explanations, kills, until_gone
from nighttrain.providers.attempts.wait_for_end import wait as wait
from nighttrain.providers.attempts.workload_objects import list_pods, read_object
from nighttrain.providers.errors import (
    LostNodeError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.kubernetes.job.config_map import ensure_files
from nighttrain.providers.kubernetes.job.kinds import JOB, WorkloadKind, kind_named
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
)
from nighttrain.providers.kubernetes.values.identity import (
    ADOPTED_ANNOTATION,
    ATTEMPT_KEY_LABEL,
    CONSUMED_ANNOTATION,
    SPEC_HASH_ANNOTATION,
    WorkloadIdentity,
)
from nighttrain.providers.kubernetes.values.objects import (
    TERMINAL_PHASES,
    is_deleting,
    items,
    main_container_spec,
    mapping,
    metadata,
    name_of,
    status,
    text,
    uid_of,
)
from nighttrain.providers.kubernetes.values.submitted_workload import Workload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.job.checked import CheckedWorkload
    from nighttrain.providers.plain_json import Json

_log = logging.getLogger(__name__)

# Two workers of one task can meet; each round one of them wins, so a handful is already a fault elsewhere.
SUBMIT_ROUNDS = 5
CONFLICT_ROUNDS = 5
# Several workers of one task may adopt at once; in each round one of them gets through.
FENCE_ROUNDS = 20


async def submit(
    client: ClusterClient,
    wanted: CheckedWorkload,
    identity: WorkloadIdentity,
    *,
    epoch: str = "",
    namespace: str,
    complete: Callable[[], Awaitable[CheckedWorkload]] | None = None,
    adopts_earlier_epochs: bool = False,
    kind: WorkloadKind = JOB,
    replace_on_lost_node: bool = False,
) -> Workload:
    """Make sure that this identity has its workload: adopt the one there is, or create the next attempt.

    An attempt of the same ``epoch`` and spec whose result nobody has consumed is adopted, running or ended. A
    consumed one is adopted only if it succeeded: then the worker died after the result was stored. Otherwise
    the next attempt is created, once nothing of the last one runs any more; one that still lives, because it
    belongs to an earlier epoch or runs another spec, is cancelled first.

    :param epoch: changes when a person asks for the task anew (clears it), and not over automatic retries;
        later ones compare greater
    :param adopts_earlier_epochs: an attempt that an earlier epoch left is adopted too: for orchestrators that
        have no clear, only executions that follow one another
    :param complete: asked for the final workload when an attempt is about to be created: what only a new
        attempt needs, such as a run, is prepared there. Its result counts as the same spec
    :param replace_on_lost_node: the next attempt starts although a pod of an earlier one may still run, on a
        node that does not answer: two trainings may run at once then
    :raises ConfigurationError: it cannot become a workload of this kind; nothing was created
    :raises LostNodeError: a pod of an earlier attempt may still run, on a node that does not answer
    :raises WorkloadConflictError: the name is taken by something else, or a later epoch has begun
    :raises ClusterError: the cluster refused or cannot be asked
    """
    wanted_hash = _annotation(kind.build(wanted, identity, 1), SPEC_HASH_ANNOTATION)
    final: CheckedWorkload | None = None
    refused: ObjectConflictError | None = None
    last = prepared_for = 0
    for _ in range(SUBMIT_ROUNDS):
        latest = await _latest_attempt(client, identity, namespace, kind)
        history = history_of(latest)
        if latest is not None:
            _verify_owner(latest, identity, kind)
            found = _workload_of(latest, namespace, kind)
            adoption = await _adopt(client, found, latest, wanted_hash, epoch, replace_on_lost_node)
            if adoption is _Adoption.ADOPTED:
                return await _completed(client, wanted, found, latest, adopted=True)
            if adoption is _Adoption.CHANGED:
                continue
            last = max(last, history.attempt)
        await _until_strays_ended(client, identity, namespace, kind, replace_on_lost_node)
        if final is None or prepared_for != last + 1:  # what was prepared for one attempt is no other's
            final, prepared_for = wanted if complete is None else await complete(), last + 1
        body = kind.build(final, identity, last + 1)
        body["metadata"]["namespace"] = namespace
        body["metadata"]["annotations"][SPEC_HASH_ANNOTATION] = wanted_hash
        write_history(
            body, history, final.spec, epoch, kind=kind, adopts_earlier_epochs=adopts_earlier_epochs
        )
        try:
            created = await client.create(kind.resource, namespace, body)
        except ObjectConflictError as error:
            # A quota's count, say, that many write at once: nothing was made, and the next try gets through.
            refused = error
            continue
        except ObjectExistsError:
            # Another worker was faster, or the answer to our own first try was lost: look who it is.
            await _verify_taken(client, name_of(body), identity, namespace, kind)
            continue
        new = _workload_of(created, namespace, kind)
        return await _completed(client, wanted, new, created, adopted=False)
    if refused is not None:
        raise refused
    raise WorkloadConflictError(
        f"the attempts of {identity.dag_id}.{identity.task_id} keep changing in namespace {namespace}: "
        "does a second scheduler run the same task?"
    )


def _workload_of(obj: Json, namespace: str, kind: WorkloadKind) -> Workload:
    return Workload(namespace, name_of(obj), uid_of(obj), history_of(obj).attempt, kind=kind.name)


async def _completed(
    client: ClusterClient, wanted: CheckedWorkload, workload: Workload, obj: Json, *, adopted: bool
) -> Workload:
    """The workload of an object that was created or adopted, with all that belongs to it."""
    kind = kind_named(workload.kind)
    await ensure_files(client, wanted.spec.files, obj, kind, adopted=adopted)
    failures = history_of(obj).infrastructure_failures
    return replace(_with_run(workload, obj), adopted=adopted, infrastructure_failures=failures)


def _with_run(workload: Workload, obj: Json) -> Workload:
    environment = environment_of(obj, kind_named(workload.kind))
    return replace(
        workload,
        run_id=environment.get(RUN_ID_VARIABLE),
        experiment_id=environment.get(EXPERIMENT_ID_VARIABLE),
        run_context=environment.get(RUN_CONTEXT_VARIABLE),
    )


async def find_live(
    client: ClusterClient,
    identity: WorkloadIdentity,
    *,
    epoch: str,
    namespace: str,
    kind: WorkloadKind = JOB,
) -> Workload | None:
    """The attempt of this epoch that is under way, for whoever was interrupted before it knew of it.

    :raises ClusterError: the cluster refused or cannot be asked
    """
    obj = await _latest_attempt(client, identity, namespace, kind)
    if obj is None or history_of(obj).consumed is not None or history_of(obj).epoch not in (None, epoch):
        return None
    found = _workload_of(obj, namespace, kind)
    return None if await _has_ended(client, found, obj) else _with_run(found, obj)


async def observe(client: ClusterClient, workload: Workload) -> Observation:
    """Read how the workload stands, by a few requests.

    :raises ClusterError: the cluster refused or cannot be asked
    """
    obj = await read_object(client, workload)
    pods = await list_pods(client, workload)
    read = kind_named(workload.kind).read
    observation = read(obj, pods, [] if pods else await kills(client, workload))
    if observation.phase is not Phase.WAITING:
        return observation
    events, queue = await explanations(client, workload, obj)
    return read(obj, pods, events, queue=queue)


async def cancel(client: ClusterClient, workload: Workload) -> None:
    """Delete the workload and wait until nothing of it runs. One that is gone already is fine.

    A pod on a node that does not answer is not waited for: it is deleted, and no one can see it end.

    :raises WorkloadConflictError: it still terminates after a quarter of an hour
    :raises ClusterError: the cluster refused or cannot be asked
    """
    await _delete_object(client, workload)
    try:
        await until_gone(client, workload, with_object=True)
    except LostNodeError as error:
        # Nothing takes its deletion back: it ends with its node's return, or is gone with its node.
        _log.warning("%s is deleted and cannot be seen to end: %s", workload.described, error)


async def _delete_object(client: ClusterClient, workload: Workload) -> None:
    """Delete the workload's object, and no other one that has its name by now.

    :raises ObjectConflictError: the server goes on to refuse what is still there
    """
    resource = kind_named(workload.kind).resource
    for last in range(CONFLICT_ROUNDS):
        try:
            await client.delete(resource, workload.namespace, workload.name, uid=workload.uid)
        except ObjectNotFoundError:
            return
        except ObjectConflictError:
            # Usually its name belongs to another one now. Waiting for the end of one that was not deleted
            # would take as long as it lives.
            if await read_object(client, workload) is None:
                return
            if last == CONFLICT_ROUNDS - 1:
                raise
            continue
        return


async def cancel_if_live(client: ClusterClient, workload: Workload) -> bool:
    """Cancel a workload that was given up although it has not ended: one that can never start, say.

    :return: whether it was live
    :raises ClusterError: the cluster refused or cannot be asked
    """
    obj = await read_object(client, workload)
    if obj is None or await _has_ended(client, workload, obj):
        return False
    await cancel(client, workload)
    return True


async def _has_ended(client: ClusterClient, workload: Workload, obj: Json) -> bool:
    kind = kind_named(workload.kind)
    return kind.has_ended(obj) or kind.ended(obj, await list_pods(client, workload))


async def mark_consumed(
    client: ClusterClient, workload: Workload, epoch: str, *, outcome: Outcome | None = None
) -> None:
    """Note on the workload that its result is stored, so that clearing the task starts a new attempt.

    One that is gone needs no note.

    :param outcome: how it ended, if the caller knows; otherwise its status is read
    :raises ClusterError: the cluster refused or cannot be asked
    """
    kind = kind_named(workload.kind)
    for last in range(CONFLICT_ROUNDS):
        obj = await read_object(client, workload)
        if obj is None:
            return
        known = outcome or kind.read(obj, await list_pods(client, workload)).outcome
        note = consumed_note(epoch, known)
        body = {
            "metadata": {
                "resourceVersion": metadata(obj).get("resourceVersion"),
                "annotations": {CONSUMED_ANNOTATION: note},
            }
        }
        try:
            await client.patch(kind.resource, workload.namespace, workload.name, body)
        except ObjectNotFoundError:
            return
        except ObjectConflictError:  # its status moved between the read and the write
            if last == CONFLICT_ROUNDS - 1:
                raise
            continue
        return


async def _latest_attempt(
    client: ClusterClient, identity: WorkloadIdentity, namespace: str, kind: WorkloadKind
) -> Json | None:
    selector = f"{ATTEMPT_KEY_LABEL}={identity.key}"
    listed = await client.list(kind.resource, namespace, label_selector=selector)
    return max(items(listed.get("items")), key=lambda obj: history_of(obj).attempt, default=None)


def _annotation(obj: Json, name: str) -> str:
    return text(mapping(metadata(obj).get("annotations")).get(name))


def _verify_owner(obj: Json, identity: WorkloadIdentity, kind: WorkloadKind) -> None:
    for name, expected in identity.annotations().items():
        found = _annotation(obj, name)
        if found != expected:
            raise WorkloadConflictError(
                f"{kind.name} {name_of(obj)} is not an attempt of {identity.dag_id}.{identity.task_id}: its "
                f"{name} is {found or 'missing'!r}, not {expected!r}. Delete or rename that {kind.name}, "
                "then retry"
            )


async def _verify_taken(
    client: ClusterClient, name: str, identity: WorkloadIdentity, namespace: str, kind: WorkloadKind
) -> None:
    try:
        obj = await client.get(kind.resource, namespace, name)
    except ObjectNotFoundError:
        return
    _verify_owner(obj, identity, kind)
    if mapping(metadata(obj).get("labels")).get(ATTEMPT_KEY_LABEL) != identity.key:
        raise WorkloadConflictError(
            f"{kind.name} {name} in namespace {namespace} lost its label {ATTEMPT_KEY_LABEL}: delete it, "
            "then retry"
        )


class _Adoption(Enum):
    """The fate of the latest attempt."""

    ADOPTED = "adopted"
    ENDED = "nothing of it runs any more"
    CHANGED = "it was changed meanwhile: look again"


async def _adopt(
    client: ClusterClient, workload: Workload, obj: Json, wanted_hash: str, epoch: str, replaces_lost: bool
) -> _Adoption:
    """Adopt the latest attempt, or see to it that nothing of it runs any more."""
    history = history_of(obj)
    if is_deleting(obj):
        await until_gone(client, workload, with_object=True, replace_on_lost_node=replaces_lost)
        return _Adoption.ENDED
    if history.epoch is not None and history.epoch > epoch:
        raise WorkloadConflictError(
            f"{workload.described} belongs to a later clear of this task: this try is out of date and does "
            "nothing"
        )
    ended = await _has_ended(client, workload, obj)
    if _is_wanted(obj, history, wanted_hash, epoch):
        # What has ended needs no fence: nobody cancels what does not run.
        adopted = ended or await _fence(client, workload, obj)
        return _Adoption.ADOPTED if adopted else _Adoption.CHANGED
    if not ended:
        _log.warning("Cancelling %s %s: %s", workload.kind, workload.name, _why_unwanted(history, epoch))
        await cancel(client, workload)
    await until_gone(client, workload, with_object=False, replace_on_lost_node=replaces_lost)
    return _Adoption.ENDED


async def _until_strays_ended(
    client: ClusterClient,
    identity: WorkloadIdentity,
    namespace: str,
    kind: WorkloadKind,
    replaces_lost: bool,
) -> None:
    """Wait for pods whose workload was deleted without them: they may still be training."""
    listed = await client.list(PODS, namespace, label_selector=f"{ATTEMPT_KEY_LABEL}={identity.key}")
    for pod in items(listed.get("items")):
        if text(status(pod).get("phase")) not in TERMINAL_PHASES and is_deleting(pod):
            name = text(mapping(metadata(pod).get("labels")).get(kind.pod_label))
            stray = Workload(namespace, name, kind.owner_of(pod), 0, kind=kind.name)
            await until_gone(client, stray, with_object=False, replace_on_lost_node=replaces_lost)


def _is_wanted(obj: Json, history: History, wanted_hash: str, epoch: str) -> bool:
    if _annotation(obj, SPEC_HASH_ANNOTATION) != wanted_hash:
        return False
    if history.consumed is not None:
        return history.consumed == OutcomeKind.SUCCEEDED.value and history.consumed_epoch == epoch
    return history.epoch is None or history.epoch == epoch


def _why_unwanted(history: History, epoch: str) -> str:
    if history.consumed is not None:
        return "its result is settled already"
    if history.epoch is not None and history.epoch != epoch:
        return "the task was cleared since it was submitted"
    return "the task asks for something else now than when it was submitted"


def environment_of(obj: Json, kind: WorkloadKind = JOB) -> dict[str, str]:
    """The variables with a plain value that a workload gives its main container."""
    container = main_container_spec(kind.pod_template(obj))
    return {text(item.get("name")): text(item.get("value")) for item in items(container.get("env"))}


async def _fence(client: ClusterClient, workload: Workload, obj: Json) -> bool:
    """Mark a live workload as adopted: who decided to remove it as they saw it before finds it changed."""
    resource = kind_named(workload.kind).resource
    body = {
        "metadata": {
            "resourceVersion": metadata(obj).get("resourceVersion"),
            "annotations": {ADOPTED_ANNOTATION: uuid.uuid4().hex},
        }
    }
    for _ in range(FENCE_ROUNDS):
        try:
            await client.patch(resource, workload.namespace, workload.name, body)
        except ObjectNotFoundError:
            return False
        except ObjectConflictError:  # its status moved, or it is another one by now: look again
            fresh = await read_object(client, workload)
            if fresh is None or is_deleting(fresh):
                return False
            body["metadata"]["resourceVersion"] = metadata(fresh).get("resourceVersion")
            continue
        return True
    return False
