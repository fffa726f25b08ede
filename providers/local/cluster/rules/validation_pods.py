"""The rules for pods and pod templates that concern several of their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds.formats import qualified_name, relative_path
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    duplicate_value,
    forbidden_value,
    invalid_value,
    required_value,
)
from nighttrain.providers.local.cluster.store.quantities import quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Object = dict[str, Any]

_STANDARD_RESOURCES = ("cpu", "memory", "ephemeral-storage", "hugepages-")
_NOT_OF_INIT_CONTAINERS = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
_PROBES = _NOT_OF_INIT_CONTAINERS[1:]
_HANDLERS = ("exec", "httpGet", "tcpSocket")
_UPDATE_RULE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
# nodeName is the scheduler's to set, once.
_CHANGEABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")
_ONE_SOURCE = "may not have more than one field specified at a time"


def validate_pod_spec(spec: Object, path: str) -> list[Cause]:
    """The errors of a defaulted pod spec, but for single fields: those are in its schema."""
    return list(_pod_spec(spec, path))


def _pod_spec(spec: Object, path: str) -> Iterator[Cause]:
    volumes = [each.get("name", "") for each in spec.get("volumes") or ()]
    yield from _volumes(spec.get("volumes") or (), f"{path}.volumes")
    names: list[str] = []
    for key in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(key) or ()):
            where, name = f"{path}.{key}[{index}]", container.get("name", "")
            if name in names:
                yield duplicate_value(f"{where}.name", name)
            names.append(name)
            yield from _container(container, where, volumes)
            if key == "initContainers" and container.get("restartPolicy") != "Always":
                why = "may not be set for init containers without restartPolicy=Always"
                for field in _NOT_OF_INIT_CONTAINERS:
                    if container.get(field) is not None:
                        yield forbidden_value(f"{where}.{field}", why)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        why = "must be between 1 and 2147483647, inclusive"
        yield invalid_value(f"{path}.activeDeadlineSeconds", deadline, why)
    if spec.get("schedulingGates"):
        yield forbidden_value(f"{path}.schedulingGates", "the embedded cluster does not serve it")
    if spec.get("ephemeralContainers"):
        yield forbidden_value(f"{path}.ephemeralContainers", "cannot be set on create")


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


def _volumes(volumes: Iterable[Object], path: str) -> Iterator[Cause]:
    names: list[str] = []
    for index, volume in enumerate(volumes):
        name = volume.get("name", "")
        if name in names:
            yield duplicate_value(f"{path}[{index}].name", name)
        names.append(name)
        sources = [key for key in volume if key != "name"]
        if len(sources) > 1:
            yield forbidden_value(f"{path}[{index}].{sources[1]}", "may not specify more than 1 volume type")


def _container(container: Object, path: str, volumes: list[str]) -> Iterator[Cause]:
    yield from _environment(container, path)
    yield from _mounts(container.get("volumeMounts") or (), f"{path}.volumeMounts", volumes)
    names = [port.get("name", "") for port in container.get("ports") or ()]
    for index, name in enumerate(names):
        if name and name in names[:index]:
            yield duplicate_value(f"{path}.ports[{index}].name", name)
    yield from _resources(container.get("resources") or {}, f"{path}.resources")
    for field in _PROBES:
        if container.get(field) is not None:
            yield from _handler(container[field], f"{path}.{field}")
    if container.get("lifecycle"):
        yield forbidden_value(f"{path}.lifecycle", "the embedded cluster does not run hooks")


def _handler(handler: Object, path: str) -> Iterator[Cause]:
    """A probe has exactly one way to do it."""
    found = [name for name in _HANDLERS if name in handler]
    if not found:
        yield required_value(path, "must specify a handler type: exec, httpGet or tcpSocket")
    for extra in found[1:]:
        yield forbidden_value(f"{path}.{extra}", "may not specify more than 1 handler type")
    seconds = handler.get("terminationGracePeriodSeconds")
    if seconds is not None and (seconds <= 0 or path.endswith(".readinessProbe")):
        why = "must be greater than 0, and not be set for readiness probes"
        yield invalid_value(f"{path}.terminationGracePeriodSeconds", seconds, why)
    if handler.get("successThreshold", 1) != 1 and not path.endswith(".readinessProbe"):
        yield invalid_value(f"{path}.successThreshold", handler["successThreshold"], "must be 1")


def _environment(container: Object, path: str) -> Iterator[Cause]:
    for index, variable in enumerate(container.get("env") or ()):
        field, source = f"{path}.env[{index}].valueFrom", variable.get("valueFrom")
        if source is not None and variable.get("value"):
            yield invalid_value(field, "", "may not be specified when `value` is not empty")
        if source is not None and len(source) != 1:
            yield invalid_value(field, "", _ONE_SOURCE if source else "must specify where the value is from")
    for given in container.get("envFrom") or ():
        sources = [kind for kind in ("configMapRef", "secretRef") if kind in given]
        if len(sources) != 1:
            none = "must specify one of: `configMapRef` or `secretRef`"
            yield invalid_value(f"{path}.envFrom", "", _ONE_SOURCE if sources else none)


def _mounts(mounts: Iterable[Object], path: str, volumes: list[str]) -> Iterator[Cause]:
    places: list[str] = []
    for index, mount in enumerate(mounts):
        field, name, place = f"{path}[{index}]", mount.get("name", ""), mount.get("mountPath", "")
        if name and name not in volumes:
            yield Cause("FieldValueNotFound", f'Not found: "{name}"', f"{field}.name")
        if place in places:
            yield invalid_value(f"{field}.mountPath", place, "must be unique")
        places.append(place)
        if mount.get("subPathExpr"):
            yield forbidden_value(f"{field}.subPathExpr", "the embedded cluster does not serve it")
        wrong = relative_path(mount.get("subPath") or "")
        if wrong:
            yield invalid_value(f"{field}.subPath", mount["subPath"], wrong)


def _resources(resources: Object, path: str) -> Iterator[Cause]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            for why in filter(None, (_resource_name(name), _amount(name, amount))):
                yield invalid_value(f"{path}.{kind}[{name}]", amount, why)
    for name, asked in requests.items():
        if name not in limits:
            if _comes_whole(name):
                why = "Limit must be set for non overcommitable resources"
                yield required_value(f"{path}.limits", why)
        elif quantity(asked) > quantity(limits[name]):
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            yield invalid_value(f"{path}.requests", asked, why)
        elif _comes_whole(name) and quantity(asked) != quantity(limits[name]):
            why = f"must be equal to {name} limit of {limits[name]}"
            yield invalid_value(f"{path}.requests", asked, why)


def _resource_name(name: str) -> str:
    if "/" not in name and not name.startswith(_STANDARD_RESOURCES):
        return "must be a standard resource for containers"
    return qualified_name(name)


def _comes_whole(name: str) -> bool:
    """True if it comes in whole pieces, as GPUs do: its name has a domain that is not Kubernetes' own."""
    return "/" in name and "kubernetes.io/" not in name


def _amount(name: str, text: str) -> str:
    amount = quantity(text)
    if amount < 0:
        return "must be greater than or equal to 0"
    return "must be an integer" if _comes_whole(name) and amount != amount.to_integral_value() else ""
