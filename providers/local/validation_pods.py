"""The rules for pods and pod templates."""

from __future__ import annotations

import re
from typing import Any

from nighttrain.providers.local.environment import quantity as parse_quantity
from nighttrain.providers.local.errors import (
    Cause,
    duplicate_value,
    forbidden_value,
    invalid_value,
    required_value,
    unsupported_value,
)

Object = dict[str, Any]

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_STANDARD_RESOURCES = frozenset(("cpu", "memory", "ephemeral-storage"))
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_UPDATE_RULE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
# nodeName is the scheduler's to set, once.
_CHANGEABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")


def validate_pod_spec(spec: Object, path: str) -> list[Cause]:
    """Everything wrong with a defaulted pod spec."""
    causes: list[Cause] = []
    volumes = _volumes(spec, path, causes)
    names: set[str] = set()
    for index, container in enumerate(spec.get("initContainers") or ()):
        _container(container, f"{path}.initContainers[{index}]", volumes, names, causes)
    if not spec.get("containers"):
        causes.append(required_value(f"{path}.containers"))
    for index, container in enumerate(spec.get("containers") or ()):
        _container(container, f"{path}.containers[{index}]", volumes, names, causes)
    _choice(spec, "restartPolicy", ("Always", "OnFailure", "Never"), path, causes)
    _choice(spec, "dnsPolicy", ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"), path, causes)
    if spec["terminationGracePeriodSeconds"] < 0:
        why = "must be greater than or equal to 0"
        seconds = spec["terminationGracePeriodSeconds"]
        causes.append(invalid_value(f"{path}.terminationGracePeriodSeconds", seconds, why))
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        why = "must be between 1 and 2147483647, inclusive"
        causes.append(invalid_value(f"{path}.activeDeadlineSeconds", deadline, why))
    return causes


def validate_pod_update(spec: Object, old: Object) -> list[Cause]:
    if _fixed_part(spec, old) != _fixed_part(old, old):
        return [forbidden_value("spec", _UPDATE_RULE)]
    deadline, before = spec.get("activeDeadlineSeconds"), old.get("activeDeadlineSeconds")
    if before is not None and (deadline is None or deadline > before):
        why = "must be less than or equal to previous value"
        return [invalid_value("spec.activeDeadlineSeconds", deadline, why)]
    return []


def _fixed_part(spec: Object, old: Object) -> Object:
    fixed = {key: value for key, value in spec.items() if key not in _CHANGEABLE}
    if not old.get("nodeName"):
        fixed.pop("nodeName", None)
    for field in ("containers", "initContainers"):
        if spec.get(field):
            fixed[field] = [{k: v for k, v in each.items() if k != "image"} for each in spec[field]]
    return fixed


def _volumes(spec: Object, path: str, causes: list[Cause]) -> set[str]:
    found: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        field = f"{path}.volumes[{index}].name"
        name = volume.get("name", "")
        if not name:
            causes.append(required_value(field))
        elif not _LABEL.match(name):
            causes.append(invalid_value(field, name, _LABEL_RULE))
        elif name in found:
            causes.append(duplicate_value(field, name))
        found.add(name)
        sources = [key for key in volume if key != "name"]
        if len(sources) > 1:
            why = "may not specify more than 1 volume type"
            causes.append(forbidden_value(f"{path}.volumes[{index}].{sources[1]}", why))
    return found


def _container(container: Object, path: str, volumes: set[str], names: set[str], causes: list[Cause]) -> None:
    name = container.get("name", "")
    if not name:
        causes.append(required_value(f"{path}.name"))
    elif not _LABEL.match(name):
        causes.append(invalid_value(f"{path}.name", name, _LABEL_RULE))
    elif name in names:
        causes.append(duplicate_value(f"{path}.name", name))
    names.add(name)
    if not container.get("image"):
        causes.append(required_value(f"{path}.image"))
    elif container["image"] != container["image"].strip():
        why = "must not have leading or trailing whitespace"
        causes.append(invalid_value(f"{path}.image", container["image"], why))
    _choice(container, "imagePullPolicy", ("Always", "IfNotPresent", "Never"), path, causes)
    policies = ("File", "FallbackToLogsOnError")
    _choice(container, "terminationMessagePolicy", policies, path, causes)
    _environment(container, path, causes)
    _mounts(container, path, volumes, causes)
    _ports(container, path, causes)
    _resources(container.get("resources") or {}, f"{path}.resources", causes)
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(probe):
            _probe(container[probe], f"{path}.{probe}", causes)


def _environment(container: Object, path: str, causes: list[Cause]) -> None:
    for index, variable in enumerate(container.get("env") or ()):
        field = f"{path}.env[{index}]"
        name = variable.get("name", "")
        if not name:
            causes.append(required_value(f"{field}.name"))
        elif not re.fullmatch(r"[ -<>-~]+", name):
            why = (
                "a valid environment variable name must consist only of printable ASCII characters other "
                "than '='"
            )
            causes.append(invalid_value(f"{field}.name", name, why))
        source = variable.get("valueFrom")
        if source is None:
            continue
        if variable.get("value"):
            why = "may not be specified when `value` is not empty"
            causes.append(invalid_value(f"{field}.valueFrom", "", why))
        if len(source) == 0:
            why = (
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or "
                "`fileKeyRef`"
            )
            causes.append(invalid_value(f"{field}.valueFrom", "", why))
        elif len(source) > 1:
            why = "may not have more than one field specified at a time"
            causes.append(invalid_value(f"{field}.valueFrom", "", why))
        for kind in ("configMapKeyRef", "secretKeyRef"):
            if kind in source and not source[kind].get("key"):
                causes.append(required_value(f"{field}.valueFrom.{kind}.key"))


def _mounts(container: Object, path: str, volumes: set[str], causes: list[Cause]) -> None:
    seen = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        field = f"{path}.volumeMounts[{index}]"
        name, where = mount.get("name", ""), mount.get("mountPath", "")
        if not name:
            causes.append(required_value(f"{field}.name"))
        elif name not in volumes:
            causes.append(Cause("FieldValueNotFound", f'Not found: "{name}"', f"{field}.name"))
        if not where:
            causes.append(required_value(f"{field}.mountPath"))
        elif where in seen:
            causes.append(invalid_value(f"{field}.mountPath", where, "must be unique"))
        seen.add(where)
        _sub_path(mount, field, causes)


def _sub_path(mount: Object, field: str, causes: list[Cause]) -> None:
    """A path inside the volume, and nowhere else."""
    if mount.get("subPath") and mount.get("subPathExpr"):
        why = "subPathExpr and subPath are mutually exclusive"
        causes.append(invalid_value(f"{field}.subPathExpr", mount["subPathExpr"], why))
    for key in ("subPath", "subPathExpr"):
        path = mount.get(key) or ""
        if path.startswith("/"):
            causes.append(invalid_value(f"{field}.{key}", path, "must be a relative path"))
        elif ".." in path.split("/"):
            causes.append(invalid_value(f"{field}.{key}", path, "must not contain '..'"))


def _ports(container: Object, path: str, causes: list[Cause]) -> None:
    for index, port in enumerate(container.get("ports") or ()):
        field = f"{path}.ports[{index}].containerPort"
        number = port.get("containerPort")
        if number is None:
            causes.append(required_value(field))
        elif not 1 <= number <= 65535:
            causes.append(invalid_value(field, number, "must be between 1 and 65535, inclusive"))


def _resources(resources: Object, path: str, causes: list[Cause]) -> None:
    limits = resources.get("limits") or {}
    for kind in ("limits", "requests"):
        for name, quantity in (resources.get(kind) or {}).items():
            if name not in _STANDARD_RESOURCES and "/" not in name and not name.startswith("hugepages-"):
                why = "must be a standard resource type or fully qualified"
                causes.append(invalid_value(f"{path}.{kind}", name, why))
            if parse_quantity(quantity) < 0:
                why = "must be greater than or equal to 0"
                causes.append(invalid_value(f"{path}.{kind}[{name}]", quantity, why))
    for name, quantity in (resources.get("requests") or {}).items():
        if name in limits and parse_quantity(quantity) > parse_quantity(limits[name]):
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            causes.append(invalid_value(f"{path}.requests", quantity, why))


def _probe(probe: Object, path: str, causes: list[Cause]) -> None:
    handlers = [name for name in _HANDLERS if name in probe]
    if not handlers:
        causes.append(required_value(path, "must specify a handler type"))
    elif len(handlers) > 1:
        why = "may not specify more than 1 handler type"
        causes.append(forbidden_value(f"{path}.{handlers[1]}", why))
    for name in (
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ):
        if probe.get(name) is not None and probe[name] < 0:
            causes.append(invalid_value(f"{path}.{name}", probe[name], "must be greater than or equal to 0"))
    if not path.endswith("readinessProbe") and probe.get("successThreshold", 1) != 1:
        causes.append(invalid_value(f"{path}.successThreshold", probe["successThreshold"], "must be 1"))


def _choice(obj: Object, name: str, allowed: tuple[str, ...], path: str, causes: list[Cause]) -> None:
    if obj.get(name) not in allowed:
        causes.append(unsupported_value(f"{path}.{name}", obj.get(name), allowed))
