"""The outcome of a Job that is Complete or Failed, and that of a pod's end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nighttrain.providers.errors import clip
from nighttrain.providers.kubernetes.outcome import endings
from nighttrain.providers.kubernetes.outcome.outcome import (
    INFRASTRUCTURE,
    LAST_LINES,
    LINE_LENGTH,
    MESSAGE_LENGTH,
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
)
from nighttrain.providers.kubernetes.values.objects import (
    CANNOT_START,
    NEVER_SEEN,
    Container,
    ContainerState,
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
from nighttrain.providers.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nighttrain.providers.plain_json import Json


def completed(job: Json, pods: list[Json], events: Iterable[object]) -> Outcome:
    """The outcome of a Job that says Complete."""
    succeeded = [pod for pod in pods if text(status(pod).get("phase")) == "Succeeded"]
    if not succeeded and not (whole(status(job).get("succeeded")) or 0) > 0:
        message = "The Job says Complete, but neither its count nor any pod shows a success."
        return outcome_of(OutcomeKind.UNKNOWN, "CompleteWithoutSuccess", message, latest(pods))
    pod = latest(succeeded)
    if pod is not None and (removed := _removed_before_its_end(job, pod)) is not None:
        return removed
    if pod is None and any(_tells_of_a_kill(event, job) for event in events):
        message = "Its pod was told to stop, ended with 0 and is gone: it may be half of the training."
        return outcome_of(OutcomeKind.CANCELLED, "PodDeleted", message, None)
    reason = text((condition(job, "Complete") or {}).get("reason"))
    outcome = outcome_of(OutcomeKind.SUCCEEDED, reason, "", pod)
    if outcome.exit_code not in (None, 0):
        message = f"The Job says Complete, but its container ended with {outcome.exit_code}."
        return outcome_of(OutcomeKind.UNKNOWN, "CompleteWithoutSuccess", message, pod)
    return outcome


def _removed_before_its_end(job: Json, pod: Json) -> Outcome | None:
    """The outcome of a pod that was told to go while it ran and then ended with 0; ``None`` for any other.

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
        return outcome_of(DISRUPTIONS.get(why, OutcomeKind.EVICTED), why, message, pod, with_exit=False)
    asked, ended = endings.deletion_asked(pod), moment(container.finished_at if container else "")
    # The stamps are whole seconds. A Job that is done and goes takes its pods with it.
    if asked is None or ended is None or ended < asked or (ended == asked and is_deleting(job)):
        return None
    message = "The pod was deleted while it ran and ended with 0, which may be half of the training."
    return outcome_of(OutcomeKind.CANCELLED, "PodDeleted", message, pod, with_exit=False)


