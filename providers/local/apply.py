"""Server-side apply: each manager says what it wants, and owns it; what it no longer wants goes.

Owners are kept in ``metadata.managedFields``, from an object's first apply on. Objects that nobody applies
carry no such list, which spares every pod its weight.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from nighttrain.providers.local import errors
from nighttrain.providers.local.crd_schema import Schema, identify
from nighttrain.providers.local.objects import copy_object
from nighttrain.providers.local.schema_data import TYPES

if TYPE_CHECKING:
    from nighttrain.providers.local.resources import ResourceType

Object: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str, ...]
"""Steps as FieldsV1 writes them: ``f:name``, ``k:{"name":"x"}`` for a list's item, ``v:"x"`` for a set's."""
Fields: TypeAlias = set[Path]

BEFORE = "before-first-apply"
CLIENT_SIDE = "kubectl-client-side-apply"
# Who may take over what was applied on the client's side, without a conflict.
_SUCCESSOR = "kubectl"

# Lists of the core kinds that are merged item by item: the type and the field, or the field alone.
_KEYS: dict[str, tuple[str, ...]] = {
    "Container.ports": ("containerPort", "protocol"),
    "ServiceSpec.ports": ("port", "protocol"),
    "PodStatus.conditions": ("type",),
    "NodeStatus.conditions": ("type",),
    "DeploymentStatus.conditions": ("type",),
    "ReplicaSetStatus.conditions": ("type",),
    "ServiceStatus.conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "podIPs": ("ip",),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
    "secrets": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_KEY_DEFAULTS = {"protocol": "TCP"}
_SETS = frozenset(("finalizers",))
# Types and fields that are owned as a whole.
_ATOMIC = frozenset(
    (
        *("ConfigMapKeySelector", "FileKeySelector", "LabelSelector", "LocalObjectReference", "NodeSelector"),
        *("NodeSelectorTerm", "ObjectFieldSelector", "ObjectReference", "ResourceFieldSelector"),
        *("SecretKeySelector", "SecretReference", "TypedLocalObjectReference"),
        *("PodSpec.nodeSelector", "ServiceSpec.selector", "PodSpec.overhead"),
    )
)
# What no manager owns: it says which object is meant, or the server decides it.
_NOBODYS = frozenset(
    (
        *("name", "generateName", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp"),
        *("deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink"),
    )
)


@dataclass(frozen=True, slots=True)
class Shape:
    """How a place in an object is merged: by a core type, or by a custom resource's schema."""

    declared: str = "*"
    place: str = ""
    schema: Schema | None = None

    def kind(self, value: Any) -> str:
        """``map``, ``keyed``, ``set`` or ``whole``."""
        if isinstance(value, dict):
            return "whole" if self._atomic_map() else "map"
        if isinstance(value, list):
            if self.schema is not None:
                declared = self.schema.get("x-kubernetes-list-type")
                return {"map": "keyed", "set": "set"}.get(str(declared), "whole")
            field = self.place.rpartition(".")[2]
            if field in _SETS:
                return "set"
            return "keyed" if self._keys() else "whole"
        return "whole"

    def _atomic_map(self) -> bool:
        if self.schema is not None:
            return self.schema.get("x-kubernetes-map-type") == "atomic"
        return self.declared == "*" or self.declared in _ATOMIC or self.place in _ATOMIC

    def _keys(self) -> tuple[str, ...]:
        field = self.place.rpartition(".")[2]
        return _KEYS.get(self.place) or _KEYS.get(field, ())

    def below(self, name: str) -> Shape:
        """Of a field of an object or of a key of a map."""
        if self.schema is not None:
            if name == "metadata" and self.place == "root":
                return Shape("ObjectMeta")
            properties, more = self.schema.get("properties") or {}, self.schema.get("additionalProperties")
            found = properties.get(name, more)
            return Shape(schema=found if isinstance(found, dict) else {})
        if self.declared.startswith("{"):
            return Shape(self.declared[1:])
        declared = (TYPES.get(self.declared) or {}).get(name, "*").rstrip("!")
        return Shape(declared, f"{self.declared}.{name}")

    def item(self) -> Shape:
        if self.schema is not None:
            items = self.schema.get("items")
            return Shape(schema=items if isinstance(items, dict) else {})
        return Shape(self.declared.removeprefix("["))

    def step(self, item: Any) -> str:
        """What names the item in a path. Items without their key cannot be told apart.

        :raises ApiError: 400
        """
        if self.kind([item]) == "set":
            return "v:" + json.dumps(item)
        if self.schema is not None:
            identity = identify(self.schema, item)
        else:
            found = item if isinstance(item, dict) else {}
            identity = {key: found.get(key, _KEY_DEFAULTS.get(key)) for key in self._keys()}
        if not isinstance(identity, dict) or all(value is None for value in identity.values()):
            raise errors.bad_request(
                f"an item of an associative list needs its key: {json.dumps(item)[:100]}"
            )
        known = {key: value for key, value in sorted(identity.items()) if value is not None}
        return "k:" + json.dumps(known, separators=(",", ":"))


