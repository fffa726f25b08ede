"""The rules for Jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.rules import validation_names as names
from nighttrain.providers.local.cluster.rules.validation_types import label_selector
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    duplicate_value,
    invalid_value,
    required_value,
    unsupported_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]

_IMMUTABLE = "field is immutable"

# The numbers from which on an Indexed Job is too much for one object's status.
_MOST_PARALLEL = _MOST_FAILED = 100_000
_INDEX_PARTS = 64 * 1024


def validate_job_spec(job: Object) -> Iterator[Cause]:
    """What is wrong whether the Job is new or not; not with single fields, nor with its pods."""
    spec = job["spec"]
    if spec["completionMode"] == "Indexed":
        yield from _indexed(job)
    else:
        for field in ("backoffLimitPerIndex", "maxFailedIndexes"):
            if spec.get(field) is not None:
                yield invalid_value(f"spec.{field}", spec[field], "requires indexed completion mode")
        if spec.get("successPolicy") is not None:
            why = "requires indexed completion mode"
            yield invalid_value("spec.successPolicy", spec["successPolicy"], why)
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        yield required_value("spec.backoffLimitPerIndex", "when maxFailedIndexes is specified")
    replacement = spec.get("podReplacementPolicy")
    allowed = ("Failed",) if spec.get("podFailurePolicy") else ("Failed", "TerminatingOrFailed")
    if replacement not in (None, *allowed):
        yield unsupported_value("spec.podReplacementPolicy", replacement, allowed)


def _indexed(job: Object) -> Iterator[Cause]:
    spec = job["spec"]
    completions, most = spec.get("completions"), spec.get("maxFailedIndexes")
    if completions is None:
        yield required_value("spec.completions", "when completion mode is Indexed")
    if spec.get("parallelism", 0) > _MOST_PARALLEL:
        why = f"must be less than or equal to {_MOST_PARALLEL} when completion mode is Indexed"
        yield invalid_value("spec.parallelism", spec["parallelism"], why)
    if most is not None and completions is not None and most > completions:
        yield invalid_value("spec.maxFailedIndexes", most, "must be less than or equal to completions")
    if most is not None and most > _MOST_FAILED:
        yield invalid_value("spec.maxFailedIndexes", most, f"must be less than or equal to {_MOST_FAILED}")
    if completions:
        name = job["metadata"].get("name", "")
        host = f"{name}-{completions - 1}"
        if names.label(host):
            why = f"will not able to create pod with invalid DNS label: {host}"
            yield invalid_value("metadata.name", name, why)
    if spec.get("successPolicy") is not None:
        yield from _success_policy(spec["successPolicy"], completions or 0)


def _success_policy(policy: Object, completions: int) -> Iterator[Cause]:
    if not policy.get("rules"):
        why = "at least one rules must be specified when the successPolicy is specified"
        yield required_value("spec.successPolicy.rules", why)
    for index, rule in enumerate(policy.get("rules") or ()):
        path = f"spec.successPolicy.rules[{index}]"
        count, text = rule.get("succeededCount"), rule.get("succeededIndexes")
        if count is None and text is None:
            why = "at least one of succeededCount or succeededIndexes must be specified"
            yield required_value(path, why)
        problem, total = ("", completions) if text is None else _listed(text, completions)
        if problem:
            why = f"error parsing succeededIndexes: {problem}"
            yield invalid_value(f"{path}.succeededIndexes", text, why)
        if count is None:
            continue
        if count < 0:
            yield invalid_value(f"{path}.succeededCount", count, "must be greater than or equal to 0")
        if count > completions:
            why = f"must be less than or equal to {completions} (the number of specified completions)"
            yield invalid_value(f"{path}.succeededCount", count, why)
        elif text is not None and not problem and count > total:
            why = (
                f"must be less than or equal to {total} (the number of indexes in the specified "
                "succeededIndexes field)"
            )
            yield invalid_value(f"{path}.succeededCount", count, why)


def _listed(text: str, completions: int) -> tuple[str, int]:
    """What is wrong with a list of indexes such as ``1,3-5``, and how many it has."""
    if len(text) > _INDEX_PARTS:
        return "too long", 0
    last, total = -1, 0
    for part in text.split(","):
        ends = part.split("-")
        if not all(end.isascii() and end.isdigit() for end in ends):
            return f'cannot convert string to integer for index: "{part}"', 0
        numbers = [int(end[:12]) for end in ends]
        if max(numbers) >= completions:
            return f'too large index: "{part}"', 0
        if len(numbers) > 2 or numbers[0] <= last or numbers[-1] < numbers[0]:
            return f'non-increasing order, previous: {last}, current: "{part}"', 0
        last = numbers[-1]
        total += last - numbers[0] + 1
    return "", total


def validate_pod_failure_policy(spec: Object) -> Iterator[Cause]:
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
        if not rule.get("action"):
            yield required_value(f"{path}.action", 'valid values: ["Count" "FailIndex" "FailJob" "Ignore"]')
        elif rule["action"] == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
            why = "requires the backoffLimitPerIndex to be set"
            yield invalid_value(f"{path}.action", "FailIndex", why)
        codes, patterns = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes is not None and patterns:
            why = "specifying both OnExitCodes and OnPodConditions is not supported"
            yield Cause("FieldValueInvalid", f"Invalid value: {why}", path)
        elif codes is None and not patterns:
            why = "specifying one of OnExitCodes and OnPodConditions is required"
            yield Cause("FieldValueInvalid", f"Invalid value: {why}", path)
        if codes is not None:
            yield from _exit_codes(codes, f"{path}.onExitCodes", containers)


def _exit_codes(codes: Object, path: str, containers: set[Any]) -> Iterator[Cause]:
    if not codes.get("operator"):
        yield required_value(f"{path}.operator", 'valid values: ["In" "NotIn"]')
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


def validate_selector(job: Object) -> Iterator[Cause]:
    """A Job selects its own pods; unless told to do so by hand it says how."""
    from nighttrain.providers.local.cluster.store.selection import LabelSelector

    spec, metadata = job["spec"], job["metadata"]
    labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    if any(label_selector(spec.get("selector") or {}, "")):
        return  # told already
    selector = LabelSelector.from_object(spec.get("selector") or {})
    if not spec.get("manualSelector"):
        own = {"controller-uid": metadata.get("uid", ""), "job-name": metadata.get("name", "")}
        own |= {f"batch.kubernetes.io/{key}": value for key, value in own.items()}
        if not selector.matches_labels(own):
            yield invalid_value("spec.selector", spec["selector"], "`selector` not auto-generated")
    if not spec.get("selector"):
        yield required_value("spec.selector")
    elif not selector.matches_labels(labels):
        why = "`selector` does not match template `labels`"
        yield invalid_value("spec.template.metadata.labels", labels, why)


def validate_job_update(job: Object, old: Object) -> list[Cause]:
    spec, before = job["spec"], old["spec"]
    # A suspended Job that has not started may still be told where its pods go (queueing systems do so).
    waiting = before.get("suspend") and not old.get("status", {}).get("startTime")
    elastic = spec["completionMode"] == "Indexed" and spec.get("completions") == spec.get("parallelism")
    fixed = ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"]
    fixed += ["successPolicy"]
    fixed += [] if elastic else ["completions"]
    fixed += [] if waiting else ["template"]
    return [
        invalid_value(f"spec.{field}", spec.get(field), _IMMUTABLE)
        for field in fixed
        if spec.get(field) != before.get(field)
    ]
