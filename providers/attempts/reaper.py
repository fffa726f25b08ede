"""Removing workloads whose task is over: what a crash, a deleted DAG run or a triggerer that was down left.

One that has ended, and whose end nobody took over, stays as it is; its end is still to be written down.

The fence: the Job is read first, its task's state is asked then, and the Job is deleted only as it was read.
A task that came back to life in between has adopted the Job, which changed it, and the deletion is refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from nighttrain.providers.attempts.history import history_of
from nighttrain.providers.attempts.lifecycle import environment_of
from nighttrain.providers.attempts.wait_for_end import until_gone
from nighttrain.providers.attempts.workload_objects import list_pods
from nighttrain.providers.errors import (
    ClusterForbiddenError,
    ConfigurationError,
    LostNodeError,
    ObjectConflictError,
    ObjectNotFoundError,
)
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.kubernetes.job.kinds import JOB, KINDS, WorkloadKind, kind_named
from nighttrain.providers.kubernetes.values.identity import (
    ATTEMPT_KEY_LABEL,
    DAG_ANNOTATION,
    MAP_INDEX_ANNOTATION,
    ORCHESTRATOR_ANNOTATION,
    REGION_ANNOTATION,
    RUN_ANNOTATION,
    TASK_ANNOTATION,
    WorkloadIdentity,
)
from nighttrain.providers.kubernetes.values.objects import (
    is_deleting,
    items,
    mapping,
    metadata,
    name_of,
    text,
    uid_of,
)
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import DEFAULT_MINIMUM_AGE_SECONDS
from nighttrain.providers.texts import columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json

_log = logging.getLogger(__name__)


class TaskState(Enum):
    """A task's state, as its orchestrator knows it."""

    ALIVE = "alive"
    OVER = "over"
    GONE = "gone"
    UNKNOWN = "unknown"


class TaskStates(Protocol):
    """Whoever knows the states of tasks."""

    async def state(self, identity: WorkloadIdentity) -> TaskState:
        """The state of one task; UNKNOWN if it cannot be told."""


class Verdict(Enum):
    """The reaper's decision about a workload, before and after it acted."""

    REAP = "reap"
    REAPED = "reaped"
    CLOSE = "close"
    CLOSED = "closed"
    TAKEN_OVER = "taken over"
    KEEP = "keep"


