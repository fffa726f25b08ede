"""The rules that concern several fields of one part of a pod, by the part's type."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.rules import validation_names as names
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    duplicate_value,
    forbidden_value,
    invalid_value,
    required_value,
    unsupported_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Object = dict[str, Any]

_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")

# What a variable and what a file may show of their pod.
_VARIABLE_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
_FILE_FIELDS = (
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
)
# Known as fields of a pod, whether or not they may be shown.
_POD_FIELDS = {
    *_VARIABLE_FIELDS,
    *_FILE_FIELDS,
    "spec.host",
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.phase",
}
_SUBSCRIPT = re.compile(r"^(?P<path>.*)\['(?P<key>.*)'\]$", re.DOTALL)
_RESOURCES = (
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
)
_HUGE_PAGES = ("limits.hugepages-", "requests.hugepages-")


def _handler(obj: Object, path: str) -> Iterator[Cause]:
    """Of a probe or a hook: exactly one way to do it."""
    found = [name for name in _HANDLERS if name in obj]
    if not found:
        yield required_value(path, "must specify a handler type")
    for extra in found[1:]:
        yield forbidden_value(f"{path}.{extra}", "may not specify more than 1 handler type")


def _http_get(action: Object, path: str) -> Iterator[Cause]:
    for header in action.get("httpHeaders") or ():
        for why in names.header_name(header.get("name", "")):
            yield invalid_value(f"{path}.httpHeaders", header.get("name", ""), why)


def _probe(probe: Object, path: str) -> Iterator[Cause]:
    yield from _handler(probe, path)
    seconds = probe.get("terminationGracePeriodSeconds")
    if seconds is not None and path.endswith(".readinessProbe"):
        why = "must not be set for readinessProbes"
        yield invalid_value(f"{path}.terminationGracePeriodSeconds", seconds, why)
    elif seconds is not None and seconds <= 0:
        yield invalid_value(f"{path}.terminationGracePeriodSeconds", seconds, "must be greater than 0")
    successes = probe.get("successThreshold", 1)
    if successes != 1 and not path.endswith(".readinessProbe"):
        yield invalid_value(f"{path}.successThreshold", successes, "must be 1")


def _env_var(variable: Object, path: str) -> Iterator[Cause]:
    source = variable.get("valueFrom") or {}
    if "fieldRef" in source:
        yield from _field_ref(source["fieldRef"], f"{path}.valueFrom.fieldRef", _VARIABLE_FIELDS)
    if "resourceFieldRef" in source:
        yield from _resource_ref(source["resourceFieldRef"], f"{path}.valueFrom.resourceFieldRef")


def _downward_file(file: Object, path: str) -> Iterator[Cause]:
    field, resource = file.get("fieldRef"), file.get("resourceFieldRef")
    if field is not None and resource is not None:
        why = "fieldRef and resourceFieldRef can not be specified simultaneously"
        yield invalid_value(path, "resource", why)
    if field is not None:
        yield from _field_ref(field, f"{path}.fieldRef", _FILE_FIELDS)
    elif resource is not None and not resource.get("containerName"):
        yield required_value(f"{path}.resourceFieldRef.containerName")
    elif resource is not None:
        yield from _resource_ref(resource, f"{path}.resourceFieldRef")
    else:
        yield required_value(path, "one of fieldRef and resourceFieldRef is required")


def _field_ref(reference: Object, path: str, allowed: tuple[str, ...]) -> Iterator[Cause]:
    field = reference.get("fieldPath", "")
    if not field:
        return  # told already
    part = _SUBSCRIPT.match(field)
    if part is not None and part["path"] in ("metadata.annotations", "metadata.labels"):
        key = part["key"].lower() if part["path"] == "metadata.annotations" else part["key"]
        yield from (invalid_value(path, key, why) for why in names.qualified_name(key))
    elif part is not None or field not in _POD_FIELDS:
        what = "does not support subscript" if part is not None else "not supported"
        why = f"error converting fieldPath: field label {what}: {field}"
        yield invalid_value(f"{path}.fieldPath", field, why)
    elif field not in (*allowed, "spec.host"):
        yield unsupported_value(f"{path}.fieldPath", field, allowed)


def _resource_ref(reference: Object, path: str) -> Iterator[Cause]:
    resource = reference.get("resource", "")
    if not resource:
        yield required_value(f"{path}.resource")
    elif resource not in _RESOURCES and not resource.startswith(_HUGE_PAGES):
        yield unsupported_value(f"{path}.resource", resource, _RESOURCES)


def _toleration(toleration: Object, path: str) -> Iterator[Cause]:
    operator, value = toleration.get("operator") or "", toleration.get("value") or ""
    if not toleration.get("key") and operator != "Exists":
        why = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        yield invalid_value(f"{path}.operator", operator, why)
    if toleration.get("tolerationSeconds") is not None and toleration.get("effect") != "NoExecute":
        why = "effect must be 'NoExecute' when `tolerationSeconds` is set"
        yield invalid_value(f"{path}.effect", toleration.get("effect") or "", why)
    if operator in ("", "Equal"):
        wrong = names.label_value(value)
        if wrong:
            yield invalid_value(f"{path}.operator", value, ";".join(wrong))
    elif operator == "Exists":
        if value:
            why = "value must be empty when `operator` is 'Exists'"
            yield invalid_value(f"{path}.operator", value, why)
    else:
        yield unsupported_value(f"{path}.operator", operator, ("Equal", "Exists"))


def label_selector(selector: Object, path: str) -> Iterator[Cause]:
    """Of the form with ``matchLabels`` and ``matchExpressions``."""
    for key, value in (selector.get("matchLabels") or {}).items():
        where = f"{path}.matchLabels"
        yield from (invalid_value(where, key, why) for why in names.qualified_name(key))
        yield from (invalid_value(where, value, why) for why in names.label_value(value))
    for index, requirement in enumerate(selector.get("matchExpressions") or ()):
        where = f"{path}.matchExpressions[{index}]"
        yield from _requirement(requirement, where)
        for at, value in enumerate(requirement.get("values") or ()):
            yield from (
                invalid_value(f"{where}.values[{at}]", value, why) for why in names.label_value(value)
            )


def _requirement(requirement: Object, path: str) -> Iterator[Cause]:
    """A key, an operator and the values that the operator needs."""
    operator, values = requirement.get("operator", ""), requirement.get("values") or []
    if operator in ("In", "NotIn"):
        if not values:
            why = "must be specified when `operator` is 'In' or 'NotIn'"
            yield required_value(f"{path}.values", why)
    elif operator in ("Exists", "DoesNotExist"):
        if values:
            why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            yield forbidden_value(f"{path}.values", why)
    else:
        yield invalid_value(f"{path}.operator", operator, "not a valid selector operator")
    key = requirement.get("key", "")
    yield from (invalid_value(f"{path}.key", key, why) for why in names.qualified_name(key))


def _node_selector(selector: Object, path: str) -> Iterator[Cause]:
    if not selector.get("nodeSelectorTerms"):
        yield required_value(f"{path}.nodeSelectorTerms", "must have at least one node selector term")


def _node_requirement(requirement: Object, path: str) -> Iterator[Cause]:
    if ".matchFields[" in path:
        yield from _node_field(requirement, path)
    elif requirement.get("operator") in ("Gt", "Lt"):
        if len(requirement.get("values") or []) != 1:
            why = "must be specified single value when `operator` is 'Lt' or 'Gt'"
            yield required_value(f"{path}.values", why)
        key = requirement.get("key", "")
        yield from (invalid_value(f"{path}.key", key, why) for why in names.qualified_name(key))
    else:
        yield from _requirement(requirement, path)


def _node_field(requirement: Object, path: str) -> Iterator[Cause]:
    if requirement.get("operator") not in ("In", "NotIn"):
        why = "not a valid selector operator"
        yield invalid_value(f"{path}.operator", requirement.get("operator", ""), why)
    elif len(requirement.get("values") or []) != 1:
        why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
        yield required_value(f"{path}.values", why)
    if requirement.get("key") != "metadata.name":
        why = "not a valid field selector key"
        yield invalid_value(f"{path}.key", requirement.get("key", ""), why)


def _weighted(term: Object, path: str) -> Iterator[Cause]:
    weight = term.get("weight", 0)
    if not 1 <= weight <= 100:
        yield invalid_value(f"{path}.weight", weight, "must be in the range 1-100")


def _pod_affinity(term: Object, path: str) -> Iterator[Cause]:
    key = term.get("topologyKey", "")
    if not key:
        yield required_value(f"{path}.topologyKey", "can not be empty")
    yield from (invalid_value(f"{path}.topologyKey", key, why) for why in names.qualified_name(key))


def _spread(constraint: Object, path: str) -> Iterator[Cause]:
    if "maxSkew" not in constraint:
        yield invalid_value(f"{path}.maxSkew", 0, "must be greater than zero")
    if not constraint.get("topologyKey"):
        yield required_value(f"{path}.topologyKey", "can not be empty")
    if "whenUnsatisfiable" not in constraint:
        choices = ("DoNotSchedule", "ScheduleAnyway")
        yield unsupported_value(f"{path}.whenUnsatisfiable", "", choices)


def _security_context(context: Object, path: str) -> Iterator[Cause]:
    if context.get("allowPrivilegeEscalation") is not False:
        return
    if context.get("privileged"):
        why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
        yield invalid_value(path, context, why)
    if "CAP_SYS_ADMIN" in ((context.get("capabilities") or {}).get("add") or ()):
        why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"
        yield invalid_value(path, context, why)


def _profile(profile: Object, path: str) -> Iterator[Cause]:
    if profile.get("type") == "Localhost" and not profile.get("localhostProfile"):
        kind = "AppArmor" if path.endswith("appArmorProfile") else "seccomp"
        yield required_value(f"{path}.localhostProfile", f"must be set when {kind} type is Localhost")


def _taint(taint: Object, path: str) -> Iterator[Cause]:
    if not taint.get("effect"):
        yield required_value(f"{path}.effect")


def _host_network(spec: Object, path: str) -> Iterator[Cause]:
    for index, container in enumerate(spec.get("containers") or ()):
        for at, port in enumerate(container.get("ports") or ()):
            given = port.get("hostPort") or 0
            if given not in (0, port.get("containerPort")):
                why = "must match `containerPort` when `hostNetwork` is true"
                yield invalid_value(f"{path}.containers[{index}].ports[{at}].hostPort", given, why)


def _pod_spec(spec: Object, path: str) -> Iterator[Cause]:
    if spec.get("hostNetwork"):
        yield from _host_network(spec, path)
    taken: set[str] = set()
    for index, container in enumerate(spec.get("containers") or ()):
        for at, port in enumerate(container.get("ports") or ()):
            if not port.get("hostPort"):
                continue
            shown = f"{port.get('protocol', 'TCP')}/{port.get('hostIP', '')}/{port['hostPort']}"
            if shown in taken:
                yield duplicate_value(f"{path}.containers[{index}].ports[{at}].hostPort", shown)
            taken.add(shown)
    for key in spec.get("nodeSelector") or {}:
        value = spec["nodeSelector"][key]
        yield from (invalid_value(f"{path}.nodeSelector", key, why) for why in names.qualified_name(key))
        yield from (invalid_value(f"{path}.nodeSelector", value, why) for why in names.label_value(value))
    gates = [gate.get("name", "") for gate in spec.get("schedulingGates") or ()]
    for index, gate in enumerate(gates):
        where = f"{path}.schedulingGates[{index}]"
        yield from (invalid_value(where, gate, why) for why in names.qualified_name(gate))
        if gate in gates[:index]:
            yield duplicate_value(where, gate)
    yield from _dns(spec, path)


def _dns(spec: Object, path: str) -> Iterator[Cause]:
    config = spec.get("dnsConfig")
    servers = (config or {}).get("nameservers") or []
    if spec.get("dnsPolicy") == "None" and config is None:
        why = "must provide `dnsConfig` when `dnsPolicy` is None"
        yield required_value(f"{path}.dnsConfig", why)
    elif spec.get("dnsPolicy") == "None" and not servers:
        why = "must provide at least one DNS nameserver when `dnsPolicy` is None"
        yield required_value(f"{path}.dnsConfig.nameservers", why)
    if len(servers) > 3:
        why = "must not have more than 3 nameservers"
        yield invalid_value(f"{path}.dnsConfig.nameservers", servers, why)


RULES: dict[str, Callable[[Object, str], Iterator[Cause]]] = {
    "AppArmorProfile": _profile,
    "DownwardAPIVolumeFile": _downward_file,
    "EnvVar": _env_var,
    "HTTPGetAction": _http_get,
    "LabelSelector": label_selector,
    "LifecycleHandler": _handler,
    "NodeSelector": _node_selector,
    "NodeSelectorRequirement": _node_requirement,
    "PodAffinityTerm": _pod_affinity,
    "PodSpec": _pod_spec,
    "PreferredSchedulingTerm": _weighted,
    "Probe": _probe,
    "SeccompProfile": _profile,
    "SecurityContext": _security_context,
    "Taint": _taint,
    "Toleration": _toleration,
    "TopologySpreadConstraint": _spread,
    "WeightedPodAffinityTerm": _weighted,
}
