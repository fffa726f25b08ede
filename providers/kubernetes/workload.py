"""Submit, adopt, wait for, cancel and settle the Job of an attempt.

At most one live workload exists per identity: the Job's name derives from it, and whoever comes second
adopts. Nothing is kept in this process: what a later worker needs is in the Job's labels and annotations.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ClusterError,
    ObjectConflictError,
    ObjectExistsError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.identity import (
    ATTEMPT_KEY_LABEL,
    ATTEMPT_LABEL,
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
    timed_out,
)
from nighttrain.providers.kubernetes.resources import EVENTS, JOBS, KUEUE_WORKLOADS, PODS
from nighttrain.providers.kubernetes.watch import JOB_NAME_LABEL, Sleep, WorkloadView, owned_by

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.client import ClusterClient
    from nighttrain.providers.kubernetes.spec import WorkloadSpec

Json = dict[str, Any]

# Two workers of one task can meet; each round one of them wins, so a handful is already a fault elsewhere.
SUBMIT_ROUNDS = 5
# Longer than any sensible grace period: what still terminates after it needs a person.
GONE_SECONDS = 900.0
# How often a start that makes no progress is looked into: events are kept for an hour and are not urgent.
EXPLAIN_SECONDS = 5.0
CONFLICT_ROUNDS = 5


@dataclass(frozen=True)
class Workload:
    """One attempt's Job. ``uid`` tells it from a later Job of the same name.

    :param adopted: it existed already when it was submitted
    """

    namespace: str
    name: str
    uid: str
    attempt: int
    adopted: bool = False

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
        )


async def submit(
    client: ClusterClient, spec: WorkloadSpec, identity: WorkloadIdentity, *, epoch: str = "", namespace: str
) -> Workload:
    """Make sure that this identity has its workload: adopt the one there is, or create the next attempt.

    An attempt whose result nobody has consumed is adopted, running or ended. A consumed one is adopted only
    if it succeeded in the same ``epoch``: then the worker died after the result was stored. Otherwise the
    next attempt is created, once the last one's pods have ended.

    :param epoch: changes when a person asks for the task anew (clears it), and not over automatic retries
    :raises ConfigurationError: the spec cannot become a Job; nothing was created
    :raises WorkloadConflictError: the name is taken by something else, or a live attempt runs another spec
    :raises ClusterError: the cluster refused or cannot be asked
    """
    from nighttrain.providers.kubernetes.manifests import build_job

    wanted_hash = _annotation(build_job(spec, identity, 1), SPEC_HASH_ANNOTATION)
    last = 0
    for _ in range(SUBMIT_ROUNDS):
        latest = await _latest_attempt(client, identity, namespace)
        if latest is not None:
            _verify_owner(latest, identity)
            number = _attempt_number(latest)
            if await _adoptable(client, latest, wanted_hash, epoch, namespace):
                return Workload(namespace, name_of(latest), uid_of(latest), number, adopted=True)
            last = max(last, number)
        body = build_job(spec, identity, last + 1)
        body["metadata"]["namespace"] = namespace
        try:
            created = await client.create(JOBS, namespace, body)
        except ObjectExistsError:
            # Another worker was faster, or the answer to our own first try was lost: look who it is.
            await _verify_taken(client, name_of(body), identity, namespace)
            continue
        return Workload(namespace, name_of(created), uid_of(created), last + 1)
    raise WorkloadConflictError(
        f"the attempts of {identity.dag_id}.{identity.task_id} keep changing in namespace {namespace}: "
        "does a second scheduler run the same task?"
    )


async def observe(client: ClusterClient, workload: Workload) -> Observation:
    """How the workload stands, from a few reads.

    :raises ClusterError: the cluster refused or cannot be asked
    """
    job = await _read(client, workload)
    pods = await _pods(client, workload)
    observation = decide(job, pods)
    if observation.phase is not Phase.WAITING:
        return observation
    events, queue = await _explanations(client, workload, job)
    return decide(job, pods, events, queue=queue)


async def wait(
    client: ClusterClient,
    workload: Workload,
    *,
    startup_timeout_seconds: float,
    on_observation: Callable[[Observation], None] | None = None,
    sleep: Sleep = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Wait until the attempt has ended and say how.

    It never deletes anything: after a start-up time-out, or a fault that no waiting mends, the Job may still
    exist, and cancelling it is the caller's decision.

    :param startup_timeout_seconds: how long the workload may go without getting nearer to running. Time in a
        queue or waiting for quota that others use does not count: it says how busy the cluster is, not that
        something is wrong, and a nightly run that waits its turn until morning is healthy. A request above
        the whole quota, or a queue that does not exist, does count: no waiting grants it.
    :param on_observation: told of each change; exceptions it raises end the wait
    :raises ClusterError: the cluster refused, or could not be asked for about ten minutes
    """
    budget = _StartupBudget(startup_timeout_seconds)
    explained_at, events, queue = clock(), list[Json](), None
    reported: Observation | None = None
    async with WorkloadView(client, workload.namespace, workload.name, workload.uid, sleep=sleep) as view:
        while True:
            if not view.synced:
                await view.change()
                continue
            now = clock()
            observation = decide(view.job, view.pods, events, queue=queue)
            left = budget.left(observation, now)
            stale = now - explained_at >= EXPLAIN_SECONDS or (left is not None and left <= 0)
            if observation.phase is Phase.WAITING and stale and explained_at < now:
                events, queue = await _explanations(client, workload, view.job)
                explained_at = now
                observation = decide(view.job, view.pods, events, queue=queue)
                left = budget.left(observation, now)
            if on_observation is not None and observation != reported:
                on_observation(observation)
            reported = observation
            if observation.outcome is not None:
                return await _final(client, workload, view, observation.outcome)
            if left is not None and left <= 0:
                return timed_out(observation, view.pods, startup_timeout_seconds)
            pauses = [] if left is None else [left]
            pauses += [EXPLAIN_SECONDS] if observation.phase is Phase.WAITING else []
            await view.change(within=min(pauses, default=None))


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
        for pod in await _pods(client, workload):
            await _delete_pod(client, workload, pod, grace_period_seconds)
    await _until_gone(client, workload, with_job=True)


