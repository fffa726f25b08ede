"""Submit, adopt, wait for, cancel and settle the Job of an attempt.

At most one live workload exists per identity: the Job's name derives from it, and whoever comes second
adopts. Nothing is kept in this process: what a later worker needs is in the Job's labels and annotations.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.attempts import History, consumed_note, history_of, write_history
from nighttrain.providers.kubernetes.files import ensure_files
from nighttrain.providers.kubernetes.identity import (
    ADOPTED_ANNOTATION,
    ATTEMPT_KEY_LABEL,
    CONSUMED_ANNOTATION,
    SPEC_HASH_ANNOTATION,
    WorkloadIdentity,
)
from nighttrain.providers.kubernetes.objects import (
    TERMINAL_PHASES,
    condition,
    is_deleting,
    items,
    mapping,
    metadata,
    name_of,
    status,
    text,
    uid_of,
)
from nighttrain.providers.kubernetes.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
    decide,
)
from nighttrain.providers.kubernetes.resources import JOBS, PODS
from nighttrain.providers.kubernetes.waiting import explanations, list_pods, read_job, until_gone
from nighttrain.providers.kubernetes.waiting import wait as wait
from nighttrain.providers.kubernetes.watch import JOB_NAME_LABEL, owner_of

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.client import ClusterClient
    from nighttrain.providers.kubernetes.spec import WorkloadSpec

Json = dict[str, Any]
_log = logging.getLogger(__name__)

# Two workers of one task can meet; each round one of them wins, so a handful is already a fault elsewhere.
SUBMIT_ROUNDS = 5
CONFLICT_ROUNDS = 5
# Several workers of one task may adopt at once; in each round one of them gets through.
FENCE_ROUNDS = 20
RUN_ID_VARIABLE = "MLFLOW_RUN_ID"


@dataclass(frozen=True)
class Workload:
    """One attempt's Job. ``uid`` tells it from a later Job of the same name.

    :param adopted: it existed already when it was submitted
    :param infrastructure_failures: attempts before this one that the cluster ended, since the last clear
    :param run_id: the MLflow run that the container was started with
    """

    namespace: str
    name: str
    uid: str
    attempt: int
    adopted: bool = False
    infrastructure_failures: int = 0
    run_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Workload:
        """The inverse of :meth:`to_dict`."""
        return cls(
            namespace=value["namespace"],
            name=value["name"],
            uid=value["uid"],
            attempt=int(value["attempt"]),
            adopted=bool(value.get("adopted", False)),
            infrastructure_failures=int(value.get("infrastructure_failures", 0)),
            run_id=value.get("run_id"),
        )


async def submit(
    client: ClusterClient,
    spec: WorkloadSpec,
    identity: WorkloadIdentity,
    *,
    epoch: str = "",
    namespace: str,
    complete: Callable[[], Awaitable[WorkloadSpec]] | None = None,
    adopts_earlier_epochs: bool = False,
) -> Workload:
    """Make sure that this identity has its workload: adopt the one there is, or create the next attempt.

    An attempt of the same ``epoch`` whose result nobody has consumed is adopted, running or ended. A consumed
    one is adopted only if it succeeded: then the worker died after the result was stored. Otherwise the next
    attempt is created, once nothing of the last one runs any more; one that still lives, because it belongs
    to an earlier epoch or runs another spec, is cancelled first.

    :param epoch: changes when a person asks for the task anew (clears it), and not over automatic retries;
        later ones compare greater
    :param adopts_earlier_epochs: an attempt that an earlier epoch left is adopted too: for orchestrators that
        have no clear, only executions that follow one another
    :param complete: asked for the final spec when an attempt is about to be created: what only a new attempt
        needs, such as a run, is prepared there. Its result counts as the same spec
    :raises ConfigurationError: the spec cannot become a Job; nothing was created
    :raises WorkloadConflictError: the name is taken by something else, or a later epoch has begun
    :raises ClusterError: the cluster refused or cannot be asked
    """
    from nighttrain.providers.kubernetes.manifests import build_job

    wanted_hash = _annotation(build_job(spec, identity, 1), SPEC_HASH_ANNOTATION)
    final: WorkloadSpec | None = None
    last = 0
    for _ in range(SUBMIT_ROUNDS):
        latest = await _latest_attempt(client, identity, namespace)
        history = history_of(latest)
        if latest is not None:
            _verify_owner(latest, identity)
            adoption = await _adopt(client, latest, wanted_hash, epoch, namespace)
            if adoption is _Adoption.ADOPTED:
                return await _completed(client, spec, latest, namespace, adopted=True)
            if adoption is _Adoption.CHANGED:
                continue
            last = max(last, history.attempt)
        await _until_strays_ended(client, identity, namespace)
        if final is None:
            final = spec if complete is None else await complete()
        body = build_job(final, identity, last + 1)
        body["metadata"]["namespace"] = namespace
        body["metadata"]["annotations"][SPEC_HASH_ANNOTATION] = wanted_hash
        write_history(body, history, final, epoch, adopts_earlier_epochs=adopts_earlier_epochs)
        try:
            created = await client.create(JOBS, namespace, body)
        except ObjectExistsError:
            # Another worker was faster, or the answer to our own first try was lost: look who it is.
            await _verify_taken(client, name_of(body), identity, namespace)
            continue
        return await _completed(client, spec, created, namespace, adopted=False)
    raise WorkloadConflictError(
        f"the attempts of {identity.dag_id}.{identity.task_id} keep changing in namespace {namespace}: "
        "does a second scheduler run the same task?"
    )


async def _completed(
    client: ClusterClient, spec: WorkloadSpec, job: Json, namespace: str, *, adopted: bool
) -> Workload:
    """The workload of a Job that was created or adopted, with all that belongs to it."""
    await ensure_files(client, spec, job, adopted=adopted)
    history = history_of(job)
    return Workload(
        namespace,
        name_of(job),
        uid_of(job),
        history.attempt,
        adopted=adopted,
        infrastructure_failures=history.infrastructure_failures,
        run_id=environment_of(job).get(RUN_ID_VARIABLE),
    )


async def observe(client: ClusterClient, workload: Workload) -> Observation:
    """How the workload stands, from a few reads.

    :raises ClusterError: the cluster refused or cannot be asked
    """
    job = await read_job(client, workload)
    pods = await list_pods(client, workload)
    observation = decide(job, pods)
    if observation.phase is not Phase.WAITING:
        return observation
    events, queue = await explanations(client, workload, job)
    return decide(job, pods, events, queue=queue)


async def cancel(
    client: ClusterClient, workload: Workload, *, grace_period_seconds: int | None = None
) -> None:
    """Delete the workload and wait until nothing of it runs. One that is gone already is fine.

    :param grace_period_seconds: between SIGTERM and SIGKILL; the pod's own if not given
    :raises WorkloadConflictError: it still terminates after a quarter of an hour
    :raises ClusterError: the cluster refused or cannot be asked
    """
    # Not found: gone already. Conflict: its name belongs to another Job now.
    with contextlib.suppress(ObjectNotFoundError, ObjectConflictError):
        await client.delete(JOBS, workload.namespace, workload.name, uid=workload.uid)
    if grace_period_seconds is not None:
        # A Job's deletion hands no grace period down to its pods.
        for pod in await list_pods(client, workload):
            await _delete_pod(client, workload, pod, grace_period_seconds)
    await until_gone(client, workload, with_job=True)


async def cancel_if_live(client: ClusterClient, workload: Workload) -> None:
    """Cancel a workload that was given up although its Job has not ended: one that can never start, say.

    :raises ClusterError: the cluster refused or cannot be asked
    """
    job = await read_job(client, workload)
    if job is not None and condition(job, "Complete") is None and condition(job, "Failed") is None:
        await cancel(client, workload)


async def mark_consumed(
    client: ClusterClient, workload: Workload, epoch: str, *, outcome: Outcome | None = None
) -> None:
    """Note on the Job that its result is stored, so that clearing the task starts a new attempt.

    A Job that is gone needs no note.

    :param outcome: how it ended, if the caller knows; otherwise the Job is asked
    :raises ClusterError: the cluster refused or cannot be asked
    """
    for last in range(CONFLICT_ROUNDS):
        job = await read_job(client, workload)
        if job is None:
            return
        known = outcome or decide(job, await list_pods(client, workload)).outcome
        note = consumed_note(epoch, known)
        body = {
            "metadata": {
                "resourceVersion": metadata(job).get("resourceVersion"),
                "annotations": {CONSUMED_ANNOTATION: note},
            }
        }
        try:
            await client.patch(JOBS, workload.namespace, workload.name, body)
        except ObjectNotFoundError:
            return
        except ObjectConflictError:  # the Job's status moved between the read and the write
            if last == CONFLICT_ROUNDS - 1:
                raise
            continue
        return


async def _latest_attempt(client: ClusterClient, identity: WorkloadIdentity, namespace: str) -> Json | None:
    listed = await client.list(JOBS, namespace, label_selector=f"{ATTEMPT_KEY_LABEL}={identity.key}")
    return max(items(listed.get("items")), key=lambda job: history_of(job).attempt, default=None)


def _annotation(job: Json, name: str) -> str:
    return text(mapping(metadata(job).get("annotations")).get(name))


def _verify_owner(job: Json, identity: WorkloadIdentity) -> None:
    for name, expected in identity.annotations().items():
        found = _annotation(job, name)
        if found != expected:
            raise WorkloadConflictError(
                f"Job {name_of(job)} is not an attempt of {identity.dag_id}.{identity.task_id}: its {name} "
                f"is {found or 'missing'!r}, not {expected!r}. Delete or rename that Job, then retry"
            )


async def _verify_taken(client: ClusterClient, name: str, identity: WorkloadIdentity, namespace: str) -> None:
    try:
        job = await client.get(JOBS, namespace, name)
    except ObjectNotFoundError:
        return
    _verify_owner(job, identity)
    if mapping(metadata(job).get("labels")).get(ATTEMPT_KEY_LABEL) != identity.key:
        raise WorkloadConflictError(
            f"Job {name} in namespace {namespace} lost its label {ATTEMPT_KEY_LABEL}: delete it, then retry"
        )


class _Adoption(Enum):
    """What became of the latest attempt."""

    ADOPTED = "adopted"
    ENDED = "nothing of it runs any more"
    CHANGED = "it was changed meanwhile: look again"


async def _adopt(client: ClusterClient, job: Json, wanted_hash: str, epoch: str, namespace: str) -> _Adoption:
    """Adopt the latest attempt's Job, or see to it that nothing of it runs any more."""
    history = history_of(job)
    workload = Workload(namespace, name_of(job), uid_of(job), history.attempt)
    if is_deleting(job):
        await until_gone(client, workload, with_job=True)
        return _Adoption.ENDED
    if history.epoch is not None and history.epoch > epoch:
        raise WorkloadConflictError(
            f"Job {workload.name} in namespace {namespace} belongs to a later clear of this task: this "
            "try is out of date and does nothing"
        )
    ended = condition(job, "Complete") is not None or condition(job, "Failed") is not None
    if _is_wanted(job, history, wanted_hash, epoch):
        # An ended Job needs no fence: nobody cancels what does not run.
        adopted = ended or await _fence(client, workload, job)
        return _Adoption.ADOPTED if adopted else _Adoption.CHANGED
    if not ended:
        _log.warning("Cancelling Job %s: %s", workload.name, _why_unwanted(history, epoch))
        await cancel(client, workload)
    await until_gone(client, workload, with_job=False)
    return _Adoption.ENDED


