"""The state of an attempt (an Observation), and its end (an Outcome)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

from nighttrain.providers import errors
from nighttrain.providers.errors import clip

# What a terminal shows at a glance; the whole log is one link away.
LAST_LINES = 20
LINE_LENGTH = 400
MESSAGE_LENGTH = 600


class Phase(Enum):
    """The part of its life that an attempt is in."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class WaitFor(Enum):
    """Things that a workload waits for: each has a time-out of its own."""

    QUOTA = "quota"
    NODE = "node"
    START = "start"
    SIDECARS = "sidecars"
    NODE_BACK = "node back"


class OutcomeKind(Enum):
    """The ways in which an attempt ends."""

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
    """The end of an attempt. Plain values only; text is clipped and redacted already.

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
        """True if the training ended well."""
        return self.kind is OutcomeKind.SUCCEEDED

    def explain(self) -> str:
        """Tell what happened, with the last lines and what to do next."""
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

    def with_sentence(self, sentence: str) -> Outcome:
        """The same with one more sentence in its message, if it is not there."""
        if not sentence or sentence in self.message:
            return self
        return replace(self, message=clip(f"{self.message} {sentence}".strip(), MESSAGE_LENGTH))

    def raise_for_failure(self) -> None:
        """Raise the error of this outcome, unless it is success.

        :raises WorkloadFailedError: the subclass of this kind
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

    def explained(self, outcome: Outcome) -> Outcome:
        """The outcome, with what the other containers of its pod did."""
        return outcome.with_sentence(self.others) if outcome.pod_uid == self.pod_uid else outcome


@dataclass(frozen=True)
class Observation:
    """The state of an attempt at one moment.

    :param detail: why it waits or what it does, for a log line
    :param outcome: set exactly when ``phase`` is FINISHED
    :param permanent_wait: what the wait would end as if it lasts beyond the start-up time-out; ``None`` for a
        healthy wait (a queue, a quota others use) and for progress
    :param waiting_for: what a wait is for
    :param since: when the wait began, RFC 3339 by the cluster's clock, if it says so
    :param grace_seconds: granted on top by the cluster itself, such as a terminating pod's grace period
    :param lingering: set where other containers of a pod outlive its main one, and are to be stopped
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
