"""The rules of a CustomResourceDefinition beside single fields, which are in its schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.kinds.schemas import wrong_schema
from nighttrain.providers.local.cluster.store.errors import Cause, invalid_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nighttrain.providers.local.cluster.store.objects import Object

_FIXED = (("group",), ("scope",), ("names", "kind"), ("names", "plural"))


def storage_version(definition: Object) -> str:
    versions = (definition.get("spec") or {}).get("versions") or ()
    return next((str(each.get("name")) for each in versions if each.get("storage")), "")


def complete_definition(new: Object, old: Object | None) -> None:
    """Set what depends on other fields."""
    names = (new.get("spec") or {}).get("names") or {}
    if names.get("kind"):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", f"{names['kind']}List")
    if old is None:
        accepted = {"plural": "", "kind": ""}
        stored = [storage_version(new)]
        new["status"] = {"conditions": None, "acceptedNames": accepted, "storedVersions": stored}


def validate_definition(definition: Object, old: Object | None) -> list[Cause]:
    """The errors of a completed definition, but for single fields."""
    return list(_causes(definition, old))


def _causes(definition: Object, old: Object | None) -> Iterator[Cause]:
    spec, metadata = definition.get("spec") or {}, definition["metadata"]
    group = spec.get("group") or ""
    if metadata.get("name", "") != f"{spec.get('names', {}).get('plural')}.{group}":
        why = 'must be spec.names.plural+"."+spec.group'
        yield invalid_value("metadata.name", metadata.get("name", ""), why)
    for path in _FIXED if old is not None else ():
        now, before = spec, (old or {})["spec"]
        for part in path:
            now, before = (now or {}).get(part), before[part]
        if now != before:
            yield invalid_value(f"spec.{'.'.join(path)}", now, "field is immutable")
    yield from _version_causes(spec.get("versions") or [])


def _version_causes(versions: list[Object]) -> Iterator[Cause]:
    names = [each.get("name") for each in versions]
    if versions and sum(1 for each in versions if each.get("storage")) != 1:
        yield invalid_value("spec.versions", names, "must have exactly one version marked as storage version")
    for index, version in enumerate(versions):
        path = f"spec.versions[{index}]"
        if names[index] in names[:index]:
            yield invalid_value(f"{path}.name", names[index], "must be unique")
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        where = f"{path}.schema.openAPIV3Schema"
        if schema is None:
            continue
        if schema.get("type") != "object":
            yield invalid_value(f"{where}.type", schema.get("type", ""), "must be object at the root")
        why = wrong_schema(schema)
        if why:
            yield invalid_value(where, "", why)