async def _until_strays_ended(client: ClusterClient, identity: WorkloadIdentity, namespace: str) -> None:
    """Wait for pods whose Job was deleted without them: they may still be training."""
    listed = await client.list(PODS, namespace, label_selector=f"{ATTEMPT_KEY_LABEL}={identity.key}")
    for pod in items(listed.get("items")):
        if text(status(pod).get("phase")) not in TERMINAL_PHASES and is_deleting(pod):
            name = text(mapping(metadata(pod).get("labels")).get(JOB_NAME_LABEL))
            await until_gone(client, Workload(namespace, name, owner_of(pod), 0), with_job=False)


def _is_wanted(job: Json, history: History, wanted_hash: str, epoch: str) -> bool:
    if history.consumed is not None:
        return history.consumed == OutcomeKind.SUCCEEDED.value and history.consumed_epoch == epoch
    same_epoch = history.epoch is None or history.epoch == epoch
    return same_epoch and _annotation(job, SPEC_HASH_ANNOTATION) == wanted_hash


def _why_unwanted(history: History, epoch: str) -> str:
    if history.consumed is not None:
        return "its result is settled already"
    if history.epoch is not None and history.epoch != epoch:
        return "the task was cleared since it was submitted"
    return "the task asks for something else now than when it was submitted"


