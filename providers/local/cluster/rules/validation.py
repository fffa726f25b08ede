"""The rules an object must keep, refused with every broken one named by its field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.rules import validation_names as names
from nighttrain.providers.local.cluster.rules.claims import validate_claim
from nighttrain.providers.local.cluster.rules.validation_fields import check
from nighttrain.providers.local.cluster.rules.validation_jobs import (
    validate_job_spec,
    validate_job_update,
    validate_pod_failure_policy,
    validate_selector,
)
from nighttrain.providers.local.cluster.rules.validation_kinds import (
    validate_endpoint_slice,
    validate_priority_class,
    validate_quota,
    validate_secret_type,
    validate_service,
)
from nighttrain.providers.local.cluster.rules.validation_pods import validate_pod_spec, validate_pod_update
from nighttrain.providers.local.cluster.rules.validation_types import label_selector
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    invalid_value,
    required_value,
    unsupported_value,
)

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
        if old is None or resource.kind not in _FIXED_AFTER_CREATION:
            causes += check(resource.kind, new)
        causes += rules(new, old)
    if causes:
        raise errors.invalid(resource, new["metadata"].get("name", ""), causes)


def _metadata(resource: ResourceType, obj: Object) -> list[Cause]:
    metadata = obj["metadata"]
    causes = _name(resource, metadata)
    causes += validate_labels(metadata.get("labels") or {}, "metadata.labels")
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        wrong = names.qualified_name(key.lower())
        causes += [invalid_value("metadata.annotations", key, why) for why in wrong]
    if sum(len(key) + len(value) for key, value in annotations.items()) > _ANNOTATION_BYTES:
        causes.append(
            Cause(
                "FieldValueTooLong",
                f"Too long: may not be more than {_ANNOTATION_BYTES} bytes",
                "metadata.annotations",
            )
        )
    return causes + _owners(metadata.get("ownerReferences") or [])


def _owners(owners: list[Object]) -> list[Cause]:
    field = "metadata.ownerReferences"
    causes = [
        invalid_value(f"{field}.{name}", owner.get(name, ""), "must not be empty")
        for owner in owners
        for name in ("apiVersion", "kind", "name", "uid")
        if not owner.get(name)
    ]
    controllers = [
        f"{each.get('kind', '')}/{each.get('name', '')}" for each in owners if each.get("controller")
    ]
    for other in controllers[1:]:
        why = (
            'Only one reference can have Controller set to true. Found "true" in references for '
            f"{controllers[0]} and {other}"
        )
        causes.append(invalid_value(field, owners, why))
    return causes


def _finalizers(resource: ResourceType, metadata: Object, old: Object | None) -> list[Cause]:
    field = "metadata.finalizers"
    finalizers = metadata.get("finalizers") or []
    causes = [invalid_value(field, each, why) for each in finalizers for why in names.qualified_name(each)]
    bare = [(i, each) for i, each in enumerate(finalizers) if "/" not in each]
    for index, each in bare if resource.custom is None else ():
        if each not in _STANDARD_FINALIZERS and not (old and each in (old.get("finalizers") or ())):
            why = "name is neither a standard finalizer name nor is it fully qualified"
            causes.append(invalid_value(f"{field}[{index}]", each, why))
    if old is not None and "deletionTimestamp" in old:
        added = [each for each in finalizers if each not in (old.get("finalizers") or ())]
        if added:
            why = f"no new finalizers can be added if the object is being deleted, found {', '.join(added)}"
            causes.append(errors.forbidden_value(field, why))
    return causes


def _name(resource: ResourceType, metadata: Object) -> list[Cause]:
    name, start = metadata.get("name", ""), metadata.get("generateName", "")
    if resource.kind == "Service" and resource.custom is None:
        rule = names.service_name
    elif resource.kind == "Namespace":
        rule = names.label
    else:
        rule = names.subdomain
    # What ends in a dash gets more to its right.
    causes = [
        invalid_value("metadata.generateName", start, why)
        for why in (rule(start[:-1] + "a" if start.endswith("-") else start) if start else ())
    ]
    if not name:
        return [*causes, required_value("metadata.name", "name or generateName is required")]
    return causes + [invalid_value("metadata.name", name, why) for why in rule(name)]


def validate_labels(labels: dict[str, str], field: str) -> list[Cause]:
    causes: list[Cause] = []
    for key, value in labels.items():
        causes += [invalid_value(field, key, why) for why in names.qualified_name(key)]
        causes += [invalid_value(field, value, why) for why in names.label_value(value)]
    return causes


def _pod(pod: Object, old: Object | None) -> list[Cause]:
    if old is None:
        return validate_pod_spec(pod["spec"], "spec")
    return validate_pod_update(pod["spec"], old["spec"])


def _job(job: Object, old: Object | None) -> list[Cause]:
    causes = list(validate_job_spec(job))
    if old is not None:
        return causes + validate_job_update(job, old)
    template = job["spec"]["template"]
    causes += validate_labels((template.get("metadata") or {}).get("labels") or {}, "spec.template.labels")
    causes += validate_pod_failure_policy(job["spec"])
    causes += validate_selector(job)
    if template["spec"]["restartPolicy"] == "Always":
        text = 'valid values: "OnFailure", "Never"'
        causes.append(required_value("spec.template.spec.restartPolicy", text))
    return causes + validate_pod_spec(template["spec"], "spec.template.spec")


def _deployment(deployment: Object, old: Object | None) -> list[Cause]:
    spec = deployment["spec"]
    causes = _replicated(deployment, old)
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None and deadline <= spec.get("minReadySeconds", 0):
        why = "must be greater than minReadySeconds"
        causes.append(invalid_value("spec.progressDeadlineSeconds", deadline, why))
    strategy = spec["strategy"]
    if strategy["type"] == "Recreate" and strategy.get("rollingUpdate"):
        why = "may not be specified when strategy `type` is 'Recreate'"
        causes.append(errors.forbidden_value("spec.strategy.rollingUpdate", why))
    rolling = strategy.get("rollingUpdate") or {}
    share = re.fullmatch(r"([0-9]+)%", str(rolling.get("maxUnavailable", "")))
    if share is not None and int(share[1]) > 100:
        field = "spec.strategy.rollingUpdate.maxUnavailable"
        causes.append(invalid_value(field, rolling["maxUnavailable"], "must not be greater than 100%"))
    if rolling and all(str(rolling.get(each)) in ("0", "0%") for each in ("maxUnavailable", "maxSurge")):
        why = "may not be 0 when `maxSurge` is 0"
        causes.append(
            invalid_value("spec.strategy.rollingUpdate.maxUnavailable", rolling["maxUnavailable"], why)
        )
    return causes


def _replicated(obj: Object, old: Object | None) -> list[Cause]:
    spec = obj["spec"]
    causes: list[Cause] = []
    selector = spec.get("selector") or {}
    template = spec["template"]
    labels = (template.get("metadata") or {}).get("labels") or {}
    if spec.get("selector") is None:
        causes.append(required_value("spec.selector"))
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        why = f"empty selector is invalid for {obj.get('kind', '').lower()}"
        causes.append(invalid_value("spec.selector", selector, why))
    elif not any(label_selector(selector, "")) and not _selects(selector, labels):
        why = "`selector` does not match template `labels`"
        causes.append(invalid_value("spec.template.metadata.labels", labels, why))
    if old is not None and selector != old["spec"].get("selector"):
        causes.append(invalid_value("spec.selector", selector, _IMMUTABLE))
    if template["spec"]["restartPolicy"] != "Always":
        field = "spec.template.spec.restartPolicy"
        causes.append(unsupported_value(field, template["spec"]["restartPolicy"], ("Always",)))
    if template["spec"].get("activeDeadlineSeconds") is not None:
        field = "spec.template.spec.activeDeadlineSeconds"
        why = "activeDeadlineSeconds in ReplicaSet is not Supported"
        causes.append(errors.forbidden_value(field, why))
    causes += validate_labels(labels, "spec.template.labels")
    return causes + validate_pod_spec(template["spec"], "spec.template.spec")


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    from nighttrain.providers.local.cluster.store.selection import LabelSelector

    return LabelSelector.from_object(selector).matches_labels(labels)


def _service(service: Object, old: Object | None) -> list[Cause]:
    return list(validate_service(service, old))


def _endpoint_slice(piece: Object, _old: Object | None) -> list[Cause]:
    return list(validate_endpoint_slice(piece))


def _priority_class(class_: Object, old: Object | None) -> list[Cause]:
    return list(validate_priority_class(class_, old))


def _quota(quota: Object, _old: Object | None) -> list[Cause]:
    return list(validate_quota(quota))


def _secret(secret: Object, old: Object | None) -> list[Cause]:
    return _data(secret, old) + list(validate_secret_type(secret))


def _node(_node: Object, _old: Object | None) -> list[Cause]:
    return []


def _data(obj: Object, old: Object | None) -> list[Cause]:
    causes = []
    size = 0
    for field in ("data", "binaryData"):
        for key, value in (obj.get(field) or {}).items():
            size += len(value)
            causes += [invalid_value(f"{field}[{key}]", key, why) for why in names.config_key(key)]
            other = "binaryData" if field == "data" else "data"
            if key in (obj.get(other) or {}):
                why = f"duplicate of key present in {other}"
                causes.append(invalid_value(f"{field}[{key}]", key, why))
    if size > _DATA_BYTES:
        causes.append(Cause("FieldValueTooLong", f"Too long: may not be more than {_DATA_BYTES} bytes", ""))
    if old is not None and old.get("immutable"):
        for field in ("data", "binaryData", "immutable"):
            if obj.get(field) != old.get(field):
                causes.append(errors.forbidden_value(field, "field is immutable when `immutable` is set"))
    if old is not None and "type" in old and obj.get("type") != old["type"]:
        causes.append(invalid_value("type", obj.get("type"), _IMMUTABLE))
    return causes


def _lease(lease: Object, _old: Object | None) -> list[Cause]:
    spec = lease.get("spec") or {}
    causes = []
    if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
        why = "must be greater than 0"
        causes.append(invalid_value("spec.leaseDurationSeconds", spec["leaseDurationSeconds"], why))
    if spec.get("leaseTransitions") is not None and spec["leaseTransitions"] < 0:
        why = "must be greater than or equal to 0"
        causes.append(invalid_value("spec.leaseTransitions", spec["leaseTransitions"], why))
    return causes


def _event(event: Object, old: Object | None) -> list[Cause]:
    about = event.get("involvedObject")
    if old is None and about is None:
        return [required_value("involvedObject")]
    space = (about or {}).get("namespace") or "default"
    if old is None and space != event["metadata"]["namespace"]:
        return [invalid_value("involvedObject.namespace", space, "does not match event.namespace")]
    return []


_RULES: dict[str, Callable[[Object, Object | None], list[Cause]]] = {
    "Pod": _pod,
    "Job": _job,
    "Deployment": _deployment,
    "ReplicaSet": _replicated,
    "Service": _service,
    "ConfigMap": _data,
    "Secret": _secret,
    "EndpointSlice": _endpoint_slice,
    "PriorityClass": _priority_class,
    "ResourceQuota": _quota,
    "Node": _node,
    "Lease": _lease,
    "Event": _event,
    "PersistentVolumeClaim": validate_claim,
}
# A pod's spec hardly changes; what may be changed is checked by itself.
_FIXED_AFTER_CREATION = ("Pod",)
