"""The state and the outcome of an attempt: one total function over a Job, its pods and events.

The end of the main container decides, where nobody brought it about; else the Job's conditions do, and pods
and events explain. Of the Job's conditions success is ``Complete``, not the earlier ``SuccessCriteriaMet``:
between the two the Job's pods may still be terminating, and a workload that is still alive must not be
followed by the next attempt. A pod's phase alone never decides, see
:mod:`~nighttrain.providers.kubernetes.outcome.endings`.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from nighttrain.providers.errors import clip
from nighttrain.providers.kubernetes.outcome import endings, not_started, silent_nodes
from nighttrain.providers.kubernetes.outcome.ended_jobs import (
    DISRUPTIONS,
    completed,
    ended_badly,
    failed,
    finished,
    latest,
    name_if_any,
    outcome_of,
)
from nighttrain.providers.kubernetes.outcome.outcome import (
    MESSAGE_LENGTH,
    Lingering,
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
    WaitFor,
)
from nighttrain.providers.kubernetes.values.identity import GIVEN_UP_ANNOTATION, OUTCOME_ANNOTATION
from nighttrain.providers.kubernetes.values.objects import (
    CANNOT_START,
    TERMINAL_PHASES,
    Container,
    ContainerState,
    by_age,
    condition,
    is_deleting,
    main_container,
    mapping,
    metadata,
    name_of,
    status,
    text,
    uid_of,
)
from nighttrain.providers.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nighttrain.providers.plain_json import Json


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
        return finished(outcome_of(OutcomeKind.CANCELLED, "JobDeleted", "The Job is gone.", latest(known)))
    noted = noted_outcome(job)
    if noted is not None:
        return _noted(noted, known)
    complete, failure = condition(job, "Complete"), condition(job, "Failed")
    if complete is not None and failure is not None:
        message = "The Job says Complete and Failed at once."
        return finished(outcome_of(OutcomeKind.UNKNOWN, "Contradiction", message, latest(known)))
    decisive = _decisive(job, known)
    if decisive is not None:
        return finished(_by_main(decisive).with_sentence(_others(decisive)))
    if complete is not None:
        return finished(completed(job, known, events))
    if failure is not None:
        return finished(_given_up(job, known) or failed(failure, known))
    lingering = _lingering(job, known)
    if lingering is not None:
        return lingering
    if is_deleting(job):
        return Observation(
            Phase.RUNNING,
            "the Job is being deleted",
            permanent_wait=OutcomeKind.CANCELLED,
            grace_seconds=endings.grace(latest(known)),
        )
    if condition(job, "FailureTarget") or condition(job, "SuccessCriteriaMet"):
        return Observation(Phase.RUNNING, "the Job is finishing", pod_name=name_if_any(latest(known)))
    return _unfinished(job, known, [event for event in events if isinstance(event, dict)], queue)


def noted_outcome(obj: object) -> Outcome | None:
    """The outcome that is written on a workload: it holds whatever becomes of the workload afterwards."""
    return _read_note(obj, OUTCOME_ANNOTATION)


def _given_up(job: Json, pods: list[Json]) -> Outcome | None:
    """The outcome for which a wait, which died afterwards, had deleted the pod.

    ``None`` if there was no such wait, or if something tells that the pod ran after all.
    """
    outcome = _read_note(job, GIVEN_UP_ANNOTATION)
    if outcome is None:
        return None
    pod = next((pod for pod in pods if uid_of(pod) == outcome.pod_uid), None)
    main = main_container(pod)
    if main is not None and main.began:
        return None
    unseen = "Whether it had begun in its last moment nobody saw."
    return outcome if pod is not None else outcome.with_sentence(unseen)


def _read_note(obj: object, annotation: str) -> Outcome | None:
    written = text(mapping(metadata(obj).get("annotations")).get(annotation))
    try:
        outcome = Outcome.from_dict(json.loads(written)) if '"kind"' in written else None
        return outcome if outcome is not None and outcome.explain() else None
    except (AttributeError, TypeError, ValueError):  # not of our making
        return None


def job_is_decided(job: object, pods: Sequence[object]) -> bool:
    """Tell whether what is written on a Job, or its pod, shows its end, although its conditions may not yet.

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
    """The text in which an outcome is written on its workload."""
    held = {name: value for name, value in outcome.to_dict().items() if value is not None}
    return json.dumps(held, separators=(",", ":"))


def _noted(outcome: Outcome, pods: list[Json]) -> Observation:
    alive = next((pod for pod in reversed(pods) if endings.is_staying(pod)), None)
    if alive is None:
        own = next((pod for pod in pods if uid_of(pod) == outcome.pod_uid), None)
        ended = outcome.exit_code is not None and own is not None
        return finished(outcome.with_sentence(_others(own)) if ended else outcome)
    main = main_container(alive)
    if main is not None and main.over:
        return _held_up(_main_ended(main, endings.others_left(alive)), alive, outcome)
    return _held_up(f"the attempt has ended ({outcome.kind.value}), its pod is to go", alive, outcome)


