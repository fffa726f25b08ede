"""Reaping as a whole: workloads whose task is over go, and the runs that nobody will close are closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nighttrain.providers.attempts.attempt import run_status
from nighttrain.providers.attempts.attempt_run import (
    RUN_CONTEXT_VARIABLE,
    RUN_ID_VARIABLE,
    AttemptRun,
    attempt_tags,
    opening_of,
    settle_parent,
)
from nighttrain.providers.attempts.history import history_of
from nighttrain.providers.attempts.lifecycle import environment_of, mark_consumed, observe
from nighttrain.providers.attempts.reaper import (
    Finding,
    TaskState,
    TaskStates,
    Verdict,
    find,
    list_workloads,
    reap,
)
from nighttrain.providers.errors import ConfigurationError, TrackingError, TrackingUnreachableError
from nighttrain.providers.kubernetes.outcome.outcome import (
    Outcome,
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.objects import uid_of
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import (
    JOB_UID_TAG,
    OPENING_TAG,
    PARENT_TAG,
    RUN_KEY_TAG,
    Lineage,
    RunKey,
    RunStatus,
)
from nighttrain.providers.tracking.tags import PREFIX
from nighttrain.providers.tracking.unclosed_runs import (
    has_children,
    open_parents,
    open_runs,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.job.kinds import WorkloadKind
    from nighttrain.providers.plain_json import Json
    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.runs import Run

Warn = Callable[[str], object]


@dataclass(frozen=True)
class ForgottenRun:
    """A run that says it goes on although its task is over and its workload is gone or settled.

    :param status: what it is closed as: as its workload ended, where that is still noted; KILLED if its
        process died before it had one; FAILED if what became of it is not known any more
    :param outcome: how the workload ended
    """

    run: Run
    identity: WorkloadIdentity
    status: RunStatus
    outcome: str = OutcomeKind.UNKNOWN.value

    @property
    def described(self) -> str:
        """For messages: whose run it is, and what it is closed as."""
        whose = f"{self.identity.dag_id}.{self.identity.task_id} ({self.identity.run_id})"
        return f"run {self.run.run_id} of {whose} as {self.status.value}"

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "verdict": "close run",
            "run": self.run.run_id,
            "status": self.status.value,
            "dag_id": self.identity.dag_id,
            "run_id": self.identity.run_id,
            "task_id": self.identity.task_id,
            "map_index": self.identity.map_index,
        }


@dataclass(frozen=True)
class Visit:
    """The findings of one visit, as they are after it.

    :param forgotten: the runs that it closed, or that it would close
    :param tracking_error: why MLflow could not be asked or told: what it lacks is left to another visit
    """

    findings: list[Finding]
    forgotten: list[ForgottenRun] = field(default_factory=list)
    tracking_error: TrackingError | None = None

    def to_list(self) -> list[dict[str, Any]]:
        """Plain JSON values."""
        return [*(each.to_dict() for each in self.findings), *(each.to_dict() for each in self.forgotten)]


class Runs:
    """MLflow's runs, as one visit writes to them: once MLflow is away it is not asked again.

    :param mlflow: without it nothing is written, which is no error
    :param warn: called with a sentence for what could not be written
    """

    def __init__(self, mlflow: MLflowClient | None, warn: Warn) -> None:
        self.mlflow = mlflow
        self.warn = warn
        self.unreachable: TrackingUnreachableError | None = None

    async def write(self, what: str, work: Callable[[RunTree], Awaitable[bool]]) -> bool:
        """Do ``work`` and return what it returns; false where it could not be done.

        :param what: for the warning
        """
        if self.mlflow is None:
            return False
        error: TrackingError | None = self.unreachable
        if error is None:
            try:
                return await work(RunTree(self.mlflow))
            except TrackingUnreachableError as outage:
                self.unreachable = error = outage
            except TrackingError as refusal:
                error = refusal
        self.warn(f"{what}: {error}")
        return False


async def visit(
    client: ClusterClient,
    namespace: str,
    states: TaskStates,
    *,
    mlflow: MLflowClient | None,
    minimum_age_seconds: float,
    now: float,
    only_show: bool,
    warn: Warn,
) -> Visit:
    """Remove the workloads that nobody waits for, then close the runs that nobody will close.

    In this order: what a workload still tells of its run's end is written before a run counts as forgotten,
    and an MLflow that is away keeps no workload alive.

    :param mlflow: where the runs are; without it they stay as they are
    :param now: seconds since 1970
    :param only_show: nothing is removed or written
    :param warn: called with a sentence for what could not be written
    :raises WorkloadConflictError: one still terminates after a quarter of an hour
    :raises ClusterError: the cluster refused or cannot be asked
    """
    runs = Runs(mlflow, warn)
    age = minimum_age_seconds
    findings = await find(client, namespace, states, minimum_age_seconds=age)
    if not only_show:
        findings = await reap_all(client, findings, states, runs)
    forgotten: list[ForgottenRun] = []
    if mlflow is None or runs.unreachable is not None:
        return Visit(findings, forgotten, runs.unreachable)
    try:
        forgotten = await find_forgotten(client, mlflow, namespace, states, minimum_age_seconds=age, now=now)
        if not only_show:
            forgotten = await close_forgotten(runs, forgotten)
            await settle_parents(runs, minimum_age_seconds=age, now=now)
    except TrackingError as error:
        warn(f"MLflow could not be asked which runs say that they go on: {error}")
        return Visit(findings, forgotten, error)
    return Visit(findings, forgotten, runs.unreachable)


async def reap_all(
    client: ClusterClient, findings: Sequence[Finding], states: TaskStates, runs: Runs
) -> list[Finding]:
    """Remove what is to be reaped and close what has ended; returns the findings as they are now, in their
    order.

    The runs of what was removed are closed as KILLED, those of what had ended as it ended. A workload whose
    run cannot be closed is gone all the same.

    :raises WorkloadConflictError: one still terminates after a quarter of an hour
    :raises ClusterError: the cluster refused or cannot be asked
    """
    done = []
    for finding in findings:
        if finding.verdict is Verdict.REAP:
            finding = await reap(client, finding, states)
            if finding.verdict is Verdict.REAPED:
                await _close_run(client, runs, finding, RunStatus.KILLED)
        if finding.verdict is Verdict.CLOSE and runs.mlflow is not None:
            finding = await _close_as_it_ended(client, runs, finding)
        done.append(finding)
    return done


async def find_forgotten(
    client: ClusterClient,
    mlflow: MLflowClient,
    namespace: str,
    states: TaskStates,
    *,
    minimum_age_seconds: float,
    now: float,
    orchestrator: str = "airflow",
) -> list[ForgottenRun]:
    """The runs that nobody will close: their task is over, and their workload is settled, gone or never was.

    Runs that belong to another namespace or cluster are left to whoever reaps there; so are those of tasks
    that are not this Airflow's: several may share one MLflow.

    :param now: seconds since 1970
    :raises TrackingError: MLflow does not answer, or refuses
    :raises ClusterError: the cluster refused or cannot be asked
    """
    begun_before = int((now - minimum_age_seconds) * 1000)
    over = []
    for run in await open_runs(mlflow, orchestrator=orchestrator, begun_before=begun_before):
        identity = _identity_of(run, orchestrator)
        if identity is None or not _is_here(run, client, namespace):
            continue
        if await states.state(identity) is TaskState.OVER:
            over.append((run, identity))
    # Listed last: whoever was to create a workload for one of these tasks has done so.
    workloads = await _by_run(client, namespace) if over else {}
    found = [_forgotten(run, identity, workloads) for run, identity in over]
    return [each for each in found if each is not None]


async def close_forgotten(runs: Runs, forgotten: Sequence[ForgottenRun]) -> list[ForgottenRun]:
    """Close them, and settle their DAG runs'; returns those that were closed."""
    return [
        each
        for each in forgotten
        if await runs.write(f"Run {each.run.run_id} could not be closed", _closing(each))
    ]


