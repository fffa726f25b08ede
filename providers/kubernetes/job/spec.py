"""The training spec: KubernetesPodOperator's parameter names, and a few of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.api_models import plain
from nighttrain.providers.kubernetes.values.names import (
    ENV_NAME,
    check_object_name,
    parse_quantity,
)
from nighttrain.providers.texts import text_of, text_or_none

# What says which run an attempt writes to: every container of the pod gets these.
RUN_VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
# Three days: a Friday night's failure can still be looked at on Monday, and finished Jobs do not pile up.
TTL_SECONDS_AFTER_FINISHED = 3 * 24 * 3600


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec:
    """The workload as users describe it: models of a Kubernetes client, or mappings in either spelling.

    :param image: may come from a pod template or ``full_pod_spec`` instead
    :param cmds: replaces the image's entrypoint
    :param arguments: a list; a string is one argument
    :param env_vars: a mapping of strings, or a list of ``V1EnvVar``. Credentials belong into ``env_from``,
        ``secrets`` or a ``valueFrom`` that refers to a Secret: values given here are readable in the Job,
        and refused where they are known to be credentials.
    :param configmaps: names of ConfigMaps whose entries become variables
    :param secrets: Airflow's ``Secret`` objects, or any with deploy_type, deploy_target, secret and key.
        Their variables stand before ``env_vars``, which may refer to them: ``postgresql://me:$(DB_PASSWORD)@db``
    :param active_deadline_seconds: the Job fails after so many seconds of running; not counted while queued
    :param termination_grace_period: seconds between SIGTERM and SIGKILL
    :param pod_template_file: a YAML file with a Pod; the base that ``full_pod_spec`` and then every explicit
        parameter is laid over
    :param pod_template_dict: the same, as a mapping; give one of the two
    :param base_container_name: the container that the explicit parameters describe and whose end decides: the
        base's container of this name, else its first, which then gets this name. Without it, the first
        container with the name it has, or ``main``
    :param termination_message_policy: ``FallbackToLogsOnError``, unless the base says otherwise, so that an
        error shows its last lines
    :param automount_service_account_token: without ``service_account_name``, the pod gets no token unless
        this says so
    :param backoff_limit: pods the cluster starts anew after failures. 0 because retries are the
        orchestrator's: only it counts, delays and shows them.
    :param ttl_seconds_after_finished: when the cluster removes the finished Job; ``None`` keeps it
    :param queue_name: the Kueue LocalQueue the Job waits in
    :param pod_security: ``baseline`` sets safe defaults that any image allows; ``restricted`` adds
        runAsNonRoot and refuses what the restricted Pod Security level refuses
    :param oom_memory_factor: an attempt that follows one that ran out of memory gets so many times its
        memory; needs ``oom_memory_max`` and a memory limit
    :param oom_memory_max: the most memory an attempt is ever given, a quantity such as ``32Gi``
    :param volatile_env: names of variables that may differ between retries of one attempt: they do not count
        when an existing Job is compared with this spec
    :param own_env: nighttrain's own variables, for the main container; :data:`RUN_VARIABLES` for every one.
        They stand before the user's, whose ``$(MLFLOW_RUN_ID)`` is so replaced; one that the user gives too
        is left out
    :param known_secrets: credentials that must stand nowhere in the workload; see
        :func:`nighttrain.providers.kubernetes.job.plain_secrets.known_forms`
    :param files: file name -> content, for the main container's folder ``/nighttrain``, through a ConfigMap
        that goes when the Job goes. At most 1 MiB in all; readable like the Job: no secrets here
    """

    image: str | None = None
    cmds: Sequence[str] | None = None
    arguments: Sequence[str] | str | None = None
    env_vars: Mapping[str, Any] | Sequence[Any] | None = None
    env_from: Sequence[Any] | None = None
    configmaps: Sequence[str] | None = None
    secrets: Sequence[Any] | None = None
    volumes: Sequence[Any] | None = None
    volume_mounts: Sequence[Any] | None = None
    container_resources: Any = None
    node_selector: Mapping[str, str] | None = None
    affinity: Any = None
    tolerations: Sequence[Any] | None = None
    service_account_name: str | None = None
    automount_service_account_token: bool | None = None
    image_pull_secrets: Sequence[Any] | str | None = None
    image_pull_policy: str | None = None
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    namespace: str | None = None
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    schedulername: str | None = None
    security_context: Any = None
    container_security_context: Any = None
    active_deadline_seconds: int | None = None
    termination_grace_period: int | None = None
    hostnetwork: bool = False
    host_aliases: Sequence[Any] | None = None
    hostname: str | None = None
    subdomain: str | None = None
    dnspolicy: str | None = None
    dns_config: Any = None
    init_containers: Sequence[Any] | None = None
    ports: Sequence[Any] | None = None
    pod_template_file: str | None = None
    pod_template_dict: Any = None
    full_pod_spec: Any = None
    base_container_name: str | None = None
    termination_message_policy: str | None = None
    backoff_limit: int = 0
    ttl_seconds_after_finished: int | None = TTL_SECONDS_AFTER_FINISHED
    queue_name: str | None = None
    pod_security: str = "baseline"
    working_dir: str | None = None
    volatile_env: Sequence[str] = field(default=())
    oom_memory_factor: float | None = None
    oom_memory_max: str | None = None
    files: Mapping[str, str] | None = None
    own_env: Mapping[str, str] = field(default_factory=dict)
    known_secrets: Sequence[str] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        # What a template gave as a number is the same text everywhere, in the manifest and in its hash. What
        # is no text at all stays as it is, for check_workload() to name.
        for name in _TEXTS:
            given = getattr(self, name)
            if isinstance(given, bool | int | float):
                object.__setattr__(self, name, text_of(name, given))

    def with_own_env(self, variables: Mapping[str, str]) -> WorkloadSpec:
        """The spec with further variables of nighttrain's own; those that the user set stay as they are."""
        return replace(self, own_env={**self.own_env, **variables})

    def env(self) -> list[dict[str, Any]]:
        """``env_vars`` as the API's list."""
        given = self.env_vars
        if given is None:
            return []
        if isinstance(given, Mapping):
            given = [
                {"name": name, "value": text_or_none(f"env_vars[{name!r}]", value)}
                for name, value in given.items()
            ]
        variables: list[dict[str, Any]] = plain(given, "list[V1EnvVar]", "env_vars")
        for variable in variables:
            name = variable.get("name", "")
            if not ENV_NAME.fullmatch(name):
                raise ConfigurationError(
                    "env_vars", name, "a variable's name has letters, digits, '_', '-', '.'"
                )
        return variables

    def env_sources(self) -> list[dict[str, Any]]:
        """``env_from`` and ``configmaps`` as the API's list."""
        sources: list[dict[str, Any]] = plain(self.env_from, "list[V1EnvFromSource]", "env_from") or []
        names: list[str] = plain(self.configmaps, "list[str]", "configmaps") or []
        for number, name in enumerate(names):
            check_object_name(f"configmaps[{number}]", name)
        return [*sources, *({"configMapRef": {"name": name}} for name in names)]

    def args(self) -> list[str] | None:
        """``arguments`` as a list."""
        if self.arguments is None:
            return None
        given = [self.arguments] if isinstance(self.arguments, _SCALARS) else self.arguments
        return plain(given, "list[str]", "arguments") or None

    def command(self) -> list[str] | None:
        """``cmds`` as a list."""
        if self.cmds is None:
            return None
        given = [self.cmds] if isinstance(self.cmds, _SCALARS) else self.cmds
        return plain(given, "list[str]", "cmds") or None

    def pull_secrets(self) -> list[dict[str, Any]]:
        """``image_pull_secrets``, also from KubernetesPodOperator's comma-separated string."""
        given = self.image_pull_secrets or []
        if isinstance(given, str):
            given = given.split(",")
        named = [{"name": item.strip()} if isinstance(item, str) else item for item in given]
        return plain(named, "list[V1LocalObjectReference]", "image_pull_secrets") or []

    def resources(self) -> dict[str, Any] | None:
        """``container_resources``, with no request above its limit."""
        checked: dict[str, Any] | None = plain(
            self.container_resources, "V1ResourceRequirements", "container_resources"
        )
        limits, requests = (checked or {}).get("limits", {}), (checked or {}).get("requests", {})
        for name in limits.keys() & requests.keys():
            path = f"container_resources.requests.{name}"
            if parse_quantity(path, requests[name]) > parse_quantity(path, limits[name]):
                raise ConfigurationError(path, requests[name], f"is above the limit {limits[name]!r}")
        return checked


_SCALARS = (str, bool, int, float)
# The parameters whose value is one text.
_TEXTS = (
    *("image", "namespace", "hostname", "subdomain", "queue_name", "working_dir", "base_container_name"),
    *("service_account_name", "priority_class_name", "runtime_class_name", "schedulername"),
    *("pod_template_file", "image_pull_secrets", "oom_memory_max"),
)
