"""Objects as rows, for ``kubectl get``, which prints what the server tells it to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nighttrain.providers.local.resources import ResourceType

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """``priority`` above 0: only with ``-o wide``. ``cell`` gets the object and the present time."""

    name: str
    cell: Callable[[Object, datetime], object]
    type: str = "string"
    format: str = ""
    priority: int = 0

    def definition(self) -> dict[str, object]:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": "",
            "priority": self.priority,
        }


def table(
    resource: ResourceType,
    objects: Iterable[Object],
    metadata: Object,
    *,
    now: datetime,
    headers: bool = True,
    include: str = "Metadata",
) -> Object:
    """A ``Table`` of the objects.

    :param include: what each row carries besides its cells: ``None``, ``Metadata`` or ``Object``
    """
    columns = _columns(resource)
    rows = []
    for obj in objects:
        row: Object = {"cells": [column.cell(obj, now) for column in columns]}
        if include == "Object":
            row["object"] = obj
        elif include == "Metadata":
            row["object"] = metadata_only(obj)
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [column.definition() for column in columns] if headers else None,
        "rows": rows,
    }


def metadata_only(obj: Object) -> Object:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }


def human_duration(seconds: float) -> str:
    """The age of a thing in at most two units, as kubectl writes it."""
    whole = int(seconds)
    if whole < 0:
        return "0s" if whole >= -2 else "<invalid>"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return _two(days // 365, "y", days % 365, "d")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}" + (f"{small}{small_unit}" if small else "")


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _since(text: str | None, now: datetime) -> str:
    moment = _moment(text)
    return human_duration((now - moment).total_seconds()) if moment else "<unknown>"


def _name(obj: Object, _now: datetime) -> str:
    return str(obj["metadata"]["name"])


def _age(obj: Object, now: datetime) -> str:
    return _since(obj["metadata"].get("creationTimestamp"), now)


def _at(*path: str, default: object = "<none>") -> Callable[[Object, datetime], object]:
    def cell(obj: Object, _now: datetime) -> object:
        value: Any = obj
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    return cell


def _pod_ready(pod: Object, _now: datetime) -> str:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return f"{sum(1 for each in statuses if each.get('ready'))}/{len(pod['spec'].get('containers') or ())}"


def _pod_status(pod: Object, _now: datetime) -> str:
    status = pod.get("status", {})
    reason = status.get("reason") or status.get("phase", "Unknown")
    initializing = _initializing(pod)
    if initializing:
        reason = initializing
    else:
        for each in reversed(status.get("containerStatuses") or ()):
            reason = _state_reason(each.get("state") or {}) or reason
    if "deletionTimestamp" in pod["metadata"] and status.get("phase") not in ("Succeeded", "Failed"):
        return "Terminating"
    return str(reason)


def _initializing(pod: Object) -> str:
    statuses = pod.get("status", {}).get("initContainerStatuses") or ()
    for index, each in enumerate(statuses):
        state = each.get("state") or {}
        if (state.get("terminated") or {}).get("exitCode") == 0:
            continue
        if "terminated" in state or "waiting" in state:
            reason = _state_reason(state)
            if reason and reason != "PodInitializing":
                return f"Init:{reason}"
        return f"Init:{index}/{len(statuses)}"
    return ""


def _state_reason(state: Object) -> str:
    waiting, terminated = state.get("waiting") or {}, state.get("terminated") or {}
    if waiting.get("reason"):
        return str(waiting["reason"])
    if terminated:
        code, signal = terminated.get("exitCode"), terminated.get("signal")
        return str(terminated.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{code}"))
    return ""


def _pod_restarts(pod: Object, now: datetime) -> str:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    count = sum(each.get("restartCount", 0) for each in statuses)
    ends = [((each.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for each in statuses]
    last = max(filter(None, ends), default=None)
    return f"{count} ({_since(last, now)} ago)" if count and last else str(count)


def _job_status(job: Object, _now: datetime) -> str:
    for condition in reversed(job.get("status", {}).get("conditions") or []):
        if condition.get("status") == "True" and condition["type"] in ("Complete", "Failed"):
            return str(condition["type"])
    if "deletionTimestamp" in job["metadata"]:
        return "Terminating"
    if job["spec"].get("suspend"):
        return "Suspended"
    kinds = [
        each["type"] for each in job.get("status", {}).get("conditions") or [] if each.get("status") == "True"
    ]
    return next((kind for kind in ("FailureTarget", "SuccessCriteriaMet") if kind in kinds), "Running")


def _job_completions(job: Object, _now: datetime) -> str:
    spec, done = job["spec"], job.get("status", {}).get("succeeded", 0)
    if spec.get("completions") is not None:
        return f"{done}/{spec['completions']}"
    parallelism = spec.get("parallelism") or 0
    return f"{done}/1 of {parallelism}" if parallelism > 1 else f"{done}/1"


def _job_duration(job: Object, now: datetime) -> str:
    status = job.get("status", {})
    start, end = _moment(status.get("startTime")), _moment(status.get("completionTime"))
    return human_duration(((end or now) - start).total_seconds()) if start else ""


def _deployment_ready(deployment: Object, _now: datetime) -> str:
    return f"{deployment.get('status', {}).get('readyReplicas', 0)}/{deployment['spec'].get('replicas', 0)}"


def _containers(field: str) -> Callable[[Object, datetime], str]:
    def cell(obj: Object, _now: datetime) -> str:
        spec = obj["spec"]
        spec = spec["template"]["spec"] if "template" in spec else spec
        return ",".join(str(each.get(field, "")) for each in spec.get("containers") or ())

    return cell


def _selector(obj: Object, _now: datetime) -> str:
    selector = obj["spec"].get("selector") or {}
    # A Service's selector is the labels themselves, also one that is called matchLabels.
    labels = selector if obj["kind"] == "Service" else selector.get("matchLabels") or {}
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "<none>"


def _service_ports(service: Object, _now: datetime) -> str:
    ports = service["spec"].get("ports") or ()
    return ",".join(f"{each.get('port')}/{each.get('protocol', 'TCP')}" for each in ports) or "<none>"


def _event_last_seen(event: Object, now: datetime) -> str:
    return _since(event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp"), now)


def _event_object(event: Object, _now: datetime) -> str:
    about = event.get("involvedObject") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _endpoints(piece: Object, _now: datetime) -> str:
    found = [address for each in piece.get("endpoints") or () for address in each.get("addresses") or ()]
    return ",".join(found[:3]) + (f" + {len(found) - 3} more..." if len(found) > 3 else "") or "<unset>"


def _slice_ports(piece: Object, _now: datetime) -> str:
    return ",".join(str(each.get("port")) for each in piece.get("ports") or ()) or "<unset>"


def _data_count(obj: Object, _now: datetime) -> int:
    return len(obj.get("data") or ()) + len(obj.get("binaryData") or ())


def _node_status(node: Object, _now: datetime) -> str:
    conditions = node.get("status", {}).get("conditions") or ()
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return "Ready" if ready else "NotReady"


_NAME = Column("Name", _name, format="name")
_AGE = Column("Age", _age)
_PLAIN = (_NAME, _AGE)
_CONTAINERS = (
    Column("Containers", _containers("name"), priority=1),
    Column("Images", _containers("image"), priority=1),
    Column("Selector", _selector, priority=1),
)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "CustomResourceDefinition": (
        _NAME,
        Column("Created At", _at("metadata", "creationTimestamp"), "date"),
    ),
    "Pod": (
        _NAME,
        Column("Ready", _pod_ready),
        Column("Status", _pod_status),
        Column("Restarts", _pod_restarts),
        _AGE,
        Column("IP", _at("status", "podIP"), priority=1),
        Column("Node", _at("spec", "nodeName"), priority=1),
        Column("Nominated Node", _at("status", "nominatedNodeName"), priority=1),
        Column("Readiness Gates", _at("absent"), priority=1),
    ),
    "Job": (
        _NAME,
        Column("Status", _job_status),
        Column("Completions", _job_completions),
        Column("Duration", _job_duration),
        _AGE,
        *_CONTAINERS,
    ),
    "Deployment": (
        _NAME,
        Column("Ready", _deployment_ready),
        Column("Up-to-date", _at("status", "updatedReplicas", default=0), "integer"),
        Column("Available", _at("status", "availableReplicas", default=0), "integer"),
        _AGE,
        *_CONTAINERS,
    ),
    "ReplicaSet": (
        _NAME,
        Column("Desired", _at("spec", "replicas", default=0), "integer"),
        Column("Current", _at("status", "replicas", default=0), "integer"),
        Column("Ready", _at("status", "readyReplicas", default=0), "integer"),
        _AGE,
        *_CONTAINERS,
    ),
    "Service": (
        _NAME,
        Column("Type", _at("spec", "type")),
        Column("Cluster-IP", _at("spec", "clusterIP")),
        Column("External-IP", _at("spec", "externalName")),
        Column("Port(s)", _service_ports),
        _AGE,
        Column("Selector", _selector, priority=1),
    ),
    "ConfigMap": (_NAME, Column("Data", _data_count, "integer"), _AGE),
    "Secret": (_NAME, Column("Type", _at("type")), Column("Data", _data_count, "integer"), _AGE),
    "Namespace": (_NAME, Column("Status", _at("status", "phase")), _AGE),
    "Node": (
        _NAME,
        Column("Status", _node_status),
        Column("Roles", _at("absent")),
        _AGE,
        Column("Version", _at("status", "nodeInfo", "kubeletVersion", default="")),
    ),
    "Event": (
        Column("Last Seen", _event_last_seen),
        Column("Type", _at("type")),
        Column("Reason", _at("reason")),
        Column("Object", _event_object),
        Column("Message", _at("message")),
        Column("Name", _name, priority=1),
    ),
    "EndpointSlice": (
        _NAME,
        Column("AddressType", _at("addressType")),
        Column("Ports", _slice_ports),
        Column("Endpoints", _endpoints),
        _AGE,
    ),
    "Lease": (_NAME, Column("Holder", _at("spec", "holderIdentity", default="")), _AGE),
}


def _columns(resource: ResourceType) -> tuple[Column, ...]:
    if resource.custom is None:
        return _COLUMNS.get(resource.kind, _PLAIN)
    if not resource.custom.columns:
        return _PLAIN
    return (_NAME, *(_declared(each) for each in resource.custom.columns))


def _declared(column: Object) -> Column:
    """A column of ``additionalPrinterColumns``."""
    steps = _STEPS.findall(column["jsonPath"])
    is_date = column["type"] == "date"

    def cell(obj: Object, now: datetime) -> object:
        found: list[Any] = [obj]
        for name, index, key, _quote, wanted in steps:
            found = [each for value in found for each in _step(value, name, index, key, wanted)]
        value = next((each for each in found if each is not None), None)
        if is_date and isinstance(value, str):
            try:
                return _since(value, now)
            except (ValueError, OverflowError):
                return "<invalid>"
        return str(value) if column["type"] == "string" and isinstance(value, int | float) else value

    return Column(
        column["name"], cell, column["type"], column.get("format", ""), int(column.get("priority") or 0)
    )


# One step of a path: a name, an index, or a filter on a field of a list's items.
_STEPS = re.compile(
    r"""\.([A-Za-z0-9_/-]+(?:\\\.[A-Za-z0-9_/-]+)*)|\[(\d+|\*)\]|\[\?\(@\.([\w.-]+)\s*==\s*(['"])(.*?)\4\)\]"""
)


def _step(value: Any, name: str, index: str, key: str, wanted: str) -> list[Any]:
    if name:
        return [value.get(name.replace("\\.", "."))] if isinstance(value, dict) else []
    if not isinstance(value, list):
        return []
    if key:
        return [item for item in value if isinstance(item, dict) and str(item.get(key)) == wanted]
    return value if index == "*" else value[int(index) : int(index) + 1]
