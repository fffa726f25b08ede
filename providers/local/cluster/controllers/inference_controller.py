"""A stand-in for KServe in Standard mode: InferenceServices, their canaries, promotion and removal.

It does what the development head of August 2026, the coming 0.21, was recorded to do, and loses requests
where that does: what is no longer asked for goes before the routes know of it. Nothing is downloaded: the
container is told the storage URI, and a claim (``pvc://``) is mounted as KServe mounts it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.controllers.gateway_controller import GATEWAY, write_status
from nighttrain.providers.local.cluster.controllers.reconcile import (
    Controller,
    ReconcileLoop,
    controller_of,
    owner_reference,
)
from nighttrain.providers.local.cluster.store.resources import DEPLOYMENTS, SERVICES, ResourceType
from nighttrain.providers.local.cluster.store.store import Object, copy_object, timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.local.cluster.store.store import EventType

# As KServe's configuration has it where nobody changed it.
_DOMAIN = "example.com"
_MODE = "serving.kserve.io/deploymentMode"
_SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
_CLAIM = "pvc://"
# Fields of a predictor, and of its runtime, that are its pod's.
_POD = ("terminationGracePeriodSeconds", "volumes", "nodeSelector", "serviceAccountName", "imagePullSecrets")


class InferenceController(Controller):
    """Makes Services, Deployments and HTTPRoutes of InferenceServices, one write after the other.

    :param lag: seconds between one write and the next; recorded: 0.01 to 0.25
    """

    def __init__(self, loop: ReconcileLoop, types: Mapping[str, ResourceType], lag: float) -> None:
        super().__init__(loop)
        self._kind, self._routes = types["InferenceService"], types["HTTPRoute"]
        self._runtimes = types["ServingRuntime"]
        self._lag = lag

    def changed(self, type_: EventType, resource: ResourceType, obj: Object) -> None:
        space, owner = obj["metadata"].get("namespace", ""), controller_of(obj) or {}
        if resource == self._kind:
            self.enqueue_after(space, obj["metadata"]["name"], self._lag)
        elif owner.get("kind") == "InferenceService":
            self.enqueue_after(space, owner["name"], self._lag)
        elif resource == self._runtimes:
            for service in self.store.list(self._kind, space)[0]:
                self.enqueue_after(space, service["metadata"]["name"], self._lag)

    def reconcile(self, namespace: str, name: str) -> None:
        service = self.store.find(self._kind, namespace, name)
        if service is None or "deletionTimestamp" in service["metadata"]:
            return
        why = self._cannot_serve(service)
        if why:
            self._refuse(service, *why)
            return
        for step in (self._write_services, self._write_deployments, self._write_predictor_route):
            before = self.store.revision
            step(service)
            if self.store.revision != before:
                self.enqueue_after(namespace, name, self._lag)
                return
        self._write_route(service, name)
        # At once: as recorded, the status tells how the routes were before.
        self._write_status(service)

    def _cannot_serve(self, service: Object) -> tuple[str, str] | None:
        mode = (service["metadata"].get("annotations") or {}).get(_MODE, "Standard")
        if mode not in ("Standard", "RawDeployment"):
            return (
                "DeploymentModeNotServed",
                f"{mode} is not served here: set the annotation {_MODE}: Standard",
            )
        if len(_predictors(service)) <= len(service["spec"].get("canary") or []):
            return "InvalidPredictorSpec", "two predictors have the same name"
        for predictor in _predictors(service).values():
            model = predictor.get("model")
            if not model and not predictor.get("containers"):
                return "InvalidPredictorSpec", "a predictor has neither a model nor containers"
            if model and self._runtime(service, predictor) is None:
                wanted = model.get("runtime") or f"for the format {model['modelFormat']['name']}"
                return "RuntimeNotRecognized", f"there is no ServingRuntime {wanted} in the namespace"
        return None

    def _runtime(self, service: Object, predictor: Object) -> Object | None:
        """The one that is named, or the first that takes the model's format by itself."""
        space, model = service["metadata"]["namespace"], predictor.get("model") or {}
        if model.get("runtime"):
            return self.store.find(self._runtimes, space, model["runtime"])
        for runtime in self.store.list(self._runtimes, space)[0] if model else ():
            for each in runtime["spec"].get("supportedModelFormats") or []:
                if each.get("autoSelect") and each["name"] == model["modelFormat"]["name"]:
                    return runtime
        return None

    # What it makes

    def _write_services(self, service: Object) -> None:
        wanted = _predictors(service)
        self._remove_others(service, SERVICES, wanted)
        for name, predictor in wanted.items():
            if self.store.find(SERVICES, service["metadata"]["namespace"], name) is None:
                port = self._container(service, predictor)["ports"][0]["containerPort"]
                spec = {"selector": _selector(name), "ports": [{"port": 80, "targetPort": port}]}
                self._put(SERVICES, _metadata(service, name, predictor), spec)

    def _write_deployments(self, service: Object) -> None:
        wanted = _predictors(service)
        self._remove_others(service, DEPLOYMENTS, wanted)
        stable = next(iter(wanted))
        # The pods of canaries that the status calls ready are taken off the stable version's.
        said = (service.get("status") or {}).get("canaryStatuses") or []
        ready = [_named(service, each["name"]) for each in said if each["ready"]]
        spared = sum(each.get("minReplicas", 1) for name, each in wanted.items() if name in ready)
        for name, predictor in wanted.items():
            replicas = predictor.get("minReplicas", 1)
            metadata = _metadata(service, name, predictor)
            labelled = {key: metadata[key] for key in ("labels", "annotations")}
            spec = {
                "replicas": max(1, replicas - spared) if name == stable else replicas,
                "selector": {"matchLabels": _selector(name)},
                "template": {"metadata": labelled, "spec": self._pod(service, predictor)},
            }
            self._put(DEPLOYMENTS, metadata, spec)

    def _write_predictor_route(self, service: Object) -> None:
        self._write_route(service, f"{service['metadata']['name']}-predictor")

    def _write_route(self, service: Object, route: str) -> None:
        """The predictor's route, or the service's own, once the stable version is ready."""
        stable, *canaries = _predictors(service)
        space = service["metadata"]["namespace"]
        if not self.store.find(self._routes, space, route) and not self._is_ready(space, stable):
            return
        shares = {
            each: entry["trafficPercent"]
            for each, entry in zip(canaries, service["spec"].get("canary") or [], strict=True)
            if self._is_ready(space, each)
        }
        shares = {stable: 100 - sum(shares.values()) if canaries else 1, **shares}
        self._put(self._routes, _metadata(service, route, None), _route(service, route, shares))

    def _pod(self, service: Object, predictor: Object) -> Object:
        """The predictor's pod: its runtime's, with what the model says over it; or one of its own."""
        runtime = (self._runtime(service, predictor) or {"spec": {}})["spec"]
        pod = {key: each[key] for each in (runtime, predictor) for key in _POD if key in each}
        container = self._container(service, predictor)
        source = (predictor.get("model") or {}).get("storageUri", "")
        if source.startswith(_CLAIM):
            claim, _, path = source.removeprefix(_CLAIM).partition("/")
            volume = {"name": "kserve-pvc-source", "persistentVolumeClaim": {"claimName": claim}}
            mount = {"name": volume["name"], "mountPath": "/mnt/models", "subPath": path, "readOnly": True}
            pod["volumes"] = [*pod.get("volumes", []), volume]
            container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
        return {**pod, "containers": [container]}

    def _container(self, service: Object, predictor: Object) -> Object:
        model = predictor.get("model") or {}
        runtime = (self._runtime(service, predictor) or {"spec": {}})["spec"]
        first = (predictor.get("containers") or runtime.get("containers"))[0]
        skipped = {"modelFormat", "runtime", "storageUri", "protocolVersion", "name"}
        own = {key: value for key, value in model.items() if key not in skipped and value}
        told = {"INFERENCE_SERVICE_NAME": service["metadata"]["name"], "STORAGE_URI": model.get("storageUri")}
        variables = {each["name"]: each for each in [*first.get("env", []), *own.get("env", [])]}
        variables.update({key: {"name": key, "value": value} for key, value in told.items() if value})
        container = {**first, **own, "name": "kserve-container", "env": list(variables.values())}
        container.setdefault("ports", [{"containerPort": 8080}])
        if first.get("args") and own.get("args"):
            container["args"] = [*first["args"], *own["args"]]
        text = json.dumps(container).replace("{{.Name}}", service["metadata"]["name"])
        return dict(json.loads(text))

    def _put(self, resource: ResourceType, metadata: Object, spec: Object) -> None:
        space, name = metadata["namespace"], metadata["name"]
        if self.store.find(resource, space, name) is None:
            self.store.create(resource, {"metadata": metadata, "spec": spec})
        else:
            self.store.mutate(resource, space, name, lambda new: new["spec"].update(copy_object(spec)))

    def _remove_others(self, service: Object, resource: ResourceType, wanted: Mapping[str, Object]) -> None:
        for each in self.owned(service, resource):
            metadata = each["metadata"]
            if metadata["name"] not in wanted and "deletionTimestamp" not in metadata:
                self.store.delete(resource, metadata["namespace"], metadata["name"])

    # What it says

    def _is_ready(self, space: str, name: str) -> bool:
        deployment = self.store.find(DEPLOYMENTS, space, name) or {}
        return _condition(deployment, "Available").get("status") == "True"

    def _write_status(self, service: Object) -> None:
        stable, *canaries = _predictors(service)
        space, name = service["metadata"]["namespace"], service["metadata"]["name"]
        deployment = self.store.find(DEPLOYMENTS, space, stable) or {}
        predictor = _predictor_condition(deployment)
        ingress = self._ingress_condition(space, name)
        ready = next((each for each in (ingress, predictor) if each["status"] != "True"), {"status": "True"})
        loaded = predictor["status"] == "True"
        found = (deployment.get("status") or {}).get("replicas", 0)
        status: Object = {
            **(service.get("status") or {}),
            "deploymentMode": "Standard",
            "components": {"predictor": {"url": f"http://{stable}-{space}.{_DOMAIN}"}},
            "modelStatus": {
                "copies": {"failedCopies": 0, "totalCopies": found},
                "states": {
                    "activeModelState": "Loaded" if ingress["status"] == "True" else "",
                    "targetModelState": "Loaded" if loaded else "Pending",
                },
                "transitionStatus": "UpToDate" if loaded else "InProgress",
            },
            "observedGeneration": (deployment.get("status") or {}).get("observedGeneration", 0),
        }
        runtime = self._runtime(service, service["spec"]["predictor"])
        if runtime is not None:
            status["servingRuntimeName"] = runtime["metadata"]["name"]
        conditions = [("IngressReady", ingress), ("PredictorReady", predictor), ("Ready", ready)]
        status.pop("canaryStatuses", None)
        if canaries:
            entries = zip(canaries, service["spec"]["canary"], strict=True)
            status["canaryStatuses"] = [
                {
                    "name": entry["predictor"]["name"],
                    "ready": self._is_ready(space, each),
                    "trafficPercent": entry["trafficPercent"],
                    "modelStatus": {"transitionStatus": ""},
                }
                for each, entry in entries
            ]
            every = all(each["ready"] for each in status["canaryStatuses"])
            reason = "AllCanariesReady" if every else "CanariesNotReady"
            canary = {"status": str(every), "reason": reason, "severity": "Info"}
            conditions.insert(0, ("CanaryPredictorReady", canary))
        if ready["status"] == "True":
            status["url"] = f"http://{name}-{space}.{_DOMAIN}"
            status["address"] = {"url": f"http://{stable}.{space}.svc.cluster.local"}
        self._put_status(service, status, conditions)

    def _ingress_condition(self, space: str, name: str) -> Object:
        for route, what in ((f"{name}-predictor", "Predictor"), (name, "InferenceService")):
            found = self.store.find(self._routes, space, route)
            if found is None:
                reason = f"{what} Deployment NotReady"
                return {"status": "False", "reason": reason, "message": f"{what} HTTPRoute not created"}
            parents = (found.get("status") or {}).get("parents")
            if not parents:
                message = f"{what} HttpRouteNotReady"
                return {"status": "False", "reason": "ParentStatusNotAvailable", "message": message}
            for each in parents[0]["conditions"]:
                if each["status"] != "True":
                    message = f"{what} {each['message']}"
                    return {"status": "False", "reason": each["reason"], "message": message}
        return {"status": "True"}

    def _refuse(self, service: Object, reason: str, message: str) -> None:
        refused = {"status": "False", "reason": reason, "message": message}
        failure = {"reason": "InvalidPredictorSpec", "message": message}
        copies = {"failedCopies": 0}
        model = {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure, "copies": copies}
        status = {**(service.get("status") or {}), "modelStatus": model}
        self._put_status(service, status, [("PredictorReady", refused), ("Ready", refused)])

    def _put_status(self, service: Object, status: Object, found: list[tuple[str, Object]]) -> None:
        now = timestamp(self.store.clock())
        all_of_them = [*found, ("Stopped", {"status": "False", "severity": "Info"})]
        status["conditions"] = [
            {"type": type_, **condition, "lastTransitionTime": now} for type_, condition in all_of_them
        ]
        write_status(self.store, self._kind, service, status)


