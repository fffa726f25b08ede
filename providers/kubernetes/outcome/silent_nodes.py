"""Pods whose node does not answer: whether one still trains, only that node could tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.outcome.endings import is_terminal
from nighttrain.providers.kubernetes.values.objects import (
    any_condition,
    condition,
    is_deleting,
    mapping,
    name_of,
    status,
    text,
)

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json


def node_of(pod: Json) -> str:
    """The name of the pod's node; empty if it has none."""
    return text(mapping(pod.get("spec")).get("nodeName"))


def silent_since(pod: Json) -> str | None:
    """The time since which a pod's node does not answer, as the cluster notes it on the pod.

    RFC 3339, empty if the time is not noted; ``None`` if the node may answer.

    A kubelet that says that a pod is not ready says why. The cluster that says so in its place does not.
    """
    if is_terminal(pod) or not node_of(pod):
        return None
    ready = any_condition(pod, "Ready")
    unexplained = ready.get("status") in ("False", "Unknown") and not text(ready.get("reason"))
    if unexplained or text(status(pod).get("phase")) == "Unknown":
        return text(ready.get("lastTransitionTime"))
    return None


def removed_for_its_node(pod: Json) -> str | None:
    """The time since which a pod is being removed because its node is not usable; ``None`` if it is not."""
    disruption = condition(pod, "DisruptionTarget") or {}
    if is_terminal(pod) or not is_deleting(pod) or disruption.get("reason") != "DeletionByTaintManager":
        return None
    return text(disruption.get("lastTransitionTime"))


def is_lost(pod: Json) -> bool:
    """Tell whether a pod may still run on a node that does not answer.

    That its grace period is over proves nothing: a kubelet that lives may be unable to end a process.
    """
    return silent_since(pod) is not None


def lost_pod_described(pod: Json) -> str:
    """Say what is known of a pod on a silent node, and what a person can do."""
    node, since = node_of(pod), silent_since(pod)
    silent = f"node {node} has been silent{f' since {since}' if since else ''}"
    return (
        f"{silent}: whether pod {name_of(pod)} still trains there cannot be known, and no other one comes "
        "before the node is back or its Node object is gone. Bring the node back, or, if it never comes: "
        f"kubectl delete node {node}"
    )