def _tells_of_a_kill(event: object, job: Json) -> bool:
    """Tell whether a kubelet said that it stops a container of one of the Job's pods, which ran then.

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
DISRUPTIONS = {
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


def failed(condition_: Json, pods: list[Json]) -> Outcome:
    """The outcome of a Job that says Failed."""
    reason, message = text(condition_.get("reason")), text(condition_.get("message"))
    broken = [pod for pod in pods if text(status(pod).get("phase")) == "Failed" or _has_failed(pod)]
    # The Job controller removes pods of a Job that fails: those it did not remove explain more.
    pod = latest([pod for pod in broken if not is_deleting(pod)]) or latest(broken) or latest(pods)
    if reason == "DeadlineExceeded":
        return outcome_of(OutcomeKind.DEADLINE_EXCEEDED, reason, message, pod, with_exit=False)
    if _POLICY_DISRUPTION in message and not _says_why_it_was_removed(pod):
        return outcome_of(OutcomeKind.EVICTED, reason, message, pod)
    if pod is None:
        match = _POLICY_EXIT.search(message)
        if match:
            found = outcome_of(OutcomeKind.APPLICATION_ERROR, reason, message, None)
            return Outcome(**{**vars(found), "exit_code": int(match[1])})
        unseen = f"{message}. Its pod is gone, so why it failed is not known."
        return outcome_of(OutcomeKind.UNKNOWN, reason or "Failed", unseen, None)
    return _failed_pod(pod, reason, message)


def _says_why_it_was_removed(pod: Json | None) -> bool:
    own = text(status(pod).get("reason"))
    return condition(pod, "DisruptionTarget") is not None or own in _POD_REASONS


def _failed_pod(pod: Json, job_reason: str, job_message: str) -> Outcome:
    own, said = text(status(pod).get("reason")), text(status(pod).get("message"))
    disruption = condition(pod, "DisruptionTarget")
    if own in _POD_REASONS:
        return outcome_of(_POD_REASONS[own], own, said, pod, infrastructure=own in _NODE_REFUSALS)
    if disruption is not None:
        why = text(disruption.get("reason"))
        kind = DISRUPTIONS.get(why, OutcomeKind.EVICTED)
        return outcome_of(kind, why, text(disruption.get("message")), pod)
    container = culprit(pod)
    code = container.exit_code if container else None
    never_ran = container is None or container.reason == NEVER_SEEN
    if is_deleting(pod) and (never_ran or code in _REMOVAL_EXITS):
        return outcome_of(OutcomeKind.CANCELLED, "PodDeleted", f"The pod was deleted. {job_message}", pod)
    if never_ran or code is None or code == 0:
        return outcome_of(OutcomeKind.UNKNOWN, own or job_reason, said or job_message, pod)
    return ended_badly(pod, container, job_reason, job_message)


def ended_badly(pod: Json, container: Container | None, reason: str, message: str) -> Outcome:
    """The outcome of a container's own end without success."""
    if container is not None and container.reason == "OOMKilled":
        return outcome_of(OutcomeKind.OUT_OF_MEMORY, container.reason, message, pod)
    if container is not None and container.reason in CANNOT_START:
        return outcome_of(OutcomeKind.REJECTED, container.reason, container.message, pod)
    where = f"init container {container.name!r}: " if container and container.init else ""
    return outcome_of(OutcomeKind.APPLICATION_ERROR, reason, where + message, pod)


def _has_failed(pod: Json) -> bool:
    container = culprit(pod)
    return container is not None and container.failed


def finished(outcome: Outcome) -> Observation:
    """The observation of an attempt whose outcome is known."""
    detail = f"{outcome.kind.value}{f': {outcome.reason}' if outcome.reason else ''}"
    return Observation(Phase.FINISHED, detail, outcome.pod_name, outcome)


def outcome_of(
    kind: OutcomeKind,
    reason: str,
    message: str,
    pod: Json | None,
    *,
    with_exit: bool = True,
    infrastructure: bool = False,
) -> Outcome:
    """The outcome of this kind, with what its pod tells.

    :param with_exit: take over the container's exit code
    :param infrastructure: the cluster's doing, also where the kind does not say so
    """
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
        pod_name=name_if_any(pod),
        pod_uid=(uid_of(pod) or None) if pod else None,
        node=text(mapping((pod or {}).get("spec")).get("nodeName")) or None,
        image=(container.image or None) if container else None,
        image_id=(container.image_id or None) if container else None,
        started_at=(container.started_at or None) if container and ran else None,
        finished_at=(container.finished_at or None) if container and ran else None,
        infrastructure=infrastructure or kind in INFRASTRUCTURE,
    )


def _last_lines(container: Container | None, message: str) -> tuple[str, ...]:
    if (
        container is None
        or container.state is not ContainerState.TERMINATED
        or container.message.strip() == message.strip()
    ):
        return ()
    if container.reason in CANNOT_START or container.reason == NEVER_SEEN:
        return ()  # the runtime's words, not the program's
    lines = container.message.rstrip().splitlines()[-LAST_LINES:]
    return tuple(clip(redact(line), LINE_LENGTH) for line in lines)


def latest(pods: Sequence[Json]) -> Json | None:
    """The newest pod, if there is any.

    :param pods: oldest first
    """
    return pods[-1] if pods else None


def name_if_any(pod: Json | None) -> str | None:
    """The pod's name, if there is a pod."""
    return (name_of(pod) or None) if pod else None
