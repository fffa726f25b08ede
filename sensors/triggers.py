"""Every trigger: what a deferred task or an asset waits for in the triggerer.

A trigger's arguments are a wire format: they hold connection ids, names and plain values, never credentials,
and every wait can be started again from them (the state is in the cluster or in MLflow).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TriggerEvent

from nighttrain.providers.errors import ConfigurationError, NighttrainError, TrackingError
from nighttrain.sensors.conditions import RegistryCondition
from nighttrain.sensors.connections import DEFAULT_MLFLOW_CONN_ID, aget_cluster_config, aget_mlflow
from nighttrain.sensors.failures import MLFLOW_OUTAGE_SECONDS
from nighttrain.sensors.removal import remove_with_its_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Observation,
    )
    from nighttrain.providers.registry.feed import Change

# Looking takes MLflow about 10 ms, so one look in 5 s is 0.2 % of a server's time for each watched model,
# and a transition waits 2.5 s on average.
DEFAULT_POLL_SECONDS = 5.0

# Somebody who mends a connection sees the wait end within a minute; asking for it at every look would make a
# request to Airflow of each.
REREAD_SECONDS = 60.0

# Beside the worker's own report: the executor's and the scheduler's loops take up to a second each.
REPORT_SECONDS = 2.0


class _Settling:
    """Holds a trigger's event back until the executor has reported the end of the process that deferred.

    A scheduler that hears of that end only after the task was resumed takes the resumed task for a killed
    one, and fails it. Airflow's supervisor notices a process's end within
    ``[workers] min_heartbeat_interval`` seconds, so that long after its start a trigger stays silent. Tasks
    that wait longer lose nothing.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        from airflow.configuration import conf

        interval = conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0)
        self._clock, self._sleep = clock, sleep
        self._until = clock() + interval + REPORT_SECONDS

    async def wait(self) -> None:
        await self._sleep(max(0.0, self._until - self._clock()))


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
        from nighttrain.providers.attempts.follow import follow_to_end
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.providers.kubernetes.values.submitted_workload import Workload
        from nighttrain.providers.kubernetes.values.timeouts import Timeouts

        settling = _Settling()
        event: dict[str, Any]
        try:
            config = await aget_cluster_config(self.kubernetes_conn_id)
            async with shared_client(config) as client, self._progress():
                outcome = await follow_to_end(
                    client,
                    Workload.from_dict(self.workload),
                    timeouts=Timeouts.from_dict(self.timeouts),
                    on_observation=self._say,
                    on_line=self._log_line if self.get_logs else None,
                )
        except NighttrainError as error:
            event = {"error": str(error)}
        else:
            event = {"outcome": outcome.to_dict()}
        await settling.wait()
        yield TriggerEvent(event)

    @asynccontextmanager
    async def _progress(self) -> AsyncIterator[None]:
        """Lines about what the training logs to MLflow, where it has a run and logs are wanted."""
        async with AsyncExitStack() as stack:
            if self.get_logs and self.mlflow_conn_id is not None and self.run_ids:
                from nighttrain.providers.tracking.progress import saying_progress

                with contextlib.suppress(ConfigurationError):
                    mlflow = await aget_mlflow(self.mlflow_conn_id)
                    run_id, experiment_id = self.run_ids["run_id"], self.run_ids["experiment_id"]
                    await stack.enter_async_context(
                        saying_progress(mlflow.config, experiment_id, run_id, self._log_line)
                    )
            yield

    async def on_kill(self) -> None:
        """Somebody marked or cleared the task: no workload remains.

        A triggerer that was stalled, and whose triggers another one took over, is told the same: what still
        waits is left alone.
        """
        if self.cancel_on_kill:
            name, namespace = self.workload["name"], self.workload["namespace"]
            removed_with = f"the reaper removes it, or kubectl delete job -n {namespace} {name}"
            await remove_with_its_task(self, self._remove, f"Job {name}", removed_with)

    async def _remove(self) -> None:
        from nighttrain.providers.airflow_regions import region_of
        from nighttrain.providers.attempts.lifecycle import cancel, cancel_if_live
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.providers.kubernetes.values.submitted_workload import Workload

        config = await aget_cluster_config(self.kubernetes_conn_id)
        workload = Workload.from_dict(self.workload)
        async with shared_client(config) as client:
            if not region_of(self.task_instance):
                await cancel(client, workload)
            elif not await cancel_if_live(client, workload):
                return  # in a region the task may have been resumed elsewhere: an end is its to settle
        await self._close_run()

    async def _close_run(self) -> None:
        if self.mlflow_conn_id is None or not (self.run_ids or self.unknown_run):
            return
        from nighttrain.providers.tracking.client import MLflowClient
        from nighttrain.providers.tracking.run_tree import RunTree
        from nighttrain.providers.tracking.runs import RunStatus
        from nighttrain.providers.tracking.unclosed_runs import close_run_of_workload, take_over_described

        mlflow = await aget_mlflow(self.mlflow_conn_id)
        try:
            async with MLflowClient(mlflow.config) as client:
                tree = RunTree(client)
                if self.run_ids:
                    run = await tree.get(self.run_ids["run_id"])
                else:
                    run = await take_over_described(tree, self.unknown_run or {})
                await close_run_of_workload(tree, run, RunStatus.KILLED)
        except TrackingError as error:
            self.log.warning("The workload is removed; its run could not be closed: %s", error)

    def _say(self, observation: Observation) -> None:
        if observation.outcome is None:  # the end is told in full by the resumed task
            self.log.info("%s: %s", self.workload["name"], observation.detail)

    def _log_line(self, line: str) -> None:
        self.log.info("[%s] %s", self.workload["name"], line)


