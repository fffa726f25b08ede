"""One Service for each version: the way to it alone, for golden requests, probes and a gateway's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import ObjectExistsError, ObjectNotFoundError, WorkloadConflictError
from nighttrain.providers.kubernetes.api.resources import SERVICES
from nighttrain.providers.kubernetes.values.objects import items, main_container_spec, mapping, metadata, text
from nighttrain.providers.serving.backends.manifests import PORT_NAME, deployment_name, version_labels
from nighttrain.providers.serving.backends.traffic import Address
from nighttrain.providers.serving.spec import ENDPOINT_LABEL, MANAGED_BY, MANAGED_BY_LABEL, VERSION_LABEL

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json


def build_version_service(deployment: Json) -> Json:
    """The Service of one version. It belongs to the version's Deployment, and goes with it."""
    held = metadata(deployment)
    labels = version_labels(held["labels"][ENDPOINT_LABEL], held["labels"][VERSION_LABEL])
    port = main_container_spec(deployment["spec"]["template"])["ports"][0]["containerPort"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": deployment_name(labels[ENDPOINT_LABEL], labels[VERSION_LABEL]),
            "namespace": held["namespace"],
            "labels": {**labels, MANAGED_BY_LABEL: MANAGED_BY},
            "ownerReferences": [_owner(deployment)],
        },
        "spec": {
            "type": "ClusterIP",
            "selector": labels,
            "ports": [{"name": PORT_NAME, "port": port, "targetPort": PORT_NAME, "protocol": "TCP"}],
        },
    }


async def ensure_version_service(client: ClusterClient, deployment: Json) -> Json:
    """Make the Service of a version, or find it; one that belonged to an earlier Deployment changes hands.

    :raises WorkloadConflictError: the name is taken by something else
    """
    wanted = build_version_service(deployment)
    name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
    found = await find_version_service(client, namespace, name)
    if found is None:
        try:
            return await client.create(SERVICES, namespace, wanted)
        except ObjectExistsError:
            found = await client.get(SERVICES, namespace, name)
    if not wanted["metadata"]["labels"].items() <= mapping(metadata(found).get("labels")).items():
        raise WorkloadConflictError(
            f"Service {name} exists and was not made by nighttrain for this version: choose another endpoint "
            "name, or remove it"
        )
    owners = [owner.get("uid") for owner in items(metadata(found).get("ownerReferences"))]
    if metadata(deployment)["uid"] in owners:
        return found
    change = {"metadata": {"ownerReferences": wanted["metadata"]["ownerReferences"]}}
    return await client.patch(SERVICES, namespace, name, change)


async def find_version_service(client: ClusterClient, namespace: str, name: str) -> Json | None:
    """A Service by name, if there is one."""
    try:
        return await client.get(SERVICES, namespace, name)
    except ObjectNotFoundError:
        return None


async def version_address(
    client: ClusterClient, endpoint: str, namespace: str, version: str | None
) -> Address | None:
    """Where one version alone is reached inside the cluster; ``None`` where it has no Service."""
    if version is None:
        return None
    found = await find_version_service(client, namespace, deployment_name(endpoint, version))
    return service_address(found)


def service_address(service: Json | None) -> Address | None:
    """Where a Service is reached, by IP address: not everybody resolves the cluster's names."""
    spec = mapping(service.get("spec")) if service else {}
    ports, host = items(spec.get("ports")), text(spec.get("clusterIP"))
    if not ports or not host or host == "None":
        return None
    shown = f"[{host}]" if ":" in host else host
    held, port = metadata(service or {}), ports[0].get("port")
    named = f"http://{held.get('name')}.{held.get('namespace')}.svc:{port}"
    return Address(url=f"http://{shown}:{port}", named_url=named)


def _owner(deployment: Json) -> Json:
    held = metadata(deployment)
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": held["name"], "uid": held["uid"]}
