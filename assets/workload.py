"""A Dagster step's workload: the same workload and run code that Airflow's operators use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nighttrain.providers.bridge import run_sync
from nighttrain.providers.tracked_workload import TrackedWorkload, with_env

if TYPE_CHECKING:
    import dagster as dg

    from nighttrain.assets.resources import KubernetesResource, MLflowResource
    from nighttrain.providers.kubernetes.outcome import Observation, Outcome
    from nighttrain.providers.kubernetes.spec import WorkloadSpec
    from nighttrain.providers.tracked_workload import StartedWorkload

# Longer than any usual image pull; a queue's wait is not counted. The same as for Airflow.
STARTUP_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Step:
    """Which step of which run: what identifies a workload.

    A re-execution keeps the first run's id as its root, so it finds what an earlier run left.
    """

    job_name: str
    root_run_id: str
    run_id: str
    name: str
    partition_key: str | None


def asset_step(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, name: str) -> Step:
    """The step that Dagster runs now."""
    run = context.run
    return Step(
        job_name=run.job_name,
        root_run_id=run.root_run_id or run.run_id,
        run_id=run.run_id,
        name=name,
        partition_key=run.tags.get("dagster/partition"),
    )


@dataclass(frozen=True)
class FinishedWorkload:
    """What a step gets back."""

    tracked: TrackedWorkload
    started: StartedWorkload
    outcome: Outcome


def run_workload(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext,
    step: Step,
    spec: WorkloadSpec,
    *,
    kubernetes: KubernetesResource,
    mlflow: MLflowResource,
    experiment_name: str,
    environment: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
) -> FinishedWorkload:
    """Submit or adopt, wait with live lines, close the run.

    The caller calls :func:`consume` once it has stored the result.

    :raises WorkloadFailedError: the workload ended without success; its run is closed
    """
    tracked = _tracked(step, spec, kubernetes, mlflow, experiment_name, environment or {}, params or {})
    tracked.spec.validate()
    started, outcome = run_sync(_follow(context, tracked))
    if not outcome.succeeded:
        run_sync(tracked.mark_consumed(started, outcome))
        outcome.raise_for_failure()
    return FinishedWorkload(tracked, started, outcome)


def consume(finished: FinishedWorkload) -> None:
    """The result is stored: the attempt is over."""
    run_sync(finished.tracked.mark_consumed(finished.started, finished.outcome))


async def _follow(context: Any, tracked: TrackedWorkload) -> tuple[StartedWorkload, Outcome]:
    def say(observation: Observation) -> None:
        context.log.info(observation.detail)

    started = await tracked.start(log=context.log.info)
    outcome = await tracked.follow(
        started,
        startup_timeout_seconds=STARTUP_TIMEOUT_SECONDS,
        on_observation=say,
        on_line=lambda line: context.log.info(f"[pod] {line}"),
    )
    await tracked.close(started, outcome)
    context.log.info(outcome.explain())
    return started, outcome


def _tracked(
    step: Step,
    spec: WorkloadSpec,
    kubernetes: KubernetesResource,
    mlflow: MLflowResource,
    experiment_name: str,
    environment: Mapping[str, str],
    params: Mapping[str, str],
) -> TrackedWorkload:
    from nighttrain.providers.kubernetes.identity import WorkloadIdentity
    from nighttrain.providers.tracking.runs import Lineage, RunKey

    identity = WorkloadIdentity(
        orchestrator="dagster", dag_id=step.job_name, run_id=step.root_run_id, task_id=step.name
    )
    run_key = RunKey(orchestrator="dagster", dag_id=step.job_name, run_id=step.root_run_id, task_id=step.name)
    if mlflow.credentials_secret:
        secret = {"secretRef": {"name": mlflow.credentials_secret}}
        spec = replace(spec, env_from=[*(spec.env_from or []), secret])
    return TrackedWorkload(
        cluster=kubernetes.cluster_config(),
        tracking=mlflow.tracking_config(),
        tracking_uri_for_pods=mlflow.uri_for_pods(),
        spec=with_env(spec, environment),
        identity=identity,
        epoch=step.run_id,
        experiment_name=experiment_name,
        run_name=step.name,
        parent_key=run_key.parent,
        run_key=run_key,
        params=params,
        lineage=partial(
            Lineage,
            orchestrator="dagster",
            dag_id=step.job_name,
            run_id=step.root_run_id,
            task_id=step.name,
            data_interval_start=step.partition_key,
            data_interval_end=step.partition_key,
        ),
    )