async def settle_parents(
    runs: Runs, *, minimum_age_seconds: float, now: float, orchestrator: str = "airflow"
) -> None:
    """Have each DAG run's run that says it goes on say how its tasks stand: whoever closed the last one's may
    have died, or MLflow gone away, before that was written.

    One without any task's run is left of a process that died before it had opened that: it is KILLED. A task
    that comes all the same opens it again.

    :param now: seconds since 1970
    :raises TrackingError: MLflow does not answer, or refuses
    """
    if runs.mlflow is None or runs.unreachable is not None:
        return
    begun_before = int((now - minimum_age_seconds) * 1000)
    for parent in await open_parents(runs.mlflow, orchestrator=orchestrator, begun_before=begun_before):
        await runs.write(f"Run {parent.run_id} of a DAG run could not be settled", _settling(parent))


def _forgotten(run: Run, identity: WorkloadIdentity, workloads: dict[str, Json]) -> ForgottenRun | None:
    job_uid = run.tags.get(JOB_UID_TAG, "")
    # Its process may have died before it had written on the run which workload that is.
    names = (job_uid, run.run_id, run.tags.get(OPENING_TAG, ""))
    obj = next((workloads[name] for name in names if name in workloads), None)
    if obj is None:
        return ForgottenRun(run, identity, RunStatus.FAILED if job_uid else RunStatus.KILLED)
    noted = history_of(obj).consumed
    if noted is None:  # it is among the workloads, and its run is closed with it
        return None
    outcome = Outcome.from_dict({"kind": noted})  # who took the ended attempt over opened its run, and died
    return ForgottenRun(run, identity, run_status(outcome), outcome.kind.value)