def _main_ended(main: Container, others: Sequence[str]) -> str:
    ended = f"the main container {main.name!r} has ended with exit code {main.exit_code}"
    names = ", ".join(map(repr, others))
    return f"{ended} at {main.finished_at}; waiting for {names}" if names else f"{ended}; its pod goes"


def _others(pod: Json | None) -> str:
    return _sentence(endings.others_described(pod)) if pod is not None else ""


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
    """The outcome of a wait that lasted beyond its time-out.

    :param seconds: the time-out
    """
    waited_for = observation.waiting_for or WaitFor.START
    kind = observation.permanent_wait or _TIMED_OUT.get(waited_for, OutcomeKind.START_TIMEOUT)
    what, reason = _TIME_OUTS[waited_for]
    message = f"{observation.detail} (for longer than the {what} time-out of {seconds:g} s)"
    return outcome_of(
        kind,
        reason,
        message,
        latest(by_age(pods)),
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
    return outcome_of(OutcomeKind.CANCELLED, reason, message, pod, with_exit=False)


def until_quota_grows(observation: Observation) -> Observation:
    """The observation of an attempt that may wait for a larger quota.

    A request above the whole of today's quota is then a wait in the queue, and no end.
    """
    outcome = observation.outcome
    if outcome is None or outcome.reason != _NEVER_FITS:
        return observation
    detail = f"it asks for more than the whole quota and waits for a larger one: {outcome.message}"
    return replace(observation, phase=Phase.WAITING, detail=detail, outcome=None, waiting_for=WaitFor.QUOTA)


_HAS_BEGUN = (ContainerState.RUNNING, ContainerState.TERMINATED)
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
    """The state of an attempt whose main container has ended by itself while its pod has not."""
    pod = latest(pods)
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
    """The outcome by the main container's own end."""
    main = main_container(pod)
    reason = main.reason if main is not None else ""
    if main is not None and main.exit_code == 0:
        return outcome_of(OutcomeKind.SUCCEEDED, reason, "", pod)
    return ended_badly(pod, main, reason, "")


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _unfinished(job: Json, pods: list[Json], events: list[Json], queue: object) -> Observation:
    if _is_suspended(job):
        return _waiting(not_started.why_suspended(job, queue))
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
    if phase == "Running" or (main is not None and main.state in _HAS_BEGUN):
        return Observation(
            Phase.RUNNING, not_started.running_pod_described(current), pod_name=name_of(current)
        )
    return _waiting(not_started.why_pending(current, events), current)


def _waiting(wait: not_started.Wait, pod: Json | None = None) -> Observation:
    if wait.never and wait.kind is not None:
        return replace(finished(outcome_of(wait.kind, _NEVER_FITS, wait.detail, pod)), since=wait.since)
    return Observation(
        Phase.WAITING,
        wait.detail,
        name_if_any(pod),
        permanent_wait=wait.kind,
        waiting_for=wait.waiting_for,
        since=wait.since,
    )


def _permanent(pod: Json) -> Observation | None:
    """The end of a pod that no waiting mends; ``None`` for any other."""
    for container in not_started.needed_containers(pod):
        if container.state is ContainerState.WAITING and container.reason in not_started.PERMANENT_IMAGE:
            return finished(outcome_of(OutcomeKind.IMAGE_PULL, container.reason, container.message, pod))
        if container.state is ContainerState.TERMINATED and container.reason in CANNOT_START:
            return finished(outcome_of(OutcomeKind.REJECTED, container.reason, container.message, pod))
    return None


def _on_a_silent_node(pod: Json) -> Observation | None:
    """The state of an attempt while nobody knows whether its pod still runs."""
    silent, removed = silent_nodes.silent_since(pod), silent_nodes.removed_for_its_node(pod)
    if silent is None and removed is None:
        return None
    detail = silent_nodes.lost_pod_described(pod)
    if silent is None:  # its kubelet may yet end it: a taint has other reasons too
        detail = f"the pod is being removed from node {silent_nodes.node_of(pod)}, which is tainted"
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
    kind = DISRUPTIONS.get(reason, OutcomeKind.CANCELLED)
    return Observation(
        Phase.RUNNING, detail, name_of(pod), permanent_wait=kind, grace_seconds=endings.grace(pod)
    )


def _without_pod(job: Json, pods: list[Json], events: list[Json]) -> Observation:
    wait = not_started.why_no_pod(job, events)
    if wait is not None:
        return _waiting(wait)
    last = latest(pods)
    if last is None:
        return Observation(Phase.WAITING, "the Job has no pod yet", permanent_wait=OutcomeKind.START_TIMEOUT)
    if text(status(last).get("phase")) == "Succeeded" and not is_deleting(last):
        return Observation(Phase.RUNNING, "the pod has ended, the Job is finishing", name_of(last))
    # The Job controller delays replacements up to six minutes after repeated failures; the start-up time-out
    # bounds it.
    detail = "the last pod has ended, the Job decides whether another follows"
    return Observation(Phase.WAITING, detail, name_of(last), permanent_wait=OutcomeKind.UNKNOWN)
