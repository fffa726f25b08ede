"""Writes ``schemas.json.gz``: JSON schemas of the served kinds, from the official client's models.

Run by hand when the client is upgraded or a table below changes (``python -m helpers.schema_generator``). The
server itself loads only the result: loading the client's models takes longer than starting the cluster.

The models know types; what values a field may have and what an empty one becomes is in the tables here,
after the API reference. ``x-unset`` lists the values that the API takes for none at all; ``x-kept-empty``
marks a list that is stored when it is empty; ``x-zeros`` are values of fields that are always written.
"""

from __future__ import annotations

import gzip
import inspect
import json
import re
from typing import Any

from kubernetes.client import models

from nighttrain.providers.local.cluster.kinds.builtin_schemas import PATH

Schema = dict[str, Any]

ROOTS = (
    "V1Namespace",
    "V1Node",
    "V1Pod",
    "V1Service",
    "V1ConfigMap",
    "V1Secret",
    "V1ServiceAccount",
    "CoreV1Event",
    "V1Job",
    "V1Deployment",
    "V1ReplicaSet",
    "V1EndpointSlice",
    "V1Lease",
    "V1PersistentVolumeClaim",
    "V1Scale",
    "V1CustomResourceDefinition",
    "V1DeleteOptions",
    "V1Eviction",
)
_ANYTHING: Schema = {"x-kubernetes-preserve-unknown-fields": True}
_QUANTITY: Schema = {"format": "quantity"}
_SIMPLE: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer", "format": "int32"},
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "datetime": {"type": "string", "format": "date-time"},
    "object": _ANYTHING,
    "bytes": {"type": "string", "format": "byte"},
}
# The client's models say "str" of an amount, "int" of every whole number, "object" of a number or a text.
_AMOUNTS = (
    *("limits", "requests", "capacity", "allocatable", "allocatedResources", "overhead"),
    *("sizeLimit", "divisor"),
)
_INT64 = (
    *("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerationSeconds", "seconds"),
    *("runAsUser", "runAsGroup", "fsGroup", "supplementalGroups", "uid", "gid"),
    *("generation", "observedGeneration", "deletionGracePeriodSeconds", "expirationSeconds"),
    *("maxExpirationSeconds", "sizeBytes"),
    *("maxItems", "minItems", "maxLength", "minLength", "maxProperties", "minProperties"),
)
_INT_OR_STRING: Schema = {"x-kubernetes-int-or-string": True}

_PORT: Schema = {"minimum": 1, "maximum": 65535}
_COUNT: Schema = {"minimum": 0}
_MODE: Schema = {"minimum": 0, "maximum": 0o777, "default": 0o644}
_USER: Schema = {"minimum": 0, "maximum": 2**31 - 1}
_PROTOCOL: Schema = {"enum": ["SCTP", "TCP", "UDP"], "default": "TCP"}


def _format(name: str, **more: Any) -> Schema:
    return {"format": name, **more}


def _default(value: Any, **more: Any) -> Schema:
    return {"default": value, **more}


def _unset_at_zero(value: int) -> Schema:
    return {"minimum": 0, "default": value, "x-unset": [0]}


def _choice(*values: str, **more: Any) -> Schema:
    return {"enum": list(values), **more}