@dataclass(frozen=True)
class Finding:
    """A workload that lives, or whose end nobody took over, and what its task's state says of it.

    :param age_seconds: since its Job was created
    :param epoch: the epoch that it was submitted in
    :param environment: the plain variables of its container, which tell its run
    """

    workload: Workload
    identity: WorkloadIdentity
    resource_version: str
    age_seconds: float
    state: TaskState
    verdict: Verdict
    environment: dict[str, str] = field(default_factory=dict)
    epoch: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for tables and machines."""
        return {
            "verdict": self.verdict.value,
            "task": self.state.value,
            "job": f"{self.workload.namespace}/{self.workload.name}",
            "dag_id": self.identity.dag_id,
            "run_id": self.identity.run_id,
            "task_id": self.identity.task_id,
            "map_index": self.identity.map_index,
            "region": self.identity.region,
            "age_seconds": round(self.age_seconds),
        }


async def find(
    client: ClusterClient,
    namespace: str,
    states: TaskStates,
    *,
    orchestrator: str = "airflow",
    minimum_age_seconds: float = DEFAULT_MINIMUM_AGE_SECONDS,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Finding]:
    """Every live workload of the namespace, and whether to reap it; and those that ended on the last try of a
    task whose worker died, so that nobody took over their end.

    :param minimum_age_seconds: younger ones are kept whatever their task's state
    :raises ConfigurationError: a negative age
    :raises ClusterError: the cluster refused or cannot be asked
    """
    if minimum_age_seconds < 0:
        raise ConfigurationError("minimum_age_seconds", minimum_age_seconds, "must not be negative")
    listed = await list_workloads(client, namespace)
    labelled = await client.list(PODS, namespace, label_selector=ATTEMPT_KEY_LABEL)
    pods = items(labelled.get("items"))
    # The cluster's own clock, where it told: objects carry its times.
    clock = client.cluster_time
    moment = now().timestamp() if clock is None else clock
    found = []
    for kind, obj in listed:
        identity = _identity_of(obj)
        if identity is None or identity.orchestrator != orchestrator or is_deleting(obj):
            continue
        live = _is_live(obj, kind, pods)
        if not live and history_of(obj).consumed is not None:  # its end was taken over
            continue
        # Whole seconds of two clocks of the cluster: a new object can seem to be from the future.
        age = max(0.0, moment - _created(obj))
        state = await states.state(identity) if age >= minimum_age_seconds else TaskState.UNKNOWN
        finding = _finding(obj, kind, identity, namespace, age, state, live=live)
        if finding.verdict is not Verdict.KEEP or live:
            found.append(finding)
    return found


async def list_workloads(client: ClusterClient, namespace: str) -> list[tuple[WorkloadKind, Json]]:
    """Every workload of the namespace that is an attempt, whatever became of it.

    :raises ClusterError: the cluster refused or cannot be asked
    """
    found: list[tuple[WorkloadKind, Json]] = []
    for kind in KINDS.values():
        try:
            listed = await client.list(kind.resource, namespace, label_selector=ATTEMPT_KEY_LABEL)
        except (ObjectNotFoundError, ClusterForbiddenError) as error:
            if kind is JOB:
                raise
            if isinstance(error, ClusterForbiddenError):  # a Role from before there was this kind
                _log.warning("%s workloads are not looked at: %s", kind.name, error)
            continue  # a cluster without this kind
        found += [(kind, obj) for obj in items(listed.get("items"))]
    return found


async def reap(client: ClusterClient, finding: Finding, states: TaskStates) -> Finding:
    """Remove one workload, unless its task has come back; returns the finding as it is now.

    One that has ended meanwhile is to be closed, like any other that ended and nobody waits for.

    :raises WorkloadConflictError: it still terminates after a quarter of an hour
    :raises ClusterError: the cluster refused or cannot be asked
    """
    workload = finding.workload
    kind = kind_named(workload.kind)
    try:
        obj = await client.get(kind.resource, workload.namespace, workload.name)
    except ObjectNotFoundError:
        return _with(finding, Verdict.REAPED)
    live = _is_live(obj, kind, await list_pods(client, workload))
    if uid_of(obj) != workload.uid or (not live and history_of(obj).consumed is not None):
        return _with(finding, Verdict.KEEP)
    state = await states.state(finding.identity)
    age = finding.age_seconds
    fresh = _finding(obj, kind, finding.identity, workload.namespace, age, state, live=live)
    if fresh.verdict is not Verdict.REAP:
        return fresh
    try:
        await client.delete(
            kind.resource,
            workload.namespace,
            workload.name,
            uid=workload.uid,
            resource_version=fresh.resource_version,
        )
    except ObjectConflictError:
        return _with(fresh, Verdict.TAKEN_OVER)
    except ObjectNotFoundError:
        return _with(fresh, Verdict.REAPED)
    try:
        await until_gone(client, workload, with_object=True)
    except LostNodeError as error:  # nothing takes the deletion back
        _log.warning("%s is deleted and cannot be seen to end: %s", workload.described, error)
    return _with(fresh, Verdict.REAPED)


def table(findings: Sequence[Finding]) -> str:
    """The findings for a person, in columns."""
    rows = [("VERDICT", "TASK IS", "JOB", "DAG", "RUN", "TASK", "AGE")]
    for finding in findings:
        shown = finding.to_dict()
        task = shown["task_id"] + (f"[{shown['map_index']}]" if shown["map_index"] >= 0 else "")
        task += f" in {shown['region']}" if shown["region"] else ""
        age = f"{shown['age_seconds']}s"
        rows.append(
            (shown["verdict"], shown["task"], shown["job"], shown["dag_id"], shown["run_id"], task, age)
        )
    return columns(rows)


def _finding(
    obj: Json,
    kind: WorkloadKind,
    identity: WorkloadIdentity,
    namespace: str,
    age: float,
    state: TaskState,
    *,
    live: bool,
) -> Finding:
    waited_for = state not in (TaskState.OVER, TaskState.GONE)
    unwanted = Verdict.REAP if live else Verdict.CLOSE
    return Finding(
        workload=Workload(namespace, name_of(obj), uid_of(obj), history_of(obj).attempt, kind=kind.name),
        identity=identity,
        resource_version=text(metadata(obj).get("resourceVersion")),
        age_seconds=age,
        state=state,
        verdict=Verdict.KEEP if waited_for else unwanted,
        environment=environment_of(obj, kind),
        epoch=history_of(obj).epoch or "",
    )


def _with(finding: Finding, verdict: Verdict) -> Finding:
    return replace(finding, verdict=verdict)


def _identity_of(obj: Json) -> WorkloadIdentity | None:
    """Whose workload it is; ``None`` if its annotations do not say so, or say it of another one."""
    written = mapping(metadata(obj).get("annotations"))
    try:
        identity = WorkloadIdentity(
            orchestrator=text(written.get(ORCHESTRATOR_ANNOTATION)),
            dag_id=text(written.get(DAG_ANNOTATION)),
            run_id=text(written.get(RUN_ANNOTATION)),
            task_id=text(written.get(TASK_ANNOTATION)),
            map_index=int(text(written.get(MAP_INDEX_ANNOTATION)) or -1),
            region=text(written.get(REGION_ANNOTATION)),
        )
    except (ConfigurationError, ValueError):
        return None
    return identity if mapping(metadata(obj).get("labels")).get(ATTEMPT_KEY_LABEL) == identity.key else None


def _is_live(obj: Json, kind: WorkloadKind, pods: Sequence[Json]) -> bool:
    own = [
        pod
        for pod in pods
        if mapping(metadata(pod).get("labels")).get(kind.pod_label) == name_of(obj)
        and kind.owns(pod, uid_of(obj))
    ]
    return not kind.ended(obj, own) and not is_deleting(obj)


def _created(obj: Json) -> float:
    try:
        return datetime.fromisoformat(text(metadata(obj).get("creationTimestamp"))).timestamp()
    except ValueError:
        return float("inf")