async def _by_run(client: ClusterClient, namespace: str) -> dict[str, Json]:
    """The namespace's workloads by what their runs may know of them: uid, run id, opening."""
    found: dict[str, Json] = {}
    for kind, obj in await list_workloads(client, namespace):
        found |= dict.fromkeys(_names(obj, kind), obj)
    return found


def _names(obj: Json, kind: WorkloadKind) -> set[str]:
    environment = environment_of(obj, kind)
    opening = opening_of(environment.get(RUN_CONTEXT_VARIABLE))
    return {uid_of(obj), environment.get(RUN_ID_VARIABLE, ""), opening} - {""}


def _closing(forgotten: ForgottenRun) -> Callable[[RunTree], Awaitable[bool]]:
    async def close(tree: RunTree) -> bool:
        if not (await tree.get(forgotten.run.run_id)).is_open:  # somebody came back for it
            return False
        await tree.set_tags(forgotten.run.run_id, {f"{PREFIX}outcome": forgotten.outcome})
        await tree.step_aside(forgotten.run)
        await tree.close(forgotten.run.run_id, forgotten.status)
        await settle_parent(tree, forgotten.run.tags.get(PARENT_TAG, ""))
        return True

    return close


def _settling(parent: Run) -> Callable[[RunTree], Awaitable[bool]]:
    async def settle(tree: RunTree) -> bool:
        if await has_children(tree.client, parent):
            await tree.settle_parent(parent.run_id)
        else:
            await tree.close(parent.run_id, RunStatus.KILLED)
        return True

    return settle


async def _close_as_it_ended(client: ClusterClient, runs: Runs, finding: Finding) -> Finding:
    """Write the end down where nobody did, and note on the workload that this is done."""
    outcome = (await observe(client, finding.workload)).outcome
    if outcome is None or not await _close_run(client, runs, finding, run_status(outcome), outcome):
        return finding
    await mark_consumed(client, finding.workload, finding.epoch, outcome=outcome)
    return replace(finding, verdict=Verdict.CLOSED)


async def _close_run(
    client: ClusterClient, runs: Runs, finding: Finding, status: RunStatus, outcome: Outcome | None = None
) -> bool:
    workload, whose = finding.workload, asdict(finding.identity)
    # What a worker that died may not have written on the run.
    tags = attempt_tags(partial(Lineage, **whose), client.server, workload, outcome)
    run = AttemptRun.of_container(RunKey(**whose), finding.environment)

    async def close(tree: RunTree) -> bool:
        if run.can_be_found:
            found = await run.find(tree)
            await found.close(tree, status, tags)
            await settle_parent(tree, found.parent_run_id)
        return True

    return await runs.write(f"The run of {workload.namespace}/{workload.name} could not be closed", close)


def _identity_of(run: Run, orchestrator: str) -> WorkloadIdentity | None:
    """Whose run it is; ``None`` if its tags do not say so in full: long values are cut there."""
    tags = {name: run.tags.get(f"{PREFIX}{name}", "") for name in ("dag_id", "run_id", "task_id", "region")}
    try:
        index = int(run.tags.get(f"{PREFIX}map_index", "-1"))
        identity = WorkloadIdentity(orchestrator=orchestrator, map_index=index, **tags)
    except (ConfigurationError, ValueError):
        return None
    return identity if run.tags.get(RUN_KEY_TAG) == RunKey(**asdict(identity)).value else None


def _is_here(run: Run, client: ClusterClient, namespace: str) -> bool:
    there = run.tags.get(f"{PREFIX}cluster"), run.tags.get(f"{PREFIX}namespace")
    return there == (client.server, namespace)
