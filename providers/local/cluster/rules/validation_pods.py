"""The rules for pods and pod templates."""

from __future__ import annotations

import re
from typing import Any

from nighttrain.providers.local.cluster.rules import validation_names as names
from nighttrain.providers.local.cluster.rules.validation_fields import check
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    duplicate_value,
    forbidden_value,
    invalid_value,
    required_value,
)
from nighttrain.providers.local.cluster.store.quantities import quantity as parse_quantity

Object = dict[str, Any]

_HUGE_PAGES = "hugepages-"
_STANDARD_RESOURCES = frozenset(("cpu", "memory", "ephemeral-storage"))
_NOT_OF_INIT_CONTAINERS = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
_UPDATE_RULE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
# nodeName is the scheduler's to set, once.
_CHANGEABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")


def validate_pod_spec(spec: Object, path: str) -> list[Cause]:
    """What is wrong with a defaulted pod spec, but for single fields and parts: those have tables."""
    causes: list[Cause] = []
    volumes = _volumes(spec, path, causes)
    found: set[str] = set()
    if not spec.get("containers"):
        causes.append(required_value(f"{path}.containers"))
    for index, container in enumerate(spec.get("containers") or ()):
        _container(container, f"{path}.containers[{index}]", volumes, found, causes)
    for index, container in enumerate(spec.get("initContainers") or ()):
        where = f"{path}.initContainers[{index}]"
        _container(container, where, volumes, found, causes)
        for field in _NOT_OF_INIT_CONTAINERS if container.get("restartPolicy") != "Always" else ():
            if container.get(field) is not None:
                why = "may not be set for init containers without restartPolicy=Always"
                causes.append(forbidden_value(f"{where}.{field}", why))
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        why = "must be between 1 and 2147483647, inclusive"
        causes.append(invalid_value(f"{path}.activeDeadlineSeconds", deadline, why))
    if spec.get("ephemeralContainers"):
        new = path == "spec"
        why = "cannot be set on create" if new else "ephemeral containers not allowed in pod template"
        causes.append(forbidden_value(f"{path}.ephemeralContainers", why))
    return causes


def validate_pod_update(spec: Object, old: Object) -> list[Cause]:
    if _fixed_part(spec, old) != _fixed_part(old, old):
        return [forbidden_value("spec", _UPDATE_RULE)]
    deadline, before = spec.get("activeDeadlineSeconds"), old.get("activeDeadlineSeconds")
    if before is not None and (deadline is None or deadline > before):
        why = "must be less than or equal to previous value"
        return [invalid_value("spec.activeDeadlineSeconds", deadline, why)]
    return check("PodSpec", {"tolerations": spec.get("tolerations") or []}, "spec")


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
        elif wrong := names.label(name):
            causes += [invalid_value(field, name, why) for why in wrong]
        elif name in found:
            causes.append(duplicate_value(field, name))
        found.add(name)
        sources = [key for key in volume if key != "name"]
        if len(sources) > 1:
            why = "may not specify more than 1 volume type"
            causes.append(forbidden_value(f"{path}.volumes[{index}].{sources[1]}", why))
    return found


def _container(container: Object, path: str, volumes: set[str], found: set[str], causes: list[Cause]) -> None:
    name = container.get("name", "")
    if not name:
        causes.append(required_value(f"{path}.name"))
    elif wrong := names.label(name):
        causes += [invalid_value(f"{path}.name", name, why) for why in wrong]
    elif name in found:
        causes.append(duplicate_value(f"{path}.name", name))
    found.add(name)
    if not container.get("image"):
        causes.append(required_value(f"{path}.image"))
    elif container["image"] != container["image"].strip():
        why = "must not have leading or trailing whitespace"
        causes.append(invalid_value(f"{path}.image", container["image"], why))
    _environment(container, path, causes)
    _mounts(container, path, volumes, causes)
    _ports(container, path, causes)
    _resources(container.get("resources") or {}, f"{path}.resources", causes)


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
    for given in container.get("envFrom") or ():
        sources = [kind for kind in ("configMapRef", "secretRef") if kind in given]
        if len(sources) != 1:
            none = "must specify one of: `configMapRef` or `secretRef`"
            why = "may not have more than one field specified at a time" if sources else none
            causes.append(invalid_value(f"{path}.envFrom", "", why))


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
    found: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        name = port.get("name", "")
        if name and name in found:
            causes.append(duplicate_value(f"{path}.ports[{index}].name", name))
        found.add(name)


def _resources(resources: Object, path: str, causes: list[Cause]) -> None:
    limits = resources.get("limits") or {}
    for kind in ("limits", "requests"):
        for name, quantity in (resources.get(kind) or {}).items():
            field = f"{path}.{kind}[{name}]"
            causes += [invalid_value(field, name, why) for why in _resource_name(name)]
            wrong = amount_sentences(quantity, whole=is_extended(name))
            causes += [invalid_value(field, quantity, why) for why in wrong]
    for name, quantity in (resources.get("requests") or {}).items():
        shared = not is_extended(name) and not name.startswith(_HUGE_PAGES)
        if name not in limits:
            if not shared:
                why = "Limit must be set for non overcommitable resources"
                causes.append(required_value(f"{path}.limits", why))
            continue
        asked, most = parse_quantity(quantity), parse_quantity(limits[name])
        if asked != most and not shared:
            why = f"must be equal to {name} limit of {limits[name]}"
            causes.append(invalid_value(f"{path}.requests", quantity, why))
        elif asked > most:
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            causes.append(invalid_value(f"{path}.requests", quantity, why))


def _resource_name(name: str) -> list[str]:
    found = names.qualified_name(name)
    if "/" not in name and name not in _STANDARD_RESOURCES and not name.startswith(_HUGE_PAGES):
        found += [
            "must be a standard resource type or fully qualified",
            "must be a standard resource for containers",
        ]
    elif "/" in name and not is_extended(name) and "kubernetes.io/" not in name:
        found.append("doesn't follow extended resource name standard")
    return found


def is_extended(name: str) -> bool:
    """Whether it comes in whole pieces, as GPUs do: its name has a domain that is not Kubernetes' own."""
    return "/" in name and "kubernetes.io/" not in name and not name.startswith("requests.")


def amount_sentences(quantity: str | float, *, whole: bool) -> list[str]:
    """What the API says of an amount. :param whole: whether it counts pieces"""
    amount = parse_quantity(quantity)
    found = ["must be greater than or equal to 0"] if amount < 0 else []
    return found + (["must be an integer"] if whole and amount != amount.to_integral_value() else [])
