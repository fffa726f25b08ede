"""Waiting for endpoints: what the endpoint sensor, the rollout operator and their trigger share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import RolloutFailedError
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollout import Rollout

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.base import EndpointStatus

# Two small requests a second while somebody waits; a switch is noticed within a second.
POLL_SECONDS = 1.0

Progress = Callable[[str], None]


async def wait_candidate_ready(
    client: ClusterClient,
    namespace: str,
    endpoint: str,
    version: str | None,
    *,
    timeout_seconds: float,
    on_progress: Progress,
) -> dict[str, Any]:
    """Return once every replica of the candidate is ready; it gets no requests yet.

    :raises RolloutFailedError: it will not become ready, or did not in time
    """
    rollout = Rollout(KubernetesDeployments(client))
    await rollout.wait_version_ready(
        endpoint, namespace, str(version), timeout_seconds=timeout_seconds, on_progress=on_progress
    )
    return {"endpoint": endpoint, "version": version}


async def remove_candidate(client: ClusterClient, namespace: str, endpoint: str, version: str) -> None:
    """Undo what a rollout started; a version that serves, or is kept for a rollback, stays."""
    await KubernetesDeployments(client).revert(endpoint, namespace, version)


async def wait_endpoint_serves(
    client: ClusterClient,
    namespace: str,
    endpoint: str,
    version: str | None,
    *,
    timeout_seconds: float,
    on_progress: Progress,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Return once the endpoint serves the version (any, if None) from ready replicas.

    :raises RolloutFailedError: it did not within the time
    """
    end = clock() + timeout_seconds
    told = ""
    while True:
        status = await endpoint_status(client, namespace, endpoint)
        if serves(status, version):
            return status.to_dict() if status else {}
        detail = describe(status)
        if detail != told:
            told = detail
            on_progress(f"{endpoint}: {detail}")
        if clock() >= end:
            wanted = f"version {version}" if version else "any version"
            raise RolloutFailedError(
                f"endpoint {endpoint} in namespace {namespace} did not serve {wanted} within "
                f"{timeout_seconds:g} seconds: {detail}"
            )
        await sleep(POLL_SECONDS)


async def endpoint_status(client: ClusterClient, namespace: str, endpoint: str) -> EndpointStatus | None:
    """The endpoint's status; None where nothing was rolled out."""
    return await KubernetesDeployments(client).status(endpoint, namespace)


def serves(status: EndpointStatus | None, version: str | None) -> bool:
    """True if the endpoint serves the version (any, if None) from all the replicas it should have."""
    if status is None or (version is not None and status.stable_version != str(version)):
        return False
    return status.answers and status.replicas <= status.ready_replicas


def describe(status: EndpointStatus | None) -> str:
    """One line for people who wait."""
    return status.describe() if status else "nothing was rolled out yet"