def environment_of(job: Json) -> dict[str, str]:
    """The variables with a plain value that a Job gives its main container."""
    template = mapping(mapping(mapping(job.get("spec")).get("template")).get("spec"))
    container = next(iter(items(template.get("containers"))), {})
    return {text(item.get("name")): text(item.get("value")) for item in items(container.get("env"))}


async def _fence(client: ClusterClient, workload: Workload, job: Json) -> bool:
    """Mark a live Job as adopted. Whoever decided to remove it from what they saw before finds it changed."""
    body = {
        "metadata": {
            "resourceVersion": metadata(job).get("resourceVersion"),
            "annotations": {ADOPTED_ANNOTATION: uuid.uuid4().hex},
        }
    }
    for _ in range(FENCE_ROUNDS):
        try:
            await client.patch(JOBS, workload.namespace, workload.name, body)
        except ObjectNotFoundError:
            return False
        except ObjectConflictError:  # the Job's status moved, or it is another Job by now: look again
            fresh = await read_job(client, workload)
            if fresh is None or is_deleting(fresh):
                return False
            body["metadata"]["resourceVersion"] = metadata(fresh).get("resourceVersion")
            continue
        return True
    return False


async def _delete_pod(client: ClusterClient, workload: Workload, pod: Json, grace: int) -> None:
    with contextlib.suppress(ObjectNotFoundError, ObjectConflictError):
        await client.delete(
            PODS, workload.namespace, name_of(pod), uid=uid_of(pod), grace_period_seconds=grace
        )
