"""The kinds of workload: what each adds to what all have in common.

Submitting, adopting, watching, waiting, cancelling, logs and reaping are written once, for whatever
:data:`KINDS` holds. A kind brings its manifests and a reader of its status, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.api.resources import JOBS, Resource
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.outcome.decide import (
    decide,
    job_is_decided,
)
from nighttrain.providers.kubernetes.values.objects import condition, items, mapping, metadata, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nighttrain.providers.kubernetes.job.checked import CheckedWorkload
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Observation,
    )
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
    from nighttrain.providers.plain_json import Json

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


class Read(Protocol):
    """Reads how an attempt stands: whatever the objects hold, it returns; in doubt it is no success."""

    def __call__(
        self, obj: object, pods: Sequence[object], events: Iterable[object] = (), /, *, queue: object = None
    ) -> Observation:
        """
        :param obj: the workload, or ``None`` when it was deleted
        :param pods: its pods; those already deleted may be among them as last seen
        :param events: events of the workload and its pods, if at hand
        :param queue: Kueue's Workload of it, if at hand
        """


@dataclass(frozen=True, kw_only=True)
class WorkloadKind:
    """One kind of workload.

    Where its pods belong to a child, as a JobSet's to its Jobs, no child carries the labels of the attempt:
    the reaper would take it for one. ``read`` sees the object and its pods, not the children; pods of a child
    do not decide, and sidecars in them are not ended.

    :param resource: where its objects live
    :param build: the manifest of an attempt, by its number. It carries the identity's name, labels and
        annotations and the annotation with the spec's hash, its pods the same labels and annotations. Raises
        ConfigurationError if the spec cannot become an object of this kind. Its name leaves 11 of the 63
        characters that children's and pods' names have
    :param read: how an attempt stands, from its status
    :param has_ended: whether its own status is final and nothing of it will run any more
    :param is_decided: whether it has ended by what its pods show, or by what is written on it, although its
        own status does not say so yet: never, if not given
    :param is_suspended: whether it waits in a queue
    :param pod_template: the template of the pod that trains, in a manifest or an object
    :param pod_label: the label of its pods that holds its name
    :param owner_of: the uid of the workload that a pod belongs to; empty where pods do not know it (they are
        another controller's), which are then told apart by ``pod_label``
    :param spec_kept: the fields of its spec that ``read`` and ``is_suspended`` look at: a hub of a thousand
        workloads keeps no others
    """

    resource: Resource
    build: Callable[[CheckedWorkload, WorkloadIdentity, int], Json]
    read: Read
    has_ended: Callable[[object], bool]
    is_suspended: Callable[[object], bool]
    pod_template: Callable[[Json], Json]
    pod_label: str
    owner_of: Callable[[Json], str]
    spec_kept: tuple[str, ...]
    is_decided: Callable[[object, Sequence[object]], bool] = lambda obj, pods: False

    @property
    def name(self) -> str:
        """The name by which stored workloads refer to it."""
        return self.resource.kind

    def ended(self, obj: object, pods: Sequence[object]) -> bool:
        """True if the attempt is over: nothing of it trains any more, and its outcome will not change."""
        return self.has_ended(obj) or self.is_decided(obj, pods)

    def owns(self, pod: Json, uid: str) -> bool:
        """True if a pod with this kind's label belongs to the workload of this uid."""
        return self.owner_of(pod) in ("", uid)


def _job_has_ended(job: object) -> bool:
    return condition(job, "Complete") is not None or condition(job, "Failed") is not None


def _is_suspended(workload: object) -> bool:
    return mapping(mapping(workload).get("spec")).get("suspend") is True


def _job_pod_template(job: Json) -> Json:
    return mapping(mapping(job.get("spec")).get("template"))


def _job_of_pod(pod: Json) -> str:
    owners = items(metadata(pod).get("ownerReferences"))
    if owners:
        job = next((owner for owner in owners if owner.get("controller")), owners[0])
        return text(job.get("uid"))
    return text(mapping(metadata(pod).get("labels")).get("batch.kubernetes.io/controller-uid"))


JOB = WorkloadKind(
    resource=JOBS,
    build=build_job,
    read=decide,
    has_ended=_job_has_ended,
    is_suspended=_is_suspended,
    pod_template=_job_pod_template,
    pod_label=JOB_NAME_LABEL,
    owner_of=_job_of_pod,
    spec_kept=(
        "suspend",
        "parallelism",
        "completions",
        "backoffLimit",
        "podFailurePolicy",
        "activeDeadlineSeconds",
    ),
    is_decided=job_is_decided,
)

KINDS: dict[str, WorkloadKind] = {JOB.name: JOB}


def kind_named(name: str) -> WorkloadKind:
    """
    :raises ConfigurationError: no kind has this name
    """
    try:
        return KINDS[name]
    except KeyError:
        raise ConfigurationError("workload kind", name, f"there are: {', '.join(KINDS)}") from None