def root_shape(resource: ResourceType) -> Shape:
    if resource.custom is not None:
        return Shape(place="root", schema=resource.custom.schema)
    return Shape(resource.kind)


def fields_of(shape: Shape, value: Any, path: Path = ()) -> Fields:
    """Everything that somebody who sent ``value`` owns."""
    kind = shape.kind(value)
    found: Fields = set()
    if kind == "map" and value:
        for name, item in value.items():
            found |= fields_of(shape.below(name), item, (*path, f"f:{name}"))
    elif kind in ("keyed", "set") and value:
        for item in value:
            here = (*path, shape.step(item))
            found.add(here)
            if kind == "keyed":
                found |= fields_of(shape.item(), item, here)
    else:
        found.add(path)
    return found


def owned(resource: ResourceType, obj: Object, subresource: str = "") -> Fields:
    """The fields of ``obj`` that managers can own through the resource or its ``status``."""
    kept = {
        key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata", "status")
    }
    if subresource == "status":
        kept = {"status": obj["status"]} if "status" in obj else {}
    else:
        metadata = {key: value for key, value in obj.get("metadata", {}).items() if key not in _NOBODYS}
        kept.update({"metadata": metadata} if metadata else {})
        if "status" in obj and not resource.has_status:
            kept["status"] = obj["status"]
    return fields_of(root_shape(resource), kept) - {()}


def merge(shape: Shape, live: Any, applied: Any) -> Any:
    kind = shape.kind(applied)
    if kind == "map" and isinstance(live, dict):
        merged = dict(live)
        for name, item in applied.items():
            merged[name] = merge(shape.below(name), live.get(name), item)
        return merged
    if kind == "set" and isinstance(live, list):
        return [*live, *(item for item in applied if item not in live)]
    if kind == "keyed" and isinstance(live, list):
        items = {shape.step(item): item for item in live}
        for item in applied:
            step = shape.step(item)
            items[step] = merge(shape.item(), items.get(step), item)
        return list(items.values())
    return copy_object(applied)


_ABSENT = object()


def value_at(shape: Shape, value: Any, path: Path) -> Any:
    for step in path:
        if step.startswith("f:"):
            name = step[2:]
            if not isinstance(value, dict) or name not in value:
                return _ABSENT
            value, shape = value[name], shape.below(name)
        else:
            if not isinstance(value, list) or shape.kind(value) == "whole":
                return _ABSENT
            found = [item for item in value if shape.step(item) == step]
            if not found:
                return _ABSENT
            value, shape = found[0], shape.item()
    return value


def has_at(shape: Shape, value: Any, path: Path) -> bool:
    return value_at(shape, value, path) is not _ABSENT


