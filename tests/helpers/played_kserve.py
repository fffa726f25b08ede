"""Who plays KServe's controller on an embedded cluster that runs nothing: waiting lets it look once.

It does what the recordings show: of 0.21 (weights of canaries that are ready, the stable version made smaller
beside them, what is not named any more goes), of 0.20 (the same without weights), and of Knative mode (a
revision for each form; the share of the latest ready one; what had everything last gets the rest). It is as
fast as one look, and pods are ready at once or never.
"""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

from helpers.subresources import status_of
from nighttrain.providers.errors import ObjectExistsError, ObjectNotFoundError
from nighttrain.providers.kubernetes.api.resources import (
    DEPLOYMENTS,
    HTTPROUTES,
    INFERENCE_SERVICES,
    KNATIVE_REVISIONS,
    Resource,
)

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

Object = dict[str, Any]
NAMESPACE, NAME = "default", "delay"
OWN = {"serving.kserve.io/inferenceservice": NAME}
_SIZES = ("minReplicas", "maxReplicas", "canaryTrafficPercent")

DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)


def definition(resource: Resource) -> Object:
    """One that takes every object of a kind, where upstream's is not at hand."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": resource.version, "served": True, "storage": True, "subresources": {"status": {}}}
    kind, plural = resource.kind, resource.plural
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{resource.group}"},
        "spec": {
            "group": resource.group,
            "names": names,
            "scope": "Namespaced",
            "versions": [{**version, "schema": schema}],
        },
    }


# Knative's own is not among the definitions that tests have; nothing of a revision is written by us.
REVISIONS_DEFINITION = definition(KNATIVE_REVISIONS)


class PlayedKServe:
    """The controller.

    :param splits: False plays 0.20
    :param never_ready: versions whose pods never are
    """

    def __init__(self, client: ClusterClient, *, splits: bool = True, namespace: str = NAMESPACE) -> None:
        self.client, self.namespace = client, namespace
        self.splits = splits
        self.never_ready: set[str] = set()
        self.asleep = False

    async def sleep(self, _: float) -> None:
        """Look once."""
        if not self.asleep:
            await self.reconcile()

    async def service(self) -> Object:
        return await self.client.get(INFERENCE_SERVICES, self.namespace, NAME)

    async def reconcile(self) -> None:
        try:
            service = await self.service()
        except ObjectNotFoundError:
            for kind in (DEPLOYMENTS, HTTPROUTES, KNATIVE_REVISIONS):
                await self._keep_only(kind, set())
            return
        mode = service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]
        told = await (self._standard(service) if mode == "Standard" else self._knative(service))
        told["deploymentMode"], told["url"] = mode, "http://delay-default.example.com"
        whole = {name: None for name in service.get("status") or {} if name not in told}
        await self._status(INFERENCE_SERVICES, NAME, {**whole, **told})

    # Standard mode

    async def _standard(self, service: Object) -> Object:
        predictor, entries = service["spec"]["predictor"], service["spec"].get("canary") or []
        ready, names = {}, {_service(predictor)}
        for entry in entries:
            merged = _merged(predictor, entry["predictor"])
            names.add(_service(merged))
            ready[merged["name"]] = await self._deploy(merged, merged["minReplicas"])
        smaller = sum(
            entry["predictor"]["minReplicas"] for entry in entries if ready[entry["predictor"]["name"]]
        )
        full = predictor.get("minReplicas", 1)
        up = await self._deploy(predictor, max(full - smaller, 1) if smaller else full)
        await self._keep_only(DEPLOYMENTS, names)
        await self._route(
            predictor, [entry for entry in entries if ready[entry["predictor"]["name"]]], entries
        )
        told: Object = {
            "conditions": [_condition(kind, up) for kind in ("Ready", "PredictorReady", "IngressReady")],
            "observedGeneration": (await self.client.get(DEPLOYMENTS, self.namespace, _service(predictor)))[
                "metadata"
            ]["generation"],
        }
        if entries:
            told["canaryStatuses"] = [
                {
                    "name": entry["predictor"]["name"],
                    "ready": ready[entry["predictor"]["name"]],
                    "trafficPercent": entry["trafficPercent"],
                }
                for entry in entries
            ]
        return told

    async def _deploy(self, predictor: Object, replicas: int) -> bool:
        name, version = _service(predictor), predictor["labels"]["nighttrain.dev/version"]
        labels = {"app": f"isvc.{name}"}
        template = {
            "metadata": {"labels": {**labels, **predictor["labels"], **OWN}},
            "spec": {"containers": [{"name": "kserve-container", "image": "server"}]},
        }
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": {**OWN, **predictor["labels"]}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
        }
        try:
            held = await self.client.create(DEPLOYMENTS, self.namespace, body)
        except ObjectExistsError:
            held = await self.client.patch(
                DEPLOYMENTS, self.namespace, name, {"spec": {"replicas": replicas}}
            )
        there = 0 if version in self.never_ready else replicas
        counts = {"replicas": replicas, "updatedReplicas": replicas}
        counts |= {"readyReplicas": there, "availableReplicas": there}
        state = {"observedGeneration": held["metadata"]["generation"], **counts}
        await self._status(DEPLOYMENTS, name, state)
        return there > 0

    async def _route(self, predictor: Object, ready: list[Object], entries: list[Object]) -> None:
        refs = [{"name": _service(predictor), "port": 80, "weight": 1}]
        if entries and self.splits:
            refs[0]["weight"] = 100 - sum(each["trafficPercent"] for each in ready)
            refs += [
                {"name": _service(each["predictor"]), "port": 80, "weight": each["trafficPercent"]}
                for each in ready
            ]
        spec = {"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": refs}]}
        body = {
            "apiVersion": HTTPROUTES.api_version,
            "kind": "HTTPRoute",
            "metadata": {"name": NAME, "labels": OWN},
            "spec": spec,
        }
        try:
            held = await self.client.create(HTTPROUTES, self.namespace, body)
        except ObjectExistsError:
            held = await self.client.patch(HTTPROUTES, self.namespace, NAME, {"spec": spec})
        since = {"lastTransitionTime": "2026-11-26T00:00:00Z", "message": ""}
        conditions = [
            {**_condition(kind, True), "observedGeneration": held["metadata"]["generation"], "reason": kind}
            | since
            for kind in ("Accepted", "ResolvedRefs")
        ]
        parent = {"parentRef": {"name": "gw"}, "controllerName": "a.b/c", "conditions": conditions}
        await self._status(HTTPROUTES, NAME, {"parents": [parent]})

    # Knative mode

    async def _knative(self, service: Object) -> Object:
        predictor = service["spec"]["predictor"]
        before = ((service.get("status") or {}).get("components") or {}).get("predictor") or {}
        form = json.dumps({k: v for k, v in predictor.items() if k not in _SIZES}, sort_keys=True)
        created, ready = before.get("latestCreatedRevision"), before.get("latestReadyRevision")
        if created is None or (await self._revision(created))["metadata"]["annotations"]["form"] != form:
            number = int(created.rpartition("-")[2]) + 1 if created else 1
            created = f"{NAME}-predictor-{number:05}"
            await self._make_revision(created, predictor, form)
        version = predictor["labels"]["nighttrain.dev/version"]
        if version not in self.never_ready:
            ready = created
        rolled, percent = before.get("latestRolledoutRevision"), predictor.get("canaryTrafficPercent")
        shares = {ready: 100} if percent is None or rolled is None else {ready: percent}
        traffic = [{"latestRevision": True, "percent": shares[ready], "revisionName": ready}] if ready else []
        if ready and shares[ready] < 100:
            traffic.append({"percent": 100 - shares[ready], "revisionName": rolled, "tag": "prev"})
        previous = before.get("previousRolledoutRevision")
        if ready and ready != rolled and shares[ready] == 100:
            rolled, previous = ready, rolled
        elif ready == rolled == created and shares.get(ready, 100) < 100 and previous:
            rolled = previous
            traffic[1]["revisionName"] = rolled
        named = {each["revisionName"] for each in traffic}
        for each in (await self.client.list(KNATIVE_REVISIONS, self.namespace))["items"]:
            mark = "active" if each["metadata"]["name"] in named | {created} else "reserve"
            body = {"metadata": {"labels": {"serving.knative.dev/routingState": mark}}}
            await self.client.patch(KNATIVE_REVISIONS, self.namespace, each["metadata"]["name"], body)
        up = ready == created
        component = {
            "latestCreatedRevision": created,
            "latestReadyRevision": ready,
            "latestRolledoutRevision": rolled,
            "previousRolledoutRevision": previous,
            "traffic": traffic,
        }
        settled = [_condition(kind, up) for kind in ("Ready", "PredictorReady")]
        routes = _condition("RoutesReady", bool(traffic))
        return {"components": {"predictor": component}, "conditions": [*settled, routes]}

    async def _make_revision(self, name: str, predictor: Object, form: str) -> None:
        meta = {"name": name, "labels": {**OWN, **predictor["labels"]}, "annotations": {"form": form}}
        body = {"apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": meta}
        await self.client.create(KNATIVE_REVISIONS, self.namespace, body)
        bad = predictor["labels"]["nighttrain.dev/version"] in self.never_ready
        said = {**_condition("Ready", True), "status": "Unknown", "reason": "Deploying"} if bad else None
        await self._status(KNATIVE_REVISIONS, name, {"conditions": [said or _condition("Ready", True)]})

    async def _revision(self, name: str) -> Object:
        return await self.client.get(KNATIVE_REVISIONS, self.namespace, name)

    # both

    async def _status(self, kind: Resource, name: str, status: Object) -> None:
        await self.client.patch(status_of(kind), self.namespace, name, {"status": status})

    async def _keep_only(self, kind: Resource, names: set[str]) -> None:
        selector = ",".join(f"{key}={value}" for key, value in OWN.items())
        for each in (await self.client.list(kind, self.namespace, label_selector=selector))["items"]:
            if each["metadata"]["name"] not in names:
                await self.client.delete(
                    kind, self.namespace, each["metadata"]["name"], propagation="Background"
                )


def _service(predictor: Object) -> str:
    name = predictor.get("name")
    return f"{NAME}-{name}-predictor" if name else f"{NAME}-predictor"


def _merged(stable: Object, canary: Object) -> Object:
    """As KServe makes a canary's predictor: the stable one, and what the canary's says over it."""
    merged = copy.deepcopy(stable)
    for key, value in canary.items():
        held = merged.get(key)
        merged[key] = _merged(held, value) if isinstance(value, dict) and isinstance(held, dict) else value
    return merged


def _condition(kind: str, good: bool) -> Object:
    return {"type": kind, "status": "True" if good else "False"}


def shares(replicas: int, percent: int) -> int:
    """The canary's replicas."""
    return max(1, math.ceil(replicas * percent / 100))
