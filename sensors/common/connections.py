"""Airflow connections as the adapters' configurations.

Clusters use Airflow's standard ``kubernetes`` connection and its fields; MLflow uses the ``mlflow``
connection type that this package declares. Credentials stay in these objects: they never enter trigger
arguments, templates or XComs.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.connection import ClusterConfig
    from nighttrain.providers.pod_access import PodAccess
    from nighttrain.providers.tracking.config import TrackingConfig

DEFAULT_KUBERNETES_CONN_ID = "kubernetes_default"
DEFAULT_MLFLOW_CONN_ID = "mlflow_default"

# Looking takes MLflow about 10 ms, so one look in 5 s is 0.2 % of a server's time for each watched model,
# and a transition waits 2.5 s on average.
DEFAULT_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class MLflowConnection:
    """MLflow's addresses, as the orchestrator, the pods and a person's browser reach it."""

    config: TrackingConfig
    cluster_uri: str
    ui_uri: str
    secret: str | None = None
    """The Kubernetes Secret that gives pods their MLFLOW_TRACKING_* credentials."""

    def pods(self) -> PodAccess:
        """The pods' way to MLflow: its address, certificates and credentials by reference."""
        from nighttrain.providers.pod_access import pod_access

        return pod_access(self.config, uri=self.cluster_uri, secret=self.secret)

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """The run's page."""
        return self._page(f"experiments/{experiment_id}/runs/{run_id}")

    def artifact_url(self, experiment_id: str, run_id: str, path: str) -> str:
        """The page of one of the run's files."""
        return self._page(f"experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}")

    def version_url(self, model_name: str, version: str) -> str:
        """The model version's page."""
        return self._page(f"models/{quote(model_name, safe='')}/versions/{version}")

    def _page(self, place: str) -> str:
        from nighttrain.providers.tracking.config import page_url

        return page_url(self.ui_uri, place, self.config)


@dataclass(frozen=True)
class ClusterConnection:
    """A cluster's address and credentials, and the Pod Security level that its namespaces enforce."""

    config: ClusterConfig
    pod_security: Literal["baseline", "restricted"] = "baseline"


def get_cluster(conn_id: str) -> ClusterConnection:
    """The cluster behind a ``kubernetes`` connection, for code that runs in a worker."""
    return cluster_connection(_get(conn_id, "kubernetes_conn_id", "kubernetes"))


def get_cluster_config(conn_id: str) -> ClusterConfig:
    """As :func:`get_cluster`, where no pod is made."""
    return get_cluster(conn_id).config


async def aget_cluster_config(conn_id: str) -> ClusterConfig:
    """The cluster behind a ``kubernetes`` connection, for triggers."""
    return cluster_config(await _aget(conn_id, "kubernetes_conn_id", "kubernetes"))


def get_mlflow(conn_id: str) -> MLflowConnection:
    """The MLflow server behind a connection, for code that runs in a worker."""
    return mlflow_connection(_get(conn_id, "mlflow_conn_id", "mlflow"))


async def aget_mlflow(conn_id: str) -> MLflowConnection:
    """The MLflow server behind a connection, for triggers."""
    return mlflow_connection(await _aget(conn_id, "mlflow_conn_id", "mlflow"))


def cluster_connection(conn: Connection) -> ClusterConnection:
    """Read a ``kubernetes`` connection; its extra ``pod_security`` is nighttrain's own.

    :raises ConfigurationError: see :func:`cluster_config`, or an unknown ``pod_security``
    """
    config = cluster_config(conn)
    match _extra(conn).get("pod_security") or "baseline":
        case "baseline":
            return ClusterConnection(config, "baseline")
        case "restricted":
            return ClusterConnection(config, "restricted")
        case other:
            raise ConfigurationError(
                f"connection {conn.conn_id}: pod_security", other, "must be baseline or restricted"
            )


