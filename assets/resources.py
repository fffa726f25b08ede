"""The cluster and MLflow as Dagster resources: plain configuration, a client for each use, no globals."""

from __future__ import annotations

import warnings
from urllib.parse import quote

import dagster as dg
from pydantic import Field

from nighttrain.providers.kubernetes.api.client import ClusterConfig
from nighttrain.providers.pod_access import PodAccess, pod_access
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig


class KubernetesResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The cluster that runs the workloads.

    Without any field: the kubeconfig that ``kubectl`` would use.
    """

    kubeconfig: str | None = Field(default=None, description="path of a kubeconfig")
    context: str | None = Field(default=None, description="context of the kubeconfig")
    in_cluster: bool = Field(default=False, description="use the service account of the pod this runs in")
    namespace: str | None = Field(
        default=None, description="namespace for workloads without one of their own"
    )
    verify_ssl: bool = Field(default=True, description="check the API server's certificate")

    def cluster_config(self) -> ClusterConfig:
        """This resource as the cluster adapter's configuration."""
        return ClusterConfig(
            kubeconfig=self.kubeconfig,
            context=self.context,
            in_cluster=self.in_cluster,
            namespace=self.namespace,
            verify_ssl=self.verify_ssl,
        )


class MLflowResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The MLflow server. Pass secrets as ``dg.EnvVar("NAME")``."""

    tracking_uri: str = Field(description="for example https://mlflow.example.com")
    token: str | None = Field(default=None, description="bearer token, instead of user name and password")
    username: str | None = Field(default=None, description="user name")
    password: str | None = Field(default=None, description="password")
    registry_uri: str | None = Field(
        default=None, description="the registry's URI, where it is another server"
    )
    workspace: str | None = Field(
        default=None, description="MLflow's workspace; the server's default if left out"
    )
    auth: str | None = Field(
        default=None,
        description="kubernetes or kubernetes-namespaced: a service account's token, as MLFLOW_TRACKING_AUTH",
    )
    ca_certificate: str | None = Field(default=None, description="path of a PEM file")
    verify_ssl: bool = Field(default=True, description="check the server's certificate")
    cluster_uri: str | None = Field(default=None, description="the tracking URI as pods see it")
    mlflow_secret: str | None = Field(
        default=None, description="Kubernetes Secret with MLFLOW_TRACKING_* credentials for the pods"
    )
    credentials_secret: str | None = Field(default=None, description="deprecated: mlflow_secret")
    retry_seconds: float = Field(
        # As long as the tracking adapter's own default: MLflow restarts in that time.
        default=45.0,
        description="how long to go on asking an MLflow that does not answer",
    )

    def tracking_config(self) -> TrackingConfig:
        """This resource as the tracking adapter's configuration."""
        return TrackingConfig(
            uri=self.tracking_uri,
            token=self.token,
            username=self.username,
            password=self.password,
            registry_uri=self.registry_uri,
            workspace=self.workspace,
            auth=self.auth,
            ca_certificate=self.ca_certificate,
            verify_ssl=self.verify_ssl,
            retry_seconds=self.retry_seconds,
        )

    def client(self) -> MLflowClient:
        """A client to use as ``async with``; every call gives another."""
        return MLflowClient(self.tracking_config())

    def uri_for_pods(self) -> str:
        """MLflow's address as the pods reach it, without credentials: those belong into a Secret."""
        from nighttrain.providers.tracking.config import address_for_pods

        return address_for_pods("cluster_uri", self.cluster_uri or self.tracking_config().uri)

    def pods(self) -> PodAccess:
        """The pods' way to MLflow: its address, certificates and credentials by reference."""
        if self.credentials_secret is not None:
            warnings.warn(
                "MLflowResource: credentials_secret is called mlflow_secret now",
                DeprecationWarning,
                stacklevel=2,
            )
        secret = self.mlflow_secret or self.credentials_secret
        return pod_access(self.tracking_config(), uri=self.uri_for_pods(), secret=secret)

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """The run's page."""
        from nighttrain.providers.tracking.config import page_url

        config = self.tracking_config()
        return page_url(config.uri, f"experiments/{experiment_id}/runs/{run_id}", config)

    def artifact_url(self, experiment_id: str, run_id: str, path: str) -> str:
        """The page of one of the run's files."""
        from nighttrain.providers.tracking.config import page_url

        config = self.tracking_config()
        place = f"experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}"
        return page_url(config.uri, place, config)

    def version_url(self, model_name: str, version: str) -> str:
        """The version's page."""
        from nighttrain.providers.tracking.config import page_url

        config = self.tracking_config()
        place = f"models/{quote(model_name, safe='')}/versions/{version}"
        return page_url(config.registry_uri or config.uri, place, config)
