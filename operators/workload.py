"""Running a workload under an MLflow run: what training and evaluation have in common."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from nighttrain.operators.common import task_context
from nighttrain.operators.common import workload_notes as hints
from nighttrain.operators.common.cluster_outages import PAUSE_SECONDS, waiting_out
from nighttrain.operators.links import MLflowRunLink, WorkloadLink, remember_links
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import (
    MLFLOW_NOT_REACHED,
    ClusterError,
    ConfigurationError,
    TrackingError,
    TrackingMisconfiguredError,
    TrackingUnreachableError,
)
from nighttrain.providers.kubernetes.values.timeouts import (
    DEFAULT_NODE_LOST_TIMEOUT_SECONDS,
    DEFAULT_SIDECAR_GRACE_SECONDS,
    DEFAULT_STARTUP_TIMEOUT_SECONDS,
    Timeouts,
)
from nighttrain.providers.texts import as_texts
from nighttrain.sensors.common.connections import (
    DEFAULT_KUBERNETES_CONN_ID,
    DEFAULT_MLFLOW_CONN_ID,
    get_cluster,
    get_mlflow,
)
from nighttrain.sensors.common.failures import MLFLOW_OUTAGE_SECONDS, failing_clearly
from nighttrain.sensors.common.templating import TextTemplates
from nighttrain.sensors.common.triggerer_health import warn_without_triggerer

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

    from nighttrain.providers.attempts.tracked_workload import StartedWorkload, TrackedWorkload
    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Observation,
        Outcome,
    )
    from nighttrain.sensors.common.connections import ClusterConnection, MLflowConnection

STARTED_KEY = "nighttrain_started"
T = TypeVar("T")

# A node drain or a rolling upgrade can catch a long training two or three times in a night; more often than
# that the nodes need a person.
DEFAULT_INFRASTRUCTURE_RETRIES = 3

# A control plane of one server is upgraded or restarted within a minute or two. A wrong address is told in
# the log's first lines meanwhile. (A wait that has begun bears an outage of an hour: it holds no worker.)
DEFAULT_CLUSTER_OUTAGE_TIMEOUT_SECONDS = 300.0

# Three days: a Friday night's failure can still be looked at on Monday, and finished Jobs do not pile up.
DEFAULT_TTL_SECONDS_AFTER_FINISHED = 3 * 24 * 3600

# Fields of a WorkloadSpec that are no parameters: retries are Airflow's, nothing varies between them, and
# files are what @task.train makes.
_NOT_PARAMETERS = frozenset({"backoff_limit", "volatile_env", "files", "own_env", "known_secrets"})


@dataclass(frozen=True)
class Prepared:
    """What an operator found out before its workload starts.

    :param environment: variables for the container
    :param params: parameters of the run
    :param facts: plain values that the task needs again when it is resumed by another process
    """

    environment: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def _exit_codes(given: int | Container[int] | None) -> Container[int]:
    if given is None:
        return ()
    if isinstance(given, int) and not isinstance(given, bool):
        return (given,)
    if isinstance(given, str | bytes) or not isinstance(given, Container):
        raise ConfigurationError("skip_on_exit_code", given, "write an exit code, or a list of them")
    return given


@dataclass(frozen=True)
class _Underway:
    """A task's workload, and what it takes to settle it once its outcome is known."""

    context: Context
    tracked: TrackedWorkload
    started: StartedWorkload
    facts: dict[str, Any]


def _as_json(started: StartedWorkload, facts: dict[str, Any]) -> dict[str, Any]:
    return {"started": started.to_dict(), "facts": facts}


class _AnotherAttempt(Exception):
    """The cluster ended an attempt, and the next may start at once."""


