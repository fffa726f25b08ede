"""How an attempt stands and how it ended: one total function over a Job, its pods and events.

The end of the main container decides, where nobody brought it about; else the Job's conditions do, and pods
and events explain. Of the Job's conditions success is ``Complete``, not the earlier ``SuccessCriteriaMet``:
between the two the Job's pods may still be terminating, and a workload that is still alive must not be
followed by the next attempt. A pod's phase alone never decides, see
:mod:`~nighttrain.providers.kubernetes.outcome.endings`.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from nighttrain.providers import errors
from nighttrain.providers.errors import clip
from nighttrain.providers.kubernetes.outcome import endings, nodes, waits
from nighttrain.providers.kubernetes.values.identity import GIVEN_UP_ANNOTATION, OUTCOME_ANNOTATION
from nighttrain.providers.kubernetes.values.objects import (
    NEVER_SEEN,
    TERMINAL_PHASES,
    Container,
    by_age,
    condition,
    culprit,
    is_deleting,
    main_container,
    mapping,
    metadata,
    moment,
    name_of,
    status,
    text,
    uid_of,
    whole,
)
from nighttrain.providers.kubernetes.values.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nighttrain.providers.plain_json import Json

# What a terminal shows at a glance; the whole log is one link away.
LAST_LINES = 20
LINE_LENGTH = 400
MESSAGE_LENGTH = 600


class Phase(Enum):
    """Whether there is something to wait for."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class WaitFor(Enum):
    """What a workload waits for: each has a time-out of its own."""

    QUOTA = "quota"
    NODE = "node"
    START = "start"
    SIDECARS = "sidecars"
    NODE_BACK = "node back"