class EndpointTrigger(BaseTrigger):
    """Waits until a version is ready behind an endpoint, or cannot become so.

    The event is ``{"ready": True}``, or ``{"ready": False, "error": sentence}``.
    """

    def __init__(
        self,
        *,
        kubernetes_conn_id: str,
        namespace: str | None,
        endpoint: str,
        version: str | None,
        timeout_seconds: float,
        serving_only: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kubernetes_conn_id = kubernetes_conn_id
        self.namespace = namespace
        self.endpoint = endpoint
        self.version = version
        self.timeout_seconds = timeout_seconds
        self.serving_only = serving_only

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.EndpointTrigger",
            {
                "kubernetes_conn_id": self.kubernetes_conn_id,
                "namespace": self.namespace,
                "endpoint": self.endpoint,
                "version": self.version,
                "timeout_seconds": self.timeout_seconds,
                "serving_only": self.serving_only,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from nighttrain.providers.kubernetes.api.client import shared_client

        settling = _Settling()
        try:
            config = await aget_cluster_config(self.kubernetes_conn_id)
            async with shared_client(config) as client:
                event = {"ready": True, "status": await self._wait(client)}
        except NighttrainError as error:
            event = {"ready": False, "error": str(error)}
        await settling.wait()
        yield TriggerEvent(event)

    async def on_kill(self) -> None:
        """Somebody marked or cleared the rollout: its candidate goes, what serves stays.

        A triggerer whose triggers another one took over is told the same: what still waits is left alone.
        """
        if not self.serving_only and self.version is not None:
            what = f"version {self.version} of {self.endpoint}"
            await remove_with_its_task(self, self._remove, what, "roll out again, or roll back")

    async def _remove(self) -> None:
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.sensors.endpoints import remove_candidate

        config = await aget_cluster_config(self.kubernetes_conn_id)
        async with shared_client(config) as client:
            namespace = self.namespace or client.namespace
            await remove_candidate(client, namespace, self.endpoint, str(self.version))

    async def _wait(self, client: ClusterClient) -> dict[str, Any]:
        from nighttrain.sensors.endpoints import wait_candidate_ready, wait_endpoint_serves

        wait = wait_endpoint_serves if self.serving_only else wait_candidate_ready
        return await wait(
            client,
            self.namespace or client.namespace,
            self.endpoint,
            self.version,
            timeout_seconds=self.timeout_seconds,
            on_progress=self.log.info,
        )


class MLflowAnswersTrigger(BaseTrigger):
    """Waits until MLflow answers again, then passes ``event`` on: what waited is written then.

    A mistake on the way to MLflow is waited for like an outage: somebody may mend the connection. After
    ``timeout_seconds`` without an answer the event has ``"tracking_error"`` as well, a sentence.
    """

    def __init__(
        self,
        *,
        mlflow_conn_id: str,
        event: dict[str, Any],
        poll_seconds: float = DEFAULT_POLL_SECONDS,
        timeout_seconds: float = MLFLOW_OUTAGE_SECONDS,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mlflow_conn_id = mlflow_conn_id
        self.event = event
        self.poll_seconds = poll_seconds
        self.timeout_seconds = timeout_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.MLflowAnswersTrigger",
            {
                "mlflow_conn_id": self.mlflow_conn_id,
                "event": self.event,
                "poll_seconds": self.poll_seconds,
                "timeout_seconds": self.timeout_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        settling = _Settling()
        # By the clock that the task began to wait by: a triggerer that dies does not make the wait longer.
        waited = time.time() - float(self.event.get("mlflow_away_since", time.time()))
        until = time.monotonic() + self.timeout_seconds - waited
        self.log.info("Looking every %.0f s whether MLflow answers", self.poll_seconds)
        event, said = self.event, ""
        while (error := await self._failure(min(until, time.monotonic() + REREAD_SECONDS))) is not None:
            if str(error) != said:
                said = str(error)
                self.log.warning("%s", said)
            if time.monotonic() >= until:
                event = {**self.event, "tracking_error": said}
                break
        await settling.wait()
        yield TriggerEvent(event)

    async def _failure(self, until: float) -> NighttrainError | None:
        """Look until MLflow answers, by the connection as it is now, or the time is over."""
        from nighttrain.providers.tracking.client import MLflowClient

        client: MLflowClient | None = None
        try:
            while True:
                try:
                    if client is None:
                        client = MLflowClient((await aget_mlflow(self.mlflow_conn_id)).config)
                    await client.ping()
                except (TrackingError, ConfigurationError) as error:
                    pause = min(self.poll_seconds, until - time.monotonic())
                    if pause <= 0:
                        return error
                    await asyncio.sleep(pause)
                else:
                    return None
        finally:
            if client is not None:
                await client.aclose()


class RegistryTrigger(BaseTrigger):
    """Waits until a condition holds in the model registry.

    The event is ``{"model_name", "version"}``. An outage of MLflow is waited out: the condition cannot be
    judged meanwhile, and the task's own time-out bounds the wait.
    """

    def __init__(self, *, mlflow_conn_id: str, condition: dict[str, Any], poll_seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mlflow_conn_id = mlflow_conn_id
        self.condition = condition
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.RegistryTrigger",
            {
                "mlflow_conn_id": self.mlflow_conn_id,
                "condition": self.condition,
                "poll_seconds": self.poll_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from nighttrain.providers.registry.models import ModelRegistry
        from nighttrain.providers.tracking.client import MLflowClient

        settling = _Settling()
        condition = RegistryCondition.from_dict(self.condition)
        mlflow = await aget_mlflow(self.mlflow_conn_id)
        async with MLflowClient(mlflow.config) as client:
            registry = ModelRegistry(client)
            while True:
                try:
                    found = await condition.holder(registry)
                except TrackingError as error:
                    self.log.warning("MLflow cannot be asked now, will look again: %s", error)
                    found = None
                if found is not None:
                    await settling.wait()
                    yield TriggerEvent({"model_name": found.name, "version": found.version})
                    return
                await asyncio.sleep(self.poll_seconds)


class ModelChangeTrigger(BaseEventTrigger):
    """Feeds an asset: one event each time another version comes to hold a stage or an alias.

    Level-triggered: what is compared is what is held now with what was announced last (kept in the asset's
    state store), so that a transition made while the triggerer was down or the DAG was paused is announced
    afterwards. An event whose announcement was not recorded is sent again: at least once, never lost.

    The event is ``{"model_name", "kind", "key", "version", "previous_version", "noticed_at"}``.
    """

    def __init__(
        self,
        *,
        model_name: str,
        stage: str | None = None,
        alias: str | None = None,
        mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
        poll_seconds: float = DEFAULT_POLL_SECONDS,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if (stage is None) == (alias is None):
            raise ConfigurationError("stage, alias", (stage, alias), "name exactly one of the two")
        self.model_name = model_name
        self.stage = stage
        self.alias = alias
        self.mlflow_conn_id = mlflow_conn_id
        self.poll_seconds = poll_seconds
        self._announced: dict[str, Any] | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "nighttrain.sensors.triggers.ModelChangeTrigger",
            {
                "model_name": self.model_name,
                "stage": self.stage,
                "alias": self.alias,
                "mlflow_conn_id": self.mlflow_conn_id,
                "poll_seconds": self.poll_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from nighttrain.providers.registry.feed import RegistryState, diff, read_state
        from nighttrain.providers.registry.models import ModelRegistry
        from nighttrain.providers.tracking.client import MLflowClient

        mlflow = await aget_mlflow(self.mlflow_conn_id)
        stored = await self._load()
        announced = RegistryState.from_dict(stored) if stored else None
        async with MLflowClient(mlflow.config) as client:
            registry = ModelRegistry(client)
            while True:
                try:
                    state = await read_state(registry, self.model_name)
                except TrackingError as error:
                    self.log.warning("MLflow cannot be asked now, will look again: %s", error)
                else:
                    for change in diff(announced, state):
                        if self._concerns(change):
                            yield TriggerEvent(self._event(change))
                    if announced is None or state.to_dict() != announced.to_dict():
                        announced = state
                        await self._store(state.to_dict())
                await asyncio.sleep(self.poll_seconds)

    def _concerns(self, change: Change) -> bool:
        kind, key = ("stage", self.stage) if self.stage is not None else ("alias", self.alias)
        return change.kind == kind and change.key == key and change.version is not None

    def _event(self, change: Change) -> dict[str, Any]:
        from datetime import UTC, datetime

        return {
            "model_name": self.model_name,
            "kind": change.kind,
            "key": change.key,
            "version": change.version,
            "previous_version": change.previous,
            "noticed_at": datetime.now(UTC).isoformat(),
        }

    @property
    def _cursor_key(self) -> str:
        return f"nighttrain.registry.{self.model_name}"

    async def _load(self) -> dict[str, Any] | None:
        if self.asset_state_store is None:
            return self._announced
        stored = await self.asset_state_store.aget(self._cursor_key)
        return stored if isinstance(stored, dict) else None

    async def _store(self, state: dict[str, Any]) -> None:
        if self.asset_state_store is None:
            self._announced = state
        else:
            await self.asset_state_store.aset(self._cursor_key, state)
