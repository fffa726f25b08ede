"""Pod security: defaults as safe as any image allows, and the restricted level's refusals."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from nighttrain.providers.plain_json import Json

# The only capability that the restricted level lets a container add.
RESTRICTED_CAPABILITIES = frozenset({"NET_BIND_SERVICE"})
# Everything else is storage of a node or a server that the pod names itself, past any claim.
RESTRICTED_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim"}
    | {"projected", "secret"}
)
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def harden(pod_spec: Json, *, restricted: bool) -> None:
    """Lay safe defaults beneath what is given, in place. A given value always wins."""
    context = pod_spec.setdefault("securityContext", {})
    context.setdefault("seccompProfile", {"type": "RuntimeDefault"})
    if restricted:
        context.setdefault("runAsNonRoot", True)
    if not pod_spec.get("serviceAccountName"):
        pod_spec.setdefault("automountServiceAccountToken", False)
    for container in [*(pod_spec.get("initContainers") or []), *pod_spec["containers"]]:
        own = container.setdefault("securityContext", {})
        if not _needs_escalation(own):
            own.setdefault("allowPrivilegeEscalation", False)
            own.setdefault("capabilities", {}).setdefault("drop", ["ALL"])


def _needs_escalation(context: Json) -> bool:
    # The API refuses allowPrivilegeEscalation: false beside these.
    added = (context.get("capabilities") or {}).get("add") or []
    return bool(context.get("privileged")) or "SYS_ADMIN" in added or "CAP_SYS_ADMIN" in added


def check_restricted(pod_spec: Json) -> None:
    """
    :raises ConfigurationError: something given contradicts the restricted level
    """
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod_spec.get(name):
            _refuse(name, True, "sharing the node's namespaces is not allowed")
    for volume in pod_spec.get("volumes") or []:
        for kind in sorted(volume.keys() - RESTRICTED_VOLUMES - {"name"}):
            _refuse(f"volumes[{volume.get('name')!r}].{kind}", volume[kind], "use a claim instead")
    _check_sysctls(pod_spec["securityContext"].get("sysctls") or [])
    _check_context("security_context", pod_spec["securityContext"])
    for kind in ("initContainers", "containers"):
        for container in pod_spec.get(kind) or []:
            field = f"{kind}[{container.get('name')!r}].securityContext"
            _check_context(field, container["securityContext"])
            for port in container.get("ports") or []:
                if port.get("hostPort"):
                    _refuse("ports.hostPort", port["hostPort"], "leave it out")
            for probe in _PROBES:
                for action in ("httpGet", "tcpSocket"):
                    host = ((container.get(probe) or {}).get(action) or {}).get("host")
                    if host:
                        _refuse(f"{kind}[{container.get('name')!r}].{probe}.host", host, "leave it out")


# Those that change nothing outside the pod.
_SAFE_SYSCTLS = re.compile(
    r"kernel\.shm_rmid_forced|net\.ipv4\.(ip_local_port_range|ip_unprivileged_port_start|tcp_syncookies"
    r"|ping_group_range|ip_local_reserved_ports|tcp_keepalive_(time|intvl|probes)|tcp_fin_timeout|tcp_[rw]mem)"
)


def _check_sysctls(sysctls: list[Json]) -> None:
    for sysctl in sysctls:
        if not _SAFE_SYSCTLS.fullmatch(str(sysctl.get("name"))):
            _refuse("security_context.sysctls", sysctl.get("name"), "leave it out")


def _check_context(field: str, context: Json) -> None:
    if context.get("runAsNonRoot") is False:
        _refuse(f"{field}.runAsNonRoot", False, "must be true")
    if context.get("runAsUser") == 0:
        _refuse(f"{field}.runAsUser", 0, "use an id other than 0")
    if context.get("privileged"):
        _refuse(f"{field}.privileged", True, "must be false")
    if context.get("allowPrivilegeEscalation"):
        _refuse(f"{field}.allowPrivilegeEscalation", True, "must be false")
    profile = (context.get("seccompProfile") or {}).get("type", "RuntimeDefault")
    if profile not in ("RuntimeDefault", "Localhost"):
        _refuse(f"{field}.seccompProfile", profile, "must be RuntimeDefault or Localhost")
    if context.get("procMount", "Default") != "Default":
        _refuse(f"{field}.procMount", context["procMount"], "must be Default")
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
        _refuse(f"{field}.appArmorProfile", "Unconfined", "must be RuntimeDefault or Localhost")
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        _refuse(f"{field}.windowsOptions.hostProcess", True, "must be false")
    capabilities = context.get("capabilities") or {}
    extra = sorted(set(capabilities.get("add") or []) - RESTRICTED_CAPABILITIES)
    if extra:
        _refuse(f"{field}.capabilities.add", extra, "only NET_BIND_SERVICE may be added")
    if "capabilities" in context and "ALL" not in (capabilities.get("drop") or []):
        _refuse(f"{field}.capabilities.drop", capabilities.get("drop"), "must contain ALL")


def _refuse(field: str, value: object, fix: str) -> None:
    raise ConfigurationError(field, value, f'contradicts pod_security="restricted": {fix}')
