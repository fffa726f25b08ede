"""Running a workload under an MLflow run: what training and evaluation have in common."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nighttrain.operators.common import task_context, workload_notes
from nighttrain.operators.common.cluster_outages import PAUSE_SECONDS, waiting_out
from nighttrain.operators.links import remember_links
from nighttrain.operators.workload_parameters import WorkloadParameters
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import (
    MLFLOW_NOT_REACHED,
    ClusterError,
    ConfigurationError,
    TrackingError,
    TrackingMisconfiguredError,
    TrackingUnreachableError,
)
from nighttrain.providers.texts import as_texts
from nighttrain.sensors.common.connections import get_cluster, get_mlflow
from nighttrain.sensors.common.failures import failing_clearly
from nighttrain.sensors.common.triggerer_health import warn_without_triggerer

if TYPE_CHECKING:
    from airflow.sdk import Context

    from nighttrain.providers.attempts.attempt import Attempt, StartedWorkload
    from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Observation,
        Outcome,
    )
    from nighttrain.sensors.common.connections import MLflowConnection

STARTED_KEY = "nighttrain_started"
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """The facts that an operator finds out before its workload starts.

    :param environment: variables for the container
    :param params: parameters of the run
    :param facts: plain values that the task needs again when it is resumed by another process
    """

    environment: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Underway:
    """A task's attempt, and what it takes to finish the task once its outcome is known."""

    context: Context
    attempt: Attempt
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for another process to go on with."""
        return {"started": self.attempt.started.to_dict(), "facts": self.facts}


class _AnotherAttempt(Exception):
    """The cluster ended an attempt, and the next may start at once."""


class WorkloadOperator(WorkloadParameters):
    """Runs a container as a Kubernetes Job under a run in MLflow, and survives the death of its worker.

    Its parameters are those of :class:`~nighttrain.operators.workload_parameters.WorkloadParameters`.
    """

    _resumed = False
    # What on_kill has to know, in whatever moment it comes.
    _starting: tuple[TrackedWorkload, Any] | None = None
    _following: tuple[Attempt, Any] | None = None

    def execute(self, context: Context) -> dict[str, Any] | None:
        while True:
            with failing_clearly():
                as_texts(self, *self.text_fields)
                prepared = self._prepare(context)
                tracked = self._tracked(context, prepared)
                attempt = tracked.attempt(self._start(tracked, context["ti"]))
                underway = _Underway(context, attempt, prepared.facts)
                self._tell_what_was_lost(context, attempt.started)
                self._remember(underway)
            if self.deferrable:
                if not self._resumed:
                    warn_without_triggerer(self.log.warning)
                self._defer(underway)
            with failing_clearly():
                outcome = run_sync(self._follow(attempt, context["ti"]))
                try:
                    return self._finish_patiently(underway, outcome)
                except _AnotherAttempt:
                    continue

    def execute_complete(
        self, context: Context, event: dict[str, Any], underway: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Take over the outcome that the trigger saw.

        :param underway: what it is the outcome of; a task that an earlier version deferred has it in its XCom
        """
        from nighttrain.providers.kubernetes.outcome.outcome import Outcome

        self._resumed = True  # by a triggerer, so there is one
        if "error" in event:
            raise ClusterError(event["error"])
        if "tracking_error" in event and "outcome" not in event:  # a trigger of an earlier version
            raise TrackingUnreachableError(event["tracking_error"])
        outcome = Outcome.from_dict(event["outcome"])
        if "tracking_error" in event:
            raise self._given_up(outcome, event["tracking_error"])
        with failing_clearly():
            as_texts(self, *self.text_fields)
            underway = underway or self._remembered(context)
            try:
                return self._finish(self._underway(context, underway), outcome)
            except _AnotherAttempt:
                pass
            except MLFLOW_NOT_REACHED as error:
                self._defer_until_mlflow_answers(event, outcome, error, underway)
        return self.execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow does, and when the deferral timed out no workload remains."""
        from airflow.sdk.exceptions import TaskDeferralTimeout

        from nighttrain.providers.attempts.attempt import StartedWorkload

        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.error("Timed out: cancelling the workload")
            workload_notes.forget(context, self.log.debug)
            started = StartedWorkload.from_dict(self._remembered(context)["started"])
            attempt = self._tracked(context, Prepared()).attempt(started)
            self._waiting_out(lambda: run_sync(attempt.cancel()))
            raise

    def on_kill(self) -> None:
        """The process is told to end while it starts a workload or waits for it.

        If a person ended the task, or its time is over, no workload remains; if only the worker goes away,
        the training goes on for the next try.
        """
        from nighttrain.sensors.common.killed_tasks import cancelled_by_user

        if self._following is not None:
            attempt, ti = self._following
            if cancelled_by_user(ti):
                run_sync(attempt.cancel())
            else:
                self.log.warning("Only this process is told to end: Job %s goes on", attempt.workload.name)
        elif self._starting is not None:
            tracked, ti = self._starting
            if cancelled_by_user(ti):
                run_sync(tracked.cancel_if_started())

    # What the two operators add.

    def _prepare(self, context: Context) -> Prepared:
        """Look up what the container needs to know, once, before anything is created."""
        raise NotImplementedError

    async def _collect(self, attempt: Attempt, facts: dict[str, Any]) -> dict[str, Any]:
        """Collect what the task returns beside the run and the outcome."""
        raise NotImplementedError

    # The common part.

    def _tracked(self, context: Context, prepared: Prepared) -> TrackedWorkload:
        from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
        from nighttrain.providers.kubernetes.job.plain_secrets import check_no_known_secret
        from nighttrain.providers.tracking.names import check_run_name

        mlflow = get_mlflow(self.mlflow_conn_id)
        cluster = get_cluster(self.kubernetes_conn_id)
        spec = self._spec(prepared.environment, cluster, mlflow)
        ti = context["ti"]
        shown = {"experiment_name": self.experiment_name or "", "run_name": self.run_name or ""}
        check_no_known_secret({**shown, **prepared.params}, "what MLflow's page shows", spec.known_secrets)
        return TrackedWorkload(
            cluster=cluster.config,
            tracking=mlflow.config,
            tracking_uri_for_pods=mlflow.cluster_uri,
            spec=spec,
            identity=task_context.workload_identity(context),
            epoch=task_context.epoch(context),
            experiment_name=self.experiment_name or ti.dag_id,
            run_name=check_run_name(self.run_name) if self.run_name else self._derived_run_name(context),
            params=prepared.params,
            lineage=partial(task_context.lineage, context),
            replace_on_lost_node=self.replace_on_lost_node,
        )

    def _derived_run_name(self, context: Context) -> str:
        """By the night that the task is about; of a run without one, the day for which it was asked."""
        from nighttrain.providers.tracking.names import night_of, run_name

        lineage = task_context.lineage(context)
        night = night_of(lineage.data_interval_start, self._given_parameters())
        return run_name(
            context["ti"].task_id,
            night=night or night_of(task_context.asked_at(context)),
            map_index=-1 if lineage.map_index is None else lineage.map_index,
            region=lineage.region or "",
        )

    def _given_parameters(self) -> Mapping[str, Any]:
        """The run's parameters as the task has them in every process that goes on with it."""
        return {}

    def _defer(self, underway: _Underway) -> None:
        from nighttrain.sensors.triggers import WorkloadTrigger

        attempt = underway.attempt
        self.defer(
            trigger=WorkloadTrigger(
                kubernetes_conn_id=self.kubernetes_conn_id,
                workload=attempt.workload.to_dict(),
                timeouts=self._timeouts().to_dict(),
                get_logs=self.get_logs,
                mlflow_conn_id=self.mlflow_conn_id,
                run=attempt.run.ids(),
                unknown_run=None if attempt.run.run_id else attempt.run.wanted(),
            ),
            method_name="execute_complete",
            kwargs={"underway": underway.to_dict()},
            timeout=self.execution_timeout if isinstance(self.execution_timeout, timedelta) else None,
        )

    def _underway(self, context: Context, known: dict[str, Any]) -> _Underway:
        """As the connections say now: a mistake in them may have been mended meanwhile."""
        from nighttrain.providers.attempts.attempt import StartedWorkload

        try:
            get_mlflow(self.mlflow_conn_id)
        except ConfigurationError as error:
            raise TrackingMisconfiguredError(str(error)) from error
        started = StartedWorkload.from_dict(known["started"])
        return _Underway(context, self._tracked(context, Prepared()).attempt(started), known["facts"])

    def _defer_until_mlflow_answers(
        self, event: dict[str, Any], outcome: Outcome, error: TrackingError, underway: dict[str, Any]
    ) -> None:
        from nighttrain.sensors.triggers import MLflowAnswersTrigger

        # Over all deferrals: an MLflow that answers a look and then refuses to write is away as well.
        since = event.get("mlflow_away_since")
        if since is None:
            since = time.time()
            self._say_end(outcome)
        left = since + self.mlflow_outage_timeout_seconds - time.time()
        if left <= 0:
            raise self._given_up(outcome, error) from error
        self.log.warning(
            "The workload has ended; waiting for MLflow to write it down, for another %.0f s: %s", left, error
        )
        self.defer(
            trigger=MLflowAnswersTrigger(
                mlflow_conn_id=self.mlflow_conn_id,
                event={**event, "mlflow_away_since": since},
                timeout_seconds=self.mlflow_outage_timeout_seconds,
            ),
            method_name="execute_complete",
            kwargs={"underway": underway},
        )

    def _say_end(self, outcome: Outcome) -> None:
        say = self.log.info if outcome.succeeded else self.log.error
        say("%s", outcome.explain())

    def _given_up(self, outcome: Outcome, error: object) -> TrackingUnreachableError:
        # Not the mistake's own type, which no retry follows: a retry takes the ended workload over.
        return TrackingUnreachableError(
            f"the workload has ended, and MLflow could not be told within mlflow_outage_timeout_seconds = "
            f"{self.mlflow_outage_timeout_seconds:.0f}: {error}\nA retry takes the ended workload over as "
            f"long as its Job is there. How it ended: {outcome.explain()}"
        )

    def _start(self, tracked: TrackedWorkload, ti: Any) -> StartedWorkload:
        self._starting = (tracked, ti)
        return self._waiting_out(lambda: run_sync(tracked.start(log=self.log.info)))

    def _tell_what_was_lost(self, context: Context, started: StartedWorkload) -> None:
        lost = workload_notes.lost_workload(context, started, self.log.debug)
        if lost is not None:
            self.log.warning(
                "Job %s, which an earlier try started, is gone (cancelled, deleted, or past its time to "
                "live): what runs now is a new one",
                lost,
            )
        workload_notes.note(context, started, self.log.debug)

    def _waiting_out(self, work: Callable[[], T]) -> T:
        return waiting_out(work, seconds=self.cluster_outage_timeout_seconds, warn=self.log.warning)

    async def _follow(self, attempt: Attempt, ti: Any) -> Outcome:
        self._following, self._starting = (attempt, ti), None
        outcome = await attempt.follow(
            timeouts=self._timeouts(),
            on_observation=self._say,
            on_line=self._log_line if self.get_logs else None,
        )
        # Not in a finally: after a time-out Airflow calls on_kill, which has to know what to cancel.
        self._following = None
        return outcome

    def _finish(self, underway: _Underway, outcome: Outcome) -> dict[str, Any]:
        """Close the run, store the result, and only then mark the attempt as consumed: a crash in between
        finds the finished attempt again. So does an outage of the cluster.

        :raises _AnotherAttempt: the cluster ended this one, and there is budget for the next
        """
        return self._waiting_out(lambda: self._settle(underway, outcome))

    def _settle(self, underway: _Underway, outcome: Outcome) -> dict[str, Any]:
        from nighttrain.providers.training_advice import advised

        context, facts = underway.context, underway.facts
        if not outcome.succeeded:
            # First: closing may remove the Job, and a crash right after it should not be told as a loss.
            workload_notes.forget(context, self.log.debug)
        attempt = run_sync(underway.attempt.settle(outcome))
        if attempt.started != underway.attempt.started:
            self._remember(_Underway(context, attempt, facts))
        run, workload = attempt.run, attempt.workload
        outcome = advised(outcome, experiment_name=run.experiment_name, run_id=run.run_id)
        if not outcome.succeeded:
            run_sync(attempt.mark_consumed(outcome))
            failures = workload.infrastructure_failures
            if outcome.infrastructure and failures < self.infrastructure_retries:
                self.log.warning(
                    "%s\nThe cluster ended this attempt, not the training: starting another (%d of %d)",
                    outcome.explain(),
                    failures + 1,
                    self.infrastructure_retries,
                )
                raise _AnotherAttempt
            self._skip_if_asked(outcome)
            outcome.raise_for_failure()
        self.log.info("%s", outcome.explain())
        result = {
            "run_id": run.run_id,
            "experiment_id": run.experiment_id,
            "parent_run_id": run.parent_run_id,
            "job": f"{workload.namespace}/{workload.name}",
            "attempt": workload.attempt,
            "image": outcome.image,
            "image_id": outcome.image_id,
            **run_sync(self._collect(attempt, facts)),
        }
        map_index = task_context.workload_identity(context).map_index
        if map_index >= 0:  # skipped ones leave no result: the place in a list of results says less
            result["map_index"] = map_index
        context["ti"].xcom_push(key="return_value", value=result)
        run_sync(attempt.mark_consumed(outcome))
        return result

    def _skip_if_asked(self, outcome: Outcome) -> None:
        """Only for an end of the training command's own: an eviction has exit codes too."""
        from airflow.sdk.exceptions import AirflowSkipException

        from nighttrain.providers.kubernetes.outcome.outcome import (
            OutcomeKind,
        )

        own = outcome.kind is OutcomeKind.APPLICATION_ERROR and outcome.exit_code is not None
        if own and outcome.exit_code in self.skip_on_exit_code:
            raise AirflowSkipException(f"{outcome.explain()}\nskip_on_exit_code has {outcome.exit_code}")

    def _finish_patiently(self, underway: _Underway, outcome: Outcome) -> dict[str, Any]:
        """As :meth:`_finish`; an MLflow that is away, or reached wrongly by now, is waited for."""
        until: float | None = None
        while True:
            try:
                if until is not None:
                    # Not from the task's XCom: a later try may have written its own there.
                    underway = self._underway(underway.context, underway.to_dict())
                return self._finish(underway, outcome)
            except MLFLOW_NOT_REACHED as error:
                now = time.monotonic()
                if until is None:
                    until = now + self.mlflow_outage_timeout_seconds
                    self._say_end(outcome)
                if now >= until:
                    raise self._given_up(outcome, error) from error
                self.log.warning(
                    "The workload has ended; trying to write it down for another %.0f s: %s",
                    until - now,
                    error,
                )
                time.sleep(min(PAUSE_SECONDS, until - now))

    def _remember(self, underway: _Underway) -> None:
        context, started = underway.context, underway.attempt.started
        mlflow = get_mlflow(self.mlflow_conn_id)
        context["ti"].xcom_push(key=STARTED_KEY, value={**started.to_dict(), "facts": underway.facts})
        links = {"workload": started.workload_url}
        if started.run_id:
            links |= self._run_links(mlflow, started.experiment_id, started.run_id)
        remember_links(context, **links)

    def _run_links(self, mlflow: MLflowConnection, experiment_id: str, run_id: str) -> dict[str, str]:
        return {"run": mlflow.run_url(experiment_id, run_id)}

    def _remembered(self, context: Context) -> dict[str, Any]:
        ti = context["ti"]
        stored = ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=STARTED_KEY)
        facts: dict[str, Any] = stored.pop("facts")
        return {"started": stored, "facts": facts}

    def _say(self, observation: Observation) -> None:
        if observation.outcome is None:
            self.log.info("%s", observation.detail)

    def _log_line(self, line: str) -> None:
        with contextlib.suppress(UnicodeError):
            self.log.info("[pod] %s", line)
