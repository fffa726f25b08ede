"""The end of a pod: brought about by its main container itself, or because the pod was told to go.

A pod's phase does not tell: a pod deleted or evicted in mid-training that ends with 0 inside its grace period
says Succeeded, and one whose proxy failed after a training that ended well says Failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.values.objects import (
    NEVER_SEEN,
    TERMINAL_PHASES,
    Container,
    ContainerState,
    condition,
    containers,
    is_deleting,
    items,
    main_container,
    mapping,
    metadata,
    moment,
    status,
    text,
    uid_of,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nighttrain.providers.plain_json import Json

LONG_AGO = float("-inf")


def is_terminal(pod: object) -> bool:
    """True once the pod has ended, well or badly."""
    return text(status(pod).get("phase")) in TERMINAL_PHASES


def is_staying(pod: object) -> bool:
    """True while a pod has neither ended nor been told to."""
    return not is_terminal(pod) and not is_deleting(pod)


def may_run(pod: Json) -> bool:
    """True while a pod runs or may still be started: one that goes and has no node gets none any more."""
    placed = bool(text(mapping(pod.get("spec")).get("nodeName")))
    return not is_terminal(pod) and (placed or not is_deleting(pod))


def told_to_go(pod: Json) -> float | None:
    """The time at which a pod was told to go, in seconds since 1970.

    ``None`` if it was not, :data:`LONG_AGO` if the time cannot be seen.
    The last step of a deletion overwrites when it was asked for, with a grace period of 0.
    """
    told = []
    if is_deleting(pod):
        told.append(deletion_asked(pod) if grace(pod) > 0 else None)
    disruption = condition(pod, "DisruptionTarget")
    if disruption is not None:
        told.append(moment(text(disruption.get("lastTransitionTime"))))
    elif text(status(pod).get("reason")):  # the kubelet's own: evicted, past its deadline, refused ...
        told.append(_deadline(pod))
    return min((LONG_AGO if each is None else each for each in told), default=None)


def _deadline(pod: Json) -> float | None:
    """The time at which a pod's own deadline was over, if that is what its kubelet ended it for."""
    began = moment(text(status(pod).get("startTime")))
    seconds = whole(mapping(pod.get("spec")).get("activeDeadlineSeconds"))
    if status(pod).get("reason") != "DeadlineExceeded" or began is None or seconds is None:
        return None
    return began + seconds


def deletion_asked(pod: Json) -> float | None:
    """The time at which the deletion was asked for, in seconds since 1970; ``None`` if it was not.

    The object's own time stamp is that of the end of the grace period.
    """
    stamp = moment(text(metadata(pod).get("deletionTimestamp")))
    return None if stamp is None else stamp - grace(pod)


def grace(pod: object) -> int:
    """The seconds that a deleted pod is given to end."""
    return max(0, whole(metadata(pod).get("deletionGracePeriodSeconds")) or 0)


def ended_by_itself(pod: Json) -> Container | None:
    """The main container, if it has ended for good and nobody had told the pod to go before.

    The stamps are whole seconds: what happened in the same second counts as told before.
    """
    main = main_container(pod)
    if main is None or not main.over or main.exit_code is None or main.reason == NEVER_SEEN:
        return None
    told, ended = told_to_go(pod), moment(main.finished_at)
    by_itself = told is None or (ended is not None and ended < told)
    return main if by_itself else None


def others_left(pod: Json) -> tuple[str, ...]:
    """The ordinary containers beside the main one that have not ended. The kubelet ends native sidecars."""
    main = main_container(pod)
    return tuple(
        each.name
        for each in containers(pod)
        if not each.init and not each.over and (main is None or each.name != main.name)
    )


def others_described(pod: Json) -> str:
    """Describe what the containers beside the main one did; empty if there is nothing to tell."""
    main = main_container(pod)
    words = []
    for each in containers(pod):
        if each.init or (main is not None and each.name == main.name):
            continue
        if each.state is ContainerState.WAITING and not each.restarts:
            words.append(f"container {each.name!r} does not run{f': {each.reason}' if each.reason else ''}")
        elif not each.over:
            words.append(f"container {each.name!r} still ran, and is told to go")
        elif each.failed:
            words.append(f"container {each.name!r} ended with exit code {each.exit_code}")
    return "; ".join(words)


def is_single(job: Json) -> bool:
    """True if the Job is done with one pod."""
    spec = mapping(job.get("spec"))
    return spec.get("completions") in (None, 1) and spec.get("parallelism") in (None, 1)


def replaces_failed_pods(job: Json) -> bool:
    """True if the Job may start another pod after one that failed."""
    spec = mapping(job.get("spec"))
    rules = items(mapping(spec.get("podFailurePolicy")).get("rules"))
    return whole(spec.get("backoffLimit")) != 0 or any(rule.get("action") != "FailJob" for rule in rules)


def controls(job: Json, pod: Json) -> bool:
    """True if a pod is this very Job's."""
    owners = items(metadata(pod).get("ownerReferences"))
    owner = next((each for each in owners if each.get("controller") is True), {})
    return bool(uid_of(job)) and owner.get("uid") == uid_of(job)


def decisive_pod(job: Json, pods: Sequence[Json]) -> Json | None:
    """The pod whose end is the attempt's, whatever the Job says of it.

    It is the Job's only pod at its end (``completions`` and ``parallelism`` 1 or absent, controlled by this
    Job, no other one alive), its phase is Succeeded or Failed, and its main container ended for good before
    anybody told the pod to go: it was neither deleted nor disrupted nor ended by its kubelet before. And
    there is nothing that the Job may replace: a pod that Failed counts only where ``backoffLimit`` is 0 and
    ``podFailurePolicy`` has no rule but FailJob.

    :param pods: oldest first
    """
    if not pods or not is_single(job) or not is_terminal(pods[-1]) or not controls(job, pods[-1]):
        return None
    pod = pods[-1]
    main = ended_by_itself(pod)
    if main is None or not all(map(is_terminal, pods)):
        return None
    if text(status(pod).get("phase")) == "Succeeded":
        return pod
    contradiction = main.exit_code == 0 and main.reason not in ("", "Completed")
    return None if contradiction or replaces_failed_pods(job) else pod
