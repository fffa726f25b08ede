"""What a CustomResourceDefinition may say: completed, checked, refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.kinds.schemas import wrong_schema
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.errors import Cause, invalid_value, required_value
from nighttrain.providers.local.cluster.store.resources import CUSTOMRESOURCEDEFINITIONS

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.objects import Object

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")


def storage_version(definition: Object) -> str:
    return next(str(each["name"]) for each in definition["spec"]["versions"] if each.get("storage"))


def admit_definition(new: Object, old: Object | None) -> None:
    """Complete and check a CustomResourceDefinition.

    :raises ApiError: 422 with every cause
    """
    spec = new.get("spec")
    if not isinstance(spec, dict):
        raise errors.invalid(
            CUSTOMRESOURCEDEFINITIONS, new["metadata"].get("name", ""), [required_value("spec")]
        )
    spec.setdefault("conversion", {"strategy": "None"})
    names = spec.setdefault("names", {})
    kind = names.get("kind")
    if isinstance(kind, str) and kind:
        names.setdefault("singular", kind.lower())
        names.setdefault("listKind", f"{kind}List")
    causes = _definition_causes(new)
    if not causes and old is not None:
        causes = _changed_names(spec, old["spec"])
    if causes:
        raise errors.invalid(CUSTOMRESOURCEDEFINITIONS, new["metadata"].get("name", ""), causes)
    if old is None:
        accepted = {"plural": "", "kind": ""}
        stored = [storage_version(new)]
        new["status"] = {"conditions": None, "acceptedNames": accepted, "storedVersions": stored}


def _changed_names(spec: Object, old: Object) -> list[Cause]:
    pairs = [
        ("spec.group", spec["group"], old["group"]),
        ("spec.scope", spec["scope"], old["scope"]),
        ("spec.names.kind", spec["names"]["kind"], old["names"]["kind"]),
        ("spec.names.plural", spec["names"]["plural"], old["names"]["plural"]),
    ]
    return [invalid_value(path, new, "field is immutable") for path, new, was in pairs if new != was]


def _definition_causes(definition: Object) -> list[Cause]:
    spec, name = definition["spec"], definition["metadata"].get("name", "")
    names, group = spec["names"], spec.get("group")
    causes = [
        required_value(f"spec.{path}")
        for path, value in (
            ("group", group),
            ("names.plural", names.get("plural")),
            ("names.kind", names.get("kind")),
            ("versions", spec.get("versions")),
        )
        if not value
    ]
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        allowed = ("Cluster", "Namespaced")
        missing = not spec.get("scope")
        causes.append(
            required_value("spec.scope")
            if missing
            else errors.unsupported_value("spec.scope", spec["scope"], allowed)
        )
    if causes:
        return causes
    if name != f"{names['plural']}.{group}":
        causes.append(invalid_value("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    protected = group.endswith((".k8s.io", ".kubernetes.io"))
    if protected and not (definition["metadata"].get("annotations") or {}).get("api-approved.kubernetes.io"):
        why = 'protected groups must have approval annotation "api-approved.kubernetes.io"'
        causes.append(required_value("metadata.annotations[api-approved.kubernetes.io]", why))
    if spec["conversion"].get("strategy") != "None":
        # Nothing here could call a webhook: better said now than found out from wrong objects.
        why = 'the embedded cluster converts with the strategy "None" only'
        causes.append(invalid_value("spec.conversion.strategy", spec["conversion"].get("strategy"), why))
    return causes + _version_causes(spec["versions"])


def _version_causes(versions: list[Object]) -> list[Cause]:
    causes: list[Cause] = []
    stored = [each for each in versions if each.get("storage")]
    if len(stored) != 1:
        why = "must have exactly one version marked as storage version"
        causes.append(invalid_value("spec.versions", [each.get("name") for each in versions], why))
    seen: set[str] = set()
    for index, version in enumerate(versions):
        path = f"spec.versions[{index}]"
        name = version.get("name") or ""
        if not _LABEL.match(name):
            causes.append(invalid_value(f"{path}.name", name, "must be a DNS-1035 label"))
        if name in seen:
            causes.append(invalid_value(f"{path}.name", name, "must be unique"))
        seen.add(name)
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        where = f"{path}.schema.openAPIV3Schema"
        if not isinstance(schema, dict):
            causes.append(required_value(where, "schemas are required"))
            continue
        if schema.get("type") != "object":
            causes.append(
                invalid_value(f"{where}.type", schema.get("type", ""), "must be object at the root")
            )
        why = wrong_schema(schema)
        if why:
            causes.append(invalid_value(where, "", why))
    return causes
