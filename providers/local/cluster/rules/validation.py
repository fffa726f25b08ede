"""The rules an object must keep, refused with every broken one named by its field.

What holds of a single field is in the kinds' schemas; here is what concerns several fields or two versions of
an object, as far as manifests that people and nighttrain write meet it. A real API server has more rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds import formats
from nighttrain.providers.local.cluster.kinds.builtin_schemas import schema_of
from nighttrain.providers.local.cluster.kinds.crd_definitions import validate_definition
from nighttrain.providers.local.cluster.kinds.schemas import broken_rules
from nighttrain.providers.local.cluster.rules.claims import validate_claim
from nighttrain.providers.local.cluster.rules.validation_jobs import validate_job
from nighttrain.providers.local.cluster.rules.validation_pods import validate_pod_spec, validate_pod_update
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    duplicate_value,
    forbidden_value,
    invalid_value,
    required_value,
    unsupported_value,
)
from nighttrain.providers.local.cluster.store.selection import selects

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.local.cluster.store.resources import ResourceType

Object = dict[str, Any]

_IMMUTABLE = "field is immutable"
# Finalizers that Kubernetes itself uses; others have a domain.
_STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")

# All annotations of an object together; the limit of a real cluster.
_ANNOTATION_BYTES = 256 * 1024
# All values of a ConfigMap or Secret together; the limit of a real cluster.
_DATA_BYTES = 1024 * 1024


def validate(resource: ResourceType, new: Object, old: Object | None) -> None:
    """:raises ApiError: 422 with every cause"""
    causes = _metadata(resource, new)
    causes += _finalizers(resource, new["metadata"], (old or {}).get("metadata"))
    # A custom kind may have the name of a built-in one; its own schema has been applied already.
    rules = _RULES.get(resource.kind) if resource.custom is None else None
    if rules is not None and (old is None or old.get("spec") != new.get("spec") or "spec" not in new):
        # A pod's spec hardly changes; what may be changed is checked by itself.
        if old is None or resource.kind != "Pod":
            described = {key: each for key, each in new.items() if key not in ("metadata", "status")}
            causes += broken_rules(schema_of(resource.kind), described)
        causes += rules(new, old)
    if causes:
        raise errors.invalid(resource, new["metadata"].get("name", ""), _once_a_field(causes))


def _once_a_field(causes: list[Cause]) -> list[Cause]:
    """A field that is not there breaks no other rule."""
    missing = {each.field for each in causes if each.reason == "FieldValueRequired"}
    return [each for each in causes if each.reason == "FieldValueRequired" or each.field not in missing]


def _metadata(resource: ResourceType, obj: Object) -> list[Cause]:
    metadata = obj["metadata"]
    causes = _name(resource, metadata)
    causes += validate_labels(metadata.get("labels") or {}, "metadata.labels")
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        causes += _wrong("metadata.annotations", key, formats.qualified_name(key.lower()))
    if sum(len(key) + len(value) for key, value in annotations.items()) > _ANNOTATION_BYTES:
        why = f"Too long: may not be more than {_ANNOTATION_BYTES} bytes"
        causes.append(Cause("FieldValueTooLong", why, "metadata.annotations"))
    return causes + _owners(metadata.get("ownerReferences") or [])


def _wrong(field: str, value: object, why: str) -> list[Cause]:
    return [invalid_value(field, value, why)] if why else []


def _owners(owners: list[Object]) -> list[Cause]:
    field = "metadata.ownerReferences"
    causes = [
        invalid_value(f"{field}.{name}", owner.get(name, ""), "must not be empty")
        for owner in owners
        for name in ("apiVersion", "kind", "name", "uid")
        if not owner.get(name)
    ]
    if sum(1 for each in owners if each.get("controller")) > 1:
        causes.append(invalid_value(field, owners, "only one reference can have controller set to true"))
    return causes


def _finalizers(resource: ResourceType, metadata: Object, old: Object | None) -> list[Cause]:
    field = "metadata.finalizers"
    finalizers = metadata.get("finalizers") or []
    before = (old or {}).get("finalizers") or ()
    causes = [cause for each in finalizers for cause in _wrong(field, each, formats.qualified_name(each))]
    for index, each in enumerate(finalizers if resource.custom is None else ()):
        if "/" not in each and each not in _STANDARD_FINALIZERS and each not in before:
            why = "name is neither a standard finalizer name nor is it fully qualified"
            causes.append(invalid_value(f"{field}[{index}]", each, why))
    added = [each for each in finalizers if each not in before]
    if old is not None and "deletionTimestamp" in old and added:
        why = f"no new finalizers can be added if the object is being deleted, found {', '.join(added)}"
        causes.append(forbidden_value(field, why))
    return causes


def _name(resource: ResourceType, metadata: Object) -> list[Cause]:
    name, start = metadata.get("name", ""), metadata.get("generateName", "")
    if resource.kind == "Service" and resource.custom is None:
        rule = formats.service_name
    else:
        rule = formats.dns_label if resource.kind == "Namespace" else formats.dns_subdomain
    # What ends in a dash gets more to its right.
    begun = start[:-1] + "a" if start.endswith("-") else start
    causes = _wrong("metadata.generateName", start, rule(begun) if begun else "")
    if not name:
        return [*causes, required_value("metadata.name", "name or generateName is required")]
    return causes + _wrong("metadata.name", name, rule(name))


def validate_labels(labels: dict[str, str], field: str) -> list[Cause]:
    causes: list[Cause] = []
    for key, value in labels.items():
        causes += _wrong(field, key, formats.qualified_name(key))
        causes += _wrong(field, value, formats.label_value(value))
    return causes


def _pod(pod: Object, old: Object | None) -> list[Cause]:
    if old is None:
        return validate_pod_spec(pod["spec"], "spec")
    return validate_pod_update(pod["spec"], old["spec"])


def _job(job: Object, old: Object | None) -> list[Cause]:
    labels = (job["spec"]["template"].get("metadata") or {}).get("labels") or {}
    return validate_labels(labels, "spec.template.labels") + validate_job(job, old)


def _deployment(deployment: Object, old: Object | None) -> list[Cause]:
    causes = _replicated(deployment, old)
    spec = deployment["spec"]
    if not spec["progressDeadlineSeconds"]:
        why = "must be greater than minReadySeconds"
        causes.append(invalid_value("spec.progressDeadlineSeconds", 0, why))
    if spec.get("paused"):
        causes.append(forbidden_value("spec.paused", "the embedded cluster does not serve it"))
    strategy = spec["strategy"]
    field = "spec.strategy.rollingUpdate"
    rolling = strategy.get("rollingUpdate") or {}
    if rolling and all(str(rolling.get(each)) in ("0", "0%") for each in ("maxUnavailable", "maxSurge")):
        why = "may not be 0 when `maxSurge` is 0"
        causes.append(invalid_value(f"{field}.maxUnavailable", rolling["maxUnavailable"], why))
    return causes


def _replicated(obj: Object, old: Object | None) -> list[Cause]:
    spec = obj["spec"]
    selector, template = spec.get("selector") or {}, spec["template"]
    labels = (template.get("metadata") or {}).get("labels") or {}
    causes = validate_labels(labels, "spec.template.labels")
    if spec.get("minReadySeconds"):
        causes.append(forbidden_value("spec.minReadySeconds", "the embedded cluster does not serve it"))
    if spec.get("selector") is not None and not any(selector.values()):
        why = f"empty selector is invalid for {obj.get('kind', '').lower()}"
        causes.append(invalid_value("spec.selector", selector, why))
    elif selector and not selects(selector, labels):
        why = "`selector` does not match template `labels`"
        causes.append(invalid_value("spec.template.metadata.labels", labels, why))
    if old is not None and selector != old["spec"].get("selector"):
        causes.append(invalid_value("spec.selector", selector, _IMMUTABLE))
    if template["spec"]["restartPolicy"] != "Always":
        field = "spec.template.spec.restartPolicy"
        causes.append(unsupported_value(field, template["spec"]["restartPolicy"], ("Always",)))
    return causes + validate_pod_spec(template["spec"], "spec.template.spec")


def _service(service: Object, old: Object | None) -> list[Cause]:
    spec = service["spec"]
    ports = spec.get("ports") or []
    causes = validate_labels(spec.get("selector") or {}, "spec.selector")
    if not ports and spec.get("clusterIP") != "None":
        causes.append(required_value("spec.ports"))
    for index, port in enumerate(ports):
        path, name = f"spec.ports[{index}]", port.get("name")
        if len(ports) > 1 and not name:
            causes.append(required_value(f"{path}.name"))
        elif name in [each.get("name") for each in ports[:index]] and name:
            causes.append(duplicate_value(f"{path}.name", name))
        number = {"protocol": port["protocol"], "port": port.get("port")}
        if any(number.items() <= each.items() for each in ports[:index]):
            causes.append(duplicate_value(path, number))
    had = (old or {}).get("spec", {}).get("clusterIP")
    if had and spec.get("clusterIP") != had:
        causes.append(invalid_value("spec.clusterIPs[0]", spec.get("clusterIPs"), _IMMUTABLE))
    return causes


def _data(obj: Object, old: Object | None) -> list[Cause]:
    causes = []
    size = 0
    for field in ("data", "binaryData"):
        for key, value in (obj.get(field) or {}).items():
            size += len(value)
            causes += _wrong(f"{field}[{key}]", key, formats.config_key(key))
    for key in sorted(set(obj.get("data") or {}) & set(obj.get("binaryData") or {})):
        causes.append(invalid_value(f"data[{key}]", key, "duplicate of key present in binaryData"))
    if size > _DATA_BYTES:
        causes.append(Cause("FieldValueTooLong", f"Too long: may not be more than {_DATA_BYTES} bytes", ""))
    if old is not None and old.get("immutable"):
        for field in ("data", "binaryData", "immutable"):
            if obj.get(field) != old.get(field):
                causes.append(forbidden_value(field, "field is immutable when `immutable` is set"))
    if old is not None and "type" in old and obj.get("type") != old["type"]:
        causes.append(invalid_value("type", obj.get("type"), _IMMUTABLE))
    return causes


def _event(event: Object, old: Object | None) -> list[Cause]:
    space = (event.get("involvedObject") or {}).get("namespace") or "default"
    if old is None and space != event["metadata"]["namespace"]:
        return [invalid_value("involvedObject.namespace", space, "does not match event.namespace")]
    return []


def _fields_alone(_obj: Object, _old: Object | None) -> list[Cause]:
    return []


_RULES: dict[str, Callable[[Object, Object | None], list[Cause]]] = {
    "Pod": _pod,
    "Job": _job,
    "Deployment": _deployment,
    "ReplicaSet": _replicated,
    "Service": _service,
    "ConfigMap": _data,
    "Secret": _data,
    "EndpointSlice": _fields_alone,
    "Node": _fields_alone,
    "Lease": _fields_alone,
    "Event": _event,
    "PersistentVolumeClaim": validate_claim,
    "CustomResourceDefinition": validate_definition,
}
