"""Waiting for a workload's end."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from nighttrain.providers.airflow_regions import region_of
from nighttrain.providers.attempts.attempt import Attempt
from nighttrain.providers.attempts.attempt_run import AttemptRun
from nighttrain.providers.errors import ConfigurationError, NighttrainError
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.sensors.common.connections import aget_cluster_config, aget_mlflow
from nighttrain.sensors.triggers.removal import remove_with_its_task
from nighttrain.sensors.triggers.settling import Settling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nighttrain.providers.kubernetes.outcome.outcome import Observation
    from nighttrain.providers.tracking.config import TrackingConfig


class WorkloadTrigger(BaseTrigger):
    """Waits for a workload's end and passes its lines on to the task's log while it runs.

    The event is ``{"outcome": {...}}``, or ``{"error": sentence}`` when the cluster could not be asked.

    :param timeouts: those of :class:`~nighttrain.providers.kubernetes.values.timeouts.Timeouts`, as plain
        values
    :param startup_timeout_seconds: retired, like the two that follow: triggers that an earlier version stored
        have them in the place of ``timeouts``
    """

    def __init__(
        self,
        *,
        kubernetes_conn_id: str,
        workload: dict[str, Any],
        timeouts: dict[str, Any] | None = None,
        startup_timeout_seconds: float | None = None,
        schedule_timeout_seconds: float | None = None,
        queue_timeout_seconds: float | None = None,
        get_logs: bool = True,
        cancel_on_kill: bool = True,
        mlflow_conn_id: str | None = None,
        run: dict[str, str] | None = None,
        unknown_run: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kubernetes_conn_id = kubernetes_conn_id
        self.workload = workload
        self.timeouts = timeouts or {
            "startup": startup_timeout_seconds,
            "schedule": schedule_timeout_seconds,
            "queue": queue_timeout_seconds,
        }
        self.get_logs = get_logs
        self.cancel_on_kill = cancel_on_kill
        self.mlflow_conn_id = mlflow_conn_id
        self.run_ids = run or {}
        self.unknown_run = unknown_run

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.WorkloadTrigger",
            {
                "kubernetes_conn_id": self.kubernetes_conn_id,
                "workload": self.workload,
                "timeouts": self.timeouts,
                "get_logs": self.get_logs,
                "cancel_on_kill": self.cancel_on_kill,
                "mlflow_conn_id": self.mlflow_conn_id,
                "run": self.run_ids,
                "unknown_run": self.unknown_run,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:

        silence = Settling()
        event: dict[str, Any]
        try:
            attempt = await self._attempt(tracking=await self._tracking_for_progress())
            outcome = await attempt.follow(
                timeouts=Timeouts.from_dict(self.timeouts),
                on_observation=self._say,
                on_line=self._log_line if self.get_logs else None,
                narrow=False,
            )
        except NighttrainError as error:
            event = {"error": str(error)}
        else:
            event = {"outcome": outcome.to_dict()}
        await silence.wait()
        yield TriggerEvent(event)

    async def _attempt(self, *, tracking: TrackingConfig | None = None) -> Attempt:
        return Attempt(
            cluster=await aget_cluster_config(self.kubernetes_conn_id),
            tracking=tracking,
            workload=Workload.from_dict(self.workload),
            run=AttemptRun.from_dicts(self.run_ids, self.unknown_run),
        )

    async def _tracking_for_progress(self) -> TrackingConfig | None:
        """The way to what the training logs to MLflow, if it has a run and logs are wanted."""
        if self.get_logs and self.mlflow_conn_id is not None and self.run_ids:
            with contextlib.suppress(ConfigurationError):
                return (await aget_mlflow(self.mlflow_conn_id)).config
        return None

    async def on_kill(self) -> None:
        """Somebody marked or cleared the task: no workload remains.

        A triggerer that was stalled, and whose triggers another one took over, is asked to end them too:
        what still waits is left alone.
        """
        if self.cancel_on_kill:
            name, namespace = self.workload["name"], self.workload["namespace"]
            removed_with = f"the reaper removes it, or kubectl delete job -n {namespace} {name}"
            await remove_with_its_task(self, self._remove, f"Job {name}", removed_with)

    async def _remove(self) -> None:
        attempt = await self._attempt()
        if not region_of(self.task_instance):
            await attempt.remove()
        elif not await attempt.remove_if_live():
            return  # in a region the task may have been resumed elsewhere: an end is its to settle
        if self.mlflow_conn_id is not None and attempt.run.can_be_found:
            mlflow = await aget_mlflow(self.mlflow_conn_id)
            await replace(attempt, tracking=mlflow.config).close_removed()

    def _say(self, observation: Observation) -> None:
        if observation.outcome is None:  # the resumed task reports the end in full
            self.log.info("%s: %s", self.workload["name"], observation.detail)

    def _log_line(self, line: str) -> None:
        self.log.info("[%s] %s", self.workload["name"], line)
