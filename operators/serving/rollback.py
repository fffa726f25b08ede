"""The way back as a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry, open_rollout
from nighttrain.operators.links import EndpointLink, ModelVersionLink, remember_links
from nighttrain.operators.registry.promotion import held
from nighttrain.operators.serving.served import Served, tell_registry
from nighttrain.operators.serving.steps import rollout_id
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import (
    ClusterForbiddenError,
    ConfigurationError,
    ServingError,
    WorkloadConflictError,
)
from nighttrain.providers.texts import as_texts
from nighttrain.sensors.common.connections import (
    DEFAULT_KUBERNETES_CONN_ID,
    DEFAULT_MLFLOW_CONN_ID,
    get_cluster_config,
    get_mlflow,
)
from nighttrain.sensors.common.failures import failing_clearly
from nighttrain.sensors.common.templating import TextTemplates

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from airflow.sdk import BaseOperatorLink, Context

    from nighttrain.providers.registry.promotion import Change
    from nighttrain.providers.serving.backends.base import EndpointStatus
    from nighttrain.providers.serving.backends.traffic import Address
    from nighttrain.providers.serving.rollouts.state import State


class RollbackModelOperator(TextTemplates):
    """Undoes the last promotion of a model, and switches an endpoint back to the version before.

    What the promotion moved is moved back, no more and no less: the alias, and the stage where it moved one.
    The rollback is an entry of the model's history.

    An endpoint of plain Deployments is switched to the version before, which is up still. On KServe and Argo
    Rollouts it is not: going back is a rollout of its own, all at once and without an analysis, to the form
    in which that version served. Alias and stage move with the requests; if it does not come up, all stays.

    With an endpoint it returns what :class:`RolloutModelOperator` returns; without one ``{"model_name",
    "version", "previous_version", "alias", "stage", "entry"}``.

    :param endpoint: name of the endpoint (templated); without one only the registry is rolled back
    :param model_name: the registered model (templated); the endpoint's own, if left out
    :param alias: the alias whose last promotion is undone, ``None`` for none (templated)
    :param stage: the stage whose last promotion is undone, for promotions without an alias (templated)
    :param to: the version to go back to, over several promotions (templated); the one before, if left out.
        An endpoint goes back to the one before only
    :param reason: why, for the history (templated)
    :param namespace: the connection's, if left out (templated)
    """

    template_fields: Sequence[str] = ("endpoint", "model_name", "alias", "stage", "to", "reason", "namespace")
    operator_extra_links: Collection[BaseOperatorLink] = (ModelVersionLink(), EndpointLink())
    ui_color = "#fdf0d9"

    _under_way: tuple[Context, str] | None = None

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        model_name: str | None = None,
        alias: str | None = "champion",
        stage: str | None = None,
        to: str | int | None = None,
        reason: str | None = None,
        namespace: str | None = None,
        kubernetes_conn_id: str = DEFAULT_KUBERNETES_CONN_ID,
        mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
        **kwargs: Any,
    ) -> None:
        # Each key becomes an XCom of its own, so that a DAG can write task.output["version"].
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        if endpoint is None and model_name is None:
            raise ConfigurationError("endpoint, model_name", None, "name an endpoint, a model, or both")
        if endpoint is not None and to is not None:
            raise ConfigurationError(
                "to", to, "an endpoint goes back to the version before only; roll that version out instead"
            )
        self.endpoint = endpoint
        self.model_name = model_name
        self.alias = alias
        self.stage = stage
        self.to = to
        self.reason = reason
        self.namespace = namespace
        self.kubernetes_conn_id = kubernetes_conn_id
        self.mlflow_conn_id = mlflow_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        with failing_clearly():
            as_texts(self, *self.template_fields)
            self._mlflow = get_mlflow(self.mlflow_conn_id)
            if self.endpoint is None:
                return self._roll_back_registry(context)
            self._cluster = get_cluster_config(self.kubernetes_conn_id)
            if ended := run_sync(self._go_back(context, self.endpoint)):
                return self._told(context, *ended)
            return self._roll_back_endpoint(context, self.endpoint)

    def on_kill(self) -> None:
        """The task was killed in the worker: the way back that it had begun is undone."""
        if self._under_way is not None:
            run_sync(self._abort(*self._under_way))

    def _roll_back_registry(self, context: Context) -> dict[str, Any]:
        model_name = str(self.model_name)
        change = run_sync(self._undo(context, model_name, to=self.to))
        self._say(change)
        if change.version:
            remember_links(context, version=self._mlflow.version_url(model_name, change.version))
        return {
            "model_name": model_name,
            "version": change.version,
            "previous_version": change.previous_version,
            "alias": change.alias,
            "stage": change.stage,
            "entry": change.number,
        }

    def _roll_back_endpoint(self, context: Context, endpoint: str) -> dict[str, Any]:
        status = run_sync(self._switch_back(endpoint))
        model_name = self.model_name or status.model_name
        if (self.alias is not None or self.stage is not None) and status.previous_version:
            change = run_sync(
                self._undo(
                    context, model_name, to=status.stable_version, withdraws=str(status.previous_version)
                )
            )
            self._say(change)
        remember_links(
            context,
            version=self._mlflow.version_url(model_name, status.stable_version),
            endpoint=status.cluster_ip_url or status.url,
        )
        served = Served.by_status(status)
        tell_registry(self._mlflow, served, task_context.actor(context), self.log.warning)
        return served.to_dict()

    async def _go_back(self, context: Context, endpoint: str) -> tuple[State, Address] | None:
        """Go back by a rollout; ``None`` where the version before is up still."""
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.providers.serving.rollouts.opening import go_back, goes_back_in_steps
        from nighttrain.providers.serving.rollouts.state import Names
        from nighttrain.providers.tracking.client import MLflowClient

        async with shared_client(self._cluster) as client:
            namespace = self.namespace or client.namespace
            try:
                in_steps = await goes_back_in_steps(client, endpoint, namespace)
            except (ClusterForbiddenError, WorkloadConflictError, ServingError) as error:
                # An endpoint of plain Deployments goes back without it, and somebody waits for that.
                self.log.warning("Whether it is on KServe or Argo Rollouts cannot be told: %s", error)
                in_steps = False
            if not in_steps:
                return None
            self._under_way = (context, endpoint)
            async with MLflowClient(self._mlflow.config) as mlflow:
                ended = await go_back(
                    client,
                    mlflow,
                    endpoint,
                    namespace,
                    rollout_id=rollout_id(context),
                    actor=task_context.actor(context),
                    names=Names(alias=self.alias, stage=self.stage),
                    reason=self.reason or f"endpoint {endpoint} was rolled back",
                    tell=self.log.info,
                )
            self._under_way = None
            return ended

    def _told(self, context: Context, state: State, route: Address) -> dict[str, Any]:
        from nighttrain.sensors.rollout_end import raise_unless_promoted

        raise_unless_promoted(state)
        target = state.target
        remember_links(
            context,
            version=self._mlflow.version_url(target.model_name, target.candidate),
            endpoint=route.url,
        )
        served = Served.by_target(target, route)
        tell_registry(self._mlflow, served, task_context.actor(context), self.log.warning)
        return served.to_dict()

    async def _abort(self, context: Context, endpoint: str) -> None:
        from nighttrain.providers.kubernetes.api.client import shared_client
        from nighttrain.providers.serving.rollouts.opening import open_engine, setting_of

        async with shared_client(self._cluster) as client:
            namespace = self.namespace or client.namespace
            setting = await setting_of(client, endpoint, namespace)
        async with open_engine(self._cluster, self._mlflow.config, setting) as (_, engine):
            await engine.abort(
                endpoint,
                namespace,
                rollout_id(context),
                by=task_context.actor(context),
                reason="its task was ended",
                tell=self.log.info,
            )

    def _say(self, change: Change) -> None:
        where = held(change.alias, change.stage) or "nothing else"
        held_by = f"version {change.version}" if change.version else "no version"
        self.log.info("%s: %s holds %s", change.name, held_by, where)

    async def _switch_back(self, endpoint: str) -> EndpointStatus:
        async with open_rollout(self._cluster) as (client, rollout):
            return await rollout.rollback(
                endpoint, self.namespace or client.namespace, on_progress=self.log.info
            )

    async def _undo(
        self, context: Context, model_name: str, *, to: str | int | None, withdraws: str | None = None
    ) -> Change:
        from nighttrain.providers.registry.promotion import Author, roll_back

        what = f"endpoint {self.endpoint} was rolled back" if self.endpoint else "rolled back by a DAG"
        async with open_registry(self._mlflow) as registry:
            return await roll_back(
                registry,
                model_name,
                alias=self.alias,
                stage=self.stage,
                to=to,
                withdraws=withdraws,
                author=Author(
                    actor=task_context.actor(context),
                    reason=self.reason or what,
                    dag_run=task_context.dag_run(context),
                ),
            )
