"""The input of a rollout: a version, its endpoint and its pods."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.api_models import plain
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.plain_secrets import check_texts
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import PREFIX
from nighttrain.providers.kubernetes.values.names import check_annotations, check_dns_label, check_labels
from nighttrain.providers.serving.model_servers.model_server import FOLDER, ModelServer
from nighttrain.providers.serving.model_servers.servers import MLFLOW

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENDPOINT_LABEL = PREFIX + "endpoint"
VERSION_LABEL = PREFIX + "version"
MODEL_ANNOTATION = PREFIX + "model"
DIGEST_ANNOTATION = PREFIX + "artifact-sha256"
HASH_ANNOTATION = PREFIX + "spec-hash"
TEMPLATE_ANNOTATION = PREFIX + "template-hash"
DEPLOYED_ANNOTATION = PREFIX + "deployed-at"
REPLACED_ANNOTATION = PREFIX + "replaced"
SCALED_UP_ANNOTATION = PREFIX + "scaled-up"
STABLE_ANNOTATION = PREFIX + "stable-version"
PREVIOUS_ANNOTATION = PREFIX + "previous-version"
CANDIDATE_ANNOTATION = PREFIX + "candidate-version"
SWITCHED_ANNOTATION = PREFIX + "switched-at"
FENCE_ANNOTATION = PREFIX + "rollout-fence"
PERCENT_ANNOTATION = PREFIX + "candidate-percent"
MIRROR_ANNOTATION = PREFIX + "mirror-percent"
SHARE_REPLICAS_ANNOTATION = PREFIX + "candidate-replicas"
SCALED_DOWN_ANNOTATION = PREFIX + "scaled-down"
MANAGED_BY_LABEL, MANAGED_BY = "app.kubernetes.io/managed-by", "nighttrain"
RESERVED_KEYS = frozenset(
    {ENDPOINT_LABEL, VERSION_LABEL, MODEL_ANNOTATION, DIGEST_ANNOTATION, HASH_ANNOTATION, DEPLOYED_ANNOTATION}
    | {REPLACED_ANNOTATION, STABLE_ANNOTATION, PREVIOUS_ANNOTATION, CANDIDATE_ANNOTATION, SWITCHED_ANNOTATION}
    | {MANAGED_BY_LABEL, TEMPLATE_ANNOTATION, SCALED_UP_ANNOTATION, SCALED_DOWN_ANNOTATION}
    | {FENCE_ANNOTATION, PERCENT_ANNOTATION, MIRROR_ANNOTATION, SHARE_REPLICAS_ANNOTATION}
)

VERSION_VOLUME = "nighttrain-version"
"""Of a pod whose server does not download: the version's files (``model``), and the server's (``files``)."""

_ENDPOINT = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# A Deployment's name adds "-v<version>", a pod's name 17 characters more, and 63 is a host name's limit.
_MAX_ENDPOINT = 40


def check_endpoint(endpoint: str, namespace: str) -> None:
    """An endpoint's name and namespace, which become addresses and labels.

    :raises ConfigurationError: no endpoint can have that name, or be there
    """
    if not _ENDPOINT.fullmatch(endpoint) or len(endpoint) > _MAX_ENDPOINT:
        raise ConfigurationError(
            "endpoint",
            endpoint,
            f"use at most {_MAX_ENDPOINT} lower-case letters, digits and '-', beginning with a letter",
        )
    check_dns_label("namespace", namespace)


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """One version of one model behind one endpoint.

    :param endpoint: the Service's name; a DNS-1123 label of at most 40 characters
    :param version: a pinned version number, never an alias or a stage
    :param artifact_digest: sha256 of the artifact's manifest, as recorded at registration
    :param tracking_uri: MLflow's address as the pods reach it; credentials come by ``env_from`` from a Secret
    :param replicas: pods of a Deployment that is created; left out, as many as the version that serves has
    :param mlflow_env: how pods reach MLflow, beside its address; see
        :meth:`nighttrain.providers.pod_access.PodAccess.serving_environment`
    :param annotations: kept on the Deployment, e.g. the identity of the DAG run that asked
    :param port: where the scoring server listens; 8080 is what MLflow's containers use
    :param workers: processes in a pod; more replicas are the usual way to more throughput
    :param readiness_period_seconds: a ready pod is noticed within a second, for one cheap request a second
    :param readiness_timeout_seconds: five seconds, since a long prediction may hold up the answer
    :param readiness_failures: so many unanswered probes in a row take a busy pod out of service
    :param drain_seconds: how long a pod that is told to stop still takes requests: a cluster needs a moment
        (usually below two seconds) until every node has stopped sending
    :param connection_seconds: after this time an answer ends its connection, so that clients with open
        connections follow a switch; half a minute costs such a client one reconnect in thousands of requests
    :param termination_grace_period: seconds from SIGTERM to SIGKILL: the drain time, and 25 to finish
    :param known_secrets: credentials that must stand nowhere in the Deployment
    :param startup_timeout_seconds: from the start to ready: pulling an image of gigabytes takes minutes
    :param server: the program that serves the version; ``image`` has to have it
    :param download_image: an image with Python and mlflow, for a server that does not download by itself: an
        init container brings the version and verifies it
    :param source: where the registry says that the version's files are, for a serving system that fetches
        them from there itself
    :param mlflow_env_from: credentials for MLflow, from a Secret; only the container that downloads gets them
    """

    endpoint: str
    namespace: str
    image: str
    model_name: str
    version: str
    artifact_digest: str
    tracking_uri: str
    mlflow_env: Mapping[str, str] = field(default_factory=dict)
    replicas: int | None = None
    container_resources: Any = None
    env_vars: Mapping[str, str] | Sequence[Any] = field(default_factory=dict)
    env_from: Sequence[Any] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Any] = ()
    affinity: Any = None
    service_account_name: str | None = None
    image_pull_secrets: Sequence[Any] = ()
    image_pull_policy: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    automount_service_account_token: bool | None = None
    pod_annotations: Mapping[str, str] = field(default_factory=dict)
    port: int = 8080
    workers: int = 1
    pod_security: Literal["baseline", "restricted"] = "baseline"
    readiness_period_seconds: int = 1
    readiness_timeout_seconds: int = 5
    readiness_failures: int = 5
    drain_seconds: float = 5.0
    connection_seconds: float = 30.0
    termination_grace_period: int = 30
    startup_timeout_seconds: float = 600.0
    known_secrets: Sequence[str] = field(default=(), repr=False)
    server: ModelServer = MLFLOW
    download_image: str | None = None
    mlflow_env_from: Sequence[Any] = ()
    source: str = ""

    def validate(self) -> None:
        """Find every mistake that can be found without the cluster.

        :raises ConfigurationError: names the field, the value and the fix
        """
        self._validate_names()
        self._validate_numbers()
        self._validate_server()
        self._validate_pod()

    def _validate_names(self) -> None:
        check_endpoint(self.endpoint, self.namespace)
        if not self.model_name:
            raise ConfigurationError("model_name", self.model_name, "name a registered model")
        if not re.fullmatch(r"[0-9]{1,18}", self.version):
            raise ConfigurationError(
                "version", self.version, "pin a version number; resolve aliases and stages before the rollout"
            )
        if not _DIGEST.fullmatch(self.artifact_digest):
            raise ConfigurationError(
                "artifact_digest",
                self.artifact_digest,
                "give the sha256 recorded at registration, 64 hex digits",
            )
        if not self.image or re.search(r"\s", self.image):
            raise ConfigurationError("image", self.image, "name a container image that has Python and mlflow")
        uri = urlsplit(self.tracking_uri)
        if uri.username or uri.password:
            raise ConfigurationError(
                "tracking_uri", None, "leave the credentials out of it; pass them from a Secret with env_from"
            )
        if uri.scheme not in ("http", "https") or not uri.hostname:
            raise ConfigurationError(
                "tracking_uri", self.tracking_uri, "write the http(s) address of MLflow as pods reach it"
            )

    def _validate_numbers(self) -> None:
        for name in ("replicas", "workers", "readiness_period_seconds", "readiness_timeout_seconds",
                     "readiness_failures"):  # fmt: skip
            value = getattr(self, name)
            if name == "replicas" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(name, value, "use a whole number from 1")
        if not isinstance(self.port, int) or not 1024 <= self.port <= 65535:
            raise ConfigurationError(
                "port", self.port, "use a port from 1024 to 65535; lower ones need privileges"
            )
        if self.drain_seconds < 0 or self.connection_seconds <= 0 or self.startup_timeout_seconds < 1:
            raise ConfigurationError(
                "startup_timeout_seconds",
                (self.drain_seconds, self.connection_seconds, self.startup_timeout_seconds),
                "drain_seconds, connection_seconds and startup_timeout_seconds are seconds and positive",
            )
        if self.termination_grace_period <= self.drain_seconds:
            raise ConfigurationError(
                "termination_grace_period", self.termination_grace_period, "make it longer than drain_seconds"
            )

    def _validate_server(self) -> None:
        if not isinstance(self.server, ModelServer):
            raise ConfigurationError("server", self.server, "use one of model_servers.servers, e.g. TRITON")
        metrics = self.server.metrics
        if metrics and metrics.port == self.port:
            raise ConfigurationError("port", self.port, f"{self.server.name} has its metrics there")
        if self.server.downloads:
            return
        if not self.download_image or re.search(r"\s", self.download_image):
            raise ConfigurationError(
                "download_image",
                self.download_image,
                f"name an image that has Python and mlflow: {self.server.name} does not download by itself",
            )
        if not _SERVED_NAME.fullmatch(self.model_name):
            raise ConfigurationError(
                "model_name",
                self.model_name,
                f"{self.server.name} makes folders and addresses of it: letters, digits, '.', '_' and '-'",
            )
        if self.workers != 1:
            raise ConfigurationError(
                "workers", self.workers, f"say it in {self.server.name}'s own arguments, or use more replicas"
            )
        check_texts(self.server.files, "server.files", self.known_secrets)

    def _validate_pod(self) -> None:
        for name, given in (("labels", self.labels), ("node_selector", self.node_selector)):
            check_labels(name, plain(given, "dict(str, str)", name))
        check_annotations("annotations", plain(self.annotations, "dict(str, str)", "annotations"))
        if reserved := RESERVED_KEYS & (self.labels.keys() | self.annotations.keys()):
            key = min(reserved)
            raise ConfigurationError(f"labels[{key!r}]", None, "nighttrain sets this one itself")
        check_workload(self.workload())
        for name in ("labels", "annotations"):
            check_texts(getattr(self, name), name, self.known_secrets)

    def filled_server(self) -> ModelServer:
        """The server with this version's name, number and port in its texts."""
        return self.server.filled(model=self.model_name, version=self.version, port=self.port)

    def workload(self) -> WorkloadSpec:
        """The part that a serving pod shares with a training pod, in the shape that checks and builds it."""
        server = self.filled_server()
        given = WorkloadSpec(env_vars=self.env_vars).env()
        names = {variable["name"] for variable in given}
        own = [{"name": name, "value": value} for name, value in server.env.items() if name not in names]
        return WorkloadSpec(
            image=self.image,
            cmds=server.command,
            arguments=server.args,
            env_vars=[*own, *given],
            env_from=[*self.env_from, *self.mlflow_env_from] if server.downloads else self.env_from,
            volumes=None if server.downloads else [{"name": VERSION_VOLUME, "emptyDir": {}}],
            volume_mounts=None if server.downloads else _mounts(server),
            container_resources=self.container_resources,
            node_selector=self.node_selector,
            affinity=self.affinity,
            tolerations=self.tolerations,
            service_account_name=self.service_account_name,
            automount_service_account_token=self.automount_service_account_token,
            image_pull_secrets=self.image_pull_secrets,
            image_pull_policy=self.image_pull_policy,
            annotations=self.pod_annotations,
            termination_grace_period=self.termination_grace_period,
            pod_security=self.pod_security,
            known_secrets=self.known_secrets,
        )


def _mounts(server: ModelServer) -> list[dict[str, Any]]:
    """Where the server's container has the version; what was verified cannot be changed there."""
    mount = {"name": VERSION_VOLUME, "readOnly": True}
    places = [
        {**mount, "mountPath": place.path, "subPath": f"model/{place.source}".rstrip("/")}
        for place in server.places
    ]
    return [{**mount, "mountPath": FOLDER}, *places]
