"""Objects as rows, for ``kubectl get``, which prints what the server tells it to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.tables import pod_cells
from nighttrain.providers.local.cluster.tables.ages import human_duration, moment, since

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from nighttrain.providers.local.cluster.store.resources import ResourceType

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
            row["object"] = _metadata_only(obj)
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": [column.definition() for column in columns] if headers else None,
        "rows": rows,
    }


def _metadata_only(obj: Object) -> Object:
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


def _service_ports(service: Object, _now: datetime) -> str:
    ports = service["spec"].get("ports") or ()
    return ",".join(_service_port(each) for each in ports) or "<none>"


def _service_port(port: Object) -> str:
    node = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port.get('port')}{node}/{port.get('protocol', 'TCP')}"


_NAME = Column("Name", _name, format="name")
_AGE = Column("Age", _age)
_PLAIN = (_NAME, _AGE)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "Pod": (
        _NAME,
        Column("Ready", pod_cells.ready),
        Column("Status", pod_cells.status),
        Column("Restarts", pod_cells.restarts),
        _AGE,
        Column("IP", pod_cells.ip, priority=1),
        Column("Node", _at("spec", "nodeName"), priority=1),
    ),
    "Job": (
        _NAME,
        Column("Status", _job_status),
        Column("Completions", _job_completions),
        Column("Duration", _job_duration),
        _AGE,
    ),
    "Deployment": (
        _NAME,
        Column("Ready", _deployment_ready),
        Column("Up-to-date", _at("status", "updatedReplicas", default=0), "integer"),
        Column("Available", _at("status", "availableReplicas", default=0), "integer"),
        _AGE,
    ),
    "Service": (
        _NAME,
        Column("Type", _at("spec", "type")),
        Column("Cluster-IP", _at("spec", "clusterIP")),
        Column("External-IP", _at("spec", "externalIPs")),
        Column("Port(s)", _service_ports),
        _AGE,
    ),
}


def _columns(resource: ResourceType) -> tuple[Column, ...]:
    return _PLAIN if resource.custom is not None else _COLUMNS.get(resource.kind, _PLAIN)
