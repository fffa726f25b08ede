"""Keeping the cluster free of workloads that nobody waits for any more."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from airflow.sdk import DagRunState

from nighttrain.providers.airflow_regions import has_ended
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.kubernetes.values.timeouts import DEFAULT_MINIMUM_AGE_SECONDS
from nighttrain.sensors.common.connections import DEFAULT_KUBERNETES_CONN_ID, get_cluster_config, get_mlflow
from nighttrain.sensors.common.failures import failing_clearly
from nighttrain.sensors.common.templating import TextTemplates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from nighttrain.providers.attempts.reaper import TaskState
    from nighttrain.providers.attempts.reaper_visit import Visit
    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity


class ReapWorkloadsOperator(TextTemplates):
    """Removes workloads of this Airflow whose task is over or gone. Returns what it found, as a list.

    Such workloads remain where Airflow could tell nobody: a DAG run was deleted, or a task was marked, while
    no triggerer ran.

    :param namespace: the workloads' namespace; the connection's if left out (templated)
    :param only_show: only show what would be removed (templated)
    :param minimum_age_seconds: younger workloads are kept
    :param kubernetes_conn_id: connection of type ``kubernetes``
    :param mlflow_conn_id: connection of type ``mlflow``: also close the runs that nobody will come back for.
        An MLflow that does not answer keeps no workload: they are removed, then the task fails
    """

    template_fields: Sequence[str] = ("namespace", "only_show")
    ui_color = "#e8e8e8"

    def __init__(
        self,
        *,
        namespace: str | None = None,
        only_show: bool | str = False,
        minimum_age_seconds: float = DEFAULT_MINIMUM_AGE_SECONDS,
        kubernetes_conn_id: str = DEFAULT_KUBERNETES_CONN_ID,
        mlflow_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.namespace = namespace
        self.only_show = only_show
        self.minimum_age_seconds = minimum_age_seconds
        self.kubernetes_conn_id = kubernetes_conn_id
        self.mlflow_conn_id = mlflow_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        from nighttrain.providers.attempts.reaper import table

        with failing_clearly():
            visit = run_sync(self._reap(_OwnTasks(context["ti"])))
            self.log.info("%s", table(visit.findings) if visit.findings else "No workload is running.")
            for each in visit.forgotten:
                self.log.info("%s %s", "To close:" if self._only_shows else "Closed", each.described)
            if visit.tracking_error is not None:
                raise visit.tracking_error
        return visit.to_list()

    @property
    def _only_shows(self) -> bool:
        return str(self.only_show).strip().lower() in {"true", "1", "yes"}

    async def _reap(self, states: _OwnTasks) -> Visit:
        from nighttrain.providers.attempts.reaper_visit import visit
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.providers.tracking.client import MLflowClient

        async with AsyncExitStack() as stack:
            config = get_cluster_config(self.kubernetes_conn_id)
            client = await stack.enter_async_context(shared_client(config))
            mlflow = None
            if self.mlflow_conn_id is not None:
                tracking = get_mlflow(self.mlflow_conn_id).config
                mlflow = await stack.enter_async_context(MLflowClient(tracking))
            return await visit(
                client,
                self.namespace or client.namespace,
                states,
                mlflow=mlflow,
                minimum_age_seconds=self.minimum_age_seconds,
                now=time.time(),
                only_show=self._only_shows,
                warn=self.log.warning,
            )


class _OwnTasks:
    """The states of this Airflow's tasks, asked through the running task."""

    def __init__(self, ti: Any) -> None:
        self._ti = ti

    async def state(self, identity: WorkloadIdentity) -> TaskState:
        from nighttrain.providers.airflow_api import task_state
        from nighttrain.providers.attempts.reaper import TaskState

        if identity.region:
            return self._state_in_loop(identity)
        mapped = identity.map_index >= 0
        found = self._ti.get_task_states(
            dag_id=identity.dag_id,
            task_ids=[identity.task_id],
            run_ids=[identity.run_id],
            map_index=identity.map_index if mapped else None,
        )
        states = found.get(identity.run_id, {})
        name = f"{identity.task_id}_{identity.map_index}" if mapped else identity.task_id
        return task_state(states[name]) if name in states else TaskState.GONE

    def _state_in_loop(self, identity: WorkloadIdentity) -> TaskState:
        """Of one iteration Airflow tells a task only that it has ended; that it was replaced or is gone shows
        when its DAG run ends."""
        from nighttrain.providers.attempts.reaper import TaskState

        dag_id, run_id, task_id = identity.dag_id, identity.run_id, identity.task_id
        if not self._ti.get_task_states(dag_id=dag_id, task_ids=[task_id], run_ids=[run_id]).get(run_id):
            return TaskState.GONE
        if has_ended(self._ti.get_task_breadcrumbs(dag_id, run_id), task_id, identity.region):
            return TaskState.OVER
        run_state = self._ti.get_dagrun_state(dag_id, run_id)
        return TaskState.OVER if run_state in (DagRunState.SUCCESS, DagRunState.FAILED) else TaskState.ALIVE
