"""The rules that concern one field, in tables by type and field, and the walk that applies them.

The types are those of ``schema_data``. What concerns several fields of a type is in ``validation_types``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds.schema_data import TYPES
from nighttrain.providers.local.cluster.rules import validation_names as names
from nighttrain.providers.local.cluster.rules.validation_types import RULES
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    invalid_value,
    required_value,
    unsupported_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The choices in the order in which the API lists them.
_CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("AppArmorProfile", "type"): ("Localhost", "RuntimeDefault", "Unconfined"),
    ("Container", "imagePullPolicy"): ("Always", "IfNotPresent", "Never"),
    ("Container", "restartPolicy"): ("Always", "Never", "OnFailure"),
    ("Container", "terminationMessagePolicy"): ("File", "FallbackToLogsOnError"),
    ("ContainerPort", "protocol"): ("SCTP", "TCP", "UDP"),
    ("ContainerResizePolicy", "resourceName"): ("cpu", "memory"),
    ("ContainerResizePolicy", "restartPolicy"): ("NotRequired", "RestartContainer"),
    ("ContainerRestartRule", "action"): ("Restart", "RestartAllContainers"),
    ("ContainerRestartRuleOnExitCodes", "operator"): ("In", "NotIn"),
    ("DeploymentStrategy", "type"): ("Recreate", "RollingUpdate"),
    ("EndpointPort", "protocol"): ("SCTP", "TCP", "UDP"),
    ("EndpointSlice", "addressType"): ("FQDN", "IPv4", "IPv6"),
    ("HTTPGetAction", "scheme"): ("HTTP", "HTTPS"),
    ("HostPathVolumeSource", "type"): (
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ),
    ("JobSpec", "completionMode"): ("NonIndexed", "Indexed"),
    ("PodFailurePolicyOnExitCodesRequirement", "operator"): ("In", "NotIn"),
    ("PodFailurePolicyOnPodConditionsPattern", "status"): ("False", "True", "Unknown"),
    ("PodFailurePolicyRule", "action"): ("Count", "FailIndex", "FailJob", "Ignore"),
    ("PodOS", "name"): ("linux", "windows"),
    ("PodSecurityContext", "fsGroupChangePolicy"): ("Always", "OnRootMismatch"),
    ("PodSecurityContext", "seLinuxChangePolicy"): ("MountOption", "Recursive"),
    ("PodSecurityContext", "supplementalGroupsPolicy"): ("Merge", "Strict"),
    ("PodSpec", "dnsPolicy"): ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"),
    ("PodSpec", "preemptionPolicy"): ("PreemptLowerPriority", "Never"),
    ("PodSpec", "restartPolicy"): ("Always", "OnFailure", "Never"),
    ("PriorityClass", "preemptionPolicy"): ("PreemptLowerPriority", "Never"),
    ("SeccompProfile", "type"): ("Localhost", "RuntimeDefault", "Unconfined"),
    ("SecurityContext", "procMount"): ("Default", "Unmasked"),
    ("ServicePort", "protocol"): ("SCTP", "TCP", "UDP"),
    ("ServiceSpec", "internalTrafficPolicy"): ("Cluster", "Local"),
    ("ServiceSpec", "sessionAffinity"): ("ClientIP", "None"),
    # Kubernetes knows more types, but this cluster has nothing outside of it to open a port to.
    ("ServiceSpec", "type"): ("ClusterIP", "ExternalName"),
    ("Taint", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("Toleration", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("TopologySpreadConstraint", "whenUnsatisfiable"): ("DoNotSchedule", "ScheduleAnyway"),
}

# Empty is as bad as not there.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "ConfigMapEnvSource": ("name",),
    "ConfigMapKeySelector": ("key",),
    "ConfigMapProjection": ("name",),
    "ConfigMapVolumeSource": ("name",),
    "ContainerPort": ("containerPort",),
    "DownwardAPIVolumeFile": ("path",),
    "EndpointSlice": ("addressType",),
    "ExecAction": ("command",),
    "HostPathVolumeSource": ("path",),
    "KeyToPath": ("key", "path"),
    "ObjectFieldSelector": ("fieldPath",),
    "PersistentVolumeClaimVolumeSource": ("claimName",),
    "SecretEnvSource": ("name",),
    "SecretKeySelector": ("key",),
    "SecretProjection": ("name",),
    "SecretVolumeSource": ("secretName",),
}

_SHAPES: dict[tuple[str, str], Callable[[Any], list[str]]] = {
    ("ConfigMapKeySelector", "key"): names.config_key,
    ("ConfigMapVolumeSource", "defaultMode"): names.file_mode,
    ("ContainerPort", "containerPort"): names.port_number,
    ("ContainerPort", "hostPort"): names.port_number,
    ("ContainerPort", "name"): names.port_name,
    ("DeploymentSpec", "minReadySeconds"): names.at_least_zero,
    ("DeploymentSpec", "progressDeadlineSeconds"): names.at_least_zero,
    ("DeploymentSpec", "replicas"): names.at_least_zero,
    ("DeploymentSpec", "revisionHistoryLimit"): names.at_least_zero,
    ("DownwardAPIVolumeFile", "mode"): names.file_mode,
    ("DownwardAPIVolumeFile", "path"): names.inside_and_free,
    ("DownwardAPIVolumeSource", "defaultMode"): names.file_mode,
    ("EndpointPort", "port"): names.port_number,
    ("GRPCAction", "port"): names.port_number,
    ("HTTPGetAction", "port"): names.port,
    ("HostAlias", "hostnames"): names.subdomain,
    ("HostAlias", "ip"): names.address,
    ("HostPathVolumeSource", "path"): names.without_backsteps,
    ("JobSpec", "activeDeadlineSeconds"): names.at_least_zero,
    ("JobSpec", "backoffLimit"): names.at_least_zero,
    ("JobSpec", "backoffLimitPerIndex"): names.at_least_zero,
    ("JobSpec", "completions"): names.at_least_zero,
    ("JobSpec", "managedBy"): names.domain_path,
    ("JobSpec", "maxFailedIndexes"): names.at_least_zero,
    ("JobSpec", "parallelism"): names.at_least_zero,
    ("JobSpec", "ttlSecondsAfterFinished"): names.at_least_zero,
    ("KeyToPath", "mode"): names.file_mode,
    ("KeyToPath", "path"): names.inside_and_free,
    ("PodDNSConfig", "nameservers"): names.address,
    ("PodFailurePolicyOnPodConditionsPattern", "type"): names.qualified_name,
    ("PodReadinessGate", "conditionType"): names.qualified_name,
    ("PodSecurityContext", "fsGroup"): names.user_id,
    ("PodSecurityContext", "runAsGroup"): names.user_id,
    ("PodSecurityContext", "runAsUser"): names.user_id,
    ("PodSecurityContext", "supplementalGroups"): names.user_id,
    ("PodSpec", "hostname"): names.label,
    ("PodSpec", "nodeName"): names.subdomain,
    ("PodSpec", "priorityClassName"): names.subdomain,
    ("PodSpec", "runtimeClassName"): names.subdomain,
    ("PodSpec", "serviceAccountName"): names.subdomain,
    ("PodSpec", "subdomain"): names.label,
    ("Probe", "failureThreshold"): names.at_least_zero,
    ("Probe", "initialDelaySeconds"): names.at_least_zero,
    ("Probe", "periodSeconds"): names.at_least_zero,
    ("Probe", "successThreshold"): names.at_least_zero,
    ("Probe", "timeoutSeconds"): names.at_least_zero,
    ("ProjectedVolumeSource", "defaultMode"): names.file_mode,
    ("ReplicaSetSpec", "minReadySeconds"): names.at_least_zero,
    ("ReplicaSetSpec", "replicas"): names.at_least_zero,
    ("RollingUpdateDeployment", "maxSurge"): names.count_or_percent,
    ("RollingUpdateDeployment", "maxUnavailable"): names.count_or_percent,
    ("SecretKeySelector", "key"): names.config_key,
    ("SecretVolumeSource", "defaultMode"): names.file_mode,
    ("SecurityContext", "runAsGroup"): names.user_id,
    ("SecurityContext", "runAsUser"): names.user_id,
    ("ServicePort", "name"): names.label,
    ("ServicePort", "port"): names.port_number,
    ("ServicePort", "targetPort"): names.port,
    ("ServiceSpec", "externalIPs"): names.address,
    ("TCPSocketAction", "port"): names.port,
    ("Taint", "key"): names.qualified_name,
    ("Taint", "value"): names.label_value,
    ("Toleration", "key"): names.qualified_name,
    ("TopologySpreadConstraint", "maxSkew"): names.positive,
}

# Fields in which the API takes an empty text or a zero for nothing at all, and does not check it.
_OPTIONAL = frozenset(
    (
        ("ContainerPort", "hostPort"),
        ("ContainerPort", "name"),
        ("PodSpec", "hostname"),
        ("PodSpec", "nodeName"),
        ("PodSpec", "priorityClassName"),
        ("PodSpec", "serviceAccountName"),
        ("PodSpec", "subdomain"),
        ("ServicePort", "name"),
        ("Toleration", "effect"),
        ("Toleration", "key"),
    )
)

# The API names the parts of these lists by the path of what contains the list.
_WITHOUT_INDEX = frozenset((("DownwardAPIProjection", "items"), ("DownwardAPIVolumeSource", "items")))


def check(type_: str, value: dict[str, Any], path: str = "") -> list[Cause]:
    """Everything wrong with an object of the type: its fields by themselves, and together."""
    return list(_struct(type_, value, path))


def _struct(type_: str, value: dict[str, Any], path: str) -> Iterator[Cause]:
    prefix = f"{path}." if path else ""
    for name in _REQUIRED.get(type_, ()):
        if not value.get(name):
            yield required_value(f"{prefix}{name}")
    for name, item in value.items():
        declared = TYPES[type_].get(name, "*").rstrip("!")
        if item is None or declared in ("ObjectMeta", f"{type_}Status"):
            continue
        known = item not in ("", 0) or (type_, name) not in _OPTIONAL
        where = path if (type_, name) in _WITHOUT_INDEX else f"{prefix}{name}"
        missing = name in _REQUIRED.get(type_, ()) and not item
        if known and not missing:
            yield from _value(type_, name, declared, item, where)
    if type_ in RULES:
        yield from RULES[type_](value, path)


def _value(type_: str, name: str, declared: str, item: Any, path: str) -> Iterator[Cause]:
    if declared[0] == "[":
        bare = (type_, name) in _WITHOUT_INDEX
        for index, each in enumerate(item):
            where = path if bare else f"{path}[{index}]"
            yield from _value(type_, name, declared[1:], each, where)
    elif declared in TYPES:
        yield from _struct(declared, item, path)
    else:
        choices = _CHOICES.get((type_, name))
        if choices is not None and item not in choices:
            yield unsupported_value(path, item, choices)
        shape = _SHAPES.get((type_, name))
        if shape is not None:
            yield from (invalid_value(path, item, why) for why in shape(item))