def _predictors(service: Object) -> dict[str, Object]:
    """Name of the Deployment -> predictor: the stable one, then the canaries."""
    spec = service["spec"]
    found = [spec["predictor"], *(each["predictor"] for each in spec.get("canary") or [])]
    return {_named(service, each.get("name") or ""): each for each in found}


def _named(service: Object, name: str) -> str:
    return "-".join(each for each in (service["metadata"]["name"], name, "predictor") if each)


def _selector(name: str) -> dict[str, str]:
    return {"app": f"isvc.{name}"}


def _metadata(service: Object, name: str, predictor: Object | None) -> Object:
    """The metadata of what is made for a predictor; None: of a route."""
    metadata: Object = {
        "name": name,
        "namespace": service["metadata"]["namespace"],
        "annotations": dict(service["metadata"].get("annotations") or {}),
        "ownerReferences": [owner_reference(service)],
    }
    if predictor is not None:
        source = (predictor.get("model") or {}).get("storageUri")
        metadata["annotations"].update({_SOURCE: source} if source else {})
        owner = {"serving.kserve.io/inferenceservice": service["metadata"]["name"]}
        own = {**(predictor.get("labels") or {}), "component": "predictor"}
        metadata["labels"] = {**own, **_selector(name), **owner}
    return metadata


