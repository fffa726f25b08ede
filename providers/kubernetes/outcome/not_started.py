"""The reasons for which a workload has not started, as schedulers, kubelets, quotas and queues give them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.kubernetes.outcome.outcome import OutcomeKind, WaitFor
from nighttrain.providers.kubernetes.values.names import parse_quantity
from nighttrain.providers.kubernetes.values.objects import (
    Container,
    ContainerState,
    any_condition,
    concerns,
    containers,
    event_text,
    main_container,
    mapping,
    metadata,
    status,
    text,
)
from nighttrain.providers.redaction import redact

if TYPE_CHECKING:
    from decimal import Decimal

    from nighttrain.providers.plain_json import Json

# No kubelet ever gets over these: the name cannot be parsed, or pulling is forbidden and the image absent.
PERMANENT_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_IMAGE = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CONFIGURATION = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}
    | {"PreStartHookError", "PostStartHookError", "CreatePodSandboxError"}
)
# Kueue's reason for what is above the whole of today's quota, and those for what somebody has to put right
# first: a queue that does not exist yet, say. No other workload's end will end these waits.
_EXCEEDS = "ExceedsMaxQuota"
_MISCONFIGURED = frozenset({"Misconfigured", "NoMatchingFlavor", "Deactivated"})
# Up to 0.19 Kueue has two reasons unless a feature gate is on, and only the message tells.
_UNSPECIFIC = frozenset({"Pending", "Inadmissible"})
# The older form is "request > maximum capacity (5 > 4)".
_ABOVE_CAPACITY = re.compile(
    r"insufficient quota for \S+ in flavor (?P<flavor>\S+),"
    r" (?:request|previously considered podsets requests \(\S*\) \+ current podset request \(\S*\))"
    r" > maximum capacity "
)
_IN_USE = re.compile(r"insufficient unused quota for \S+ in flavor (?P<flavor>[^\s,]+),")
_TO_PUT_RIGHT = re.compile(
    r"Queue \S+ (doesn't exist|is terminating or missing)|doesn't match ClusterQueue selector"
    r"|resource \S+ unavailable in ClusterQueue|flavor \S+ not found|resources validation failed"
    r"|didn't satisfy LimitRange"
)
_OTHER_NODES = re.compile(r"untolerated taint|doesn't match node affinity")
_QUOTA = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<requested>.*), used: .*, limited: (?P<limited>.*)"
)


class Wait(NamedTuple):
    """The reason for a wait, and the outcome that it would end as.

    :param detail: the reason in words, clipped and redacted
    :param kind: the outcome if it lasts too long; ``None`` for a healthy wait, which ends by itself when
        others give back what they hold
    :param waiting_for: whose time-out counts
    :param never: it is above the whole of today's quota, however much of that is free: only a larger quota
        would end the wait
    :param since: when it began, RFC 3339 by the cluster's clock
    """

    detail: str
    kind: OutcomeKind | None = None
    waiting_for: WaitFor = WaitFor.START
    never: bool = False
    since: str | None = None


def why_suspended(job: Json, queue: object) -> Wait:
    """Explain why a suspended Job is not admitted.

    :param queue: Kueue's Workload of the Job, if at hand
    """
    begun = text(metadata(job).get("creationTimestamp")) or None
    if mapping(queue).get("absent"):
        detail = "the Job waits to be admitted, but no Kueue runs in this cluster"
        return Wait(detail, OutcomeKind.QUOTA_WAIT, WaitFor.QUOTA, since=begun)
    reserved = any_condition(queue, "QuotaReserved")
    reason, message = text(reserved.get("reason")), text(reserved.get("message"))
    since = text(reserved.get("lastTransitionTime")) or None
    if mapping(mapping(queue).get("spec")).get("active") is False:
        name = text(metadata(mapping(queue)).get("name"))
        detail = f"Kueue's Workload {name} is deactivated: somebody has to set its spec.active to true"
        return Wait(_said(detail, message), OutcomeKind.QUOTA_WAIT, WaitFor.QUOTA, since=since)
    if not reason or reserved.get("status") == "True":
        return Wait("the Job is suspended, waiting to be admitted", waiting_for=WaitFor.QUOTA)
    exceeds, blocked = _not_admitted(reason, message)
    said = _said(f"queued, {reason}", message)
    kind = OutcomeKind.QUOTA_WAIT if exceeds or blocked else None
    return Wait(said, kind, WaitFor.QUOTA, never=exceeds, since=since)


def _not_admitted(reason: str, message: str) -> tuple[bool, bool]:
    """Tell whether Kueue puts a request above the whole quota, and whether somebody has to act first.

    Words that are not known are a healthy wait.
    """
    if reason not in _UNSPECIFIC:
        return reason == _EXCEEDS, reason in _MISCONFIGURED
    pod_sets = message.split("; ")  # all have to be admitted together
    return any(map(_exceeds, pod_sets)), any(map(_is_blocked, pod_sets))


def _exceeds(pod_set: str) -> bool:
    """Tell whether no flavor of the quota could ever take it: one that others use up may do so later."""
    above = {found["flavor"] for found in _ABOVE_CAPACITY.finditer(pod_set)}
    in_use = {found["flavor"] for found in _IN_USE.finditer(pod_set)}
    return bool(above) and in_use <= above


def _is_blocked(pod_set: str) -> bool:
    wrong_nodes = _OTHER_NODES.search(pod_set) is not None and "insufficient" not in pod_set
    return wrong_nodes or _TO_PUT_RIGHT.search(pod_set) is not None


def why_pending(pod: Json, events: list[Json]) -> Wait:
    """Explain why a pod has not started yet."""
    scheduled = any_condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        reason, message = text(scheduled.get("reason")), text(scheduled.get("message"))
        begun = text(scheduled.get("lastTransitionTime")) or None
        if reason == "SchedulingGated":
            return Wait(_said(reason, message), waiting_for=WaitFor.QUOTA, since=begun)
        said = _said(reason or "not scheduled", message)
        return Wait(said, OutcomeKind.UNSCHEDULABLE, WaitFor.NODE, since=begun)
    return _starting(pod, events)._replace(since=text(status(pod).get("startTime")) or None)


def needed_containers(pod: Json) -> list[Container]:
    """The containers without which the training cannot start: other ordinary ones never hold it up."""
    main = main_container(pod)
    known = containers(pod)
    return [each for each in known if each.init or main is None or each.name == main.name]


def _starting(pod: Json, events: list[Json]) -> Wait:
    """Explain why a pod that has a node has not started yet."""
    for container in needed_containers(pod):
        if container.state is ContainerState.WAITING and container.reason in _IMAGE:
            return Wait(_said(container.reason, container.message), OutcomeKind.IMAGE_PULL)
        if container.state is ContainerState.WAITING and container.reason in _CONFIGURATION:
            return Wait(_said(container.reason, container.message), OutcomeKind.REJECTED)
    mount = _newest(events, pod, ("FailedMount", "FailedAttachVolume"))
    if mount is not None:
        return Wait(_said(text(mount.get("reason")), event_text(mount)), OutcomeKind.REJECTED)
    waiting = next(
        (item for item in needed_containers(pod) if item.state is ContainerState.WAITING and item.reason),
        None,
    )
    if any(
        item.init and not item.native_sidecar and item.state is ContainerState.RUNNING
        for item in containers(pod)
    ):
        return Wait("an init container runs", OutcomeKind.START_TIMEOUT)
    pulling, pulled = _newest(events, pod, ("Pulling",)), _newest(events, pod, ("Pulled",))
    if pulling is not None and (pulled is None or _when(pulled) < _when(pulling)):
        return Wait(_said("Pulling", event_text(pulling)), OutcomeKind.IMAGE_PULL)
    said = _said(waiting.reason, waiting.message) if waiting else "the pod is pending"
    return Wait(said, OutcomeKind.START_TIMEOUT)


def why_no_pod(job: Json, events: list[Json]) -> Wait | None:
    """Explain why a Job has no pod; ``None`` if no event says so."""
    refused = _newest(events, job, ("FailedCreate",))
    created = _newest(events, job, ("SuccessfulCreate",))
    if refused is None or (created is not None and _when(created) > _when(refused)):
        return None
    said = event_text(refused)
    match = _QUOTA.search(said)
    if match is None:
        return Wait(_said("FailedCreate", said), OutcomeKind.REJECTED)
    never = _more_than_all(match["requested"], match["limited"])
    return Wait(
        _said("waiting for quota", said),
        OutcomeKind.QUOTA_WAIT if never else None,
        WaitFor.QUOTA,
        never=never,
        since=text(status(job).get("startTime")) or None,
    )


def running_pod_described(pod: Json) -> str:
    """Describe what a running pod does."""
    container: Container | None = main_container(pod)
    if container is not None and container.state is ContainerState.WAITING and container.reason:
        return _said(container.reason, container.message)
    return "the pod runs"


def _more_than_all(requested: str, limited: str) -> bool:
    """Tell whether a request is above the whole quota, however much of it is free."""
    limits = _amounts(limited)
    return any(amount > limits[name] for name, amount in _amounts(requested).items() if name in limits)


def _amounts(listed: str) -> dict[str, Decimal]:
    amounts: dict[str, Decimal] = {}
    for entry in listed.split(","):
        name, _, amount = entry.strip().partition("=")
        try:
            amounts[name] = parse_quantity(name, amount)
        except ConfigurationError:
            continue
    return amounts


def _newest(events: list[Json], about: Json, reasons: tuple[str, ...]) -> Json | None:
    found = [event for event in events if text(event.get("reason")) in reasons and concerns(event, about)]
    return max(found, key=_when, default=None)


def _when(event: Json) -> str:
    return (
        text(event.get("lastTimestamp")) or text(event.get("eventTime")) or text(event.get("firstTimestamp"))
    )


def _said(reason: str, message: str) -> str:
    return clip(redact(f"{reason}: {message}" if message else reason), 400)