async def cancel_if_live(client: ClusterClient, workload: Workload) -> None:
    """Cancel a workload that was given up although its Job has not ended: one that can never start, say.

    :raises ClusterError: the cluster refused or cannot be asked
    """
    job = await _read(client, workload)
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
        job = await _read(client, workload)
        if job is None:
            return
        kind = outcome.kind if outcome else _kind_now(job, await _pods(client, workload))
        note = json.dumps({"epoch": epoch, "kind": kind.value})
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


class _StartupBudget:
    """Counts the time without progress towards running; any healthy state starts it anew."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def left(self, observation: Observation, now: float) -> float | None:
        if observation.permanent_wait is None:
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        return self._seconds + observation.grace_seconds - (now - self._since)


async def _latest_attempt(client: ClusterClient, identity: WorkloadIdentity, namespace: str) -> Json | None:
    listed = await client.list(JOBS, namespace, label_selector=f"{ATTEMPT_KEY_LABEL}={identity.key}")
    return max(items(listed.get("items")), key=_attempt_number, default=None)


def _attempt_number(job: Json) -> int:
    label = text(mapping(metadata(job).get("labels")).get(ATTEMPT_LABEL))
    return int(label) if label.isascii() and label.isdigit() else 0


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


async def _adoptable(client: ClusterClient, job: Json, wanted_hash: str, epoch: str, namespace: str) -> bool:
    """Whether to adopt; if not, nothing of the attempt runs any more when this returns."""
    workload = Workload(namespace, name_of(job), uid_of(job), _attempt_number(job))
    if is_deleting(job):
        await _until_gone(client, workload, with_job=True)
        return False
    ended = condition(job, "Complete") is not None or condition(job, "Failed") is not None
    consumed = _consumed(job)
    if consumed is not None:
        if consumed == (epoch, OutcomeKind.SUCCEEDED.value):
            return True
        if not ended:  # its result is settled, and nobody waits for it: a time-out whose cancel got lost
            await cancel(client, workload)
    elif _annotation(job, SPEC_HASH_ANNOTATION) == wanted_hash:
        return True
    elif not ended:
        raise WorkloadConflictError(
            f"Job {workload.name} in namespace {namespace} still runs this attempt with another spec: the "
            "task was changed after it was submitted. Let it end, clear the task so that it is cancelled, "
            f"or run `kubectl -n {namespace} delete job {workload.name}`, then retry"
        )
    await _until_gone(client, workload, with_job=False)
    return False


def _consumed(job: Json) -> tuple[str, str] | None:
    note = _annotation(job, CONSUMED_ANNOTATION)
    if not note:
        return None
    try:
        content = mapping(json.loads(note))
    except ValueError:
        content = {}
    return text(content.get("epoch")), text(content.get("kind"))


def _kind_now(job: Json, pods: list[Json]) -> OutcomeKind:
    outcome = decide(job, pods).outcome
    return outcome.kind if outcome else OutcomeKind.UNKNOWN


async def _read(client: ClusterClient, workload: Workload) -> Json | None:
    try:
        job = await client.get(JOBS, workload.namespace, workload.name)
    except ObjectNotFoundError:
        return None
    return job if uid_of(job) == workload.uid else None


async def _pods(client: ClusterClient, workload: Workload) -> list[Json]:
    selector = f"{JOB_NAME_LABEL}={workload.name}"
    listed = await client.list(PODS, workload.namespace, label_selector=selector)
    return [pod for pod in items(listed.get("items")) if owned_by(pod, workload.uid)]


async def _delete_pod(client: ClusterClient, workload: Workload, pod: Json, grace: int) -> None:
    with contextlib.suppress(ObjectNotFoundError, ObjectConflictError):
        await client.delete(
            PODS, workload.namespace, name_of(pod), uid=uid_of(pod), grace_period_seconds=grace
        )


async def _until_gone(client: ClusterClient, workload: Workload, *, with_job: bool) -> None:
    """Wait until none of the workload's pods runs, and the Job object is gone if ``with_job``."""
    try:
        async with (
            asyncio.timeout(GONE_SECONDS),
            WorkloadView(client, workload.namespace, workload.name, workload.uid) as view,
        ):
            while True:
                if view.synced and not (with_job and view.job) and not any(map(_is_alive, view.live_pods)):
                    return
                await view.change()
    except TimeoutError as error:
        raise WorkloadConflictError(
            f"Job {workload.name} in namespace {workload.namespace} still terminates after "
            f"{GONE_SECONDS:g} s: look for a finalizer that nobody removes, or a pod on a node that is lost"
        ) from error


