"""What a rollout or a rollback came to: for the registry, and for the next task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.operators.common.clients import open_registry
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import NighttrainError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.serving.backends.base import EndpointStatus
    from nighttrain.sensors.common.connections import MLflowConnection


def tell_registry(
    mlflow: MLflowConnection,
    model_name: str,
    status: EndpointStatus,
    actor: str,
    warn: Callable[..., object],
) -> None:
    """Say on the versions' pages in MLflow which one the endpoint serves now.

    The endpoint has switched by then: whatever MLflow says fails nothing. The next rollout tells it again.
    """
    from nighttrain.providers.registry.version_page import record_serving

    async def tell() -> None:
        async with open_registry(mlflow) as registry:
            await record_serving(
                registry,
                model_name,
                status.stable_version,
                f"{status.namespace}/{status.endpoint}",
                url=status.url,
                by=actor,
                previous=status.previous_version,
            )

    try:
        run_sync(tell())
    except NighttrainError as error:
        served = f"{status.endpoint} serves version {status.stable_version}"
        warn("MLflow does not say yet that %s: %s", served, error)


def served(status: EndpointStatus) -> dict[str, Any]:
    return {
        "endpoint": status.endpoint,
        "model_name": status.model_name,
        "version": status.stable_version,
        "previous_version": status.previous_version,
        "url": status.url,
        "cluster_ip_url": status.cluster_ip_url,
    }
