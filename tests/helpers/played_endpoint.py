"""Whoever else works on an endpoint's objects on a cluster that runs nothing: controllers, and time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.subresources import status_of
from nighttrain.providers.kubernetes.api.resources import (
    DEPLOYMENTS,
    ENDPOINTSLICES,
    HTTPROUTES,
    PODS,
    SERVICES,
)
from nighttrain.providers.local.cluster.faults.faults import FaultPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient

Object = dict[str, Any]
_VERSION = "nighttrain.dev/version"


class RestingPlan(FaultPlan):
    """Faults that strike nobody while ``rests`` is above zero: controllers and people have a good day."""

    rests = 0

    @property
    def idle(self) -> bool:
        return self.rests > 0 or super().idle


class PlayedControllers:
    """Makes pods, their readiness, EndpointSlices, and takes away what belonged to what is gone.

    :param starts_in: seconds from a pod's creation to its readiness
    """

    def __init__(
        self, client: ClusterClient, namespace: str, *, now: Callable[[], float], starts_in: float
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._now = now
        self._starts_in = starts_in
        self._born: dict[str, float] = {}

    async def follow(self) -> None:
        """Bring everything to what the objects ask for."""
        found = {
            resource: list((await self._client.list(resource, self._namespace))["items"])
            for resource in (DEPLOYMENTS, PODS, SERVICES)
        }
        deployments = found[DEPLOYMENTS]
        await self._collect(found[SERVICES], {each["metadata"]["uid"] for each in deployments})
        wanted = {name: each for each in deployments for name in self._pod_names(each)}
        there = {pod["metadata"]["name"] for pod in found[PODS]}
        for name in there - wanted.keys():
            await self._client.delete(PODS, self._namespace, name, propagation="Background")
        for name, deployment in wanted.items():
            if name not in there:
                await self._create_pod(name, deployment)
        ready = [name for name in wanted if self._now() >= self._born[name] + self._starts_in]
        for pod in found[PODS]:
            if pod["metadata"]["name"] in ready and not pod.get("status", {}).get("conditions"):
                await self._make_ready(pod)
        ready = [name for name in ready if name in there]
        for each in deployments:
            await self._status(each, sum(name in ready for name in self._pod_names(each)))
        await self._slices(found[SERVICES], {name: wanted[name] for name in ready})

    @staticmethod
    def _pod_names(deployment: Object) -> list[str]:
        held = deployment["metadata"]
        form = held["annotations"].get("nighttrain.dev/template-hash", "")[:6]
        stem = f"{held['name']}-{held['uid'][:6]}-{form or 'x'}"
        return [f"{stem}-{number}" for number in range(deployment["spec"].get("replicas", 1))]

    async def _create_pod(self, name: str, deployment: Object) -> None:
        template = deployment["spec"]["template"]
        meta = {"name": name, **{key: template["metadata"].get(key, {}) for key in ("labels", "annotations")}}
        container = {"name": "main", "image": "model-server:1"}
        spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        await self._client.create(PODS, self._namespace, body)
        self._born[name] = self._now()

    async def _make_ready(self, pod: Object) -> None:
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        await self._client.patch(
            status_of(PODS), self._namespace, pod["metadata"]["name"], {"status": status}
        )

    async def _status(self, deployment: Object, ready: int) -> None:
        count = deployment["spec"].get("replicas", 1)
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            **dict.fromkeys(("replicas", "updatedReplicas"), count),
            **dict.fromkeys(("readyReplicas", "availableReplicas"), ready),
        }
        if not status.items() <= deployment.get("status", {}).items():
            name = deployment["metadata"]["name"]
            await self._client.patch(status_of(DEPLOYMENTS), self._namespace, name, {"status": status})

    async def _slices(self, services: list[Object], ready: dict[str, Object]) -> None:
        listed = (await self._client.list(ENDPOINTSLICES, self._namespace))["items"]
        there = {each["metadata"]["name"]: each for each in listed}
        for service in services:
            name, selector = service["metadata"]["name"], service["spec"].get("selector", {})
            chosen = [
                pod
                for pod, deployment in ready.items()
                if selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
            ]
            endpoints = [
                {
                    "addresses": ["10.0.0.1"],
                    "conditions": {"ready": True},
                    "targetRef": {"kind": "Pod", "name": pod, "namespace": self._namespace},
                }
                for pod in sorted(chosen)
            ]
            held = there.pop(name, None)
            if held is None:
                meta = {"name": name, "labels": {"kubernetes.io/service-name": name}}
                body = {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": meta,
                    "addressType": "IPv4",
                    "endpoints": endpoints,
                }
                await self._client.create(ENDPOINTSLICES, self._namespace, body)
            elif held.get("endpoints") != endpoints:
                await self._client.patch(ENDPOINTSLICES, self._namespace, name, {"endpoints": endpoints})
        for name in there:
            await self._client.delete(ENDPOINTSLICES, self._namespace, name, propagation="Background")

    async def _collect(self, services: list[Object], uids: set[str]) -> None:
        for service in list(services):
            owners = [each["uid"] for each in service["metadata"].get("ownerReferences", [])]
            if owners and not uids & set(owners):
                services.remove(service)
                await self._client.delete(
                    SERVICES, self._namespace, service["metadata"]["name"], propagation="Background"
                )

    async def answering(self, service: str) -> list[str]:
        """The versions of the pods that a Service leads to, one a pod."""
        listed = (await self._client.list(ENDPOINTSLICES, self._namespace))["items"]
        pods = {
            pod["metadata"]["name"]: pod["metadata"]["labels"][_VERSION]
            for pod in (await self._client.list(PODS, self._namespace))["items"]
        }
        return [
            pods[each["targetRef"]["name"]]
            for found in listed
            if found["metadata"]["name"] == service
            for each in found.get("endpoints") or []
            if each["targetRef"]["name"] in pods
        ]


class PlayedGateway:
    """Takes up each route of a namespace, and routes as it says from the next time on.

    :param controllers: know which pods are behind a Service
    """

    def __init__(self, client: ClusterClient, namespace: str, controllers: PlayedControllers) -> None:
        self._client = client
        self._namespace = namespace
        self._controllers = controllers
        self._weights: dict[str, int] = {}

    async def follow(self) -> None:
        """Route by what was accepted before, and say of each route whether it is accepted."""
        services = {
            each["metadata"]["name"] for each in (await self._client.list(SERVICES, self._namespace))["items"]
        }
        self._weights = {}
        for route in (await self._client.list(HTTPROUTES, self._namespace))["items"]:
            references = [each for rule in route["spec"]["rules"] for each in rule.get("backendRefs", [])]
            resolved = services.issuperset(each["name"] for each in references)
            shared = next(rule for rule in route["spec"]["rules"] if not _is_for_testers(rule))
            for each in shared.get("backendRefs", []):
                self._weights[each["name"]] = each.get("weight", 1)
            await self._say(route, resolved=resolved)

    async def _say(self, route: Object, *, resolved: bool) -> None:
        conditions = [
            {
                "type": type_,
                "status": str(holds),
                "reason": type_ if holds else "BackendNotFound",
                "message": "",
                "observedGeneration": route["metadata"]["generation"],
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            for type_, holds in (("Accepted", True), ("ResolvedRefs", resolved))
        ]
        parent = {"controllerName": "played.test/gateway", "conditions": conditions}
        status = {"parents": [{**parent, "parentRef": each} for each in route["spec"]["parentRefs"]]}
        if status != route.get("status"):
            name = route["metadata"]["name"]
            await self._client.patch(status_of(HTTPROUTES), self._namespace, name, {"status": status})

    async def answers(self, count: int) -> list[str | None]:
        """The versions that answer so many requests: by weight, as evenly as whole requests can be."""
        behind = {name: await self._controllers.answering(name) for name in self._weights}
        total = sum(self._weights.values())
        counts = dict.fromkeys(self._weights, 0)
        answers: list[str | None] = []
        for number in range(count if total else 0):
            name = max(counts, key=lambda each: self._weights[each] * (number + 1) / total - counts[each])
            counts[name] += 1
            answers.append(behind[name][counts[name] % len(behind[name])] if behind[name] else None)
        return answers


def _is_for_testers(rule: Object) -> bool:
    return any(match.get("headers") for match in rule.get("matches", []))
