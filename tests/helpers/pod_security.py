"""The Pod Security Standards as a cluster checks them, written from their text and not from our code.

An empty list means admitted. Only Linux pods; a pod's annotations are not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]

BASELINE_CAPABILITIES = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
    *("SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}
RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim"),
    *("projected", "secret"),
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def containers(pod: Json) -> list[Json]:
    kinds = ("initContainers", "containers", "ephemeralContainers")
    return [each for kind in kinds for each in pod.get(kind) or []]


def baseline(pod: Json) -> list[str]:
    """What the baseline level refuses in a pod's spec."""
    return list(_baseline(pod))


def restricted(pod: Json) -> list[str]:
    """What the restricted level refuses in a pod's spec."""
    return [*_baseline(pod), *_restricted(pod)]


def _baseline(pod: Json) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes") or []:
        if "hostPath" in volume:
            yield f"volume {volume['name']}: hostPath"
    yield from _contexts_of_baseline(pod)
    for container in containers(pod):
        yield from _container_of_baseline(container)


def _contexts_of_baseline(pod: Json) -> Iterator[str]:
    for where, context in _contexts(pod):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{where}: hostProcess"
        selinux = context.get("seLinuxOptions") or {}
        if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
            yield f"{where}: seLinuxOptions"
        if (context.get("appArmorProfile") or {}).get("type") == "Unconfined":
            yield f"{where}: appArmorProfile"
        if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
            yield f"{where}: seccompProfile"


def _container_of_baseline(container: Json) -> Iterator[str]:
    name, context = container["name"], container.get("securityContext") or {}
    if context.get("privileged"):
        yield f"{name}: privileged"
    if set((context.get("capabilities") or {}).get("add") or []) - BASELINE_CAPABILITIES:
        yield f"{name}: capabilities.add"
    if context.get("procMount", "Default") != "Default":
        yield f"{name}: procMount"
    if any(port.get("hostPort") for port in container.get("ports") or []):
        yield f"{name}: hostPort"
    for handler in _handlers(container):
        if any((handler.get(action) or {}).get("host") for action in ("httpGet", "tcpSocket")):
            yield f"{name}: host of a probe or hook"


def _restricted(pod: Json) -> Iterator[str]:
    for volume in pod.get("volumes") or []:
        if volume.keys() - {"name"} - RESTRICTED_VOLUMES:
            yield f"volume {volume['name']}: type"
    whole = pod.get("securityContext") or {}
    for where, context in _contexts(pod):
        if context.get("runAsUser") == 0:
            yield f"{where}: runAsUser 0"
        if context.get("runAsNonRoot") is False:
            yield f"{where}: runAsNonRoot"
    for container in containers(pod):
        name, context = container["name"], container.get("securityContext") or {}
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        if context.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            yield f"{name}: runAsNonRoot"
        profile = (context.get("seccompProfile") or whole.get("seccompProfile") or {}).get("type")
        if profile not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccompProfile"
        capabilities = context.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []):
            yield f"{name}: capabilities.drop"
        if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
            yield f"{name}: capabilities.add"


def _contexts(pod: Json) -> list[tuple[str, Json]]:
    own = [(each["name"], each.get("securityContext") or {}) for each in containers(pod)]
    return [("pod", pod.get("securityContext") or {}), *own]


def _handlers(container: Json) -> list[Json]:
    probes = [container.get(name) or {} for name in ("livenessProbe", "readinessProbe", "startupProbe")]
    hooks = container.get("lifecycle") or {}
    return [*probes, *(hooks.get(name) or {} for name in ("preStop", "postStart"))]
