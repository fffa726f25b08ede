"""Honest objects: one of each kind that is served."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

LABELS = {"a": "b"}
SLEEP = ["python3", "-S", "-c", "import time; time.sleep(600)"]
CONTAINER: dict[str, Any] = {
    "name": "main",
    "image": "trainer",
    "command": SLEEP,
    "env": [{"name": "A", "value": "b"}],
    "ports": [{"containerPort": 8080}],
    "resources": {"limits": {"cpu": "10m", "memory": "1Gi"}},
    "volumeMounts": [{"name": "v", "mountPath": "/nt-hostile"}],
    "livenessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
}
SIDECAR: dict[str, Any] = {
    "name": "side",
    "image": "trainer",
    "command": SLEEP,
    "resources": {"limits": {"cpu": "10m", "memory": "1Gi"}},
    "restartPolicy": "Always",
}
POD: dict[str, Any] = {
    "terminationGracePeriodSeconds": 0,
    "initContainers": [SIDECAR],
    "containers": [CONTAINER],
    "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
    "volumes": [
        {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "kept", "persistentVolumeClaim": {"claimName": "honest"}},
    ],
}
TEMPLATE: dict[str, Any] = {"metadata": {"labels": LABELS}, "spec": POD}
FAILURE_POLICY = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "A", "status": "True"}]}]}
MOMENT = "2026-01-01T00:00:00Z"
CONDITION = {"type": "Ready", "status": "True", "lastTransitionTime": MOMENT}


@dataclass(frozen=True)
class Kind:
    """A kind, and an honest object of it.

    :param path: where its objects are listed
    :param body: the object, without its name
    :param subresources: those that are written to
    """

    kind: str
    path: str
    body: dict[str, Any]
    api: str = "v1"
    name: str = "honest"
    subresources: tuple[str, ...] = ()

    @property
    def object(self) -> dict[str, Any]:
        body = copy.deepcopy(self.body)
        metadata = {"name": self.name, **body.pop("metadata", {})}
        return {"apiVersion": self.api, "kind": self.kind, "metadata": metadata, **body}

    @property
    def place(self) -> str:
        return f"{self.path}/{self.name}"


def _core(plural: str) -> str:
    return f"/api/v1/namespaces/{SPACE}/{plural}"


def _group(group: str, plural: str) -> str:
    return f"/apis/{group}/namespaces/{SPACE}/{plural}"


SPACE = "struck"
DEFINITION: dict[str, Any] = {
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "shortNames": ["th"]},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "a": {"type": "string", "pattern": "^[a-z]*$", "maxLength": 9},
                                    "n": {"type": "integer", "minimum": 0, "default": 1},
                                    "many": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["key"],
                                        "items": {
                                            "type": "object",
                                            "required": ["key"],
                                            "properties": {"key": {"type": "string"}},
                                        },
                                    },
                                    "any": {"x-kubernetes-preserve-unknown-fields": True},
                                },
                                "x-kubernetes-validations": [{"rule": "self.n >= 0"}],
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"},
                },
                "additionalPrinterColumns": [
                    {"name": "When", "type": "date", "jsonPath": ".spec.any"},
                    {"name": "Many", "type": "string", "jsonPath": ".spec.many[0].key"},
                ],
            }
        ],
    }
}
KINDS = (
    Kind("Namespace", "/api/v1/namespaces", {"metadata": {"labels": LABELS}}, subresources=("status",)),
    Kind("ConfigMap", _core("configmaps"), {"data": {"a": "b"}, "binaryData": {"c": "YQ=="}}),
    Kind("Secret", _core("secrets"), {"data": {"a": "YQ=="}, "type": "Opaque"}),
    Kind("ServiceAccount", _core("serviceaccounts"), {"secrets": [{"name": "a"}]}),
    Kind(
        "Pod",
        _core("pods"),
        {
            "metadata": {"labels": LABELS},
            "spec": POD,
            "status": {"phase": "Running", "conditions": [CONDITION], "podIP": "127.1.2.3"},
        },
        subresources=("status", "eviction", "log"),
    ),
    Kind(
        "Service",
        _core("services"),
        {"spec": {"selector": LABELS, "ports": [{"name": "a", "port": 8080, "targetPort": 8080}]}},
        subresources=("status",),
    ),
    Kind(
        "Event",
        _core("events"),
        {
            "involvedObject": {"kind": "Pod", "name": "a", "namespace": SPACE},
            "reason": "A",
            "message": "b",
            "type": "Normal",
            "count": 1,
            "lastTimestamp": MOMENT,
            "source": {"component": "c"},
        },
    ),
    Kind(
        "PersistentVolumeClaim",
        _core("persistentvolumeclaims"),
        {
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Mi"}, "conditions": [CONDITION]},
        },
        subresources=("status",),
    ),
    Kind(
        "Job",
        _group("batch/v1", "jobs"),
        {
            "spec": {
                "completions": 2,
                "parallelism": 2,
                "completionMode": "Indexed",
                "backoffLimit": 3,
                "ttlSecondsAfterFinished": 600,
                "podFailurePolicy": FAILURE_POLICY,
                "template": {"spec": {**POD, "restartPolicy": "Never"}},
            },
            "status": {"startTime": MOMENT, "conditions": [CONDITION]},
        },
        api="batch/v1",
        subresources=("status",),
    ),
    Kind(
        "Deployment",
        _group("apps/v1", "deployments"),
        {
            "metadata": {"annotations": {"kubernetes.io/change-cause": "made"}},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": LABELS},
                "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                "template": TEMPLATE,
            },
            "status": {"conditions": [{**CONDITION, "reason": "A", "message": "b"}]},
        },
        api="apps/v1",
        subresources=("status", "scale"),
    ),
    Kind(
        "ReplicaSet",
        _group("apps/v1", "replicasets"),
        {
            "spec": {
                "replicas": 1,
                "selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
                "template": TEMPLATE,
            },
            "status": {"replicas": 1, "conditions": [CONDITION]},
        },
        api="apps/v1",
        subresources=("status", "scale"),
    ),
    Kind(
        "EndpointSlice",
        _group("discovery.k8s.io/v1", "endpointslices"),
        {
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["127.1.2.3"], "conditions": {"ready": True}}],
            "ports": [{"name": "a", "port": 1, "protocol": "TCP"}],
        },
        api="discovery.k8s.io/v1",
    ),
    Kind(
        "Lease",
        _group("coordination.k8s.io/v1", "leases"),
        {"spec": {"holderIdentity": "a", "leaseDurationSeconds": 5, "renewTime": "2026-01-01T00:00:00.5Z"}},
        api="coordination.k8s.io/v1",
    ),
    Kind(
        "CustomResourceDefinition",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        DEFINITION,
        api="apiextensions.k8s.io/v1",
        name="things.example.com",
        subresources=("status",),
    ),
    Kind(
        "Thing",
        _group("example.com/v1", "things"),
        {"spec": {"a": "b", "n": 1, "many": [{"key": "a"}], "any": MOMENT}, "status": {"n": 1}},
        api="example.com/v1",
        subresources=("status", "scale"),
    ),
    Kind(
        "Node",
        "/api/v1/nodes",
        {
            "metadata": {"labels": LABELS},
            "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]},
            "status": {"conditions": [CONDITION], "capacity": {"cpu": "1"}},
        },
        subresources=("status",),
    ),
)
SCALE = {
    "apiVersion": "autoscaling/v1",
    "kind": "Scale",
    "metadata": {"name": "honest"},
    "spec": {"replicas": 2},
}
EVICTION = {
    "apiVersion": "policy/v1",
    "kind": "Eviction",
    "metadata": {"name": "honest"},
    "deleteOptions": {"gracePeriodSeconds": 0, "preconditions": {"uid": "a"}},
}
DELETE_OPTIONS = {
    "kind": "DeleteOptions",
    "gracePeriodSeconds": 0,
    "propagationPolicy": "Background",
    "preconditions": {"resourceVersion": "1"},
}
