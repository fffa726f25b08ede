"""Reaping as a whole: workloads whose task is over go, and their runs are closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import TrackingError
from nighttrain.providers.kubernetes.reaper import Finding, TaskStates, Verdict, reap
from nighttrain.providers.tracking.killed_runs import close_run_of_container
from nighttrain.providers.tracking.runs import RunKey, RunTree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nighttrain.providers.kubernetes.client import ClusterClient
    from nighttrain.providers.tracking.client import MLflowClient


async def reap_all(
    client: ClusterClient,
    findings: Sequence[Finding],
    states: TaskStates,
    *,
    mlflow: MLflowClient | None = None,
    warn: Callable[[str], object],
) -> list[Finding]:
    """Remove what is to be reaped; returns the findings as they are now, in their order.

    :param mlflow: where the runs of what was removed are closed as KILLED; without it they stay as they are
    :param warn: is told of a run that could not be closed: its workload is gone all the same
    :raises WorkloadConflictError: one still terminates after a quarter of an hour
    :raises ClusterError: the cluster refused or cannot be asked
    """
    done = []
    for finding in findings:
        if finding.verdict is Verdict.REAP:
            finding = await reap(client, finding, states)
            if finding.verdict is Verdict.REAPED and mlflow is not None:
                await _close_run(mlflow, finding, warn)
        done.append(finding)
    return done


async def _close_run(mlflow: MLflowClient, finding: Finding, warn: Callable[[str], object]) -> None:
    identity = finding.identity
    key = RunKey(
        orchestrator=identity.orchestrator,
        dag_id=identity.dag_id,
        run_id=identity.run_id,
        task_id=identity.task_id,
        map_index=identity.map_index,
        region=identity.region,
    )
    try:
        await close_run_of_container(RunTree(mlflow), key, finding.environment)
    except TrackingError as error:
        warn(f"The run of {finding.workload.namespace}/{finding.workload.name} could not be closed: {error}")
