"""The rules for Jobs that concern several of their fields, or two versions of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds.formats import dns_label
from nighttrain.providers.local.cluster.rules.validation_pods import validate_pod_spec
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    duplicate_value,
    invalid_value,
    required_value,
    unsupported_value,
)
from nighttrain.providers.local.cluster.store.selection import selects

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]

_NOT_SERVED = ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy")


def validate_job(job: Object, old: Object | None) -> list[Cause]:
    """The errors of a defaulted Job, but for single fields: those are in its schema."""
    causes = list(_spec(job))
    if old is not None:
        return causes + _changes(job, old)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    causes += _failure_policy(spec)
    causes += _selector(job)
    if pod["restartPolicy"] == "Always":
        text = 'valid values: "OnFailure", "Never"'
        causes.append(required_value("spec.template.spec.restartPolicy", text))
    return causes + validate_pod_spec(pod, "spec.template.spec")


def _spec(job: Object) -> Iterator[Cause]:
    spec = job["spec"]
    if spec["completionMode"] == "Indexed":
        yield from _indexed(job)
    for field in _NOT_SERVED:
        if spec.get(field) is not None:
            yield invalid_value(f"spec.{field}", spec[field], "the embedded cluster does not serve it")
    if spec["manualSelector"]:
        yield invalid_value("spec.manualSelector", True, "the embedded cluster does not serve it")
    if spec.get("podFailurePolicy") and spec.get("podReplacementPolicy") == "TerminatingOrFailed":
        yield unsupported_value("spec.podReplacementPolicy", "TerminatingOrFailed", ("Failed",))


def _indexed(job: Object) -> Iterator[Cause]:
    spec = job["spec"]
    completions = spec.get("completions")
    if completions is None:
        yield required_value("spec.completions", "when completion mode is Indexed")
        return
    name = job["metadata"].get("name", "")
    host = f"{name}-{completions - 1}"
    if completions and dns_label(host):
        why = f"will not able to create pod with invalid DNS label: {host}"
        yield invalid_value("metadata.name", name, why)


def _failure_policy(spec: Object) -> Iterator[Cause]:
    policy = spec.get("podFailurePolicy")
    if policy is None:
        return
    pod = spec["template"]["spec"]
    if pod["restartPolicy"] == "OnFailure":
        why = 'only "Never" is supported when podFailurePolicy is specified'
        yield invalid_value("spec.template.spec.restartPolicy", pod["restartPolicy"], why)
    containers = {each.get("name") for key in ("containers", "initContainers") for each in pod.get(key) or ()}
    for index, rule in enumerate(policy.get("rules") or ()):
        path = f"spec.podFailurePolicy.rules[{index}]"
        if rule.get("action") == "FailIndex":
            yield invalid_value(f"{path}.action", "FailIndex", "requires the backoffLimitPerIndex to be set")
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if (codes is None) == (not conditions):
            why = "specify onExitCodes or onPodConditions, and not both"
            yield Cause("FieldValueInvalid", f"Invalid value: {why}", path)
        if codes is not None:
            yield from _exit_codes(codes, f"{path}.onExitCodes", containers)


def _exit_codes(codes: Object, path: str, containers: set[Any]) -> Iterator[Cause]:
    if codes.get("containerName") is not None and codes["containerName"] not in containers:
        why = "must be one of the container or initContainer names in the pod template"
        yield invalid_value(f"{path}.containerName", codes["containerName"], why)
    values = codes.get("values") or []
    if not values:
        yield invalid_value(f"{path}.values", values, "at least one value is required")
    for at, code in enumerate(values):
        if code == 0 and codes.get("operator") == "In":
            yield invalid_value(f"{path}.values[{at}]", code, "must not be 0 for the In operator")
        if code in values[:at]:
            yield duplicate_value(f"{path}.values[{at}]", code)
    if values != sorted(values):
        yield invalid_value(f"{path}.values", values, "must be ordered")


def _selector(job: Object) -> Iterator[Cause]:
    """A Job selects its own pods, and the API server says how."""
    spec, metadata = job["spec"], job["metadata"]
    labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    own = {"controller-uid": metadata.get("uid", ""), "job-name": metadata.get("name", "")}
    own |= {f"batch.kubernetes.io/{key}": value for key, value in own.items()}
    if not selects(spec["selector"], own):
        yield invalid_value("spec.selector", spec["selector"], "`selector` not auto-generated")
    elif not selects(spec["selector"], labels):
        why = "`selector` does not match template `labels`"
        yield invalid_value("spec.template.metadata.labels", labels, why)


def _changes(job: Object, old: Object) -> list[Cause]:
    spec, before = job["spec"], old["spec"]
    # A suspended Job that has not started may still be told where its pods go (queueing systems do so).
    waiting = before.get("suspend") and not old.get("status", {}).get("startTime")
    elastic = spec["completionMode"] == "Indexed" and spec.get("completions") == spec.get("parallelism")
    fixed = ["selector", "completionMode", "podFailurePolicy", "managedBy"]
    fixed += [] if elastic else ["completions"]
    fixed += [] if waiting else ["template"]
    return [
        invalid_value(f"spec.{field}", spec.get(field), "field is immutable")
        for field in fixed
        if spec.get(field) != before.get(field)
    ]
