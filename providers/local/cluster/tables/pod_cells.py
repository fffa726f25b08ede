"""The cells of ``kubectl get pods``: the API server's own reading of its status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.tables.ages import since

if TYPE_CHECKING:
    from datetime import datetime

Object = dict[str, Any]


def ready(pod: Object, _now: datetime) -> str:
    """Containers that are ready, of those that stay: sidecars count, other init containers do not."""
    sidecars = _sidecars(pod)
    total = len(pod["spec"].get("containers") or ()) + len(sidecars)
    count = sum(1 for each in _inits(pod) if each.get("name") in sidecars and each.get("ready"))
    if not _initializing(pod) or _holds(pod, "Initialized"):
        count += sum(1 for each in _mains(pod) if _runs(each))
    return f"{count}/{total}"


def status(pod: Object, _now: datetime) -> str:
    """The phase, or what says more: why containers wait or ended, how far the init containers are."""
    current = pod.get("status") or {}
    phase = current.get("phase", "Unknown")
    reason = str(current.get("reason") or phase)
    initializing = _initializing(pod)
    reason = initializing or reason
    if not initializing or _holds(pod, "Initialized"):
        mains = _mains(pod)
        # The first container has the last word.
        for each in reversed(mains):
            reason = _why(each.get("state") or {}) or reason
        if reason == "Completed" and any(_runs(each) for each in mains):
            reason = "Running" if _holds(pod, "Ready") else "NotReady"
    if "deletionTimestamp" in pod["metadata"]:
        if current.get("reason") == "NodeLost":
            return "Unknown"
        if phase not in ("Succeeded", "Failed"):
            return "Terminating"
    return reason


def restarts(pod: Object, now: datetime) -> str:
    """While the pod initializes those of its init containers, later those of what stays."""
    sidecars = _sidecars(pod)
    counted = list(_inits(pod))
    if not _initializing(pod) or _holds(pod, "Initialized"):
        counted = [each for each in counted if each.get("name") in sidecars] + _mains(pod)
    count = sum(each.get("restartCount", 0) for each in counted)
    ends = [((each.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for each in counted]
    last = max(filter(None, ends), default=None)
    return f"{count} ({since(last, now)} ago)" if count and last else str(count)


def ip(pod: Object, _now: datetime) -> str:
    return str((pod.get("status") or {}).get("podIP") or "<none>")


def _initializing(pod: Object) -> str:
    """What the first init container that holds up the rest is at; empty if none does."""
    sidecars = _sidecars(pod)
    for index, each in enumerate(_inits(pod)):
        state = each.get("state") or {}
        terminated, waiting = state.get("terminated"), (state.get("waiting") or {}).get("reason")
        if terminated and terminated.get("exitCode") == 0:
            continue
        if each.get("name") in sidecars and each.get("started"):
            continue
        if terminated or (waiting and waiting != "PodInitializing"):
            return f"Init:{_why(state)}"
        return f"Init:{index}/{len(pod['spec'].get('initContainers') or ())}"
    return ""


def _why(state: Object) -> str:
    waiting, terminated = state.get("waiting") or {}, state.get("terminated") or {}
    if waiting.get("reason"):
        return str(waiting["reason"])
    if terminated:
        code, signal = terminated.get("exitCode"), terminated.get("signal")
        return str(terminated.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{code}"))
    return ""


def _runs(container: Object) -> bool:
    return bool(container.get("ready")) and "running" in (container.get("state") or {})


def _sidecars(pod: Object) -> set[str]:
    inits = pod["spec"].get("initContainers") or ()
    return {each.get("name", "") for each in inits if each.get("restartPolicy") == "Always"}


def _inits(pod: Object) -> list[Object]:
    return list((pod.get("status") or {}).get("initContainerStatuses") or ())


def _mains(pod: Object) -> list[Object]:
    return list((pod.get("status") or {}).get("containerStatuses") or ())


def _holds(pod: Object, condition: str) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == condition and each.get("status") == "True" for each in conditions)
