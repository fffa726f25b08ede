"""Clients for one ``async with``, from what a connection says."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.serving.rollout import Rollout
    from nighttrain.sensors.common.connections import MLflowConnection


@asynccontextmanager
async def open_registry(mlflow: MLflowConnection) -> AsyncIterator[ModelRegistry]:
    """The model registry behind an ``mlflow`` connection."""
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.tracking.client import MLflowClient

    async with MLflowClient(mlflow.config) as client:
        yield ModelRegistry(client)


@asynccontextmanager
async def open_rollout(cluster: ClusterConfig) -> AsyncIterator[tuple[ClusterClient, Rollout]]:
    """A cluster client and the rollout engine for the plain Kubernetes backend."""
    from nighttrain.providers.kubernetes.api.client import shared_client
    from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
    from nighttrain.providers.serving.rollout import Rollout

    async with shared_client(cluster) as client:
        yield client, Rollout(KubernetesDeployments(client))
