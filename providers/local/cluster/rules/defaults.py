"""The values of an object whose author says nothing, as the API server and its admission give them."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds.builtin_schemas import schema_of
from nighttrain.providers.local.cluster.kinds.crd_definitions import complete_definition
from nighttrain.providers.local.cluster.kinds.schemas import complete
from nighttrain.providers.local.cluster.rules.claims import default_claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.local.cluster.store.resources import ResourceType

Object = dict[str, Any]

_WITH_TEMPLATE = ("Job", "Deployment", "ReplicaSet")
_WITH_SPEC = ("Pod", "Service", "Namespace", "Node", "PersistentVolumeClaim")


def apply_defaults(resource: ResourceType, new: Object, old: Object | None) -> None:
    """Complete ``new`` in place; ``old`` is None on creation."""
    if resource.kind in _WITH_TEMPLATE:
        spec = new.setdefault("spec", {})
        spec.setdefault("template", {}).setdefault("spec", {})
    elif resource.kind in _WITH_SPEC:
        new.setdefault("spec", {})
    complete(schema_of(resource.kind), new)
    if resource.kind in _WITH_TEMPLATE:
        pod_spec(new["spec"]["template"]["spec"])
    function = _BY_KIND.get(resource.kind)
    if function is not None:
        function(new, old)


def pod_spec(spec: Object) -> None:
    """Defaults that pods and pod templates share and that depend on more than one field."""
    for key in ("initContainers", "containers"):
        for container in spec.get(key) or ():
            _container(container)
    for volume in spec.get("volumes") or ():
        if set(volume) <= {"name"}:
            volume["emptyDir"] = {}
    if spec.get("serviceAccountName"):
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]


def _container(container: Object) -> None:
    resources = container["resources"]
    for name, quantity in (resources.get("limits") or {}).items():
        resources.setdefault("requests", {}).setdefault(name, quantity)
    if not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = _pull_policy(container.get("image", ""))


def _pull_policy(image: str) -> str:
    """``latest``, said or unsaid, is looked up each time."""
    if "@" in image:
        return "IfNotPresent"
    match = re.search(r":([^:/]+)$", image)
    return "Always" if match is None or match.group(1) == "latest" else "IfNotPresent"


def _pod(pod: Object, old: Object | None) -> None:
    spec = pod["spec"]
    pod_spec(spec)
    if old is None:
        spec.setdefault("serviceAccountName", "default")
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
        spec.setdefault("priority", 0)
        spec.setdefault("enableServiceLinks", True)
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
        status = pod.setdefault("status", {})
        status.setdefault("phase", "Pending")
        status.setdefault("qosClass", quality_of_service(spec))


def quality_of_service(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort, from the containers' requests and limits."""
    resources = [
        each.get("resources") or {}
        for key in ("initContainers", "containers")
        for each in spec.get(key) or ()
    ]
    if not any(each.get("requests") or each.get("limits") for each in resources):
        return "BestEffort"
    guaranteed = all(
        {"cpu", "memory"} <= set(each.get("limits") or {})
        and all((each.get("requests") or {}).get(name) == each["limits"][name] for name in ("cpu", "memory"))
        for each in resources
    )
    return "Guaranteed" if guaranteed else "Burstable"


def _job(job: Object, old: Object | None) -> None:
    spec = job["spec"]
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    spec.setdefault(
        "podReplacementPolicy", "Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed"
    )
    if old is None:
        _job_selector(job)
        job.setdefault("status", {})


def _job_selector(job: Object) -> None:
    spec, metadata = job["spec"], job["metadata"]
    labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
    own = {"controller-uid": metadata["uid"], "job-name": metadata.get("name", "")}
    labels.update({f"batch.kubernetes.io/{key}": value for key, value in own.items()} | own)
    selector = spec.setdefault("selector", {}).setdefault("matchLabels", {})
    selector["batch.kubernetes.io/controller-uid"] = metadata["uid"]


def label_job(job: Object) -> None:
    """A Job without labels shows its template's; the rules for labels are not applied to them twice."""
    if not job["metadata"].get("labels"):
        job["metadata"]["labels"] = dict(job["spec"]["template"]["metadata"]["labels"])


def _deployment(deployment: Object, old: Object | None) -> None:
    rolling = deployment["spec"]["strategy"].setdefault("rollingUpdate", {})
    complete(schema_of("RollingUpdateDeployment"), rolling)
    if old is None:
        deployment.setdefault("status", {})


def _replicaset(replicaset: Object, old: Object | None) -> None:
    if old is None:
        replicaset.setdefault("status", {"replicas": 0})


def _service(service: Object, old: Object | None) -> None:
    spec = service["spec"]
    for port in spec.get("ports") or ():
        if not port.get("targetPort") and "port" in port:
            port["targetPort"] = port["port"]
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if old is not None:
        # A replacement that leaves the addresses out keeps them.
        for field in ("clusterIP", "clusterIPs"):
            if field in old.get("spec", {}):
                spec.setdefault(field, old["spec"][field])
    if spec.get("clusterIP"):
        spec.setdefault("clusterIPs", [spec["clusterIP"]])
    service.setdefault("status", {"loadBalancer": {}})


def _secret(secret: Object, old: Object | None) -> None:
    if not secret.get("type"):
        secret["type"] = old["type"] if old else "Opaque"
    plain = secret.pop("stringData", None) or {}
    for key, text in plain.items():
        secret.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode()


def _namespace(namespace: Object, old: Object | None) -> None:
    metadata = namespace["metadata"]
    metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata.get("name", "")
    if old is None:
        namespace.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
        namespace.setdefault("status", {}).setdefault("phase", "Active")


def _node(node: Object, old: Object | None) -> None:
    if old is None:
        node.setdefault("status", {})


_BY_KIND: dict[str, Callable[[Object, Object | None], None]] = {
    "Pod": _pod,
    "Job": _job,
    "Deployment": _deployment,
    "ReplicaSet": _replicaset,
    "Service": _service,
    "Secret": _secret,
    "Namespace": _namespace,
    "Node": _node,
    "PersistentVolumeClaim": default_claim,
    "CustomResourceDefinition": complete_definition,
}