class OutcomeKind(Enum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    OUT_OF_MEMORY = "out_of_memory"
    IMAGE_PULL = "image_pull"
    UNSCHEDULABLE = "unschedulable"
    QUOTA_WAIT = "quota_wait"
    START_TIMEOUT = "start_timeout"
    EVICTED = "evicted"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    APPLICATION_ERROR = "application_error"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


INFRASTRUCTURE = frozenset({OutcomeKind.EVICTED, OutcomeKind.PREEMPTED, OutcomeKind.NODE_LOST})

_WORDS: dict[OutcomeKind, tuple[str, str]] = {
    OutcomeKind.SUCCEEDED: ("succeeded", ""),
    OutcomeKind.OUT_OF_MEMORY: (
        "was killed at its memory limit",
        "raise container_resources.limits.memory, or train on less data at a time",
    ),
    OutcomeKind.IMAGE_PULL: (
        "cannot get its image",
        "check the image's name and tag, the way from the nodes to the registry, and image_pull_secrets",
    ),
    OutcomeKind.UNSCHEDULABLE: (
        "found no node that can take it",
        "ask for less in container_resources, check node_selector, affinity and tolerations, or add nodes",
    ),
    OutcomeKind.QUOTA_WAIT: (
        "got no quota",
        "ask for less than the quota's maximum, correct queue_name, or have the quota raised",
    ),
    OutcomeKind.START_TIMEOUT: (
        "did not start in time, and was removed",
        "raise startup_timeout_seconds, or shorten what the message names, such as an init container",
    ),
    OutcomeKind.EVICTED: (
        "was evicted from its node",
        "retry: it was not the training code. If it recurs, request the memory and disk it really uses",
    ),
    OutcomeKind.PREEMPTED: (
        "had to give way to a pod of higher priority",
        "retry: it was not the training code. If it recurs, set priority_class_name",
    ),
    OutcomeKind.NODE_LOST: (
        "lost its node",
        "retry when the node is back or its Node object is gone: it was not the training code. Checkpoints "
        "shorten what a retry repeats",
    ),
    OutcomeKind.DEADLINE_EXCEEDED: (
        "ran longer than active_deadline_seconds",
        "raise active_deadline_seconds, or find out from the log where the time went",
    ),
    OutcomeKind.APPLICATION_ERROR: (
        "failed",
        "read the last lines of the log; the training command itself ended with this exit code",
    ),
    OutcomeKind.CANCELLED: (
        "was cancelled: its Job or pod was deleted",
        "if nobody meant to, look for whoever deletes objects in this namespace; then retry",
    ),
    OutcomeKind.REJECTED: (
        "cannot start as it is written",
        "correct what the message names: a ConfigMap, Secret, command, or an admission rule; then retry",
    ),
    OutcomeKind.UNKNOWN: (
        "ended in a way nighttrain does not know",
        "look at `kubectl describe job` and its pods; it is not counted as success",
    ),
}
_ERRORS: dict[OutcomeKind, type[errors.WorkloadFailedError]] = {
    OutcomeKind.OUT_OF_MEMORY: errors.OutOfMemory,
    OutcomeKind.IMAGE_PULL: errors.ImagePullFailed,
    OutcomeKind.UNSCHEDULABLE: errors.Unschedulable,
    OutcomeKind.QUOTA_WAIT: errors.QuotaWait,
    OutcomeKind.START_TIMEOUT: errors.StartTimeout,
    OutcomeKind.EVICTED: errors.Evicted,
    OutcomeKind.PREEMPTED: errors.Preempted,
    OutcomeKind.NODE_LOST: errors.NodeLost,
    OutcomeKind.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    OutcomeKind.APPLICATION_ERROR: errors.ApplicationError,
    OutcomeKind.CANCELLED: errors.Cancelled,
    OutcomeKind.REJECTED: errors.Rejected,
    OutcomeKind.UNKNOWN: errors.UnknownOutcome,
}


# The same kinds, where the cluster is to blame and another attempt may do.
_INFRASTRUCTURE_ERRORS: dict[OutcomeKind, type[errors.WorkloadFailedError]] = {
    OutcomeKind.IMAGE_PULL: errors.RegistryUnavailable,
    OutcomeKind.REJECTED: errors.RejectedByNode,
}


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. Plain values only; text is clipped and redacted already.

    :param infrastructure: the cluster's doing, not the training code's: does not use up the task's retries
    """

    kind: OutcomeKind
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    last_lines: tuple[str, ...] = ()
    pod_name: str | None = None
    pod_uid: str | None = None
    node: str | None = None
    image: str | None = None
    image_id: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    infrastructure: bool = False

    @property
    def succeeded(self) -> bool:
        return self.kind is OutcomeKind.SUCCEEDED

    def explain(self) -> str:
        """What happened, the last lines, and what to do next."""
        words, remedy = _WORDS[self.kind]
        facts = [self.reason] if self.reason else []
        if self.exit_code is not None:
            facts.append(f"exit code {self.exit_code}")
        facts += [f"pod {self.pod_name}"] if self.pod_name else []
        facts += [f"node {self.node}"] if self.node else []
        lines = [f"The workload {words} ({', '.join(facts)})." if facts else f"The workload {words}."]
        if self.message:
            lines.append(self.message)
        if self.last_lines:
            lines += ["Last lines of the log:", *(f"  {line}" for line in self.last_lines)]
        if self.exit_code == 137 and self.kind is OutcomeKind.APPLICATION_ERROR:
            remedy += ". 137 is SIGKILL: often the memory of a child process"
        if remedy:
            lines.append(f"What to do: {remedy}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"kind": self.kind.value, "last_lines": list(self.last_lines)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Outcome:
        """The inverse of :meth:`to_dict`. A later version's fields are ignored, its kinds are UNKNOWN."""
        known = {field.name for field in fields(cls)}
        given = {name: content for name, content in value.items() if name in known}
        try:
            given["kind"] = OutcomeKind(given.get("kind"))
        except ValueError:
            given["kind"] = OutcomeKind.UNKNOWN
        given["last_lines"] = tuple(given.get("last_lines") or ())
        return cls(**given)

    def raise_for_failure(self) -> None:
        """
        :raises WorkloadFailedError: the subclass of this kind, unless the attempt succeeded
        """
        if not self.succeeded:
            kinds = _INFRASTRUCTURE_ERRORS if self.infrastructure else _ERRORS
            raise kinds.get(self.kind, _ERRORS[self.kind])(self)


@dataclass(frozen=True)
class Lingering:
    """The main container has ended, and other containers hold its pod up.

    :param outcome: what it is by the main container's end; ``None`` if the Job replaces the pod
    :param going: the pod was told to go already
    :param others: what the other containers did or do, in a sentence
    """

    outcome: Outcome | None
    pod_name: str
    pod_uid: str
    going: bool = False
    others: str = ""

    def told(self, outcome: Outcome) -> Outcome:
        """The outcome, with what the other containers of its pod did."""
        return _with_others(outcome, self.others) if outcome.pod_uid == self.pod_uid else outcome


@dataclass(frozen=True)
class Observation:
    """How an attempt stands.

    :param detail: why it waits or what it does, for a log line
    :param outcome: set exactly when ``phase`` is FINISHED
    :param permanent_wait: what the wait would end as if it lasts beyond the start-up time-out; ``None`` for a
        healthy wait (a queue, a quota others use) and for progress
    :param waiting_for: what a wait is for
    :param since: when the wait began, RFC 3339 by the cluster's clock, if it says so
    :param grace_seconds: time the cluster itself has granted on top, such as a terminating pod's grace period
    :param lingering: set where the rest of a pod outlives its main container, and is to be told to go
    """

    phase: Phase
    detail: str = ""
    pod_name: str | None = None
    outcome: Outcome | None = None
    permanent_wait: OutcomeKind | None = None
    grace_seconds: int = 0
    waiting_for: WaitFor | None = None
    since: str | None = None
    lingering: Lingering | None = None


def decide(
    job: object, pods: Sequence[object], events: Iterable[object] = (), *, queue: object = None
) -> Observation:
    """Say how an attempt stands. Total: whatever the objects hold, it returns; in doubt it is not success.

    First what is written on the Job decides, then a single pod's own terminal status, see
    :func:`~nighttrain.providers.kubernetes.outcome.endings.decisive_pod`, then the Job's conditions.

    :param job: the Job, or ``None`` when it was deleted
    :param pods: its pods; those already deleted may be among them as last seen, and then explain more
    :param events: events of the Job and its pods, if at hand
    :param queue: Kueue's Workload of the Job, if at hand
    """
    known = by_age(pods)
    if not isinstance(job, dict):
        return _finished(_outcome(OutcomeKind.CANCELLED, "JobDeleted", "The Job is gone.", _latest(known)))
    noted = noted_outcome(job)
    if noted is not None:
        return _noted(noted, known)
    complete, failed = condition(job, "Complete"), condition(job, "Failed")
    if complete is not None and failed is not None:
        message = "The Job says Complete and Failed at once."
        return _finished(_outcome(OutcomeKind.UNKNOWN, "Contradiction", message, _latest(known)))
    decisive = _decisive(job, known)
    if decisive is not None:
        return _finished(_with_others(_by_main(decisive), _others(decisive)))
    if complete is not None:
        return _finished(_completed(job, known, events))
    if failed is not None:
        return _finished(_given_up(job, known) or _failed(failed, known))
    lingering = _lingering(job, known)
    if lingering is not None:
        return lingering
    if is_deleting(job):
        return Observation(
            Phase.RUNNING,
            "the Job is being deleted",
            permanent_wait=OutcomeKind.CANCELLED,
            grace_seconds=endings.grace(_latest(known)),
        )
    if condition(job, "FailureTarget") or condition(job, "SuccessCriteriaMet"):
        return Observation(Phase.RUNNING, "the Job is finishing", pod_name=_name(_latest(known)))
    return _unfinished(job, known, [event for event in events if isinstance(event, dict)], queue)


def noted_outcome(obj: object) -> Outcome | None:
    """The outcome that is written on a workload: it holds whatever becomes of the workload afterwards."""
    return _read_note(obj, OUTCOME_ANNOTATION)


def _given_up(job: Json, pods: list[Json]) -> Outcome | None:
    """What a wait that died after it had deleted the pod had given it up for, if nothing tells that the pod
    ran after all.
    """
    outcome = _read_note(job, GIVEN_UP_ANNOTATION)
    if outcome is None:
        return None
    pod = next((pod for pod in pods if uid_of(pod) == outcome.pod_uid), None)
    main = main_container(pod)
    if main is not None and main.began:
        return None
    unseen = "Whether it had begun in its last moment nobody saw."
    return outcome if pod is not None else _with_others(outcome, unseen)


def _read_note(obj: object, annotation: str) -> Outcome | None:
    written = text(mapping(metadata(obj).get("annotations")).get(annotation))
    try:
        outcome = Outcome.from_dict(json.loads(written)) if '"kind"' in written else None
        return outcome if outcome is not None and outcome.explain() else None
    except (AttributeError, TypeError, ValueError):  # not of our making
        return None


def is_decided(job: object, pods: Sequence[object]) -> bool:
    """Whether a Job has ended by what is written on it or by its pod, although its conditions do not say so.

    Its controller writes twenty times a second for all Jobs of a cluster: after many ends at once it is late.
    """
    noted, known = noted_outcome(job), by_age(pods)
    if noted is not None:
        return _noted(noted, known).phase is Phase.FINISHED
    return isinstance(job, dict) and _decisive(job, known) is not None


def _decisive(job: Json, pods: list[Json]) -> Json | None:
    """The pod that decides; a Job that is deleted or suspended before it has ended decides itself."""
    ended = condition(job, "Complete") is not None or condition(job, "Failed") is not None
    if not ended and (is_deleting(job) or _is_suspended(job)):
        return None
    return endings.decisive_pod(job, pods)


def outcome_note(outcome: Outcome) -> str:
    """What is written of it."""
    held = {name: value for name, value in outcome.to_dict().items() if value is not None}
    return json.dumps(held, separators=(",", ":"))


def _noted(outcome: Outcome, pods: list[Json]) -> Observation:
    alive = next((pod for pod in reversed(pods) if endings.is_staying(pod)), None)
    if alive is None:
        own = next((pod for pod in pods if uid_of(pod) == outcome.pod_uid), None)
        ended = outcome.exit_code is not None and own is not None
        return _finished(_with_others(outcome, _others(own)) if ended else outcome)
    main = main_container(alive)
    if main is not None and main.over:
        return _held_up(_main_ended(main, endings.others_left(alive)), alive, outcome)
    return _held_up(f"the attempt has ended ({outcome.kind.value}), its pod is to go", alive, outcome)


def _main_ended(main: Container, others: Sequence[str]) -> str:
    ended = f"the main container {main.name!r} has ended with exit code {main.exit_code}"
    names = ", ".join(map(repr, others))
    return f"{ended} at {main.finished_at}; waiting for {names}" if names else f"{ended}; its pod goes"


def _others(pod: Json | None) -> str:
    return _sentence(endings.of_others(pod)) if pod is not None else ""


def _with_others(outcome: Outcome, others: str) -> Outcome:
    if not others or others in outcome.message:
        return outcome
    return replace(outcome, message=clip(f"{outcome.message} {others}".strip(), MESSAGE_LENGTH))


def _held_up(detail: str, pod: Json, outcome: Outcome | None) -> Observation:
    main = main_container(pod)
    return Observation(
        Phase.RUNNING,
        detail,
        name_of(pod),
        waiting_for=WaitFor.SIDECARS,
        since=main.finished_at if main is not None else None,
        lingering=Lingering(outcome, name_of(pod), uid_of(pod), is_deleting(pod), _others(pod)),
    )


def timed_out(observation: Observation, pods: Sequence[object], seconds: float) -> Outcome:
    """The outcome of a wait that lasted beyond the start-up time-out."""
    waited_for = observation.waiting_for or WaitFor.START
    kind = observation.permanent_wait or _TIMED_OUT.get(waited_for, OutcomeKind.START_TIMEOUT)
    what, reason = _TIME_OUTS[waited_for]
    message = f"{observation.detail} (for longer than the {what} time-out of {seconds:g} s)"
    return _outcome(
        kind,
        reason,
        message,
        _latest(by_age(pods)),
        with_exit=False,
        # A registry that is away is not the training's fault; an image that does not exist is.
        infrastructure=kind is OutcomeKind.IMAGE_PULL and bool(_REGISTRY_AWAY.search(observation.detail)),
    )


def stopped_after_all(observation: Observation, pod: Json, seconds: float) -> Outcome:
    """The outcome of a wait that was given up, where the container had begun before its pod's end."""
    what, reason = _TIME_OUTS[observation.waiting_for or WaitFor.START]
    main = main_container(pod)
    begun = f" at {main.started_at}" if main is not None and main.started_at else ""
    message = (
        f"It had begun{begun}, when the {what} time-out of {seconds:g} s was over and its pod was removed: "
        "it was stopped in its first moments."
    )
    return _outcome(OutcomeKind.CANCELLED, reason, message, pod, with_exit=False)


def until_quota_grows(observation: Observation) -> Observation:
    """The same for who waits for a larger quota: a request above today's is a wait in the queue, no end."""
    outcome = observation.outcome
    if outcome is None or outcome.reason != _NEVER_FITS:
        return observation
    detail = f"it asks for more than the whole quota and waits for a larger one: {outcome.message}"
    return replace(observation, phase=Phase.WAITING, detail=detail, outcome=None, waiting_for=WaitFor.QUOTA)


# The outcome's reason where a request is above the whole quota, however much of it is free.
_NEVER_FITS = "NeverFits"
_TIMED_OUT = {WaitFor.QUOTA: OutcomeKind.QUOTA_WAIT, WaitFor.NODE: OutcomeKind.UNSCHEDULABLE}
_TIME_OUTS = {
    WaitFor.NODE_BACK: ("lost-node", "NodeLostTimeout"),
    WaitFor.SIDECARS: ("sidecars'", "SidecarTimeout"),
    WaitFor.QUOTA: ("queue", "QueueTimeout"),
    WaitFor.NODE: ("scheduling", "ScheduleTimeout"),
    WaitFor.START: ("start-up", "StartupTimeout"),
}
# What runtimes say when the way to the registry, and not the image, is at fault.
_REGISTRY_AWAY = re.compile(
    r"time-?out|timed out|deadline exceeded|connection (refused|reset)|no such host|temporary failure"
    r"|unreachable|unexpected EOF|too many requests|429|50[0234]|service unavailable|bad gateway"
    r"|QPS exceeded",
    re.IGNORECASE,
)


def _lingering(job: Json, pods: list[Json]) -> Observation | None:
    """How it stands while the main container has ended by itself and its pod has not."""
    pod = _latest(pods)
    if pod is None or endings.is_terminal(pod) or is_deleting(job) or _is_suspended(job):
        return None
    main, others = endings.ended_by_itself(pod), endings.others_left(pod)
    if main is None or not (others or is_deleting(pod)):
        return None
    if not endings.is_single(job) or not endings.controls(job, pod):
        ended = f"the main container {main.name!r} has ended with exit code {main.exit_code}"
        return None if is_deleting(pod) else Observation(Phase.RUNNING, ended, name_of(pod))
    replaced = main.exit_code != 0 and endings.replaces_failed_pods(job)
    if is_deleting(pod) and replaced:
        return None
    return _held_up(_main_ended(main, others), pod, None if replaced else _by_main(pod))


def _is_suspended(job: Json) -> bool:
    return mapping(job.get("spec")).get("suspend") is True


def _by_main(pod: Json) -> Outcome:
    """What the main container's own end says."""
    main = main_container(pod)
    reason = main.reason if main is not None else ""
    if main is not None and main.exit_code == 0:
        return _outcome(OutcomeKind.SUCCEEDED, reason, "", pod)
    return _ended_badly(pod, main, reason, "")


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _unfinished(job: Json, pods: list[Json], events: list[Json], queue: object) -> Observation:
    if _is_suspended(job):
        return _waiting(waits.suspended(job, queue))
    current = next(
        (pod for pod in reversed(pods) if text(status(pod).get("phase")) not in TERMINAL_PHASES), None
    )
    if current is None:
        return _without_pod(job, pods, events)
    lost = _on_a_silent_node(current)
    if lost is not None:
        return lost
    if is_deleting(current):
        return _terminating(current)
    phase = text(status(current).get("phase"))
    permanent = _permanent(current)
    if permanent is not None:
        return permanent
    main = main_container(current)
    # A pod of which one container cannot start is Pending, whatever the others do.
    if phase == "Running" or (main is not None and main.state in ("running", "terminated")):
        return Observation(Phase.RUNNING, waits.running(current), pod_name=name_of(current))
    return _waiting(waits.pending(current, events), current)


def _waiting(wait: waits.Wait, pod: Json | None = None) -> Observation:
    kind = OutcomeKind(wait.kind) if wait.kind else None
    if wait.never and kind is not None:
        return replace(_finished(_outcome(kind, _NEVER_FITS, wait.detail, pod)), since=wait.since)
    return Observation(
        Phase.WAITING,
        wait.detail,
        _name(pod),
        permanent_wait=kind,
        waiting_for=WaitFor(wait.waiting_for),
        since=wait.since,
    )


def _permanent(pod: Json) -> Observation | None:
    """What no waiting mends ends at once."""
    for container in waits.needed(pod):
        if container.state == "waiting" and container.reason in waits.PERMANENT_IMAGE:
            return _finished(_outcome(OutcomeKind.IMAGE_PULL, container.reason, container.message, pod))
        if container.state == "terminated" and container.reason in waits.CANNOT_START:
            return _finished(_outcome(OutcomeKind.REJECTED, container.reason, container.message, pod))
    return None


def _on_a_silent_node(pod: Json) -> Observation | None:
    """How it stands while nobody knows whether the pod still runs."""
    silent, removed = nodes.silent_since(pod), nodes.removed_for_its_node(pod)
    if silent is None and removed is None:
        return None
    detail = nodes.of_lost(pod)
    if silent is None:  # its kubelet may yet end it: a taint has other reasons too
        detail = f"the pod is being removed from node {nodes.node_of(pod)}, which is tainted"
    return Observation(
        Phase.RUNNING,
        _said(detail),
        name_of(pod),
        permanent_wait=OutcomeKind.NODE_LOST,
        grace_seconds=endings.grace(pod),
        waiting_for=WaitFor.NODE_BACK,
        since=silent or removed,
    )


def _said(words: str) -> str:
    return clip(redact(words), MESSAGE_LENGTH)


def _terminating(pod: Json) -> Observation:
    disruption = condition(pod, "DisruptionTarget")
    reason = text(disruption.get("reason")) if disruption else ""
    detail = f"the pod is being removed{f' ({reason})' if reason else ''}, and waited for until it has ended"
    kind = _DISRUPTIONS.get(reason, OutcomeKind.CANCELLED)
    return Observation(
        Phase.RUNNING, detail, name_of(pod), permanent_wait=kind, grace_seconds=endings.grace(pod)
    )


def _without_pod(job: Json, pods: list[Json], events: list[Json]) -> Observation:
    wait = waits.not_created(job, events)
    if wait is not None:
        return _waiting(wait)
    latest = _latest(pods)
    if latest is None:
        return Observation(Phase.WAITING, "the Job has no pod yet", permanent_wait=OutcomeKind.START_TIMEOUT)
    if text(status(latest).get("phase")) == "Succeeded" and not is_deleting(latest):
        return Observation(Phase.RUNNING, "the pod has ended, the Job is finishing", name_of(latest))
    # The Job controller delays replacements up to six minutes after repeated failures; the start-up time-out
    # bounds it.
    detail = "the last pod has ended, the Job decides whether another follows"
    return Observation(Phase.WAITING, detail, name_of(latest), permanent_wait=OutcomeKind.UNKNOWN)


def _completed(job: Json, pods: list[Json], events: Iterable[object]) -> Outcome:
    succeeded = [pod for pod in pods if text(status(pod).get("phase")) == "Succeeded"]
    if not succeeded and not (whole(status(job).get("succeeded")) or 0) > 0:
        message = "The Job says Complete, but neither its count nor any pod shows a success."
        return _outcome(OutcomeKind.UNKNOWN, "CompleteWithoutSuccess", message, _latest(pods))
    pod = _latest(succeeded)
    if pod is not None and (removed := _removed_before_its_end(job, pod)) is not None:
        return removed
    if pod is None and any(_tells_of_a_kill(event, job) for event in events):
        message = "Its pod was told to stop, ended with 0 and is gone: it may be half of the training."
        return _outcome(OutcomeKind.CANCELLED, "PodDeleted", message, None)
    reason = text((condition(job, "Complete") or {}).get("reason"))
    outcome = _outcome(OutcomeKind.SUCCEEDED, reason, "", pod)
    if outcome.exit_code not in (None, 0):
        message = f"The Job says Complete, but its container ended with {outcome.exit_code}."
        return _outcome(OutcomeKind.UNKNOWN, "CompleteWithoutSuccess", message, pod)
    return outcome


def _removed_before_its_end(job: Json, pod: Json) -> Outcome | None:
    """What ended a pod that was told to go while it ran and then ended with 0.

    A program that catches SIGTERM, saves what it has and exits with 0 looks to the Job like one that is done.
    Which of the two it was cannot be seen, so it is not called a success.
    """
    if endings.ended_by_itself(pod) is not None:
        return None
    container = main_container(pod)
    disruption = condition(pod, "DisruptionTarget")
    if disruption is not None:
        why = text(disruption.get("reason"))
        message = "The pod was told to go and ended with 0, which may be half of the training."
        return _outcome(_DISRUPTIONS.get(why, OutcomeKind.EVICTED), why, message, pod, with_exit=False)
    asked, ended = endings.deletion_asked(pod), moment(container.finished_at if container else "")
    # The stamps are whole seconds. A Job that is done and goes takes its pods with it.
    if asked is None or ended is None or ended < asked or (ended == asked and is_deleting(job)):
        return None
    message = "The pod was deleted while it ran and ended with 0, which may be half of the training."
    return _outcome(OutcomeKind.CANCELLED, "PodDeleted", message, pod, with_exit=False)


def _tells_of_a_kill(event: object, job: Json) -> bool:
    """Whether a kubelet said that it stops a container of one of the Job's pods, which ran then.

    Native sidecars are stopped at every pod's end; they are init containers.
    """
    about = mapping(mapping(event).get("involvedObject"))
    return (
        mapping(event).get("reason") == "Killing"
        and text(about.get("name")).startswith(f"{name_of(job)}-")
        and text(about.get("fieldPath")).startswith("spec.containers{")
        and text(mapping(event).get("firstTimestamp")) >= text(metadata(job).get("creationTimestamp"))
    )


# The reasons of the DisruptionTarget condition.
_DISRUPTIONS = {
    "PreemptionByScheduler": OutcomeKind.PREEMPTED,
    "EvictionByEvictionAPI": OutcomeKind.EVICTED,
    "TerminationByKubelet": OutcomeKind.EVICTED,
    "DeletionByTaintManager": OutcomeKind.NODE_LOST,
    "DeletionByPodGC": OutcomeKind.NODE_LOST,
}
# The reasons a kubelet writes into the pod's own status.
_POD_REASONS = {
    "Evicted": OutcomeKind.EVICTED,
    "Preempting": OutcomeKind.PREEMPTED,
    "NodeLost": OutcomeKind.NODE_LOST,
    "NodeShutdown": OutcomeKind.NODE_LOST,
    "Shutdown": OutcomeKind.NODE_LOST,
    "Terminated": OutcomeKind.NODE_LOST,
    "DeadlineExceeded": OutcomeKind.DEADLINE_EXCEEDED,
    "UnexpectedAdmissionError": OutcomeKind.REJECTED,
    "NodeAffinity": OutcomeKind.REJECTED,
    "OutOfcpu": OutcomeKind.REJECTED,
    "OutOfmemory": OutcomeKind.REJECTED,
    "OutOfpods": OutcomeKind.REJECTED,
}
# Refusals by one node, which another node may not repeat.
_NODE_REFUSALS = frozenset(
    {"UnexpectedAdmissionError", "NodeAffinity", "OutOfcpu", "OutOfmemory", "OutOfpods"}
)
# Exit codes of a container that was told to go: by itself, SIGKILL, SIGTERM.
_REMOVAL_EXITS = frozenset({None, 0, 137, 143})
_POLICY_EXIT = re.compile(r"failed with exit code (\d{1,3}) ")
# The rule that every Job of ours has; the Job keeps this when its pod is long gone.
_POLICY_DISRUPTION = "has condition DisruptionTarget matching FailJob rule"


def _failed(failed: Json, pods: list[Json]) -> Outcome:
    reason, message = text(failed.get("reason")), text(failed.get("message"))
    broken = [pod for pod in pods if text(status(pod).get("phase")) == "Failed" or _has_failed(pod)]
    # The Job controller removes pods of a Job that fails: those it did not remove explain more.
    pod = _latest([pod for pod in broken if not is_deleting(pod)]) or _latest(broken) or _latest(pods)
    if reason == "DeadlineExceeded":
        return _outcome(OutcomeKind.DEADLINE_EXCEEDED, reason, message, pod, with_exit=False)
    if _POLICY_DISRUPTION in message and not _says_why_it_was_removed(pod):
        return _outcome(OutcomeKind.EVICTED, reason, message, pod)
    if pod is None:
        match = _POLICY_EXIT.search(message)
        if match:
            found = _outcome(OutcomeKind.APPLICATION_ERROR, reason, message, None)
            return Outcome(**{**vars(found), "exit_code": int(match[1])})
        unseen = f"{message}. Its pod is gone, so why it failed is not known."
        return _outcome(OutcomeKind.UNKNOWN, reason or "Failed", unseen, None)
    return _failed_pod(pod, reason, message)


def _says_why_it_was_removed(pod: Json | None) -> bool:
    own = text(status(pod).get("reason"))
    return condition(pod, "DisruptionTarget") is not None or own in _POD_REASONS


def _failed_pod(pod: Json, job_reason: str, job_message: str) -> Outcome:
    own, said = text(status(pod).get("reason")), text(status(pod).get("message"))
    disruption = condition(pod, "DisruptionTarget")
    if own in _POD_REASONS:
        return _outcome(_POD_REASONS[own], own, said, pod, infrastructure=own in _NODE_REFUSALS)
    if disruption is not None:
        why = text(disruption.get("reason"))
        kind = _DISRUPTIONS.get(why, OutcomeKind.EVICTED)
        return _outcome(kind, why, text(disruption.get("message")), pod)
    container = culprit(pod)
    code = container.exit_code if container else None
    never_ran = container is None or container.reason == NEVER_SEEN
    if is_deleting(pod) and (never_ran or code in _REMOVAL_EXITS):
        return _outcome(OutcomeKind.CANCELLED, "PodDeleted", f"The pod was deleted. {job_message}", pod)
    if never_ran or code is None or code == 0:
        return _outcome(OutcomeKind.UNKNOWN, own or job_reason, said or job_message, pod)
    return _ended_badly(pod, container, job_reason, job_message)


def _ended_badly(pod: Json, container: Container | None, reason: str, message: str) -> Outcome:
    """What a container's own end without success says."""
    if container is not None and container.reason == "OOMKilled":
        return _outcome(OutcomeKind.OUT_OF_MEMORY, container.reason, message, pod)
    if container is not None and container.reason in waits.CANNOT_START:
        return _outcome(OutcomeKind.REJECTED, container.reason, container.message, pod)
    where = f"init container {container.name!r}: " if container and container.init else ""
    return _outcome(OutcomeKind.APPLICATION_ERROR, reason, where + message, pod)


def _has_failed(pod: Json) -> bool:
    container = culprit(pod)
    return container is not None and container.failed


def _finished(outcome: Outcome) -> Observation:
    detail = f"{outcome.kind.value}{f': {outcome.reason}' if outcome.reason else ''}"
    return Observation(Phase.FINISHED, detail, outcome.pod_name, outcome)


def _outcome(
    kind: OutcomeKind,
    reason: str,
    message: str,
    pod: Json | None,
    *,
    with_exit: bool = True,
    infrastructure: bool = False,
) -> Outcome:
    container = None
    if pod is not None:
        container = main_container(pod) if kind is OutcomeKind.SUCCEEDED else culprit(pod)
    ran = container is not None and container.reason != NEVER_SEEN
    return Outcome(
        kind=kind,
        reason=clip(reason, 100),
        message=clip(redact(message.strip()), MESSAGE_LENGTH),
        exit_code=container.exit_code if container and ran and with_exit else None,
        last_lines=_last_lines(container, message),
        pod_name=_name(pod),
        pod_uid=(uid_of(pod) or None) if pod else None,
        node=text(mapping((pod or {}).get("spec")).get("nodeName")) or None,
        image=(container.image or None) if container else None,
        image_id=(container.image_id or None) if container else None,
        started_at=(container.started_at or None) if container and ran else None,
        finished_at=(container.finished_at or None) if container and ran else None,
        infrastructure=infrastructure or kind in INFRASTRUCTURE,
    )


def _last_lines(container: Container | None, message: str) -> tuple[str, ...]:
    if container is None or container.state != "terminated" or container.message.strip() == message.strip():
        return ()
    if container.reason in waits.CANNOT_START or container.reason == NEVER_SEEN:
        return ()  # the runtime's words, not the program's
    lines = container.message.rstrip().splitlines()[-LAST_LINES:]
    return tuple(clip(redact(line), LINE_LENGTH) for line in lines)


def _latest(pods: Sequence[Json]) -> Json | None:
    return pods[-1] if pods else None


def _name(pod: Json | None) -> str | None:
    return (name_of(pod) or None) if pod else None
