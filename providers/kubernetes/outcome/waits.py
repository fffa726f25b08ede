"""Why a workload has not started: the reasons of schedulers, kubelets, quotas and queues, in words.

``kind`` is the value of the OutcomeKind that the wait would end as, or empty for a healthy wait: one that
ends by itself when others give back what they hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.kubernetes.values.names import parse_quantity
from nighttrain.providers.kubernetes.values.objects import (
    CANNOT_START as CANNOT_START,
)
from nighttrain.providers.kubernetes.values.objects import (
    Container,
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
from nighttrain.providers.kubernetes.values.redaction import redact

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
    """Why, and what it would end as.

    :param waiting_for: the value of the WaitFor: whose time-out counts
    :param never: it is above the whole of today's quota, however much of that is free: only a larger quota
        would end the wait
    :param since: when it began, by the cluster's clock
    """

    detail: str
    kind: str = ""
    waiting_for: str = "start"
    never: bool = False
    since: str | None = None


def suspended(job: Json, queue: object) -> Wait:
    """Why a suspended Job is not admitted."""
    begun = text(metadata(job).get("creationTimestamp")) or None
    if mapping(queue).get("absent"):
        detail = "the Job waits to be admitted, but no Kueue runs in this cluster"
        return Wait(detail, "quota_wait", "quota", since=begun)
    reserved = any_condition(queue, "QuotaReserved")
    reason, message = text(reserved.get("reason")), text(reserved.get("message"))
    since = text(reserved.get("lastTransitionTime")) or None
    if mapping(mapping(queue).get("spec")).get("active") is False:
        name = text(metadata(mapping(queue)).get("name"))
        detail = f"Kueue's Workload {name} is deactivated: somebody has to set its spec.active to true"
        return Wait(_said(detail, message), "quota_wait", "quota", since=since)
    if not reason or reserved.get("status") == "True":
        return Wait("the Job is suspended, waiting to be admitted", waiting_for="quota")
    exceeds, blocked = _not_admitted(reason, message)
    said = _said(f"queued, {reason}", message)
    return Wait(said, "quota_wait" if exceeds or blocked else "", "quota", never=exceeds, since=since)


def _not_admitted(reason: str, message: str) -> tuple[bool, bool]:
    """Whether Kueue says that a request is above the whole quota, and whether somebody has to act first.

    Words that are not known are a healthy wait.
    """
    if reason not in _UNSPECIFIC:
        return reason == _EXCEEDS, reason in _MISCONFIGURED
    pod_sets = message.split("; ")  # all have to be admitted together
    return any(map(_exceeds, pod_sets)), any(map(_is_blocked, pod_sets))


def _exceeds(pod_set: str) -> bool:
    """Whether no flavor of the quota could ever take it: one that others use up now may do so later."""
    above = {found["flavor"] for found in _ABOVE_CAPACITY.finditer(pod_set)}
    in_use = {found["flavor"] for found in _IN_USE.finditer(pod_set)}
    return bool(above) and in_use <= above


def _is_blocked(pod_set: str) -> bool:
    wrong_nodes = _OTHER_NODES.search(pod_set) is not None and "insufficient" not in pod_set
    return wrong_nodes or _TO_PUT_RIGHT.search(pod_set) is not None


def pending(pod: Json, events: list[Json]) -> Wait:
    """Why a pod has not started yet."""
    scheduled = any_condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        reason, message = text(scheduled.get("reason")), text(scheduled.get("message"))
        begun = text(scheduled.get("lastTransitionTime")) or None
        if reason == "SchedulingGated":
            return Wait(_said(reason, message), waiting_for="quota", since=begun)
        return Wait(_said(reason or "not scheduled", message), "unschedulable", "node", since=begun)
    return _starting(pod, events)._replace(since=text(status(pod).get("startTime")) or None)


def needed(pod: Json) -> list[Container]:
    """The containers without which the training cannot start: other ordinary ones never hold it up."""
    main = main_container(pod)
    known = containers(pod)
    return [each for each in known if each.init or main is None or each.name == main.name]


def _starting(pod: Json, events: list[Json]) -> Wait:
    """Why a pod that has a node has not started yet."""
    for container in needed(pod):
        if container.state == "waiting" and container.reason in _IMAGE:
            return Wait(_said(container.reason, container.message), "image_pull")
        if container.state == "waiting" and container.reason in _CONFIGURATION:
            return Wait(_said(container.reason, container.message), "rejected")
    mount = _newest(events, pod, ("FailedMount", "FailedAttachVolume"))
    if mount is not None:
        return Wait(_said(text(mount.get("reason")), event_text(mount)), "rejected")
    waiting = next((item for item in needed(pod) if item.state == "waiting" and item.reason), None)
    if any(item.init and not item.native_sidecar and item.state == "running" for item in containers(pod)):
        return Wait("an init container runs", "start_timeout")
    pulling, pulled = _newest(events, pod, ("Pulling",)), _newest(events, pod, ("Pulled",))
    if pulling is not None and (pulled is None or _when(pulled) < _when(pulling)):
        return Wait(_said("Pulling", event_text(pulling)), "image_pull")
    return Wait(_said(waiting.reason, waiting.message) if waiting else "the pod is pending", "start_timeout")


def not_created(job: Json, events: list[Json]) -> Wait | None:
    """Why a Job has no pod, if an event says so."""
    refused = _newest(events, job, ("FailedCreate",))
    created = _newest(events, job, ("SuccessfulCreate",))
    if refused is None or (created is not None and _when(created) > _when(refused)):
        return None
    said = event_text(refused)
    match = _QUOTA.search(said)
    if match is None:
        return Wait(_said("FailedCreate", said), "rejected")
    never = _more_than_all(match["requested"], match["limited"])
    return Wait(
        _said("waiting for quota", said),
        "quota_wait" if never else "",
        "quota",
        never=never,
        since=text(status(job).get("startTime")) or None,
    )


def running(pod: Json) -> str:
    """What a running pod does."""
    container: Container | None = main_container(pod)
    if container is not None and container.state == "waiting" and container.reason:
        return _said(container.reason, container.message)
    return "the pod runs"


def _more_than_all(requested: str, limited: str) -> bool:
    """Whether a request is above the whole quota, however much of it is free."""
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