def remove(shape: Shape, value: Any, path: Path) -> None:
    """Take the field out of ``value``, in place, and containers that have become empty with it."""
    step, rest = path[0], path[1:]
    if step.startswith("f:"):
        name = step[2:]
        if not isinstance(value, dict) or name not in value:
            return
        if rest:
            remove(shape.below(name), value[name], rest)
        if not rest or value[name] in ({}, []):
            del value[name]
    elif isinstance(value, list) and shape.kind(value) != "whole":
        for index, item in enumerate(value):
            if shape.step(item) == step:
                if rest:
                    remove(shape.item(), item, rest)
                else:
                    del value[index]
                return


# Managers

_SCALARS = (str, int, float)


@dataclass(slots=True)
class Entry:
    """One manager's fields."""

    manager: str
    operation: str
    api_version: str
    fields: Fields
    time: str = ""
    subresource: str = ""

    @classmethod
    def read(cls, stored: Object) -> Entry:
        return cls(
            stored["manager"],
            stored["operation"],
            stored["apiVersion"],
            _paths(stored.get("fieldsV1") or {}),
            stored.get("time", ""),
            stored.get("subresource", ""),
        )

    def is_valid(self) -> bool:
        """Whether each step of its paths has one of their forms.

        :raises ValueError: a key in a path is not JSON
        """
        return all(
            step.startswith("f:") or isinstance(json.loads(step[2:]), dict if step[:2] == "k:" else _SCALARS)
            for path in self.fields
            for step in path
        )

    def to_dict(self) -> Object:
        found: Object = {
            "manager": self.manager,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": _tree(self.fields),
        }
        return {**found, "subresource": self.subresource} if self.subresource else found

    def named(self) -> str:
        """As messages about conflicts name it."""
        text = json.dumps(self.manager)
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        if self.operation == "Update":
            text += f" using {self.api_version}" + (f" at {self.time}" if self.time else "")
        return text


def _tree(fields: Fields) -> Object:
    root: Object = {}
    for path in sorted(fields):
        node = root
        for step in path:
            node = node.setdefault(step, {})
        if path[-1].startswith("k:"):
            node["."] = {}
    return root


def _paths(tree: Object, path: Path = ()) -> Fields:
    found: Fields = set()
    for step, below in tree.items():
        if step == ".":
            found.add(path)
        elif below:
            found |= _paths(below, (*path, step))
        else:
            found.add((*path, step))
    return found


def entries_of(obj: Object) -> list[Entry]:
    return [Entry.read(each) for each in obj["metadata"].get("managedFields") or ()]


def _entries_given(obj: Object) -> list[Entry]:
    """The managers that a client sent with an object; empty if they cannot be read."""
    try:
        found = entries_of(obj)
        valid = all(each.is_valid() for each in found)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []
    return found if valid else []


def apply(
    resource: ResourceType,
    live: Object | None,
    wanted: Object,
    *,
    manager: str,
    force: bool,
    now: str,
    subresource: str = "",
    client_side: Fields | None = None,
) -> Object:
    """The object after an apply, with its managers; still to be stored.

    :param live: the object as it is, or None
    :param wanted: what the manager sent, without defaults
    :param client_side: the fields that ``kubectl apply`` without ``--server-side`` put there
    :raises ApiError: 409 when another manager owns a field with another value, and not ``force``
    """
    shape = root_shape(resource)
    fields = owned(resource, wanted, subresource)
    own = Entry(manager, "Apply", resource.api_version, fields, now, subresource)
    if live is None:
        new = copy_object(wanted)
        new["metadata"]["managedFields"] = [own.to_dict()]
        return dict(new)
    client_side = client_side or set()
    entries = entries_of(live) or _first_entries(resource, live, client_side)
    previous = next((each for each in entries if _same(each, own)), None)
    others = [each for each in entries if each is not previous]
    part = wanted if subresource != "status" else {"status": wanted.get("status", {})}
    if subresource == "" and resource.has_status:
        part = {key: value for key, value in wanted.items() if key != "status"}
    merged = merge(shape, copy_object(live), part)
    clashes = [
        (each, path)
        for each in others
        for path in sorted(each.fields & fields)
        # That an item is in a list is nobody's alone.
        if not path[-1].startswith("k:") and value_at(shape, merged, path) != value_at(shape, live, path)
    ]
    barred = [each for each in clashes if manager != _SUCCESSOR or each[1] not in client_side]
    if barred and not force:
        raise _conflict(barred)
    for each, path in clashes:
        each.fields.discard(path)
    if previous is not None:
        _give_up(shape, merged, previous.fields - fields, others, fields)
        if previous.fields == fields:
            own.time = previous.time
    kept = [each for each in entries if each is not previous and each.fields]
    merged["metadata"]["managedFields"] = [each.to_dict() for each in [*kept, own]]
    return dict(merged)


