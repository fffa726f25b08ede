"""A pod's status, computed from the states of its containers. No I/O, no clock of its own."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.rules.defaults import quality_of_service

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.machine.processes import ContainerLog, ContainerProcess
    from nighttrain.providers.local.cluster.store.store import Object

NEVER_FOUND = "The container could not be located when the pod was terminated"

# The conditions the kubelet owns; others (DisruptionTarget, readiness gates) stay as they are, in front.
_OWN = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


class PodPhase(enum.StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def terminal(self) -> bool:
        return self in (PodPhase.SUCCEEDED, PodPhase.FAILED)


class Role(enum.Enum):
    INIT = enum.auto()
    SIDECAR = enum.auto()
    MAIN = enum.auto()


def waiting(reason: str, message: str = "") -> Object:
    return {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}


@dataclass
class Container:
    """One container of a pod, over all its restarts."""

    spec: Object
    role: Role
    state: Object
    image: str = ""
    last_state: Object = field(default_factory=dict)
    ready: bool = False
    started: bool = False
    restarts: int = 0
    image_id: str = ""
    container_id: str = ""
    process: ContainerProcess | None = None
    log: ContainerLog | None = None
    previous_log: ContainerLog | None = None

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def field_path(self) -> str:
        section = "containers" if self.role is Role.MAIN else "initContainers"
        return f"spec.{section}{{{self.name}}}"

    @property
    def exit_code(self) -> int | None:
        terminated = self.state.get("terminated")
        return None if terminated is None else int(terminated["exitCode"])

    @property
    def running(self) -> bool:
        return "running" in self.state

    def restarts_after(self, exit_code: int, policy: str) -> bool:
        """:param policy: the pod's; a container's own comes before it"""
        if self.role is Role.SIDECAR:
            return True
        policy = self.spec.get("restartPolicy") or policy
        if policy == "Always" and self.role is Role.MAIN:
            return True
        return exit_code != 0 and policy != "Never"

    def status(self) -> Object:
        status: Object = {
            "name": self.name,
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready,
            "restartCount": self.restarts,
            "image": self.image or self.spec.get("image", ""),
            "imageID": self.image_id,
        }
        if self.container_id:
            status["containerID"] = self.container_id
        status["started"] = self.started
        if self.container_id:
            status["resources"] = self.spec.get("resources") or {}
        return status


def phase_of(containers: list[Container], policy: str, *, ended: bool = False) -> PodPhase:
    """The phase that follows from the containers alone.

    :param ended: nothing is restarted any more (deletion, deadline), whatever the policy says
    """
    for container in containers:
        if container.role is not Role.INIT or container.exit_code == 0:
            continue
        code = container.exit_code
        if code is not None and (ended or not container.restarts_after(code, policy)):
            return PodPhase.FAILED
        if not ended:
            return PodPhase.PENDING
    mains = [container for container in containers if container.role is Role.MAIN]
    if any(each.role is Role.SIDECAR and each.running for each in containers):
        # A pod has not ended before its sidecars have.
        started = not any("waiting" in each.state and "terminated" not in each.last_state for each in mains)
        return PodPhase.RUNNING if started else PodPhase.PENDING
    if any("waiting" in each.state and "terminated" not in each.last_state for each in mains):
        return PodPhase.PENDING
    if any(each.running or "waiting" in each.state for each in mains):
        return PodPhase.RUNNING
    codes = [each.exit_code or 0 for each in mains]
    if not ended and any(each.restarts_after(each.exit_code or 0, policy) for each in mains):
        return PodPhase.RUNNING
    return PodPhase.FAILED if any(codes) else PodPhase.SUCCEEDED


@dataclass
class Picture:
    """The facts that a pod's status is made from."""

    containers: list[Container]
    phase: PodPhase
    outlook: PodPhase
    sandbox: bool
    host_ip: str
    pod_ip: str
    start_time: str
    now: str
    reason: str = ""
    message: str = ""


def status_of(pod: Object, picture: Picture) -> Object:
    """The whole ``.status`` to store, keeping the transition times and foreign conditions of the old one."""
    old = pod.get("status") or {}
    generation = pod["metadata"].get("generation", 1)
    known = {condition["type"]: condition for condition in old.get("conditions") or []}
    foreign = [condition for type_, condition in known.items() if type_ not in _OWN]
    own = [_condition(known.get(type_), type_, generation, picture) for type_ in _OWN]
    status: Object = {
        "observedGeneration": generation,
        "phase": str(picture.phase),
        "conditions": foreign + own,
    }
    if picture.message:
        status["message"] = picture.message
    if picture.reason:
        status["reason"] = picture.reason
    status |= {"hostIP": picture.host_ip, "hostIPs": [{"ip": picture.host_ip}]}
    if picture.pod_ip:
        status |= {"podIP": picture.pod_ip, "podIPs": [{"ip": picture.pod_ip}]}
    status["startTime"] = picture.start_time
    inits = [each.status() for each in picture.containers if each.role is not Role.MAIN]
    if inits:
        status["initContainerStatuses"] = inits
    status["containerStatuses"] = [each.status() for each in picture.containers if each.role is Role.MAIN]
    status["qosClass"] = old.get("qosClass") or quality_of_service(pod["spec"])
    return status


def _condition(old: Object | None, type_: str, generation: int, picture: Picture) -> Object:
    status, reason, message = _verdict(type_, picture)
    changed = old is None or old.get("status") != status
    condition: Object = {
        "type": type_,
        "observedGeneration": generation,
        "status": status,
        "lastProbeTime": None,
        "lastTransitionTime": picture.now if changed or old is None else old["lastTransitionTime"],
    }
    if reason:
        condition["reason"] = reason
    if message:
        condition["message"] = message
    return condition


def _verdict(type_: str, picture: Picture) -> tuple[str, str, str]:
    if type_ == "PodScheduled":
        return "True", "", ""
    if type_ == "PodReadyToStartContainers":
        return ("True" if picture.sandbox else "False"), "", ""
    if type_ == "Initialized":
        return _initialized(picture)
    lost = any(_never_found(each) for each in picture.containers)
    if picture.outlook.terminal and not lost:
        return "False", f"Pod{'Completed' if picture.outlook is PodPhase.SUCCEEDED else 'Failed'}", ""
    unready = [each.name for each in picture.containers if each.role is not Role.INIT and not each.ready]
    if unready:
        return "False", "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    return "True", "", ""


def _initialized(picture: Picture) -> tuple[str, str, str]:
    incomplete = [
        each.name
        for each in picture.containers
        if (each.role is Role.INIT and each.exit_code != 0)
        or (each.role is Role.SIDECAR and not each.started)
    ]
    if picture.outlook is PodPhase.SUCCEEDED:
        return "True", "PodCompleted", ""
    if any(each.role is Role.INIT and each.exit_code != 0 for each in picture.containers) or (
        incomplete and not picture.outlook.terminal
    ):
        return (
            "False",
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(incomplete)}]",
        )
    return "True", "", ""


def _never_found(container: Container) -> bool:
    terminated: dict[str, Any] = container.state.get("terminated") or {}
    return terminated.get("reason") == "ContainerStatusUnknown"


def never_found() -> Object:
    """The end of a container that never started."""
    return {
        "terminated": {
            "exitCode": 137,
            "reason": "ContainerStatusUnknown",
            "message": NEVER_FOUND,
            "startedAt": None,
            "finishedAt": None,
        }
    }
