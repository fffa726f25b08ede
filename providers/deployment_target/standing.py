"""How endpoints stand: what MLflow's command line shows of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ObjectNotFoundError, ServingError, WorkloadConflictError
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS
from nighttrain.providers.kubernetes.values.identity import PREFIX
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, text
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollouts.opening import Setting
from nighttrain.providers.serving.rollouts.state import Phase
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MANAGED_BY, MANAGED_BY_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.backends.base import EndpointStatus
    from nighttrain.providers.serving.rollouts.store import Kept

FLAVOR = "python_function"
"""What the scoring server in the pods loads, whatever library the model is of."""

DEPLOYED_BY_ANNOTATION = PREFIX + "deployed-by"
"""The same as the operators write: a DAG's task, or a person."""

SETTINGS_ANNOTATION = PREFIX + "deployment-settings"

PLAIN = "deployment"
"""The serving system that a switch at once is possible on."""

PLAIN_BACKENDS = frozenset({PLAIN, "gateway"})
"""Serving systems whose endpoints are nighttrain's own Services and Deployments."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """An endpoint as one look saw it.

    :param status: of its Service and Deployments; ``None`` where there is no Service, or another serving
        system's
    :param kept: its last rollout in steps; ``None`` if there was none
    :param annotations: of the Deployment of the version that serves
    :param fault: why it cannot be told how the endpoint stands
    """

    name: str
    namespace: str
    status: EndpointStatus | None
    kept: Kept | None
    annotations: dict[str, str]
    fault: str = ""

    @property
    def backend(self) -> dict[str, Any]:
        """The serving system that it is on, as its last rollout in steps says."""
        return dict(Setting.from_dict(self.kept.state.setting).backend) if self.kept else {"type": PLAIN}

    @property
    def version(self) -> str:
        """The version that serves; empty where none does yet."""
        if self.status is not None:
            return self.status.stable_version
        if self.kept is None or self.backend["type"] in PLAIN_BACKENDS:
            return ""
        state = self.kept.state
        return (state.target.candidate if state.phase is Phase.PROMOTED else state.target.stable) or ""

    @property
    def model_name(self) -> str:
        """The registered model; empty where nothing serves."""
        if self.status is not None:
            return self.status.model_name
        return self.kept.state.target.model_name if self.kept else ""

    @property
    def rollout(self) -> str:
        """The last rollout in steps, in words."""
        if self.kept is None:
            return self.fault or "none in steps"
        state = self.kept.state
        return f"{state.describe().removeprefix(f'{self.name}: ')} (begun by {state.actor})"

    def to_dict(self) -> dict[str, Any]:
        """What ``get`` shows."""
        status = self.status
        shown: dict[str, Any] = {
            "name": self.name,
            "namespace": self.namespace,
            "flavor": FLAVOR,
            "model_name": self.model_name,
            "version": self.version or None,
            "model_uri": f"models:/{self.model_name}/{self.version}" if self.version else None,
            "backend": self.backend["type"],
            "rollout": self.rollout,
            "created_by": self.annotations.get(DEPLOYED_BY_ANNOTATION),
        }
        if status is None:
            return shown
        image = next((each.image for each in status.versions if each.version == status.stable_version), None)
        return shown | {
            "state": status.describe(),
            "previous_version": status.previous_version,
            "candidate_version": status.candidate_version,
            "replicas": status.replicas,
            "ready_replicas": status.ready_replicas,
            "image": image,
            "url": status.url,
            "cluster_ip_url": status.cluster_ip_url,
            "switched_at": status.switched_at,
        }


async def look_at(client: ClusterClient, name: str, namespace: str) -> Standing:
    """Look at one endpoint, which may not exist.

    :raises WorkloadConflictError: an object of that name is not nighttrain's
    """
    kept = await RolloutStore(client).read(name, namespace)
    standing = Standing(name=name, namespace=namespace, status=None, kept=kept, annotations={})
    if standing.backend["type"] not in PLAIN_BACKENDS:
        return standing
    deployments = KubernetesDeployments(client)
    status = await deployments.status(name, namespace)
    deployment = None
    if status is not None and status.stable_version:
        deployment = await deployments.deployment(name, namespace, status.stable_version)
    held = mapping(metadata(deployment).get("annotations")) if deployment else {}
    return replace(standing, status=status, annotations=held)


async def look_at_served(client: ClusterClient, name: str, namespace: str) -> Standing:
    """Look at one endpoint that serves, or is about to.

    :raises ObjectNotFoundError: there is none
    """
    standing = await look_at(client, name, namespace)
    if not standing.version and (standing.kept is None or standing.kept.state.ended):
        raise ObjectNotFoundError(f"there is no endpoint {name} in namespace {namespace}")
    return standing


async def look_at_all(client: ClusterClient, namespace: str) -> list[Standing]:
    """Look at every endpoint of a namespace that has a version's Deployment, by whomever it was made."""
    listed = await client.list(DEPLOYMENTS, namespace, label_selector=f"{MANAGED_BY_LABEL}={MANAGED_BY}")
    labels = [mapping(metadata(item).get("labels")) for item in listed["items"]]
    names = sorted({text(held.get(ENDPOINT_LABEL)) for held in labels} - {""})
    return list(await asyncio.gather(*(_look_or_say(client, name, namespace) for name in names)))


async def _look_or_say(client: ClusterClient, name: str, namespace: str) -> Standing:
    """One odd object hides no other endpoint."""
    try:
        return await look_at(client, name, namespace)
    except (ServingError, WorkloadConflictError) as error:
        return Standing(
            name=name, namespace=namespace, status=None, kept=None, annotations={}, fault=str(error)
        )
