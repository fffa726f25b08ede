"""Why a workload has not started: the reasons of schedulers, kubelets, quotas and queues, in words.

``kind`` is the value of the OutcomeKind that the wait would end as, or empty for a healthy wait: one that
ends by itself when others give back what they hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.kubernetes.names import parse_quantity
from nighttrain.providers.kubernetes.objects import (
    Container,
    Json,
    any_condition,
    concerns,
    containers,
    event_text,
    main_container,
    mapping,
    text,
)
from nighttrain.providers.kubernetes.redaction import redact

if TYPE_CHECKING:
    from decimal import Decimal

# No kubelet ever gets over these: the name cannot be parsed, or pulling is forbidden and the image absent.
PERMANENT_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
# The runtime could not start the program: no such command, not executable, wrong architecture.
CANNOT_START = frozenset({"StartError", "ContainerCannotRun"})
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
# Kueue's reasons for a wait that no other workload's end will end.
_NEVER = frozenset({"ExceedsMaxQuota", "Misconfigured"})
_QUOTA = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<requested>.*), used: .*, limited: (?P<limited>.*)"
)


class Wait(NamedTuple):
    """Why, and what it would end as."""

    detail: str
    kind: str = ""


def suspended(queue: object) -> tuple[bool, str]:
    """Whether a suspended Job can never be admitted as things are, and why it waits."""
    if mapping(queue).get("absent"):
        return True, "the Job waits to be admitted, but no Kueue runs in this cluster"
    reserved = any_condition(queue, "QuotaReserved")
    reason, message = text(reserved.get("reason")), text(reserved.get("message"))
    if not reason or reserved.get("status") == "True":
        return False, "the Job is suspended, waiting to be admitted"
    return reason in _NEVER, _said(f"queued, {reason}", message)


def pending(pod: Json, events: list[Json]) -> Wait:
    """Why a pod has not started yet."""
    scheduled = any_condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        reason, message = text(scheduled.get("reason")), text(scheduled.get("message"))
        if reason == "SchedulingGated":
            return Wait(_said(reason, message))
        return Wait(_said(reason or "not scheduled", message), "unschedulable")
    for container in containers(pod):
        if container.state == "waiting" and container.reason in _IMAGE:
            return Wait(_said(container.reason, container.message), "image_pull")
        if container.state == "waiting" and container.reason in _CONFIGURATION:
            return Wait(_said(container.reason, container.message), "rejected")
    mount = _newest(events, pod, ("FailedMount", "FailedAttachVolume"))
    if mount is not None:
        return Wait(_said(text(mount.get("reason")), event_text(mount)), "rejected")
    waiting = next((item for item in containers(pod) if item.state == "waiting" and item.reason), None)
    if any(item.init and item.state == "running" for item in containers(pod)):
        return Wait("an init container runs", "unknown")
    pulling, pulled = _newest(events, pod, ("Pulling",)), _newest(events, pod, ("Pulled",))
    if pulling is not None and (pulled is None or _when(pulled) < _when(pulling)):
        return Wait(_said("Pulling", event_text(pulling)), "image_pull")
    return Wait(_said(waiting.reason, waiting.message) if waiting else "the pod is pending", "unknown")


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
    return Wait(_said("waiting for quota", said), "quota_wait" if never else "")


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