class WorkloadOperator(TextTemplates):
    """Runs a container as a Kubernetes Job under a run in MLflow, and survives the death of its worker.

    The parameters from ``image`` to ``skip_on_exit_code`` have the names and forms of
    ``KubernetesPodOperator``: models of the ``kubernetes`` package or dicts.

    :param image: the container's image (templated); may come from a pod template instead
    :param cmds: the entry point; the image's own if left out (templated)
    :param arguments: its arguments (templated)
    :param env_vars: environment, a dict or ``V1EnvVar`` objects (templated). Secrets do not belong here: use
        ``env_from`` or ``secrets``
    :param configmaps: names of ConfigMaps whose entries become variables (templated)
    :param working_dir: the container's working directory; the image's own if left out
    :param automount_service_account_token: whether the pod gets a token for the Kubernetes API; without
        ``service_account_name`` it gets none unless this says so
    :param pod_template_dict: a Pod as a dict, the base for everything else, in the place of
        ``pod_template_file`` (templated)
    :param base_container_name: the container of the template or ``full_pod_spec`` that the parameters are
        laid over and whose end decides; the first if left out (templated)
    :param skip_on_exit_code: the training command's exit code, or several, after which the task is skipped
    :param ttl_seconds_after_finished: when the cluster removes the ended Job; ``None`` keeps it. A Job that
        is gone cannot be taken over by a retry: leave time for one
    :param experiment_name: MLflow experiment; the DAG's id if left out (templated)
    :param run_name: the run's name in MLflow; the task's id if left out (templated)
    :param mlflow_conn_id: connection of type ``mlflow``
    :param mlflow_secret: name of a Kubernetes Secret with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME
        and MLFLOW_TRACKING_PASSWORD, for the container; the ``mlflow`` connection's, if left out
    :param kubernetes_conn_id: connection of type ``kubernetes``
    :param startup_timeout_seconds: how long the pod may wait to start; a queue's wait is not counted
    :param schedule_timeout_seconds: how long it may wait for a node; ``startup_timeout_seconds`` if left out
    :param queue_timeout_seconds: how long it may wait in a queue, or for quota that others use; without bound
        if left out
    :param fail_if_over_quota: fail at once if it asks for more than the whole of today's quota (the default);
        false waits in the queue for a larger one
    :param sidecar_grace_seconds: how long other containers of the pod may go on after the training's end
    :param node_lost_timeout_seconds: how long it may be unknown whether the training still runs, because its
        node does not answer
    :param replace_on_lost_node: start the next attempt although an earlier one may still run, on a node that
        does not answer: two trainings may run at once then
    :param cluster_outage_timeout_seconds: how long a try bears it that the API server does not answer when
        the workload is to be started or settled; 0 fails at once. Waits bear an hour
    :param mlflow_outage_timeout_seconds: how long a workload that has ended waits for an MLflow that does not
        answer, or is reached wrongly by then; 0 fails at once
    :param get_logs: show the container's lines in the task's log while it runs
    :param deferrable: wait in the triggerer (the default) or in the worker
    :param pod_security: ``baseline``, or ``restricted`` for namespaces that enforce that Pod Security level;
        the ``kubernetes`` connection's extra ``pod_security``, else ``baseline``, if left out
    :param queue_name: a Kueue LocalQueue
    :param infrastructure_retries: how many attempts in a row that the cluster ended (evicted, preempted, node
        lost, registry away) are followed by another one without using up ``retries``
    :param oom_memory_factor: an attempt that follows one that ran out of memory gets so many times its
        memory, such as 1.5; it needs ``oom_memory_max``, a memory limit, and ``retries``
    :param oom_memory_max: the most memory an attempt is ever given, such as ``32Gi``
    """

    template_fields: Sequence[str] = (
        "image",
        "cmds",
        "arguments",
        "env_vars",
        "labels",
        "annotations",
        "namespace",
        "container_resources",
        "volumes",
        "volume_mounts",
        "env_from",
        "configmaps",
        "node_selector",
        "hostname",
        "pod_template_file",
        "pod_template_dict",
        "base_container_name",
        "kubernetes_conn_id",
        "experiment_name",
        "run_name",
        "queue_name",
    )
    structured_fields: ClassVar[Mapping[str, type | tuple[type, ...]]] = {
        **dict.fromkeys(("cmds", "arguments", "configmaps", "env_from", "volumes", "volume_mounts"), list),
        **dict.fromkeys(("labels", "annotations", "node_selector", "pod_template_dict", "parameters"), dict),
        "env_vars": (dict, list),
        "container_resources": object,
    }
    template_fields_renderers: ClassVar[dict[str, str]] = {"env_vars": "json", "container_resources": "json"}
    operator_extra_links: Collection[BaseOperatorLink] = (MLflowRunLink(), WorkloadLink())
    text_fields: ClassVar[tuple[str, ...]] = ("experiment_name", "run_name", "kubernetes_conn_id")
    _resumed = False
    # What on_kill has to know, in whatever moment it comes.
    _starting: tuple[TrackedWorkload, Any] | None = None
    _following: tuple[TrackedWorkload, StartedWorkload, Any] | None = None

    def __init__(
        self,
        *,
        image: str | None = None,
        cmds: list[str] | str | None = None,
        arguments: list[str] | str | None = None,
        env_vars: dict[str, str] | list[Any] | None = None,
        env_from: list[Any] | None = None,
        configmaps: list[str] | None = None,
        secrets: list[Any] | None = None,
        volumes: list[Any] | None = None,
        volume_mounts: list[Any] | None = None,
        working_dir: str | None = None,
        container_resources: Any = None,
        node_selector: dict[str, str] | None = None,
        affinity: Any = None,
        tolerations: list[Any] | None = None,
        service_account_name: str | None = None,
        automount_service_account_token: bool | None = None,
        image_pull_secrets: list[Any] | None = None,
        image_pull_policy: str | None = None,
        labels: dict[str, str] | None = None,
        annotations: dict[str, str] | None = None,
        namespace: str | None = None,
        priority_class_name: str | None = None,
        runtime_class_name: str | None = None,
        schedulername: str | None = None,
        security_context: Any = None,
        container_security_context: Any = None,
        active_deadline_seconds: int | None = None,
        termination_grace_period: int | None = None,
        hostnetwork: bool = False,
        host_aliases: list[Any] | None = None,
        hostname: str | None = None,
        subdomain: str | None = None,
        dnspolicy: str | None = None,
        dns_config: Any = None,
        init_containers: list[Any] | None = None,
        ports: list[Any] | None = None,
        pod_template_file: str | None = None,
        pod_template_dict: dict[str, Any] | None = None,
        full_pod_spec: Any = None,
        base_container_name: str | None = None,
        termination_message_policy: str | None = None,
        skip_on_exit_code: int | Container[int] | None = None,
        ttl_seconds_after_finished: int | None = DEFAULT_TTL_SECONDS_AFTER_FINISHED,
        pod_security: str | None = None,
        queue_name: str | None = None,
        infrastructure_retries: int = DEFAULT_INFRASTRUCTURE_RETRIES,
        oom_memory_factor: float | None = None,
        oom_memory_max: str | None = None,
        experiment_name: str | None = None,
        run_name: str | None = None,
        mlflow_conn_id: str = DEFAULT_MLFLOW_CONN_ID,
        mlflow_secret: str | None = None,
        kubernetes_conn_id: str = DEFAULT_KUBERNETES_CONN_ID,
        startup_timeout_seconds: float = DEFAULT_STARTUP_TIMEOUT_SECONDS,
        schedule_timeout_seconds: float | None = None,
        queue_timeout_seconds: float | None = None,
        fail_if_over_quota: bool = True,
        sidecar_grace_seconds: float = DEFAULT_SIDECAR_GRACE_SECONDS,
        node_lost_timeout_seconds: float = DEFAULT_NODE_LOST_TIMEOUT_SECONDS,
        replace_on_lost_node: bool = False,
        cluster_outage_timeout_seconds: float = DEFAULT_CLUSTER_OUTAGE_TIMEOUT_SECONDS,
        mlflow_outage_timeout_seconds: float = MLFLOW_OUTAGE_SECONDS,
        get_logs: bool = True,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        # Each key becomes an XCom of its own, so that a DAG can write task.output["version"].
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        self.image = image
        self.cmds = cmds
        self.arguments = arguments
        self.env_vars = env_vars
        self.env_from = env_from
        self.configmaps = configmaps
        self.secrets = secrets
        self.volumes = volumes
        self.volume_mounts = volume_mounts
        self.working_dir = working_dir
        self.container_resources = container_resources
        self.node_selector = node_selector
        self.affinity = affinity
        self.tolerations = tolerations
        self.service_account_name = service_account_name
        self.automount_service_account_token = automount_service_account_token
        self.image_pull_secrets = image_pull_secrets
        self.image_pull_policy = image_pull_policy
        self.labels = labels
        self.annotations = annotations
        self.namespace = namespace
        self.priority_class_name = priority_class_name
        self.runtime_class_name = runtime_class_name
        self.schedulername = schedulername
        self.security_context = security_context
        self.container_security_context = container_security_context
        self.active_deadline_seconds = active_deadline_seconds
        self.termination_grace_period = termination_grace_period
        self.hostnetwork = hostnetwork
        self.host_aliases = host_aliases
        self.hostname = hostname
        self.subdomain = subdomain
        self.dnspolicy = dnspolicy
        self.dns_config = dns_config
        self.init_containers = init_containers
        self.ports = ports
        self.pod_template_file = pod_template_file
        self.pod_template_dict = pod_template_dict
        self.full_pod_spec = full_pod_spec
        self.base_container_name = base_container_name
        self.termination_message_policy = termination_message_policy
        self.skip_on_exit_code = _exit_codes(skip_on_exit_code)
        self.ttl_seconds_after_finished = ttl_seconds_after_finished
        self.pod_security = pod_security
        self.queue_name = queue_name
        self.infrastructure_retries = infrastructure_retries
        self.oom_memory_factor = oom_memory_factor
        self.oom_memory_max = oom_memory_max
        self.experiment_name = experiment_name
        self.run_name = run_name
        self.mlflow_conn_id = mlflow_conn_id
        self.mlflow_secret = mlflow_secret
        self.kubernetes_conn_id = kubernetes_conn_id
        self.startup_timeout_seconds = startup_timeout_seconds
        self.schedule_timeout_seconds = schedule_timeout_seconds
        self.queue_timeout_seconds = queue_timeout_seconds
        self.fail_if_over_quota = fail_if_over_quota
        self.sidecar_grace_seconds = sidecar_grace_seconds
        self.node_lost_timeout_seconds = node_lost_timeout_seconds
        self.replace_on_lost_node = replace_on_lost_node
        self.cluster_outage_timeout_seconds = cluster_outage_timeout_seconds
        self.mlflow_outage_timeout_seconds = mlflow_outage_timeout_seconds
        self.get_logs = get_logs
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, Any] | None:
        while True:
            with failing_clearly():
                as_texts(self, *self.text_fields)
                prepared = self._prepare(context)
                tracked = self._tracked(context, prepared)
                started = self._start(tracked, context["ti"])
                self._tell_what_was_lost(context, started)
                self._remember(context, started, prepared.facts)
            if self.deferrable:
                if not self._resumed:
                    warn_without_triggerer(self.log.warning)
                self._defer(started, tracked, prepared.facts)
            with failing_clearly():
                outcome = run_sync(self._follow(tracked, started, context["ti"]))
                underway = _Underway(context, tracked, started, prepared.facts)
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
        from nighttrain.providers.kubernetes.outcome.outcome import (
            Outcome,
        )

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

        from nighttrain.providers.attempts.tracked_workload import StartedWorkload

        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self.log.error("Timed out: cancelling the workload")
            hints.forget(context, self.log.debug)
            started = StartedWorkload.from_dict(self._remembered(context)["started"])
            tracked = self._tracked(context, Prepared())
            self._waiting_out(lambda: run_sync(tracked.cancel(started)))
            raise

    def on_kill(self) -> None:
        """The process is told to end while it starts a workload or waits for it.

        If a person ended the task, or its time is over, no workload remains; if only the worker goes away,
        the training goes on for the next try.
        """
        from nighttrain.sensors.common.killed_tasks import cancelled_by_user

        if self._following is not None:
            tracked, started, ti = self._following
            if cancelled_by_user(ti):
                run_sync(tracked.cancel(started))
            else:
                self.log.warning("Only this process is told to end: Job %s goes on", started.workload.name)
        elif self._starting is not None:
            tracked, ti = self._starting
            if cancelled_by_user(ti):
                run_sync(tracked.cancel_if_started())

    # What the two operators add.

    def _prepare(self, context: Context) -> Prepared:
        """Look up what the container needs to know, once, before anything is created."""
        raise NotImplementedError

    async def _collect(
        self, tracked: TrackedWorkload, started: StartedWorkload, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """What the task returns beside the run and the outcome."""
        raise NotImplementedError

    # The common part.

    def _tracked(self, context: Context, prepared: Prepared) -> TrackedWorkload:
        from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
        from nighttrain.providers.kubernetes.job.plain_secrets import check_no_known_secret
        from nighttrain.providers.tracking.names import check_run_name, fit_run_name

        mlflow = get_mlflow(self.mlflow_conn_id)
        cluster = get_cluster(self.kubernetes_conn_id)
        spec = self._spec(prepared.environment, cluster, mlflow)
        spec.validate()
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
            run_name=check_run_name(self.run_name) if self.run_name else fit_run_name(ti.task_id),
            parent_key=task_context.run_key(context, task=False),
            run_key=task_context.run_key(context),
            params=prepared.params,
            lineage=partial(task_context.lineage, context),
            replace_on_lost_node=self.replace_on_lost_node,
        )

    def _spec(
        self, environment: Mapping[str, str], cluster: ClusterConnection, mlflow: MLflowConnection
    ) -> WorkloadSpec:
        from nighttrain.providers.attempts.tracked_workload import with_env
        from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
        from nighttrain.providers.pod_access import with_access

        names = [each.name for each in fields(WorkloadSpec) if each.name not in _NOT_PARAMETERS]
        given = {name: getattr(self, name) for name in names}
        given["pod_security"] = self.pod_security or cluster.pod_security
        spec = with_env(WorkloadSpec(**given), environment)
        return with_access(spec, mlflow.pods().with_secret(self.mlflow_secret))

    def _defer(self, started: StartedWorkload, tracked: TrackedWorkload, facts: dict[str, Any]) -> None:
        from nighttrain.sensors.triggers import WorkloadTrigger

        self.defer(
            trigger=WorkloadTrigger(
                kubernetes_conn_id=self.kubernetes_conn_id,
                workload=started.workload.to_dict(),
                timeouts=self._timeouts().to_dict(),
                get_logs=self.get_logs,
                mlflow_conn_id=self.mlflow_conn_id,
                run=started.run_ids(),
                unknown_run=None if started.run_id else tracked.described_run(started),
            ),
            method_name="execute_complete",
            kwargs={"underway": _as_json(started, facts)},
            timeout=self.execution_timeout if isinstance(self.execution_timeout, timedelta) else None,
        )

    def _underway(self, context: Context, known: dict[str, Any]) -> _Underway:
        """As the connections say now: a mistake in them may have been mended meanwhile."""
        from nighttrain.providers.attempts.tracked_workload import StartedWorkload

        try:
            get_mlflow(self.mlflow_conn_id)
        except ConfigurationError as error:
            raise TrackingMisconfiguredError(str(error)) from error
        started = StartedWorkload.from_dict(known["started"])
        return _Underway(context, self._tracked(context, Prepared()), started, known["facts"])

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
        lost = hints.lost_workload(context, started, self.log.debug)
        if lost is not None:
            self.log.warning(
                "Job %s, which an earlier try started, is gone (cancelled, deleted, or past its time to "
                "live): what runs now is a new one",
                lost,
            )
        hints.note(context, started, self.log.debug)

    def _waiting_out(self, work: Callable[[], T]) -> T:
        return waiting_out(work, seconds=self.cluster_outage_timeout_seconds, warn=self.log.warning)

    def _timeouts(self) -> Timeouts:
        return Timeouts(
            startup=self.startup_timeout_seconds,
            schedule=self.schedule_timeout_seconds,
            queue=self.queue_timeout_seconds,
            sidecar_grace=self.sidecar_grace_seconds,
            node_lost=self.node_lost_timeout_seconds,
            fail_if_over_quota=self.fail_if_over_quota,
        )

    async def _follow(self, tracked: TrackedWorkload, started: StartedWorkload, ti: Any) -> Outcome:
        self._following, self._starting = (tracked, started, ti), None
        outcome = await tracked.follow(
            started,
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

        context, tracked, facts = underway.context, underway.tracked, underway.facts
        if not outcome.succeeded:
            # First: closing may remove the Job, and a crash right after it should not be told as a loss.
            hints.forget(context, self.log.debug)
        started = run_sync(tracked.close(underway.started, outcome))
        if started != underway.started:
            self._remember(context, started, facts)
        outcome = advised(outcome, experiment_name=tracked.experiment_name, run_id=started.run_id)
        if not outcome.succeeded:
            run_sync(tracked.mark_consumed(started, outcome))
            failures = started.workload.infrastructure_failures
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
            "run_id": started.run_id,
            "experiment_id": started.experiment_id,
            "parent_run_id": started.parent_run_id,
            "job": f"{started.workload.namespace}/{started.workload.name}",
            "attempt": started.workload.attempt,
            "image": outcome.image,
            "image_id": outcome.image_id,
            **run_sync(self._collect(tracked, started, facts)),
        }
        context["ti"].xcom_push(key="return_value", value=result)
        run_sync(tracked.mark_consumed(started, outcome))
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
                    known = _as_json(underway.started, underway.facts)
                    underway = self._underway(underway.context, known)
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

    def _remember(self, context: Context, started: StartedWorkload, facts: dict[str, Any]) -> None:
        mlflow = get_mlflow(self.mlflow_conn_id)
        context["ti"].xcom_push(key=STARTED_KEY, value={**started.to_dict(), "facts": facts})
        links = {"workload": started.workload_url}
        if started.run_id:
            links["run"] = mlflow.run_url(started.experiment_id, started.run_id)
        remember_links(context, **links)

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
