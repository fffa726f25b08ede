"""A Dagster step's workload: the same workload and run code that Airflow's operators use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from nighttrain.assets.interruptible import Say, run_interruptibly
from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import TrackingMisconfiguredError, TrackingNotFoundError
from nighttrain.providers.kubernetes.values.timeouts import DEFAULT_STARTUP_TIMEOUT_SECONDS, Timeouts
from nighttrain.providers.pod_access import with_access
from nighttrain.providers.tracking.runs import commit_of_environment
from nighttrain.providers.training_advice import advised

if TYPE_CHECKING:
    from nighttrain.assets.resources import KubernetesResource, MLflowResource
    from nighttrain.providers.attempts.attempt import Attempt, StartedWorkload
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Outcome,
    )
    from nighttrain.providers.tracking.runs import Run

Context = dg.AssetExecutionContext | dg.AssetCheckExecutionContext
Arguments = Sequence[str] | Callable[[Any], Sequence[str]]
Parameters = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]

PARTITION_TAG = "dagster/partition"


@dataclass(frozen=True)
class Step:
    """A step of a run, which identifies a workload.

    A re-execution keeps the first run's id as its root, so it finds what an earlier run left.

    :param name: the step's own name in the run; two assets of one run never share it
    :param retry_number: how often Dagster has retried the step in this run
    :param interval: begin and end of the partition, where it is one of time; otherwise its key, twice
    """

    job_name: str
    root_run_id: str
    run_id: str
    name: str
    partition_key: str | None = None
    retry_number: int = 0
    interval: tuple[str | None, str | None] = (None, None)

    @property
    def actor(self) -> str:
        """The one who does this, for tags."""
        return f"dagster:{self.job_name}/{self.name}/{self.run_id}"


def asset_step(context: Context, name: str, partition_key: str | None = None) -> Step:
    """The step that Dagster runs now.

    :param partition_key: what it is about, where the run itself has no partition
    """
    run = context.run
    return Step(
        job_name=run.job_name,
        root_run_id=run.root_run_id or run.run_id,
        run_id=run.run_id,
        name=name,
        partition_key=run.tags.get(PARTITION_TAG, partition_key),
        retry_number=context.op_execution_context.retry_number,
        interval=_interval(context) if context.has_partition_key else (partition_key, partition_key),
    )


@dataclass(frozen=True)
class FinishedWorkload:
    """A workload that has ended, for the step that ran it."""

    attempt: Attempt
    outcome: Outcome

    @property
    def started(self) -> StartedWorkload:
        """The workload and its run's ids, as plain values."""
        return self.attempt.started


def run_workload(
    context: Context,
    step: Step,
    spec: WorkloadSpec,
    *,
    kubernetes: KubernetesResource,
    mlflow: MLflowResource,
    experiment_name: str,
    environment: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    fail_if_over_quota: bool = True,
) -> FinishedWorkload:
    """Submit or adopt, wait with live lines, close the run.

    The caller calls :func:`consume` once it has stored the result. Where Dagster terminates the run, the
    workload is removed and its MLflow run closed as KILLED; where the process dies, both stay for the
    re-execution to find.

    :raises WorkloadFailedError: the workload ended without success; its run is closed
    :raises dg.Failure: MLflow can never be reached like this: nothing was started, and no retry follows
    """
    tracked = _tracked(step, spec, kubernetes, mlflow, experiment_name, environment or {}, params or {})
    follow = partial(_start_and_follow, tracked, fail_if_over_quota)
    try:
        attempt, outcome = run_interruptibly(follow, context.log.info)
    except TrackingMisconfiguredError as error:
        raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=False) from error
    attempt = run_sync(attempt.settle(outcome))
    outcome = advised(outcome, experiment_name=experiment_name, run_id=attempt.run.run_id)
    finished = FinishedWorkload(attempt, outcome)
    if not outcome.succeeded:
        consume(finished)
        outcome.raise_for_failure()
    context.log.info(outcome.explain())
    return finished


