"""Services: EndpointSlices of their pods, and the proxy that balances over those that are ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.reconcile import (
    Controller,
    ReconcileLoop,
    owner_reference,
)
from nighttrain.providers.local.cluster.kinds.pods import has_ended, is_active, is_ready
from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.resources import ENDPOINTSLICES, PODS, SERVICES, ResourceType
from nighttrain.providers.local.cluster.store.store import EventType, Object

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.machine.network import Address, ClusterNetwork

_MANAGED_BY = "endpointslice-controller.k8s.io"


class EndpointsController(Controller):
    """Keeps EndpointSlices and the proxy in step with the pods that a Service selects."""

    def __init__(self, loop: ReconcileLoop, network: ClusterNetwork) -> None:
        super().__init__(loop)
        self._network = network
        self._recorder = EventRecorder(loop.store, "service-proxy")
        self._served: dict[tuple[str, str], set[Address]] = {}
        self._members: dict[tuple[str, str], set[str]] = {}

    def changed(self, type_: EventType, resource: ResourceType, obj: Object) -> None:
        metadata = obj["metadata"]
        if resource is SERVICES:
            self.enqueue(metadata["namespace"], metadata["name"])
        elif resource is PODS:
            # Whatever selects the pod now, or did until this change.
            for service in self.store.list(SERVICES, metadata["namespace"])[0]:
                name = service["metadata"]["name"]
                members = self._members.get((metadata["namespace"], name), ())
                if _selects(service, obj) or metadata["uid"] in members:
                    self.enqueue(metadata["namespace"], name)
        elif resource is ENDPOINTSLICES and type_ is EventType.DELETED:
            name = (metadata.get("labels") or {}).get("kubernetes.io/service-name")
            if name and metadata["labels"].get("endpointslice.kubernetes.io/managed-by") == _MANAGED_BY:
                self.enqueue(metadata["namespace"], name)

    def reconcile(self, namespace: str, name: str) -> None:
        service = self.store.find(SERVICES, namespace, name)
        if service is None:
            self._forget((namespace, name))
            return
        selector = service["spec"].get("selector")
        if not selector:
            self._proxy(service, {})
            return
        pods = [pod for pod in self.store.list(PODS, namespace)[0] if _selects(service, pod)]
        self._members[namespace, name] = {pod["metadata"]["uid"] for pod in pods}
        endpoints = [
            _endpoint(pod) for pod in pods if (pod.get("status") or {}).get("podIP") and not has_ended(pod)
        ]
        ports = _slice_ports(service, pods)
        self._write_slice(service, endpoints, ports)
        self._proxy(service, self._backends(service, pods))

    def _forget(self, key: tuple[str, str]) -> None:
        for address in self._served.pop(key, set()):
            self._network.unserve(address)
        self._members.pop(key, None)

    # The proxy

    def _backends(self, service: Object, pods: list[Object]) -> dict[int, list[Address]]:
        ready = [pod for pod in pods if _takes_connections(pod)]
        backends: dict[int, list[Address]] = {}
        for port in service["spec"].get("ports") or []:
            targets = [(pod, _target_port(port, pod)) for pod in ready]
            backends[port["port"]] = [
                (pod["status"]["podIP"], target) for pod, target in targets if target is not None
            ]
        return backends

    def _proxy(self, service: Object, backends: dict[int, list[Address]]) -> None:
        metadata = service["metadata"]
        key = (metadata["namespace"], metadata["name"])
        host = service["spec"].get("clusterIP") or ""
        if not self._network.services.owns(host):
            backends = {}  # headless, or not yet given an address
        wanted: set[Address] = set()
        for port, targets in backends.items():
            address = (host, port)
            wanted.add(address)
            try:
                self._network.serve(address, targets)
            except OSError as error:
                why = f"cannot listen on {host}:{port}: {error.strerror or error}"
                if port < 1024:
                    why += "; ports below 1024 need privileges here: give the Service a higher port"
                self._recorder.warning(service, "ProxyPortNotBound", why)
        for address in self._served.get(key, set()) - wanted:
            self._network.unserve(address)
        self._served[key] = wanted

    # EndpointSlices

    def _write_slice(self, service: Object, endpoints: list[Object], ports: list[Object]) -> None:
        metadata = service["metadata"]
        known = self.owned(service, ENDPOINTSLICES)
        content = {"endpoints": endpoints or None, "ports": ports or None}
        if known:
            first, *others = known
            for each in others:
                self.store.delete(ENDPOINTSLICES, metadata["namespace"], each["metadata"]["name"])

            def write(new: Object) -> None:
                new.update(content)

            self.store.mutate(ENDPOINTSLICES, metadata["namespace"], first["metadata"]["name"], write)
            return
        labels = {
            "endpointslice.kubernetes.io/managed-by": _MANAGED_BY,
            "kubernetes.io/service-name": metadata["name"],
        }
        if service["spec"].get("clusterIP") == "None":
            labels["service.kubernetes.io/headless"] = ""
        meta = {
            "generateName": f"{metadata['name']}-",
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(service)],
        }
        self.store.create(ENDPOINTSLICES, {"metadata": meta, "addressType": "IPv4", **content})


def _selects(service: Object, pod: Object) -> bool:
    selector = service["spec"].get("selector") or {}
    labels = pod["metadata"].get("labels") or {}
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def _takes_connections(pod: Object) -> bool:
    return is_ready(pod) and is_active(pod) and bool(pod["status"].get("podIP"))


def _endpoint(pod: Object) -> Object:
    metadata = pod["metadata"]
    terminating = "deletionTimestamp" in metadata
    serving = is_ready(pod)
    endpoint: Object = {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {
            "ready": serving and not terminating,
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "nodeName": pod["spec"].get("nodeName"),
    }
    if pod["spec"].get("hostname") and pod["spec"].get("subdomain"):
        endpoint["hostname"] = pod["spec"]["hostname"]
    return endpoint


def _target_port(port: Object, pod: Object) -> int | None:
    """The pod's port behind a Service port, by number or by the name a container gives it."""
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int) or (str(target).isascii() and str(target).isdecimal()):
        return int(target)
    for container in pod["spec"]["containers"]:
        for each in container.get("ports") or []:
            if each.get("name") == target:
                return int(each["containerPort"])
    return None


def _slice_ports(service: Object, pods: list[Object]) -> list[Object]:
    found = []
    for port in service["spec"].get("ports") or []:
        numbers = [number for pod in pods if (number := _target_port(port, pod)) is not None]
        if numbers:
            protocol = port.get("protocol") or "TCP"
            found.append({"name": port.get("name") or "", "protocol": protocol, "port": numbers[0]})
    return found
