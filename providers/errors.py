"""Every error nighttrain raises on purpose.

NighttrainError
├── ConfigurationError              bad input, found before anything was created: names field, value and fix
├── ClusterError                    the Kubernetes API said no, or could not be asked
│   ├── ClusterUnreachableError     no answer: connection refused, time-out, TLS, DNS
│   ├── ClusterUnauthorizedError    401: the credentials are not accepted
│   ├── ClusterForbiddenError       403: the credentials lack a right; the message names it
│   ├── ObjectNotFoundError         404
│   ├── ObjectExistsError           409 AlreadyExists
│   ├── ObjectConflictError         409 Conflict: the object changed since it was read
│   ├── WatchExpiredError           410: list again
│   ├── ClusterRequestError         any other refusal: 400, 413, 415, 429 or 5xx after the retries
│   │   └── ObjectInvalidError      422, or 400 to a write: never accepted as it is
│   ├── LostNodeError               an earlier attempt may still run on a node that does not answer
│   └── WorkloadConflictError       the attempt's name is taken by an object that is not this attempt
├── WorkloadFailedError             an attempt ended without success; one subclass for each kind of outcome
│   ├── OutOfMemory  ImagePullFailed  Unschedulable  QuotaWait  StartTimeout  DeadlineExceeded
│   ├── ApplicationError  Cancelled  Rejected  UnknownOutcome
│   └── InfrastructureError         the cluster's doing, not the training code's
│       ├── Evicted  Preempted  NodeLost
│       ├── RegistryUnavailable     also an ImagePullFailed
│       └── RejectedByNode          also a Rejected
├── AirflowError                    Airflow's API said no, or could not be asked
├── TrackingError                   MLflow said no, or could not be asked
│   ├── TrackingUnreachableError    an outage: refused, timed out, overloaded; waiting may mend it
│   │   └── TrackingBusyError       429 or 5xx; also a TrackingRequestError
│   ├── TrackingMisconfiguredError  a mistake: unknown host, certificate, not MLflow; waiting mends nothing
│   │   └── TrackingUnauthorizedError   401 or 403
│   ├── TrackingNotFoundError       RESOURCE_DOES_NOT_EXIST
│   └── TrackingRequestError        any other refusal
│       └── TrackingTrashError      the run or its experiment was put into MLflow's trash
├── RegistryError                   the registry's content does not allow the step
│   ├── ModelNotFoundError
│   ├── ModelVersionNotFoundError   no such version, alias or stage holder
│   ├── RunWithoutModelError        the run logged no READY model
│   │   └── RunInTrashError         it is in MLflow's trash, its model with it: restoring it mends this
│   ├── NothingToSelectError        none of several trainings has a number to compare
│   ├── ArtifactDigestMismatchError the artifact is not the one that was registered
│   ├── PromotedSinceError          what was to be replaced or undone is not what is there any more
│   ├── NothingToUndoError          the history has no promotion in effect that leads back there
│   └── HistoryMovedError           somebody else wrote the model's next entry first: read it again
├── GateError
│   ├── GateRejectedError           the verdict is "rejected" and the gate was told to fail on it
│   ├── GateInconclusiveError       the verdict is "inconclusive" and the gate was told to fail on it
│   └── NotApprovedError            the person who was asked said no, or did not answer
├── ServingError
│   ├── RolloutFailedError          the candidate did not become ready; the stable version still serves
│   │   ├── RolloutUndoneError      it was undone: its analysis failed, somebody aborted it, its time was over
│   │   └── RolloutStoppedError     another hand changes what it writes: it ended where it was
│   ├── RolloutUnderWayError        another rollout of the endpoint is under way
│   └── NothingToRollBackToError
└── MissingExtraError               an optional package is absent; the message is the command that brings it

Errors of the libraries underneath (aiohttp, httpx, kubernetes_asyncio, json) never leak: they are chained as
the cause of one of these.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Protocol

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class NighttrainError(Exception):
    """Root of the tree."""


class ConfigurationError(NighttrainError, ValueError):
    """Bad input, found before anything was created.

    :param field: the parameter's name as the user wrote it, for example ``container_resources.limits.memory``
    :param value: what was given; shown clipped. Pass ``None`` for secrets.
    :param fix: one sentence that says what to write instead
    """

    def __init__(self, field: str, value: object, fix: str) -> None:
        shown = "" if value is None else f" = {clip(_repr(value), 120)}"
        super().__init__(f"{field}{shown}: {fix}")
        self.field = field
        self.value = value
        self.fix = fix

    def __reduce__(self) -> tuple[type[ConfigurationError], tuple[str, object, str]]:
        return (type(self), (self.field, self.value, self.fix))


class ClusterError(NighttrainError):
    """The Kubernetes API said no, or could not be asked."""


class ClusterUnreachableError(ClusterError):
    """No answer from the API server."""


class ClusterUnauthorizedError(ClusterError):
    """401: the credentials are not accepted."""


class ClusterForbiddenError(ClusterError):
    """403: the credentials lack a right."""


class ObjectNotFoundError(ClusterError):
    """404: no such object."""


class ObjectExistsError(ClusterError):
    """409 AlreadyExists: an answer to ``create``, to be followed by a look at the owner."""


class ObjectConflictError(ClusterError):
    """409 Conflict: the object changed since it was read, or a precondition does not hold."""


class WatchExpiredError(ClusterError):
    """410: the resourceVersion is too old; list again."""


class ClusterRequestError(ClusterError):
    """Any other refusal; ``status`` is the HTTP status, ``reason`` the API's reason.

    ``retry_after`` is the pause in seconds that the server asks for, if it does.
    """

    retry_after: float | None = None

    def __init__(self, message: str, *, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    @property
    def is_busy(self) -> bool:
        """True if the server says that it cannot answer now (429, 5xx): as good as no answer."""
        return self.status == 429 or self.status >= 500


class ObjectInvalidError(ClusterRequestError):
    """422, or 400 to a write: the API server will not take this object however often it is asked."""


class WorkloadConflictError(ClusterError):
    """The attempt's name is taken by an object that is not this attempt."""