def _first_entries(resource: ResourceType, live: Object, client_side: Fields) -> list[Entry]:
    created = live["metadata"]["creationTimestamp"]
    everything = owned(resource, live)
    before = Entry(BEFORE, "Update", resource.api_version, everything - client_side, created)
    applied = Entry(CLIENT_SIDE, "Update", resource.api_version, everything & client_side, created)
    return [each for each in (applied, before) if each.fields]


def _same(one: Entry, other: Entry) -> bool:
    return (one.manager, one.operation, one.subresource) == (
        other.manager,
        other.operation,
        other.subresource,
    )


def _give_up(shape: Shape, obj: Object, given: Fields, others: list[Entry], own: Fields) -> None:
    """Remove what nobody wants any more: whole items first, then fields of those that stay."""
    for path in sorted(given, key=len):
        needed = any(
            other[: len(path)] == path
            for fields in (own, *(each.fields for each in others))
            for other in fields
        )
        if not needed and not _is_key(path):
            remove(shape, obj, path)


def _is_key(path: Path) -> bool:
    """Whether the field tells an item of a list from the others: it stays as long as the item."""
    above = path[-2] if len(path) > 1 else ""
    return above.startswith("k:") and path[-1][2:] in json.loads(above[2:])


def _conflict(clashes: list[tuple[Entry, Path]]) -> errors.ApiError:
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {each.named()}", "field": shown(path)}
        for each, path in clashes
    ]
    if len(clashes) == 1:
        text = f"Apply failed with 1 conflict: conflict with {clashes[0][0].named()}: {shown(clashes[0][1])}"
    else:
        lines = []
        for name in sorted({each.named() for each, _ in clashes}):
            lines.append(f"conflicts with {name}:")
            lines += [f"- {shown(path)}" for each, path in clashes if each.named() == name]
        text = f"Apply failed with {len(clashes)} conflicts: " + "\n".join(lines)
    return errors.ApiError(409, "Conflict", text, {"causes": causes})


def shown(path: Path) -> str:
    """``.spec.containers[name="main"].image``"""
    text = ""
    for step in path:
        if step.startswith("f:"):
            text += f".{step[2:]}"
        elif step.startswith("v:"):
            text += f"[={step[2:]}]"
        else:
            keys = json.loads(step[2:])
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in keys.items()) + "]"
    return text


def carry_over(resource: ResourceType, live: Object, new: Object, *, manager: str, now: str) -> None:
    """After another kind of write: whoever changed a field owns it now. Sets the managers of ``new``, from
    those it came with: that is how a client gives fields to somebody else."""
    entries = entries_of(live)
    if not entries:
        return
    entries = _entries_given(new) or entries
    shape = root_shape(resource)
    after = owned(resource, new)
    changed = {path for path in after if value_at(shape, new, path) != value_at(shape, live, path)}
    own = Entry(manager, "Update", resource.api_version, set(), now)
    mine = next((each for each in entries if _same(each, own)), own)
    for each in entries:
        if each.subresource != "status":
            each.fields &= after
        if each is not mine:
            each.fields -= changed
    if changed:
        mine.fields |= changed
        mine.time = now
        entries += [mine] if mine is own else []
    new["metadata"]["managedFields"] = [each.to_dict() for each in entries if each.fields]
