"""Objects as rows, for ``kubectl get``, which prints what the server tells it to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local import pod_cells
from nighttrain.providers.local.ages import human_duration, moment, since

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

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


def _name(obj: Object, _now: datetime) -> str:
    return str(obj["metadata"]["name"])


def _age(obj: Object, now: datetime) -> str:
    return since(obj["metadata"].get("creationTimestamp"), now)


def _at(*path: str, default: object = "<none>") -> Callable[[Object, datetime], object]:
    def cell(obj: Object, _now: datetime) -> object:
        value: Any = obj
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    return cell


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
    start, end = moment(status.get("startTime")), moment(status.get("completionTime"))
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
    labels = selector if obj.get("kind") == "Service" else selector.get("matchLabels") or {}
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "<none>"


def _service_ports(service: Object, _now: datetime) -> str:
    ports = service["spec"].get("ports") or ()
    return ",".join(_service_port(each) for each in ports) or "<none>"


def _service_port(port: Object) -> str:
    node = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port.get('port')}{node}/{port.get('protocol', 'TCP')}"


def _event_first_seen(event: Object, now: datetime) -> str:
    return since(event.get("firstTimestamp") or event.get("eventTime"), now)


def _event_last_seen(event: Object, now: datetime) -> str:
    last = (event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp")
    return since(last, now) if last else _event_first_seen(event, now)


def _event_count(event: Object, _now: datetime) -> int:
    return (event.get("series") or {}).get("count") or event.get("count") or 1


def _event_object(event: Object, _now: datetime) -> str:
    about = event.get("involvedObject") or {}
    kind = str(about.get("kind", "")).lower()
    return f"{kind}/{about['name']}" if about.get("name") else kind


def _event_source(event: Object, _now: datetime) -> str:
    source = event.get("source") or {}
    component = source.get("component") or event.get("reportingComponent") or ""
    host = source.get("host") or event.get("reportingInstance")
    return f"{component}, {host}" if host else str(component)


def _endpoints(piece: Object, _now: datetime) -> str:
    found = [address for each in piece.get("endpoints") or () for address in each.get("addresses") or ()]
    return ",".join(found[:3]) + (f" + {len(found) - 3} more..." if len(found) > 3 else "") or "<unset>"


def _slice_ports(piece: Object, _now: datetime) -> str:
    return ",".join(str(each.get("port")) for each in piece.get("ports") or ()) or "<unset>"


def _data_count(obj: Object, _now: datetime) -> int:
    return len(obj.get("data") or ()) + len(obj.get("binaryData") or ())


def _node_status(node: Object, _now: datetime) -> str:
    conditions = node.get("status", {}).get("conditions") or ()
    found = [each.get("status") == "True" for each in conditions if each.get("type") == "Ready"]
    text = ("Ready" if found[0] else "NotReady") if found else "Unknown"
    return f"{text},SchedulingDisabled" if node["spec"].get("unschedulable") else text


_ROLE = "node-role.kubernetes.io/"


def _node_roles(node: Object, _now: datetime) -> str:
    labels = node["metadata"].get("labels") or {}
    found = {key.removeprefix(_ROLE) for key in labels if key.startswith(_ROLE)}
    found.add(labels.get("kubernetes.io/role", ""))
    return ",".join(sorted(found - {""})) or "<none>"


def _node_address(type_: str) -> Callable[[Object, datetime], str]:
    def cell(node: Object, _now: datetime) -> str:
        addresses = node.get("status", {}).get("addresses") or ()
        return next((str(each.get("address")) for each in addresses if each.get("type") == type_), "<none>")

    return cell


def _node_info(name: str) -> Callable[[Object, datetime], object]:
    return _at("status", "nodeInfo", name, default="<unknown>")


def _secrets_count(account: Object, _now: datetime) -> int:
    return len(account.get("secrets") or ())


def _quota(*, limits: bool) -> Callable[[Object, datetime], str]:
    """What is used of each resource: the limits, or all others."""

    def cell(quota: Object, _now: datetime) -> str:
        status = quota.get("status") or {}
        used = status.get("used") or {}
        return ", ".join(
            f"{name}: {used.get(name, 0)}/{hard}"
            for name, hard in sorted((status.get("hard") or {}).items())
            if name.startswith("limits") == limits
        )

    return cell


_SHORT_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _access_modes(claim: Object, _now: datetime) -> str:
    modes = (claim.get("status") or {}).get("accessModes") or ()
    return ",".join(short for mode, short in _SHORT_MODES.items() if mode in modes)


def _claim_status(claim: Object, _now: datetime) -> str:
    if "deletionTimestamp" in claim["metadata"]:
        return "Terminating"
    return str((claim.get("status") or {}).get("phase", ""))


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
        Column("Ready", pod_cells.ready),
        Column("Status", pod_cells.status),
        Column("Restarts", pod_cells.restarts),
        _AGE,
        Column("IP", pod_cells.ip, priority=1),
        Column("Node", _at("spec", "nodeName"), priority=1),
        Column("Nominated Node", _at("status", "nominatedNodeName"), priority=1),
        Column("Readiness Gates", pod_cells.readiness_gates, priority=1),
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
    "PersistentVolumeClaim": (
        _NAME,
        Column("Status", _claim_status),
        Column("Volume", _at("spec", "volumeName", default="")),
        Column("Capacity", _at("status", "capacity", "storage", default="")),
        Column("Access Modes", _access_modes),
        Column("StorageClass", _at("spec", "storageClassName", default="")),
        Column("VolumeAttributesClass", _at("spec", "volumeAttributesClassName", default="<unset>")),
        _AGE,
        Column("VolumeMode", _at("spec", "volumeMode", default="<unset>"), priority=1),
    ),
    "ConfigMap": (_NAME, Column("Data", _data_count, "integer"), _AGE),
    "Secret": (_NAME, Column("Type", _at("type")), Column("Data", _data_count, "integer"), _AGE),
    "ServiceAccount": (_NAME, Column("Secrets", _secrets_count, "integer"), _AGE),
    "ResourceQuota": (
        _NAME,
        Column("Request", _quota(limits=False)),
        Column("Limit", _quota(limits=True)),
        _AGE,
    ),
    "PriorityClass": (
        _NAME,
        Column("Value", _at("value", default=0), "integer"),
        Column("Global-Default", _at("globalDefault", default=False), "boolean"),
        _AGE,
        Column("PreemptionPolicy", _at("preemptionPolicy", default="PreemptLowerPriority")),
    ),
    "Namespace": (_NAME, Column("Status", _at("status", "phase")), _AGE),
    "Node": (
        _NAME,
        Column("Status", _node_status),
        Column("Roles", _node_roles),
        _AGE,
        Column("Version", _at("status", "nodeInfo", "kubeletVersion", default="")),
        Column("Internal-IP", _node_address("InternalIP"), priority=1),
        Column("External-IP", _node_address("ExternalIP"), priority=1),
        Column("OS-Image", _node_info("osImage"), priority=1),
        Column("Kernel-Version", _node_info("kernelVersion"), priority=1),
        Column("Container-Runtime", _node_info("containerRuntimeVersion"), priority=1),
    ),
    "Event": (
        Column("Last Seen", _event_last_seen),
        Column("Type", _at("type")),
        Column("Reason", _at("reason")),
        Column("Object", _event_object),
        Column("Subobject", _at("involvedObject", "fieldPath", default=""), priority=1),
        Column("Source", _event_source, priority=1),
        Column("Message", _at("message", default="")),
        Column("First Seen", _event_first_seen, priority=1),
        Column("Count", _event_count, "integer", priority=1),
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
            return since(value, now) if moment(value) is not None else "<invalid>"
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