def run_of(finished: FinishedWorkload) -> Run:
    """The workload's run as MLflow has it now, also in the trash.

    :raises TrackingNotFoundError: it has none, or none any more: nothing mends the second, so a re-execution
        starts anew
    """
    try:
        return run_sync(finished.attempt.logged_run())
    except TrackingNotFoundError as error:
        if not finished.started.run_id:  # a re-execution takes the attempt over once its run can be made
            raise
        consume(finished)
        raise TrackingNotFoundError(
            f"run {finished.started.run_id} was removed from MLflow for good (mlflow gc), and with it what "
            f"the workload logged. Re-execute the run to have it done anew. MLflow says: {error}"
        ) from error


def trained_run(finished: FinishedWorkload) -> Run:
    """As :func:`run_of`, of a training: what it read is recorded as the run's inputs."""
    run_sync(finished.attempt.trained_run())
    return run_of(finished)


def consume(finished: FinishedWorkload) -> None:
    """The result is stored: the attempt is over."""
    run_sync(finished.attempt.mark_consumed(finished.outcome))


def spec_for(subject: Any, spec: WorkloadSpec, arguments: Arguments) -> WorkloadSpec:
    """``spec`` with the arguments of this execution; without any, its own stay.

    :param subject: what a function that gives the arguments is called with
    """
    given = list(arguments(subject) if callable(arguments) else arguments)
    return replace(spec, arguments=given) if given else spec


def params_for(context: Context, parameters: Parameters) -> dict[str, str]:
    """The MLflow run's parameters for this execution.

    :raises ConfigurationError: a name that MLflow refuses, or a value that does not fit
    """
    from nighttrain.providers.tracking.names import read_params

    return read_params(parameters(context) if callable(parameters) else parameters)


async def _start_and_follow(
    tracked: TrackedWorkload, fail_if_over_quota: bool, say: Say
) -> tuple[Attempt, Outcome]:
    # Not cancelled in the middle: what was created has to be known before it can be removed.
    starting = asyncio.ensure_future(tracked.start(log=say))
    try:
        attempt = tracked.attempt(await asyncio.shield(starting))
        outcome = await attempt.follow(
            timeouts=Timeouts(DEFAULT_STARTUP_TIMEOUT_SECONDS, fail_if_over_quota=fail_if_over_quota),
            on_observation=lambda observation: say(observation.detail),
            on_line=lambda line: say(f"[pod] {line}"),
        )
    except asyncio.CancelledError:
        attempt = tracked.attempt(await starting)
        say(f"Terminated: removing Job {attempt.workload.namespace}/{attempt.workload.name}")
        await attempt.cancel()
        raise
    return attempt, outcome


def _interval(context: Context) -> tuple[str | None, str | None]:
    try:
        window = context.partition_time_window
    except (dg.DagsterInvariantViolationError, ValueError):
        # Not a partition of time, or a check without partitions in a run that has one.
        key = context.run.tags.get(PARTITION_TAG)
        return key, key
    return window.start.isoformat(), window.end.isoformat()


def _tracked(
    step: Step,
    spec: WorkloadSpec,
    kubernetes: KubernetesResource,
    mlflow: MLflowResource,
    experiment_name: str,
    environment: Mapping[str, str],
    params: Mapping[str, str],
) -> TrackedWorkload:
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
    from nighttrain.providers.tracking.names import night_of, run_name
    from nighttrain.providers.tracking.runs import Lineage

    identity = WorkloadIdentity(
        orchestrator="dagster", dag_id=step.job_name, run_id=step.root_run_id, task_id=step.name
    )
    return TrackedWorkload(
        cluster=kubernetes.cluster_config(),
        tracking=mlflow.tracking_config(),
        tracking_uri_for_pods=mlflow.uri_for_pods(),
        spec=with_access(spec.with_own_env(environment), mlflow.pods()),
        identity=identity,
        epoch=step.run_id,
        # A re-execution is another run of Dagster's: what the run before left behind is its own.
        adopts_earlier_epochs=True,
        experiment_name=experiment_name,
        run_name=run_name(step.name, night=night_of(step.interval[0], params) or step.partition_key),
        params=params,
        lineage=partial(
            Lineage,
            **asdict(identity),
            try_number=step.retry_number + 1,
            commit=commit_of_environment(),
            data_interval_start=step.interval[0],
            data_interval_end=step.interval[1],
        ),
    )