class LostNodeError(ClusterError):
    """An earlier attempt may still run on a node that does not answer: a second one would run beside it."""


class AttemptEnd(Protocol):
    """The part of an Outcome that its error shows; the adapter's ``Outcome`` has all of it and more."""

    @property
    def kind(self) -> Enum: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def last_lines(self) -> tuple[str, ...]: ...
    @property
    def infrastructure(self) -> bool: ...

    def explain(self) -> str:
        """Tell in words how the attempt ended, and what to do next."""


class WorkloadFailedError(NighttrainError):
    """An attempt ended without success. ``outcome`` says how, and what to do next."""

    def __init__(self, outcome: AttemptEnd) -> None:
        super().__init__(outcome.explain())
        self.outcome = outcome


class OutOfMemory(WorkloadFailedError):
    """A container was killed at its memory limit."""


class ImagePullFailed(WorkloadFailedError):
    """The image cannot be pulled, or its name does not parse."""


class Unschedulable(WorkloadFailedError):
    """No node can take the pod, for longer than the start-up time-out."""


class QuotaWait(WorkloadFailedError):
    """The quota or queue can never give what is asked for, as it is set up now."""


class StartTimeout(WorkloadFailedError):
    """The container did not start within the start-up time-out, and nothing says why it never could."""


class InfrastructureError(WorkloadFailedError):
    """The cluster ended the attempt: another one may do."""


class Evicted(InfrastructureError):
    """The pod was evicted: infrastructure, not the training code."""


class Preempted(InfrastructureError):
    """A pod of higher priority took its place: infrastructure, not the training code."""


class NodeLost(InfrastructureError):
    """The node went away: infrastructure, not the training code."""


class DeadlineExceeded(WorkloadFailedError):
    """``active_deadline_seconds`` ran out."""


class ApplicationError(WorkloadFailedError):
    """The container ended with a non-zero exit code of its own."""


class Cancelled(WorkloadFailedError):
    """The workload was deleted by somebody."""


class Rejected(WorkloadFailedError):
    """The pod can never start as it is written: something it names is missing, or it is refused."""


class RegistryUnavailable(ImagePullFailed, InfrastructureError):
    """The image could not be pulled, and nothing says that it does not exist."""


class RejectedByNode(Rejected, InfrastructureError):
    """The node did not take the pod it had been given; another one may."""


class UnknownOutcome(WorkloadFailedError):
    """The cluster reports something no branch knows. Never counted as success."""


class AirflowError(NighttrainError):
    """Airflow's API said no, or could not be asked."""


class TrackingError(NighttrainError):
    """MLflow said no, or could not be asked."""


class TrackingUnreachableError(TrackingError):
    """No answer from MLflow, after the retries: an outage, which waiting may mend."""


