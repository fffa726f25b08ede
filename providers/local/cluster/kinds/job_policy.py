"""The meaning of a Job's podFailurePolicy and podReplacementPolicy. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.store import Object


def waits_for_terminal(job: Object) -> bool:
    """True if a pod on its way out still counts as running until it has ended."""
    policy = job["spec"].get("podReplacementPolicy")
    if policy is None:
        return "podFailurePolicy" in job["spec"]
    return bool(policy == "Failed")


def fail_job(job: Object, failed: list[Object]) -> str | None:
    """The message of the first FailJob rule that a failed pod matches."""
    for pod in failed:
        found = _match(job, pod)
        if found is not None and found[0] == "FailJob":
            return found[1]
    return None


def ignored(job: Object, pod: Object) -> bool:
    """True if an Ignore rule keeps the pod's failure from counting."""
    found = _match(job, pod)
    return found is not None and found[0] == "Ignore"


def _match(job: Object, pod: Object) -> tuple[str, str] | None:
    """Action and message of the first rule that matches."""
    for index, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules") or []):
        message = _matches_codes(rule, pod) if rule.get("onExitCodes") else _matches_conditions(rule, pod)
        if message is not None:
            return rule["action"], f"{message} matching {rule['action']} rule at index {index}"
    return None


def _matches_codes(rule: Object, pod: Object) -> str | None:
    wanted = rule["onExitCodes"]
    status = pod.get("status") or {}
    for each in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        code = ((each.get("state") or {}).get("terminated") or {}).get("exitCode", 0)
        if code == 0 or wanted.get("containerName") not in (None, each["name"]):
            continue
        if (code in wanted["values"]) is (wanted["operator"] == "In"):
            return f"Container {each['name']} for pod {_name(pod)} failed with exit code {code}"
    return None


def _matches_conditions(rule: Object, pod: Object) -> str | None:
    present = {each["type"]: each["status"] for each in (pod.get("status") or {}).get("conditions") or []}
    for wanted in rule.get("onPodConditions") or []:
        if present.get(wanted["type"]) == wanted.get("status", "True"):
            return f"Pod {_name(pod)} has condition {wanted['type']}"
    return None


def _name(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