def _is_alive(pod: Json) -> bool:
    return text(status(pod).get("phase")) not in TERMINAL_PHASES


async def _explanations(
    client: ClusterClient, workload: Workload, job: Json | None
) -> tuple[list[Json], Json | None]:
    """Events and Kueue's view. They explain and never decide, so a missing right is not an error."""
    events: list[Json] = []
    try:
        about = [workload.uid, *(uid_of(pod) for pod in await _pods(client, workload))]
        for uid in about:
            listed = await client.list(
                EVENTS, workload.namespace, field_selector=f"involvedObject.uid={uid}", limit=100
            )
            events += items(listed.get("items"))
    except ClusterError:
        events = []
    if mapping((job or {}).get("spec")).get("suspend") is not True:
        return events, None
    return events, await _queue(client, workload)


async def _queue(client: ClusterClient, workload: Workload) -> Json | None:
    selector = f"kueue.x-k8s.io/job-uid={workload.uid}"
    try:
        for resource in KUEUE_WORKLOADS:
            with contextlib.suppress(ObjectNotFoundError):
                found = await client.list(resource, workload.namespace, label_selector=selector)
                return next(iter(items(found.get("items"))), None)
    except ClusterError:
        return None
    return {"absent": True}


async def _final(client: ClusterClient, workload: Workload, view: WorkloadView, outcome: Outcome) -> Outcome:
    """Jobs and pods arrive on two streams: the Job's end may have overtaken its pod's last words."""
    if view.job is None:
        return outcome
    try:
        fresh = {uid_of(pod): pod for pod in await _pods(client, workload)}
    except ClusterError:
        return outcome
    known = {uid_of(pod): pod for pod in view.pods} | fresh
    again = decide(view.job, list(known.values())).outcome
    return again if again is not None else outcome
