"""The parameters of an operator that runs a workload, and what they become."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from nighttrain.operators.links import MLflowRunLink, WorkloadLink
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.values.timeouts import (
    DEFAULT_NODE_LOST_TIMEOUT_SECONDS,
    DEFAULT_SIDECAR_GRACE_SECONDS,
    DEFAULT_STARTUP_TIMEOUT_SECONDS,
    Timeouts,
)
from nighttrain.sensors.common.connections import DEFAULT_KUBERNETES_CONN_ID, DEFAULT_MLFLOW_CONN_ID
from nighttrain.sensors.common.failures import MLFLOW_OUTAGE_SECONDS
from nighttrain.sensors.common.templating import TextTemplates

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink

    from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
    from nighttrain.sensors.common.connections import ClusterConnection, MLflowConnection

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


class WorkloadParameters(TextTemplates):
    """Takes the parameters of a workload and of its run.

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
    :param cluster_outage_timeout_seconds: how long a try waits for an API server that does not answer when
        the workload is to be started or settled; 0 fails at once. Waits that have begun wait an hour
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

    def _spec(
        self, environment: Mapping[str, str], cluster: ClusterConnection, mlflow: MLflowConnection
    ) -> WorkloadSpec:
        from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
        from nighttrain.providers.pod_access import with_access

        names = [each.name for each in fields(WorkloadSpec) if each.name not in _NOT_PARAMETERS]
        given = {name: getattr(self, name) for name in names}
        given["pod_security"] = self.pod_security or cluster.pod_security
        spec = WorkloadSpec(**given).with_own_env(environment)
        return with_access(spec, mlflow.pods().with_secret(self.mlflow_secret))

    def _timeouts(self) -> Timeouts:
        return Timeouts(
            startup=self.startup_timeout_seconds,
            schedule=self.schedule_timeout_seconds,
            queue=self.queue_timeout_seconds,
            sidecar_grace=self.sidecar_grace_seconds,
            node_lost=self.node_lost_timeout_seconds,
            fail_if_over_quota=self.fail_if_over_quota,
        )


def _exit_codes(given: int | Container[int] | None) -> Container[int]:
    if given is None:
        return ()
    if isinstance(given, int) and not isinstance(given, bool):
        return (given,)
    if isinstance(given, str | bytes) or not isinstance(given, Container):
        raise ConfigurationError("skip_on_exit_code", given, "write an exit code, or a list of them")
    return given