def _route(service: Object, name: str, shares: Mapping[str, int]) -> Object:
    group, space = "gateway.networking.k8s.io", service["metadata"]["namespace"]
    told = {"KServe-Isvc-Name": service["metadata"]["name"], "KServe-Isvc-Namespace": space}
    headers = [{"name": key, "value": value} for key, value in told.items()]
    backend = {"group": "", "kind": "Service", "namespace": space, "port": 80}
    rule = {
        "backendRefs": [{**backend, "name": each, "weight": weight} for each, weight in shares.items()],
        "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": headers}}],
        "matches": [{"path": {"type": "RegularExpression", "value": "^/.*$"}}],
        "timeouts": {"request": "60s"},
    }
    parent = {"group": group, "kind": "Gateway", "name": GATEWAY, "namespace": "default"}
    return {"hostnames": [f"{name}-{space}.{_DOMAIN}"], "parentRefs": [parent], "rules": [rule]}


def _condition(obj: Object, type_: str) -> Object:
    found = (obj.get("status") or {}).get("conditions") or []
    return next((each for each in found if each["type"] == type_), {})


def _predictor_condition(deployment: Object) -> Object:
    """What KServe makes of a Deployment: its rollout's success where there is one, else what is available."""
    available, progressing = _condition(deployment, "Available"), _condition(deployment, "Progressing")
    done = available.get("status") == "True" and progressing.get("reason") == "NewReplicaSetAvailable"
    chosen = progressing if done else available
    return {key: chosen[key] for key in ("status", "reason", "message") if key in chosen} or {
        "status": "False"
    }
