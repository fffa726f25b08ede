"""A node that nobody hears from: what the control plane writes when it is lost, and when it is back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store.events import EventRecorder
from nighttrain.providers.local.cluster.store.resources import NODES, PODS
from nighttrain.providers.local.cluster.store.store import timestamp

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.store import Object, Store

UNREACHABLE = "node.kubernetes.io/unreachable"
_COMPONENT = "node-controller"
_SILENT = "Kubelet stopped posting node status."


def mark_lost(store: Store, name: str) -> None:
    """The node's conditions are Unknown, it is tainted as unreachable, and its pods are not ready.

    The taints end the pods, after the seconds that each tolerates.
    """
    now = timestamp(store.clock())

    def lose(node: Object) -> None:
        for condition in node["status"]["conditions"]:
            if condition["status"] != "Unknown":
                condition["lastTransitionTime"] = now
            condition.update(status="Unknown", reason="NodeStatusUnknown", message=_SILENT)
        taints = [{"key": UNREACHABLE, "effect": each} for each in ("NoSchedule", "NoExecute")]
        node["spec"]["taints"] = [*_others(node), *({**each, "timeAdded": now} for each in taints)]

    node = store.mutate(NODES, None, name, lose)
    if node is None:
        return
    recorder = EventRecorder(store, _COMPONENT)
    recorder.normal(node, "NodeNotReady", f"Node {name} status is now: NodeNotReady")
    for pod in store.list(PODS)[0]:
        if pod["spec"].get("nodeName") == name and _is_ready(pod):
            metadata = pod["metadata"]
            recorder.warning(pod, "NodeNotReady", "Node is not ready")
            store.mutate(PODS, metadata["namespace"], metadata["name"], lambda new: _unready(new, now))


def mark_returned(store: Store, name: str) -> None:
    """The node posts its status again, and is no longer tainted as unreachable."""
    now = timestamp(store.clock())

    def back(node: Object) -> None:
        for condition in node["status"]["conditions"]:
            if condition["status"] != "True":
                condition["lastTransitionTime"] = now
            condition["lastHeartbeatTime"] = now
            condition.update(status="True", reason="KubeletReady", message="kubelet is posting ready status")
        node["spec"]["taints"] = _others(node)
        if not node["spec"]["taints"]:
            del node["spec"]["taints"]

    node = store.mutate(NODES, None, name, back)
    if node is not None:
        EventRecorder(store, "kubelet", name).normal(
            node, "NodeReady", f"Node {name} status is now: NodeReady"
        )


def _others(node: Object) -> list[Object]:
    return [each for each in node["spec"].get("taints") or [] if each["key"] != UNREACHABLE]


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _unready(pod: Object, now: str) -> None:
    for condition in pod["status"]["conditions"]:
        if condition["type"] == "Ready" and condition["status"] == "True":
            condition.update(status="False", lastTransitionTime=now)
