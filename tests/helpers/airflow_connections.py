"""Airflow's default connections, given by the environment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from nighttrain.providers.local.cluster.server import EmbeddedCluster


def connect_kubernetes(environment: pytest.MonkeyPatch, cluster: EmbeddedCluster) -> None:
    """Have ``kubernetes_default`` lead to the cluster."""
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": str(cluster.kubeconfig)}}
    environment.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))


def connect_mlflow(environment: pytest.MonkeyPatch, host: str, **fields: Any) -> None:
    """Have ``mlflow_default`` lead to an address.

    :param fields: further fields of the connection
    """
    connection = {"conn_type": "mlflow", "host": host, **fields}
    environment.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(connection))
