"""Rollouts and rollbacks as tasks."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk.exceptions import TaskDeferralTimeout

from nighttrain.operators.common import task_context
from nighttrain.operators.common.clients import open_registry, open_rollout
from nighttrain.operators.links import EndpointLink, ModelVersionLink, RolloutPictureLink, remember_links
from nighttrain.operators.serving.picture import remember_picture
from nighttrain.operators.serving.served import Served, tell_registry
from nighttrain.operators.serving.steps import Steps, as_strategy, rollout_id
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ConfigurationError, RolloutFailedError
from nighttrain.providers.serving.backends.choice import check_backend
from nighttrain.providers.serving.strategy import blue_green
from nighttrain.providers.texts import as_texts
from nighttrain.sensors.common.connections import (
    DEFAULT_KUBERNETES_CONN_ID,
    DEFAULT_MLFLOW_CONN_ID,
    get_cluster,
    get_mlflow,
)
from nighttrain.sensors.common.failures import failing_clearly
from nighttrain.sensors.common.templating import TextTemplates
from nighttrain.sensors.common.triggerer_health import warn_without_triggerer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from airflow.sdk import BaseOperatorLink, Context

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion
    from nighttrain.providers.serving.backends.base import EndpointStatus
    from nighttrain.providers.serving.rollouts.opening import Setting
    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.providers.serving.spec import ServingSpec
    from nighttrain.providers.serving.strategy import Strategy

# The backend that a rollout without a strategy has.
PLAIN = "deployment"

PINNED_KEY = "nighttrain_pinned"
DEPLOYED_BY = "nighttrain.dev/deployed-by"

# Pulling an image, downloading the model and importing its libraries: minutes on a fresh node, at most.
DEFAULT_STARTUP_TIMEOUT_SECONDS = 600.0


class RolloutModelOperator(TextTemplates):
    """Brings a version up beside the one that serves, switches when it is ready, keeps the old one.

    The version is pinned first and its artifact's sha256 manifest verified, before anything is created; the
    pod verifies it again before it loads anything. A version that answers already is left as it is; one that
    somebody scaled to zero is scaled up. When the candidate does not become ready it is removed, and the old
    version goes on serving. Returns
    ``{"endpoint", "model_name", "version", "previous_version", "url", "cluster_ip_url"}``.

    :param endpoint: name of the endpoint, which is the Service's name (templated)
    :param model_name: the registered model (templated)
    :param version: a version, or give ``stage`` or ``alias`` instead (templated)
    :param stage: serve what holds this stage when the task runs (templated)
    :param alias: serve what this alias points to when the task runs (templated)
    :param image: an image with MLflow and the model's libraries (templated)
    :param namespace: the connection's, if left out (templated)
    :param replicas: pods of a version that is brought up; as many as the one that serves has, if left out.
        Those of a version that is up already are left to autoscalers and people
    :param port: the Service's and the scoring server's port; 8080 is what MLflow's containers use
    :param mlflow_secret: name of a Kubernetes Secret with MLFLOW_TRACKING_* credentials for the pods
    :param startup_timeout_seconds: how long the candidate may take to become ready
    :param server: the model server, by name: ``image`` has to have it; ``"by flavor"`` takes the first known
        one that loads the version's flavors
    :param download_image: an image with Python and mlflow, for a server that does not download by itself
    :param strategy: steps, analysis and time after 100 percent, as a
        :class:`~nighttrain.providers.serving.strategy.Strategy` or as plain values. Left out, everything is
        switched at once when the candidate is ready, and nothing is analysed
    :param backend: the serving system of a strategy: its name, or ``{"type": name}`` with its parameters
    :param measured_from: ``"here"``, or ``"cluster"`` where this process cannot reach the endpoint: Jobs in
        its namespace then measure
    :param moves_alias: goes to the version with all of its requests, and back when it is undone; the
        ``alias`` that is served, if left out (templated)
    :param moves_stage: the same for a stage (templated)
    :param deferrable: wait in the triggerer (the default) or in the worker

    ``container_resources, env_vars, env_from, node_selector, tolerations, affinity, service_account_name,
    image_pull_secrets, image_pull_policy, labels, annotations, pod_security`` are as for training.
    """

    template_fields: Sequence[str] = (
        "endpoint",
        "model_name",
        "version",
        "stage",
        "alias",
        "image",
        "namespace",
        "env_vars",
        "labels",
        "annotations",
        "moves_alias",
        "moves_stage",
    )
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = dict.fromkeys(
        ("env_vars", "labels", "annotations"), dict
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"env_vars": "json"}
    operator_extra_links: Collection[BaseOperatorLink] = (
        ModelVersionLink(),
        EndpointLink(),
        RolloutPictureLink(),
    )
    ui_color = "#fdf0d9"
    _under_way: tuple[Context, Mapping[str, str]] | None = None
    # A task that stands for one step waits for that one only.
    step: int | None = None

    def __init__(
        self,
        *,
        endpoint: str,
        model_name: str,
        image: str,
        version: str | None = None,
        stage: str | None = None,
        alias: str | None = None,
        namespace: str | None = None,
        replicas: int | None = None,
        port: int = 8080,
        container_resources: Any = None,
        env_vars: Mapping[str, str] | None = None,
        env_from: Sequence[Any] | None = None,
        node_selector: Mapping[str, str] | None = None,
        tolerations: Sequence[Any] | None = None,
        affinity: Any = None,
        service_account_name: str | None = None,
        image_pull_secrets: Sequence[Any] | None = None,
        image_pull_policy: str | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        pod_security: Literal["baseline", "restricted"] | None = None,
        mlflow_secret: str | None = None,
        startup_timeout_seconds: float = DEFAULT_STARTUP_TIMEOUT_SECONDS,
        server: str = "mlflow",
        download_image: str | None = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        backend: str | Mapping[str, Any] = "deployment",
        measured_from: str = "here",
        moves_alias: str | None = None,
        moves_stage: str | None = None,
        kubernetes_conn_id: str = DEFAULT_KUBERNETES_CONN_ID,
        mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        # Each key becomes an XCom of its own, so that a DAG can write task.output["version"].
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        given = {"version": version, "stage": stage, "alias": alias}
        if sum(value is not None for value in given.values()) != 1:
            raise ConfigurationError("version, stage, alias", given, "name exactly one of the three")
        self.endpoint = endpoint
        self.model_name = model_name
        self.image = image
        self.version = version
        self.stage = stage
        self.alias = alias
        self.namespace = namespace
        self.replicas = replicas
        self.port = port
        self.container_resources = container_resources
        self.env_vars = env_vars
        self.env_from = env_from
        self.node_selector = node_selector
        self.tolerations = tolerations
        self.affinity = affinity
        self.service_account_name = service_account_name
        self.image_pull_secrets = image_pull_secrets
        self.image_pull_policy = image_pull_policy
        self.labels = labels
        self.annotations = annotations
        self.pod_security = pod_security
        self.mlflow_secret = mlflow_secret
        self.startup_timeout_seconds = startup_timeout_seconds
        self.backend = {"type": backend} if isinstance(backend, str) else dict(backend)
        check_backend(self.backend)
        at_once = None if self.backend["type"] == PLAIN else blue_green(watch_seconds=0)
        self.strategy = as_strategy(strategy) or at_once
        self.measured_from = measured_from
        self.server = server
        self.download_image = download_image
        self.moves_alias = moves_alias
        self.moves_stage = moves_stage
        self.kubernetes_conn_id = kubernetes_conn_id
        self.mlflow_conn_id = mlflow_conn_id
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, Any] | None:
        with failing_clearly():
            self._connect()
            pinned = run_sync(self._pin())
            context["ti"].xcom_push(key=PINNED_KEY, value=pinned)
            remember_links(context, version=self._mlflow.version_url(self.model_name, pinned["version"]))
            self._under_way = (context, pinned)
            begun = self._begin_steps(context, pinned, self.strategy) if self.strategy else None
        if begun is not None:
            return self._go_on(context, begun)
        with failing_clearly():
            if self.backend["type"] != PLAIN:
                return self._serves_already(context, pinned)
            changed = run_sync(self._start(context, pinned))
            namespace = self.namespace or self._cluster.namespace or "default"
            remember_links(context, endpoint=f"http://{self.endpoint}.{namespace}.svc:{self.port}")
        if changed and self.deferrable:
            warn_without_triggerer(self.log.warning)
            self._defer(pinned)
        with failing_clearly():
            return self._complete(context, pinned, wait=changed)

    def _begin_steps(self, context: Context, pinned: Mapping[str, str], strategy: Strategy) -> State | None:
        """Begin the rollout and bring its candidate up; ``None`` if the version serves already."""
        from nighttrain.providers.serving.rollouts.state import Names

        return run_sync(
            self._steps().begin(
                lambda namespace: self._make_spec(context, namespace, pinned),
                strategy,
                rollout_id=self._rollout_id(context),
                actor=task_context.actor(context),
                names=Names(alias=self.moves_alias or self.alias, stage=self.moves_stage or self.stage),
                tell=self.log.info,
            )
        )

    def _go_on(self, context: Context, begun: State) -> dict[str, Any]:
        remember_picture(context, self._mlflow, begun, self.log.warning)
        if self.deferrable and not begun.ended:
            warn_without_triggerer(self.log.warning)
            self._defer_steps(self._rollout_id(context))
        with failing_clearly():
            return self._finish_steps(context)

    def _rollout_id(self, context: Context) -> str:
        return rollout_id(context)

    def _serves_already(self, context: Context, pinned: Mapping[str, str]) -> dict[str, Any]:
        make_spec = partial(self._make_spec, context, pinned=pinned)
        target, route = run_sync(self._steps().serving(make_spec))
        self.log.info("%s: version %s serves already", self.endpoint, pinned["version"])
        return Served.by_target(target, route).to_dict()

    def _defer_steps(self, identity: str) -> None:
        from nighttrain.sensors.triggers import RolloutTrigger

        self.defer(
            trigger=RolloutTrigger(
                kubernetes_conn_id=self.kubernetes_conn_id,
                mlflow_conn_id=self.mlflow_conn_id,
                namespace=self.namespace,
                endpoint=self.endpoint,
                rollout_id=identity,
                setting=self._setting().to_dict(),
                step=self.step,
            ),
            method_name="steps_complete",
            timeout=self.execution_timeout if isinstance(self.execution_timeout, timedelta) else None,
        )

    def steps_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Tell the end that the trigger saw."""
        self._connect()
        if error := event.get("error"):
            raise RolloutFailedError(error)
        with failing_clearly():
            return self._finish_steps(context)

    def _finish_steps(self, context: Context) -> dict[str, Any]:
        """Drive to the end, which may have come already, and tell it."""
        identity = self._rollout_id(context)
        state = run_sync(self._steps().drive(self.endpoint, identity, tell=self.log.info))
        route = run_sync(self._steps().take(state))
        remember_picture(context, self._mlflow, state, self.log.warning)
        self._raise_unless_promoted(state)
        remember_links(context, endpoint=route.url)
        served = Served.by_target(state.target, route)
        tell_registry(self._mlflow, served, task_context.actor(context), self.log.warning)
        return served.to_dict()

    @staticmethod
    def _raise_unless_promoted(state: State) -> None:
        from nighttrain.sensors.rollout_end import raise_unless_promoted

        raise_unless_promoted(state)

    def _steps(self) -> Steps:
        return Steps(self._cluster, self._mlflow.config, self._setting(), self.namespace)

    def _setting(self) -> Setting:
        from nighttrain.providers.serving.rollouts.opening import Setting

        return Setting.of(self.backend, self.measured_from, self.image)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Switch, or undo what was started."""
        self._connect()
        pinned = self._pinned(context)
        if not event["ready"]:
            run_sync(self._abort(context, pinned))
            raise RolloutFailedError(event["error"])
        with failing_clearly():
            return self._complete(context, pinned, wait=False)

    def on_kill(self) -> None:
        """The task was killed in the worker: no half-started candidate remains."""
        if self._under_way is not None:
            run_sync(self._abort(*self._under_way))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """As Airflow does, and when the deferral timed out no half-started candidate remains."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.error("Timed out: removing the candidate; what served before goes on")
            self._connect()
            run_sync(self._abort(context, self._pinned(context)))
            raise

    def _connect(self) -> None:
        """Read the connections, before any event loop runs."""
        as_texts(self, "endpoint", "model_name", "version", "stage", "alias", "image", "namespace")
        cluster = get_cluster(self.kubernetes_conn_id)
        self._cluster, self._pod_security = cluster.config, cluster.pod_security
        self._mlflow = get_mlflow(self.mlflow_conn_id)

    def _pinned(self, context: Context) -> dict[str, str]:
        ti = context["ti"]
        pinned: dict[str, str] = ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=PINNED_KEY)
        return pinned

    async def _pin(self) -> dict[str, str]:
        """Resolve to a version and verify its artifact."""
        from nighttrain.providers.registry.artifacts import artifact_location
        from nighttrain.providers.registry.models import ensure_recorded
        from nighttrain.providers.serving.model_servers.chosen import chosen_server
        from nighttrain.providers.serving.rollout import prepare

        async with open_registry(self._mlflow) as registry:
            found = await self._resolve(registry)
            if found.digest is None:
                self.log.warning(
                    "%s version %s was registered without a digest: recording what is there now",
                    found.name,
                    found.version,
                )
                await ensure_recorded(registry, found)
            digest = await prepare(registry, found.name, found.version)
            server = await chosen_server(registry.client, found, self.server)
            source = await artifact_location(registry.client, found) if self._fetches_itself() else ""
        self.log.info("%s version %s, artifact sha256 %s", found.name, found.version, digest)
        return {"version": found.version, "digest": digest, "server": server.name, "source": source}

    def _fetches_itself(self) -> bool:
        """Whether the serving system fetches the version's files by their address."""
        return self.backend["type"] in ("kserve", "seldon")

    async def _resolve(self, registry: ModelRegistry) -> ModelVersion:
        if self.stage is not None:
            return await registry.version_in_stage(self.model_name, self.stage)
        if self.alias is not None:
            return await registry.version_by_alias(self.model_name, self.alias)
        return await registry.get_version(self.model_name, str(self.version))

    async def _start(self, context: Context, pinned: Mapping[str, str]) -> bool:
        async with open_rollout(self._cluster) as (client, rollout):
            return await rollout.start(self._spec(context, client, pinned), on_progress=self.log.info)

    async def _abort(self, context: Context, pinned: Mapping[str, str]) -> None:
        if self.strategy is not None:
            by, why = task_context.actor(context), "its task was ended"
            await self._steps().abort(
                self.endpoint, self._rollout_id(context), by=by, reason=why, tell=self.log.info
            )
            return
        async with open_rollout(self._cluster) as (client, rollout):
            await rollout.abort(self._spec(context, client, pinned))

    def _complete(self, context: Context, pinned: Mapping[str, str], *, wait: bool) -> dict[str, Any]:
        status = run_sync(self._finish(context, pinned, wait=wait))
        remember_links(context, endpoint=status.cluster_ip_url or status.url)
        self.log.info(
            "%s serves version %s at %s (version before: %s)",
            status.endpoint,
            status.stable_version,
            status.url,
            status.previous_version or "none",
        )
        served = Served.by_status(status)
        tell_registry(self._mlflow, served, task_context.actor(context), self.log.warning)
        return served.to_dict()

    async def _finish(self, context: Context, pinned: Mapping[str, str], *, wait: bool) -> EndpointStatus:
        async with open_rollout(self._cluster) as (client, rollout):
            spec = self._spec(context, client, pinned)
            try:
                self._under_way = (context, pinned)
                if wait:
                    await rollout.wait_ready(spec, on_progress=self.log.info)
                status = await rollout.finish(spec, on_progress=self.log.info)
            except RolloutFailedError:
                await rollout.abort(spec)
                raise
            self._under_way = None
            return status

    def _defer(self, pinned: Mapping[str, str]) -> None:
        from nighttrain.sensors.triggers import EndpointTrigger

        self.defer(
            trigger=EndpointTrigger(
                kubernetes_conn_id=self.kubernetes_conn_id,
                namespace=self.namespace,
                endpoint=self.endpoint,
                version=pinned["version"],
                timeout_seconds=self.startup_timeout_seconds,
            ),
            method_name="execute_complete",
            timeout=self.execution_timeout if isinstance(self.execution_timeout, timedelta) else None,
        )

    def _spec(self, context: Context, client: ClusterClient, pinned: Mapping[str, str]) -> ServingSpec:
        return self._make_spec(context, self.namespace or client.namespace, pinned)

    def _make_spec(self, context: Context, namespace: str, pinned: Mapping[str, str]) -> ServingSpec:
        from nighttrain.providers.serving.model_servers.servers import MLFLOW, named
        from nighttrain.providers.serving.spec import ServingSpec

        access = self._mlflow.pods().with_secret(self.mlflow_secret)
        server = named(pinned.get("server", MLFLOW.name))
        return ServingSpec(
            endpoint=self.endpoint,
            namespace=namespace,
            image=self.image,
            model_name=self.model_name,
            version=pinned["version"],
            artifact_digest=pinned["digest"],
            tracking_uri=access.uri,
            known_secrets=access.known_secrets,
            mlflow_env=access.serving_environment(),
            replicas=self.replicas,
            container_resources=self.container_resources,
            env_vars=dict(self.env_vars or {}),
            env_from=[*(self.env_from or []), *(access.sources() if server is MLFLOW else ())],
            mlflow_env_from=() if server is MLFLOW else access.sources(),
            server=server,
            download_image=self.download_image,
            source=pinned.get("source", ""),
            node_selector=dict(self.node_selector or {}),
            tolerations=list(self.tolerations or []),
            affinity=self.affinity,
            service_account_name=self.service_account_name,
            automount_service_account_token=True if access.auth else None,
            image_pull_secrets=list(self.image_pull_secrets or []),
            image_pull_policy=self.image_pull_policy,
            labels=dict(self.labels or {}),
            annotations={**(self.annotations or {}), DEPLOYED_BY: task_context.actor(context)},
            port=self.port,
            pod_security=self.pod_security or self._pod_security,
            startup_timeout_seconds=self.startup_timeout_seconds,
        )
