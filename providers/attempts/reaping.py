"""Reaping as a whole: workloads whose task is over go, and the runs that nobody will close are closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nighttrain.providers.attempts.history import history_of
from nighttrain.providers.attempts.lifecycle import mark_consumed, observe
from nighttrain.providers.attempts.reaper import Finding, TaskState, TaskStates, Verdict, reap
from nighttrain.providers.attempts.tracked_workload import run_status
from nighttrain.providers.errors import ConfigurationError, TrackingError
from nighttrain.providers.kubernetes.job.reads import read_object
from nighttrain.providers.kubernetes.outcome.outcome import Outcome, OutcomeKind
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.workload import Workload
from nighttrain.providers.tracking.forgotten_runs import has_children, open_parents, open_runs
from nighttrain.providers.tracking.killed_runs import close_run_of_container, close_with_parent
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import RUN_KEY_TAG, RunKey, RunStatus
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
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


async def reap_all(
    client: ClusterClient,
    findings: Sequence[Finding],
    states: TaskStates,
    *,
    mlflow: MLflowClient | None = None,
    warn: Warn,
) -> list[Finding]:
    """Remove what is to be reaped and close what has ended; returns the findings as they are now, in their
    order.

    :param mlflow: where the runs are closed: those of what was removed as KILLED, those of what had ended as
        it ended. Without it they stay as they are
    :param warn: is told of a run that could not be closed: its workload is gone all the same
    :raises WorkloadConflictError: one still terminates after a quarter of an hour
    :raises ClusterError: the cluster refused or cannot be asked
    """
    done = []
    for finding in findings:
        if finding.verdict is Verdict.REAP:
            finding = await reap(client, finding, states)
            if finding.verdict is Verdict.REAPED and mlflow is not None:
                await _close_run(mlflow, finding, RunStatus.KILLED, warn)
        if finding.verdict is Verdict.CLOSE and mlflow is not None:
            finding = await _close_as_it_ended(client, mlflow, finding, warn)
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

    Runs whose workload is in another namespace or cluster are left to whoever reaps there; so are those of
    tasks that are not this Airflow's: several may share one MLflow.

    :param now: seconds since 1970
    :raises TrackingError: MLflow does not answer, or refuses
    :raises ClusterError: the cluster refused or cannot be asked
    """
    begun_before = int((now - minimum_age_seconds) * 1000)
    found = []
    for run in await open_runs(mlflow, orchestrator=orchestrator, begun_before=begun_before):
        identity = _identity_of(run, orchestrator)
        job_uid = run.tags.get(f"{PREFIX}job_uid", "")
        if identity is None or (job_uid and not _is_here(run, client, namespace)):
            continue
        if await states.state(identity) is not TaskState.OVER:
            continue
        if not job_uid:
            found.append(ForgottenRun(run, identity, RunStatus.KILLED))
            continue
        name = run.tags.get(f"{PREFIX}job_name", "")
        job = await read_object(client, Workload(namespace, name, job_uid, attempt=0))
        noted = history_of(job).consumed
        if job is None:
            found.append(ForgottenRun(run, identity, RunStatus.FAILED))
        elif noted is not None:  # who took the ended attempt over once more opened its run, and died
            outcome = Outcome.from_dict({"kind": noted})
            found.append(ForgottenRun(run, identity, run_status(outcome), outcome.kind.value))
        # Any other Job is among the workloads, and its run is closed with it.
    return found


async def close_forgotten(mlflow: MLflowClient, forgotten: Sequence[ForgottenRun], *, warn: Warn) -> None:
    """Close them, and settle their DAG runs'.

    :param warn: is told of a run that could not be closed
    """
    tree = RunTree(mlflow)
    for each in forgotten:
        try:
            await tree.set_tags(each.run.run_id, {f"{PREFIX}outcome": each.outcome})
            await close_with_parent(tree, each.run, each.status)
        except TrackingError as error:
            warn(f"Run {each.run.run_id} could not be closed: {error}")


async def settle_parents(
    mlflow: MLflowClient,
    *,
    minimum_age_seconds: float,
    now: float,
    warn: Warn,
    orchestrator: str = "airflow",
) -> None:
    """Have each DAG run's run that says it goes on say how its tasks stand: whoever closed the last one's may
    have died, or MLflow gone away, before that was written.

    One without any task's run is left of a process that died before it had opened that: it is KILLED. A task
    that comes all the same opens it again.

    :param now: seconds since 1970
    :param warn: is told of a run that could not be settled
    :raises TrackingError: MLflow does not answer, or refuses
    """
    begun_before = int((now - minimum_age_seconds) * 1000)
    tree = RunTree(mlflow)
    for parent in await open_parents(mlflow, orchestrator=orchestrator, begun_before=begun_before):
        try:
            if await has_children(mlflow, parent):
                await tree.settle_parent(parent.run_id)
            else:
                await tree.close(parent.run_id, RunStatus.KILLED)
        except TrackingError as error:
            warn(f"Run {parent.run_id} of a DAG run could not be settled: {error}")


async def _close_as_it_ended(
    client: ClusterClient, mlflow: MLflowClient, finding: Finding, warn: Warn
) -> Finding:
    """Write the end down where nobody did, and note on the workload that this is done."""
    outcome = (await observe(client, finding.workload)).outcome
    if outcome is None or not await _close_run(mlflow, finding, run_status(outcome), warn):
        return finding
    await mark_consumed(client, finding.workload, finding.epoch, outcome=outcome)
    return replace(finding, verdict=Verdict.CLOSED)


async def _close_run(mlflow: MLflowClient, finding: Finding, status: RunStatus, warn: Warn) -> bool:
    key = _key_of(finding.identity)
    try:
        await close_run_of_container(RunTree(mlflow), key, finding.environment, status)
    except TrackingError as error:
        warn(f"The run of {finding.workload.namespace}/{finding.workload.name} could not be closed: {error}")
        return False
    return True


def _identity_of(run: Run, orchestrator: str) -> WorkloadIdentity | None:
    """Whose run it is; ``None`` if its tags do not say so in full: long values are cut there."""
    tags = {name: run.tags.get(f"{PREFIX}{name}", "") for name in ("dag_id", "run_id", "task_id", "region")}
    try:
        index = int(run.tags.get(f"{PREFIX}map_index", "-1"))
        identity = WorkloadIdentity(orchestrator=orchestrator, map_index=index, **tags)
    except (ConfigurationError, ValueError):
        return None
    return identity if run.tags.get(RUN_KEY_TAG) == _key_of(identity).value else None


def _key_of(identity: WorkloadIdentity) -> RunKey:
    return RunKey(
        orchestrator=identity.orchestrator,
        dag_id=identity.dag_id,
        run_id=identity.run_id,
        task_id=identity.task_id,
        map_index=identity.map_index,
        region=identity.region,
    )


def _is_here(run: Run, client: ClusterClient, namespace: str) -> bool:
    there = run.tags.get(f"{PREFIX}cluster"), run.tags.get(f"{PREFIX}namespace")
    return there == (client.server, namespace)