# Type -> field -> what holds of its values beside their type.
RULES: dict[str, dict[str, Schema]] = {
    "ConfigMap": {"binaryData": {"additionalProperties": _SIMPLE["bytes"]}},
    "ConfigMapKeySelector": {"key": _format("config-key")},
    "ConfigMapVolumeSource": {"defaultMode": _MODE},
    "Container": {
        "imagePullPolicy": _choice("Always", "IfNotPresent", "Never"),
        "name": _format("dns-label"),
        "resources": _default({}),
        "restartPolicy": _choice("Always", "Never", "OnFailure"),
        "terminationMessagePath": _default("/dev/termination-log"),
        "terminationMessagePolicy": _choice("File", "FallbackToLogsOnError", default="File"),
    },
    "ContainerPort": {
        "containerPort": _PORT,
        "hostPort": {**_PORT, "x-unset": [0]},
        "name": _format("port-name"),
        "protocol": _PROTOCOL,
    },
    "CustomResourceConversion": {"strategy": _choice("None", default="None")},
    "CustomResourceDefinitionSpec": {
        "conversion": _default({}),
        "names": _default({}),
        "scope": _choice("Cluster", "Namespaced"),
    },
    "CustomResourceDefinitionVersion": {"name": _format("dns-label"), "schema": _default({})},
    "DeploymentSpec": {
        "minReadySeconds": _COUNT,
        "progressDeadlineSeconds": {**_COUNT, "default": 600},
        "replicas": {**_COUNT, "default": 1},
        "revisionHistoryLimit": {**_COUNT, "default": 10},
        "strategy": _default({}),
    },
    "DeploymentStrategy": {"type": _choice("RollingUpdate", default="RollingUpdate")},
    "DownwardAPIVolumeFile": {"mode": {"minimum": 0, "maximum": 0o777}, "path": _format("relative-path")},
    "DownwardAPIVolumeSource": {"defaultMode": _MODE},
    "EndpointPort": {"name": _default(""), "port": _PORT, "protocol": _PROTOCOL},
    # A slice without endpoints says so.
    "EndpointSlice": {
        "addressType": _choice("FQDN", "IPv4", "IPv6"),
        "endpoints": {"x-kept-empty": True},
        "ports": {"x-kept-empty": True},
    },
    "EnvVar": {"name": _format("variable-name")},
    "GRPCAction": {"port": _PORT, "service": _default("")},
    "HTTPGetAction": {
        "path": _default("/"),
        "port": _format("port"),
        "scheme": _choice("HTTP", "HTTPS", default="HTTP"),
    },
    "HTTPHeader": {"name": _format("header-name")},
    "HostAlias": {"ip": _format("ip")},
    "HostPathVolumeSource": {
        "type": _choice(
            *("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate"),
            *("Socket",),
            default="",
        )
    },
    "JSONSchemaProps": {"items": {"$ref": "JSONSchemaProps"}},
    "JobSpec": {
        "activeDeadlineSeconds": _COUNT,
        "backoffLimit": _COUNT,
        "completionMode": _choice("NonIndexed", "Indexed", default="NonIndexed"),
        "completions": _COUNT,
        "managedBy": _format("domain-path"),
        "manualSelector": _default(False),
        "parallelism": _COUNT,
        "podReplacementPolicy": _choice("Failed", "TerminatingOrFailed"),
        "suspend": _default(False),
        "ttlSecondsAfterFinished": _COUNT,
    },
    "KeyToPath": {"mode": {"minimum": 0, "maximum": 0o777}, "path": _format("relative-path")},
    "LabelSelectorRequirement": {
        "key": _format("qualified-name"),
        "operator": _format("selector-operator"),
    },
    "LeaseSpec": {"leaseDurationSeconds": {"minimum": 1}, "leaseTransitions": _COUNT},
    "NodeSelectorRequirement": {
        "operator": _choice("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
    },
    "ObjectFieldSelector": {
        "apiVersion": _default("v1"),
        "fieldPath": _format("pod-field"),
    },
    "PersistentVolumeClaimSpec": {"volumeMode": _choice("Block", "Filesystem", default="Filesystem")},
    "PodFailurePolicyOnExitCodesRequirement": {"operator": _choice("In", "NotIn")},
    "PodFailurePolicyOnPodConditionsPattern": {"status": _choice("False", "True", "Unknown")},
    "PodFailurePolicyRule": {"action": _choice("Count", "FailIndex", "FailJob", "Ignore")},
    "PodSecurityContext": {
        "fsGroup": _USER,
        "runAsGroup": _USER,
        "runAsUser": _USER,
        "supplementalGroups": {"items": {**_SIMPLE["int"], "format": "int64", **_USER}},
    },
    "PodSpec": {
        "dnsPolicy": _choice(
            *("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"), default="ClusterFirst"
        ),
        "hostname": _format("dns-label"),
        "nodeName": _format("dns-subdomain"),
        "preemptionPolicy": _choice("PreemptLowerPriority", "Never"),
        "priorityClassName": _format("dns-subdomain"),
        "restartPolicy": _choice("Always", "OnFailure", "Never", default="Always"),
        "runtimeClassName": _format("dns-subdomain"),
        "schedulerName": _default("default-scheduler"),
        "securityContext": _default({}),
        "serviceAccountName": _format("dns-subdomain"),
        "subdomain": _format("dns-label"),
        "terminationGracePeriodSeconds": _default(30),
    },
    "Probe": {
        "failureThreshold": _unset_at_zero(3),
        "initialDelaySeconds": _COUNT,
        "periodSeconds": _unset_at_zero(10),
        "successThreshold": _unset_at_zero(1),
        "timeoutSeconds": _unset_at_zero(1),
    },
    "ProjectedVolumeSource": {"defaultMode": _MODE},
    "ReplicaSetSpec": {"minReadySeconds": _COUNT, "replicas": {**_COUNT, "default": 1}},
    "RollingUpdateDeployment": {
        "maxSurge": {**_INT_OR_STRING, "format": "count-or-percent", "default": "25%"},
        "maxUnavailable": {**_INT_OR_STRING, "format": "count-or-share", "default": "25%"},
    },
    "SeccompProfile": {"type": _choice("Localhost", "RuntimeDefault", "Unconfined")},
    "Secret": {"data": {"additionalProperties": _SIMPLE["bytes"]}},
    "SecretKeySelector": {"key": _format("config-key")},
    "SecretVolumeSource": {"defaultMode": _MODE},
    "SecurityContext": {"runAsGroup": _USER, "runAsUser": _USER},
    "ServicePort": {
        "name": _format("dns-label"),
        "port": _PORT,
        "protocol": _PROTOCOL,
        "targetPort": {**_INT_OR_STRING, "format": "port", "x-unset": [0]},
    },
    "ServiceSpec": {
        # The only one, `clusterIP`, is the first of these.
        "clusterIPs": {"items": {**_SIMPLE["str"], **_format("ip", **{"x-unset": ["", "None"]})}},
        "sessionAffinity": _choice("ClientIP", "None", default="None"),
        # Kubernetes knows more types, but this cluster has nothing outside of it to open a port to.
        "type": _choice("ClusterIP", default="ClusterIP"),
    },
    "TCPSocketAction": {"port": _format("port")},
    "Toleration": {
        "effect": _choice("NoSchedule", "PreferNoSchedule", "NoExecute"),
        "key": _format("qualified-name"),
        "operator": _choice("Equal", "Exists"),
    },
    "TopologySpreadConstraint": {
        "maxSkew": {"minimum": 1},
        "whenUnsatisfiable": _choice("DoNotSchedule", "ScheduleAnyway"),
    },
    "Volume": {"name": _format("dns-label")},
}
for _type in ("HTTPGetAction", "TCPSocketAction"):
    RULES[_type]["port"] |= _INT_OR_STRING

# What a specification needs beside what the client's models require.
REQUIRED = {
    "ConfigMapEnvSource": ("name",),
    "ConfigMapProjection": ("name",),
    "ConfigMapVolumeSource": ("name",),
    "Container": ("image",),
    "CustomResourceValidation": ("openAPIV3Schema",),
    "ExecAction": ("command",),
    "SecretEnvSource": ("name",),
    "SecretProjection": ("name",),
    "SecretVolumeSource": ("secretName",),
}

# What Kubernetes forbids in a definition's schema: references, and expressions that could hold up the server.
_LEFT_OUT = {
    "JSONSchemaProps": (
        *("$ref", "$schema", "additionalItems", "definitions", "dependencies", "id", "patternProperties"),
    )
}

# Without a value these break a rule of their own.
_CHECKED_ELSEWHERE = {"PodFailurePolicyOnExitCodesRequirement": ("values",)}

# What is missing in these is written as the zero value of its type, as everywhere in Go; whoever reads a
# status relies on it.
_WRITTEN_WHOLE = ("ContainerStatus", "ContainerStateTerminated")
_ZEROS: dict[str, Any] = {"string": "", "boolean": False, "integer": 0}


def definitions() -> dict[str, Schema]:
    """Type name -> its JSON schema, for everything that the roots reach; references by name."""
    found: dict[str, Schema] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        if short(name) not in found:
            found[short(name)], reached = _definition(short(name), getattr(models, name))
            waiting += reached
    return dict(sorted(found.items()))


def _definition(name: str, model: Any) -> tuple[Schema, list[str]]:
    properties: dict[str, Schema] = {}
    required = list(REQUIRED.get(name, ()))
    reached: list[str] = []
    for attribute, field in sorted(model.attribute_map.items(), key=lambda pair: pair[1]):
        if field in _LEFT_OUT.get(name, ()):
            continue
        properties[field] = _property(name, field, model.openapi_types[attribute], reached)
        # An object's metadata and status have rules of their own.
        own = field in ("metadata", "status") and "$ref" in properties[field]
        if own or field in _CHECKED_ELSEWHERE.get(name, ()):
            continue
        if "must not be `None`" in inspect.getsource(getattr(model, attribute).fset):
            required.append(field)
    schema: Schema = {"type": "object", "properties": properties}
    if name.endswith("Condition") or name in _WRITTEN_WHOLE:
        schema["x-zeros"] = {
            field: _ZEROS[properties[field]["type"]]
            for field in required
            if properties[field].get("type") in _ZEROS and "date-time" not in properties[field].values()
        }
    return {**schema, "required": sorted(required)} if required else schema, reached


def _property(type_: str, field: str, declared: str, reached: list[str]) -> Schema:
    schema = _schema(field, declared, reached) | RULES.get(type_, {}).get(field, {})
    if "$ref" in schema or schema.get("x-kubernetes-int-or-string"):
        schema.pop("x-kubernetes-preserve-unknown-fields", None)
    text = schema.get("type") == "string"
    if text and {"format", "enum", "default"} & set(schema) and schema.get("format") not in ("date-time",):
        schema.setdefault("x-unset", [""])
    return schema


def _schema(field: str, declared: str, reached: list[str]) -> Schema:
    listed = re.fullmatch(r"list\[(.+)\]", declared)
    if listed:
        return {"type": "array", "items": _schema(field, listed.group(1), reached)}
    mapped = re.fullmatch(r"dict[(\[]str, (.+)[)\]]", declared)
    if mapped:
        return {"type": "object", "additionalProperties": _schema(field, mapped.group(1), reached)}
    if field in _AMOUNTS and declared == "str":
        return dict(_QUANTITY)
    if declared == "int" and field in _INT64:
        return {"type": "integer", "format": "int64"}
    if declared in _SIMPLE:
        return dict(_SIMPLE[declared])
    reached.append(declared)
    return {"$ref": short(declared)}


def short(model: str) -> str:
    """``V1PodSpec`` -> ``PodSpec``."""
    return re.sub(
        r"^(Core|Events|Storage|Discovery|Authentication|Authorization|Flowcontrol|Rbac)?V\d+", "", model
    )


def packed() -> bytes:
    """The file's content: the same bytes for the same schemas."""
    return gzip.compress(json.dumps(definitions(), separators=(",", ":")).encode(), mtime=0)


def main() -> None:
    PATH.write_bytes(packed())


if __name__ == "__main__":
    main()