class TrackingMisconfiguredError(TrackingError):
    """The way to MLflow is wrong, and stays wrong until somebody changes it: no outage, a mistake.

    An unknown host, a certificate that is not trusted, credentials that are not accepted, or something at the
    address that is not MLflow.
    """


class TrackingUnauthorizedError(TrackingMisconfiguredError):
    """401 or 403 from MLflow; ``error_code`` is MLflow's own, if it gives one."""

    error_code: str = ""


class TrackingNotFoundError(TrackingError):
    """MLflow has no such run, experiment, model or version."""


class TrackingRequestError(TrackingError):
    """Any other refusal; ``error_code`` is MLflow's own."""

    def __init__(self, message: str, *, status: int = 0, error_code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.error_code = error_code


class TrackingTrashError(TrackingRequestError):
    """The run, or its experiment, is in MLflow's trash: it takes no writes before it is restored."""


class TrackingBusyError(TrackingUnreachableError, TrackingRequestError):
    """429 or 5xx: MLflow, or what stands before it, cannot answer now.

    ``retry_after`` is the pause in seconds that it asks for, if it does.
    """

    retry_after: float | None = None


class RegistryError(NighttrainError):
    """The registry's content does not allow the step."""


class ModelNotFoundError(RegistryError):
    """No registered model of that name."""


class ModelVersionNotFoundError(RegistryError):
    """No such version, no such alias, or nothing in that stage."""


class RunWithoutModelError(RegistryError):
    """The run logged no READY model."""


class RunInTrashError(RunWithoutModelError):
    """The run, or its experiment, is in MLflow's trash, and its model with it.

    The message says how to restore it; whoever knows the orchestrator adds what to do then.
    """


class NothingToSelectError(RegistryError):
    """None of several trainings has a number for the metric that they are compared by."""


class ArtifactDigestMismatchError(RegistryError):
    """The artifact's sha256 manifest differs from the one recorded at registration."""


class PromotedSinceError(RegistryError):
    """What was to be replaced or undone is not what is there any more: somebody promoted since."""


class NothingToUndoError(RegistryError):
    """The history has no promotion in effect that can be undone, or none that leads back to that version."""


class HistoryMovedError(RegistryError):
    """Somebody else wrote the model's next entry first: read the history again, and decide again."""


class GateError(NighttrainError):
    """A gate did not accept, and was told to fail on that."""


class GateRejectedError(GateError):
    """The verdict is "rejected"."""


class GateInconclusiveError(GateError):
    """The verdict is "inconclusive"."""


class NotApprovedError(GateError):
    """The person who was asked said no, did not answer, or somebody else answered."""


class ServingError(NighttrainError):
    """A rollout or rollback could not be carried out."""


class RolloutFailedError(ServingError):
    """The candidate did not become ready; the stable version still serves."""


class RolloutUndoneError(RolloutFailedError):
    """A rollout in steps was undone; traffic, alias and stage are where they were."""


class RolloutStoppedError(RolloutFailedError):
    """Another hand changes what the rollout writes; it ended where it was, and a person has to look."""


class RolloutUnderWayError(ServingError):
    """Another rollout of the endpoint is under way: one at a time."""


class NothingToRollBackToError(ServingError):
    """No previous version is kept beside the serving one."""


class MissingExtraError(NighttrainError, ImportError):
    """An optional package is absent."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'nighttrain[{extra}]'")


def _repr(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return f"a value of type {type(value).__name__} that has no text"


PERMANENT: tuple[type[NighttrainError], ...] = (
    ArtifactDigestMismatchError,
    ConfigurationError,
    GateError,
    NothingToUndoError,
    NothingToSelectError,
    ObjectInvalidError,
    PromotedSinceError,
    RolloutStoppedError,
    RolloutUndoneError,
    RunWithoutModelError,
    TrackingMisconfiguredError,
    WorkloadConflictError,
)
"""Trying these again would give the same answer: the input, the registered artifact, the recorded
measurements or the way to MLflow have to change first."""


MLFLOW_NOT_REACHED = (TrackingUnreachableError, TrackingMisconfiguredError)
"""An outage or a mistake: what has ended meanwhile is kept and written down later. Before anything starts
only an outage is passed over."""


def clip(text: str, length: int) -> str:
    """Shorten ``text`` to ``length`` characters, saying so with an ellipsis, and make it :func:`storable`."""
    text = storable(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def storable(text: str) -> str:
    """``text`` as every database takes it: NUL and halves of surrogate pairs become U+FFFD.

    PostgreSQL refuses them, in MLflow's columns as in Airflow's XComs and triggers.
    """
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
