"""The rules an object must keep, refused with every broken one named by its field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local import errors
from nighttrain.providers.local.errors import Cause, invalid_value, required_value, unsupported_value
from nighttrain.providers.local.validation_pods import validate_pod_spec, validate_pod_update

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.local.resources import ResourceType

Object = dict[str, Any]

_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_SERVICE_LABEL = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_LABEL_NAME = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")

_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_SERVICE_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
    "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for "
    "validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_LABEL_NAME_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used "
    "for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_IMMUTABLE = "field is immutable"
_TOO_LONG = "must be no more than {} bytes"

# All annotations of an object together; the limit of a real cluster.
_ANNOTATION_BYTES = 256 * 1024
# All values of a ConfigMap or Secret together; the limit of a real cluster.
_DATA_BYTES = 1024 * 1024


def validate(resource: ResourceType, new: Object, old: Object | None) -> None:
    """:raises ApiError: 422 with every cause"""
    causes = _metadata(resource, new)
    causes += _finalizers(new["metadata"], (old or {}).get("metadata"))
    # A custom kind may have the name of a built-in one; its own schema has been applied already.
    rules = _RULES.get(resource.kind) if resource.custom is None else None
    if rules is not None and (old is None or old.get("spec") != new.get("spec") or "spec" not in new):
        causes += rules(new, old)
    if causes:
        raise errors.invalid(resource, new["metadata"].get("name", ""), causes)


def _metadata(resource: ResourceType, obj: Object) -> list[Cause]:
    metadata = obj["metadata"]
    name = metadata.get("name", "")
    causes = _name(resource, name)
    causes += validate_labels(metadata.get("labels") or {}, "metadata.labels")
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        causes += _label_key(key.lower(), "metadata.annotations")
    if sum(len(key) + len(value) for key, value in annotations.items()) > _ANNOTATION_BYTES:
        causes.append(
            Cause(
                "FieldValueTooLong",
                f"Too long: may not be more than {_ANNOTATION_BYTES} bytes",
                "metadata.annotations",
            )
        )
    controllers = [each for each in metadata.get("ownerReferences") or () if each.get("controller")]
    if len(controllers) > 1:
        why = "Only one reference can have Controller set to true"
        causes.append(invalid_value("metadata.ownerReferences", metadata["ownerReferences"], why))
    for index, owner in enumerate(metadata.get("ownerReferences") or ()):
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                causes.append(required_value(f"metadata.ownerReferences[{index}].{field}"))
    return causes


def _finalizers(metadata: Object, old: Object | None) -> list[Cause]:
    field = "metadata.finalizers"
    finalizers = metadata.get("finalizers") or []
    causes = [cause for each in finalizers for cause in _label_key(each, field)]
    if old is not None and "deletionTimestamp" in old:
        added = [each for each in finalizers if each not in (old.get("finalizers") or ())]
        if added:
            why = f"no new finalizers can be added if the object is being deleted, found {', '.join(added)}"
            causes.append(errors.forbidden_value(field, why))
    return causes


def _name(resource: ResourceType, name: str) -> list[Cause]:
    if not name:
        return [required_value("metadata.name", "name or generateName is required")]
    if resource.kind == "Service" and resource.custom is None:
        rule, text, limit = _SERVICE_LABEL, _SERVICE_RULE, 63
    elif resource.kind == "Namespace":
        rule, text, limit = _LABEL, _LABEL_RULE, 63
    else:
        rule, text, limit = _SUBDOMAIN, _SUBDOMAIN_RULE, 253
    causes = []
    if len(name) > limit:
        causes.append(invalid_value("metadata.name", name, _TOO_LONG.format(limit)))
    if not rule.match(name):
        causes.append(invalid_value("metadata.name", name, text))
    return causes


def validate_labels(labels: dict[str, str], field: str) -> list[Cause]:
    causes: list[Cause] = []
    for key, value in labels.items():
        causes += _label_key(key, field)
        if len(value) > 63:
            causes.append(invalid_value(field, value, _TOO_LONG.format(63)))
        if not _LABEL_VALUE.match(value):
            causes.append(invalid_value(field, value, _LABEL_VALUE_RULE))
    return causes


def _label_key(key: str, field: str) -> list[Cause]:
    prefix, slash, name = key.rpartition("/")
    causes = []
    if slash and not (_SUBDOMAIN.match(prefix) and len(prefix) <= 253):
        causes.append(invalid_value(field, key, f"prefix part {_SUBDOMAIN_RULE}"))
    if len(name) > 63:
        causes.append(invalid_value(field, key, "name part " + _TOO_LONG.format(63)))
    if not _LABEL_NAME.match(name):
        causes.append(invalid_value(field, key, _LABEL_NAME_RULE))
    return causes


def _pod(pod: Object, old: Object | None) -> list[Cause]:
    if old is None:
        return validate_pod_spec(pod["spec"], "spec")
    return validate_pod_update(pod["spec"], old["spec"])


def _job(job: Object, old: Object | None) -> list[Cause]:
    spec = job["spec"]
    causes = _at_least_zero(spec, ("parallelism", "completions", "backoffLimit", "ttlSecondsAfterFinished"))
    if spec.get("activeDeadlineSeconds") is not None and spec["activeDeadlineSeconds"] < 1:
        causes += _at_least_zero(spec, ("activeDeadlineSeconds",))
    if spec["completionMode"] not in ("NonIndexed", "Indexed"):
        causes.append(
            unsupported_value("spec.completionMode", spec["completionMode"], ("Indexed", "NonIndexed"))
        )
    if spec["completionMode"] == "Indexed" and spec.get("completions") is None:
        causes.append(required_value("spec.completions", "when completion mode is Indexed"))
    if old is not None:
        return causes + _job_update(job, old)
    template = spec["template"]
    causes += validate_labels((template.get("metadata") or {}).get("labels") or {}, "spec.template.labels")
    causes += _pod_failure_policy(spec)
    if template["spec"]["restartPolicy"] not in ("Never", "OnFailure"):
        text = 'valid values: "OnFailure", "Never"'
        causes.append(required_value("spec.template.spec.restartPolicy", text))
    return causes + validate_pod_spec(template["spec"], "spec.template.spec")


def _pod_failure_policy(spec: Object) -> list[Cause]:
    policy = spec.get("podFailurePolicy")
    if policy is None:
        return []
    causes = []
    if spec["template"]["spec"]["restartPolicy"] != "Never":
        why = 'only "Never" is supported when podFailurePolicy is specified'
        shown = spec["template"]["spec"]["restartPolicy"]
        causes.append(invalid_value("spec.template.spec.restartPolicy", shown, why))
    actions = ("Count", "FailIndex", "FailJob", "Ignore")
    for index, rule in enumerate(policy.get("rules") or ()):
        path = f"spec.podFailurePolicy.rules[{index}]"
        if rule.get("action") not in actions:
            causes.append(unsupported_value(f"{path}.action", rule.get("action"), actions))
        elif rule["action"] == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
            why = "requires the backoffLimitPerIndex to be set"
            causes.append(invalid_value(f"{path}.action", "FailIndex", why))
        codes, patterns = rule.get("onExitCodes"), rule.get("onPodConditions")
        if bool(codes) == bool(patterns):
            why = "specifying one of OnExitCodes and OnPodConditions is required"
            causes.append(invalid_value(path, rule, why))
        for at, code in enumerate((codes or {}).get("values") or ()):
            if code == 0 and codes.get("operator") == "In":
                why = "must not be 0 for the In operator"
                causes.append(invalid_value(f"{path}.onExitCodes.values[{at}]", code, why))
    return causes


def _job_update(job: Object, old: Object) -> list[Cause]:
    spec, before = job["spec"], old["spec"]
    # A suspended Job that has not started may still be told where its pods go (queueing systems do so).
    waiting = before.get("suspend") and not old.get("status", {}).get("startTime")
    elastic = spec["completionMode"] == "Indexed" and spec.get("completions") == spec.get("parallelism")
    fixed = ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"]
    fixed += [] if elastic else ["completions"]
    fixed += [] if waiting else ["template"]
    return [
        invalid_value(f"spec.{field}", spec.get(field), _IMMUTABLE)
        for field in fixed
        if spec.get(field) != before.get(field)
    ]


def _deployment(deployment: Object, old: Object | None) -> list[Cause]:
    spec = deployment["spec"]
    causes = _replicated(deployment, old)
    causes += _at_least_zero(spec, ("minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"))
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None and deadline <= spec.get("minReadySeconds", 0):
        why = "must be greater than minReadySeconds"
        causes.append(invalid_value("spec.progressDeadlineSeconds", deadline, why))
    strategy = spec["strategy"]
    if strategy["type"] not in ("RollingUpdate", "Recreate"):
        causes.append(
            unsupported_value("spec.strategy.type", strategy["type"], ("Recreate", "RollingUpdate"))
        )
    if strategy["type"] == "Recreate" and strategy.get("rollingUpdate"):
        why = "may not be specified when strategy `type` is 'Recreate'"
        causes.append(errors.forbidden_value("spec.strategy.rollingUpdate", why))
    rolling = strategy.get("rollingUpdate") or {}
    causes += _shares(rolling)
    if rolling and all(str(rolling.get(each)) in ("0", "0%") for each in ("maxUnavailable", "maxSurge")):
        why = "may not be 0 when `maxSurge` is 0"
        causes.append(
            invalid_value("spec.strategy.rollingUpdate.maxUnavailable", rolling["maxUnavailable"], why)
        )
    return causes


def _shares(rolling: Object) -> list[Cause]:
    why = (
        "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', "
        "regex used for validation is '[0-9]+%')"
    )
    return [
        invalid_value(f"spec.strategy.rollingUpdate.{name}", value, why)
        for name, value in rolling.items()
        if isinstance(value, str) and not re.fullmatch(r"[0-9]+%", value)
    ]


def _replicated(obj: Object, old: Object | None) -> list[Cause]:
    spec = obj["spec"]
    causes = _at_least_zero(spec, ("replicas",))
    selector = spec.get("selector") or {}
    template = spec["template"]
    labels = (template.get("metadata") or {}).get("labels") or {}
    unclear = _label_selector(selector, "spec.selector")
    causes += unclear
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        causes.append(required_value("spec.selector"))
    elif not unclear and not _selects(selector, labels):
        why = "`selector` does not match template `labels`"
        causes.append(invalid_value("spec.template.metadata.labels", labels, why))
    if old is not None and selector != old["spec"].get("selector"):
        causes.append(invalid_value("spec.selector", selector, _IMMUTABLE))
    if template["spec"]["restartPolicy"] != "Always":
        field = "spec.template.spec.restartPolicy"
        causes.append(unsupported_value(field, template["spec"]["restartPolicy"], ("Always",)))
    causes += validate_labels(labels, "spec.template.labels")
    return causes + validate_pod_spec(template["spec"], "spec.template.spec")


def _label_selector(selector: Object, field: str) -> list[Cause]:
    causes = validate_labels(selector.get("matchLabels") or {}, f"{field}.matchLabels")
    for index, expression in enumerate(selector.get("matchExpressions") or ()):
        here = f"{field}.matchExpressions[{index}]"
        operator, values = expression.get("operator", ""), expression.get("values") or ()
        if operator in ("In", "NotIn"):
            if not values:
                why = "must be specified when `operator` is 'In' or 'NotIn'"
                causes.append(required_value(f"{here}.values", why))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                causes.append(errors.forbidden_value(f"{here}.values", why))
        else:
            causes.append(invalid_value(f"{here}.operator", operator, "not a valid selector operator"))
        causes += _label_key(expression.get("key", ""), f"{here}.key")
    return causes


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    from nighttrain.providers.local.selection import LabelSelector

    return LabelSelector.from_object(selector).matches_labels(labels)


def _service(service: Object, old: Object | None) -> list[Cause]:
    spec = service["spec"]
    causes: list[Cause] = []
    if spec["type"] not in ("ClusterIP", "ExternalName"):
        # Known to Kubernetes, but this cluster has nothing outside of it to open a port to.
        causes.append(unsupported_value("spec.type", spec["type"], ("ClusterIP", "ExternalName")))
    ports = spec.get("ports") or []
    if not ports and spec["type"] == "ClusterIP" and spec.get("clusterIP") != "None":
        causes.append(required_value("spec.ports"))
    names = [each.get("name", "") for each in ports]
    for index, port in enumerate(ports):
        field = f"spec.ports[{index}]"
        number = port.get("port", 0)
        if not 1 <= number <= 65535:
            causes.append(invalid_value(f"{field}.port", number, "must be between 1 and 65535, inclusive"))
        if len(ports) > 1 and not port.get("name"):
            causes.append(required_value(f"{field}.name"))
        elif port.get("name") and names.index(port["name"]) < index:
            causes.append(errors.duplicate_value(f"{field}.name", port["name"]))
        if port["protocol"] not in ("TCP", "UDP", "SCTP"):
            causes.append(unsupported_value(f"{field}.protocol", port["protocol"], ("SCTP", "TCP", "UDP")))
    causes += validate_labels(spec.get("selector") or {}, "spec.selector")
    had = (old or {}).get("spec", {}).get("clusterIP")
    if had and spec.get("clusterIP") != had and spec["type"] == "ClusterIP":
        causes.append(invalid_value("spec.clusterIPs[0]", spec.get("clusterIPs"), _IMMUTABLE))
    return causes


def _data(obj: Object, old: Object | None) -> list[Cause]:
    causes = []
    size = 0
    for field in ("data", "binaryData"):
        for key, value in (obj.get(field) or {}).items():
            size += len(value)
            if not _KEY.match(key) or len(key) > 253:
                why = (
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. "
                    "'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is "
                    "'[-._a-zA-Z0-9]+')"
                )
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


def _node(node: Object, _old: Object | None) -> list[Cause]:
    causes: list[Cause] = []
    effects = ("NoSchedule", "PreferNoSchedule", "NoExecute")
    seen = []
    for index, taint in enumerate((node.get("spec") or {}).get("taints") or ()):
        field = f"spec.taints[{index}]"
        key, effect = taint.get("key", ""), taint.get("effect", "")
        causes += _label_key(key, f"{field}.key")
        if not _LABEL_VALUE.match(taint.get("value", "")):
            causes.append(invalid_value(f"{field}.value", taint["value"], _LABEL_VALUE_RULE))
        if not effect:
            causes.append(required_value(f"{field}.effect"))
        elif effect not in effects:
            causes.append(unsupported_value(f"{field}.effect", effect, effects))
        if (key, effect) in seen:
            cause = errors.duplicate_value(field, taint)
            why = "taints must be unique by key and effect pair"
            causes.append(Cause(cause.reason, f"{cause.message}: {why}", field))
        seen.append((key, effect))
    return causes


def _at_least_zero(spec: Object, fields: tuple[str, ...]) -> list[Cause]:
    return [
        invalid_value(f"spec.{field}", spec[field], "must be greater than or equal to 0")
        for field in fields
        if spec.get(field) is not None and spec[field] < 0
    ]


_RULES: dict[str, Callable[[Object, Object | None], list[Cause]]] = {
    "Pod": _pod,
    "Job": _job,
    "Deployment": _deployment,
    "ReplicaSet": _replicated,
    "Service": _service,
    "ConfigMap": _data,
    "Secret": _data,
    "Lease": _lease,
    "Event": _event,
    "Node": _node,
}
