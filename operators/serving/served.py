"""What a rollout or a rollback came to: for the registry, and for the next task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from nighttrain.operators.common.clients import open_registry
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import NighttrainError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.serving.backends.base import EndpointStatus
    from nighttrain.providers.serving.backends.traffic import Address, Target
    from nighttrain.sensors.common.connections import MLflowConnection


@dataclass(frozen=True, kw_only=True)
class Served:
    """Which version an endpoint serves now, and where."""

    endpoint: str
    namespace: str
    model_name: str
    version: str
    previous_version: str | None
    url: str
    cluster_ip_url: str

    @classmethod
    def by_status(cls, status: EndpointStatus) -> Self:
        """As a switch at once left it."""
        return cls(
            endpoint=status.endpoint,
            namespace=status.namespace,
            model_name=status.model_name,
            version=status.stable_version,
            previous_version=status.previous_version,
            url=status.url,
            cluster_ip_url=status.cluster_ip_url,
        )

    @classmethod
    def by_target(cls, target: Target, route: Address) -> Self:
        """As a rollout in steps left it.

        :param route: where it answers
        """
        return cls(
            endpoint=target.endpoint,
            namespace=target.namespace,
            model_name=target.model_name,
            version=target.candidate,
            previous_version=None if target.stable == target.candidate else target.stable,
            url=route.named_url or route.url,
            cluster_ip_url=route.url,
        )

    def to_dict(self) -> dict[str, Any]:
        """What the task returns."""
        return {
            "endpoint": self.endpoint,
            "model_name": self.model_name,
            "version": self.version,
            "previous_version": self.previous_version,
            "url": self.url,
            "cluster_ip_url": self.cluster_ip_url,
        }


def tell_registry(mlflow: MLflowConnection, served: Served, actor: str, warn: Callable[..., object]) -> None:
    """Say on the versions' pages in MLflow which one the endpoint serves now.

    The endpoint has switched by then: whatever MLflow says fails nothing. The next rollout tells it again.
    """
    from nighttrain.providers.registry.version_page import record_serving

    async def tell() -> None:
        async with open_registry(mlflow) as registry:
            await record_serving(
                registry,
                served.model_name,
                served.version,
                f"{served.namespace}/{served.endpoint}",
                url=served.url,
                by=actor,
                previous=served.previous_version,
            )

    try:
        run_sync(tell())
    except NighttrainError as error:
        warn("MLflow does not say yet that %s serves version %s: %s", served.endpoint, served.version, error)