def cluster_config(conn: Connection) -> ClusterConfig:
    """Read the fields that Airflow's own KubernetesHook reads.

    :raises ConfigurationError: two ways to reach the cluster are set at once, or ``kube_config`` is not JSON
    """
    from nighttrain.providers.kubernetes.api.client import ClusterConfig

    extra = _extra(conn)

    def field(name: str) -> Any:
        return extra.get(name) or extra.get(f"extra__kubernetes__{name}") or None

    content = field("kube_config")
    chosen = [
        name for name in ("in_cluster", "kube_config_path", "kube_config") if _flag_or_text(field(name))
    ]
    if len(chosen) > 1:
        raise ConfigurationError(
            f"connection {conn.conn_id}", " + ".join(chosen), "set one way to reach the cluster, not several"
        )
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except ValueError as error:
            raise ConfigurationError(
                f"connection {conn.conn_id}: kube_config", None, "must be a kubeconfig as JSON"
            ) from error
    return ClusterConfig(
        kubeconfig=field("kube_config_path"),
        context=field("cluster_context"),
        in_cluster=_is_true(field("in_cluster")),
        kubeconfig_content=content,
        namespace=field("namespace"),
        verify_ssl=not _is_true(field("disable_verify_ssl")),
    )


def mlflow_connection(conn: Connection) -> MLflowConnection:
    """Read an ``mlflow`` connection (an ``http`` one with the same fields works too).

    :raises ConfigurationError: there is no host, or an address that is not http or https
    """
    from nighttrain.providers.tracking.config import TrackingConfig, address_for_pods

    if not conn.host:
        raise ConfigurationError(
            f"connection {conn.conn_id}: host",
            conn.host,
            "must be MLflow's tracking URI, such as https://mlflow.example.com",
        )
    extra = _extra(conn)
    uri = _uri(conn)
    config = TrackingConfig(
        uri=uri,
        token=extra.get("token") or None,
        username=conn.login or None,
        password=conn.password or None,
        registry_uri=extra.get("registry_uri") or None,
        workspace=extra.get("workspace") or None,
        auth=extra.get("auth") or None,
        ca_certificate=extra.get("ca_certificate") or None,
        verify_ssl=not _is_true(extra.get("disable_verify_ssl")),
    )
    return MLflowConnection(
        config=config,
        cluster_uri=address_for_pods("cluster_uri", extra.get("cluster_uri") or config.uri),
        ui_uri=(extra.get("ui_uri") or config.uri).rstrip("/"),
        secret=extra.get("mlflow_secret") or _secret_by_its_old_name(conn, extra),
    )


def _secret_by_its_old_name(conn: Connection, extra: dict[str, Any]) -> str | None:
    secret = extra.get("kubernetes_secret") or None
    if secret is not None:
        warnings.warn(
            f"connection {conn.conn_id}: the extra kubernetes_secret is called mlflow_secret now",
            DeprecationWarning,
            stacklevel=2,
        )
    return secret


def _uri(conn: Connection) -> str:
    host = str(conn.host).rstrip("/")
    if "://" not in host:
        host = f"{conn.schema or 'http'}://{host}"
    scheme, _, rest = host.partition("://")
    authority, slash, path = rest.partition("/")
    host_and_port = authority.rpartition("@")[2].rpartition("]")[2]
    if conn.port and ":" not in host_and_port:
        authority = f"{authority}:{conn.port}"
    return f"{scheme}://{authority}{slash}{path}"


def _extra(conn: Connection) -> dict[str, Any]:
    extra = conn.extra_dejson
    return dict(extra) if isinstance(extra, dict) else {}


def _is_true(value: object) -> bool:
    return str(value).strip().lower() in {"true", "1", "yes", "t"}


def _flag_or_text(value: object) -> bool:
    return bool(value) and str(value).strip().lower() not in {"false", "0", "no", "f"}


def _get(conn_id: str, parameter: str, conn_type: str) -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise _missing(conn_id, parameter, conn_type) from error


async def _aget(conn_id: str, parameter: str, conn_type: str) -> Connection:
    try:
        return await BaseHook.aget_connection(conn_id)
    except AirflowNotFoundException as error:
        raise _missing(conn_id, parameter, conn_type) from error


def _missing(conn_id: str, parameter: str, conn_type: str) -> ConfigurationError:
    return ConfigurationError(
        parameter,
        conn_id,
        f"no such connection; create it with: airflow connections add {conn_id} --conn-type {conn_type} ...",
    )
