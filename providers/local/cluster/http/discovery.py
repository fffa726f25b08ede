"""What the server says about itself: version, groups, kinds, and the OpenAPI documents that kubectl reads."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds.builtin_schemas import definitions
from nighttrain.providers.local.cluster.store.resources import SUBRESOURCE_VERBS
from nighttrain.providers.local.cluster.store.store import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nighttrain.providers.local.cluster.store.resources import ResourceTable, ResourceType

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
AUTHORIZATION = ("authorization.k8s.io", "v1")

# The version whose behaviour was recorded and is followed.
VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.2+nighttrain",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "",
}

_REVIEW = {
    "name": "selfsubjectaccessreviews",
    "singularName": "selfsubjectaccessreview",
    "namespaced": False,
    "kind": "SelfSubjectAccessReview",
    "verbs": ["create"],
}


# What schemas say to this server alone.
_OWN_WORDS = ("x-unset", "x-kept-empty", "x-zeros")


class Discovery:
    """Answers made from the table of kinds."""

    def __init__(self, table: ResourceTable) -> None:
        self._table = table

    def document(self, parts: list[str], accept: str, server: str) -> dict[str, Any] | None:
        """The document at ``/api``, ``/apis`` and below, or None if there is none.

        :param parts: the path's parts, the first being ``api`` or ``apis``
        """
        aggregated = "apidiscovery.k8s.io" in accept and "v=v2;" in accept.replace(" ", "") + ";"
        match parts:
            case ["api"]:
                return self._aggregated(("",)) if aggregated else _versions(server)
            case ["apis"]:
                return self._aggregated(self._group_names()) if aggregated else self._group_list()
            case ["api", "v1"]:
                return self._resources("", "v1")
            case ["apis", group]:
                return self._group(group) if group in self._group_names() else None
            case ["apis", group, version] if version in self._groups().get(group, ()):
                return self._resources(group, version)
        return None

    def _groups(self) -> dict[str, list[str]]:
        groups = self._table.groups()
        groups.setdefault(AUTHORIZATION[0], [AUTHORIZATION[1]])
        return groups

    def _group_names(self) -> tuple[str, ...]:
        return tuple(name for name in self._groups() if name)

    def _group(self, name: str, *, listed: bool = False) -> dict[str, Any]:
        versions = [
            {"groupVersion": f"{name}/{version}", "version": version} for version in self._groups()[name]
        ]
        head = {} if listed else {"kind": "APIGroup", "apiVersion": "v1"}
        return {**head, "name": name, "versions": versions, "preferredVersion": versions[0]}

    def _group_list(self) -> dict[str, Any]:
        groups = [self._group(name, listed=True) for name in self._group_names()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def _resources(self, group: str, version: str) -> dict[str, Any]:
        group_version = f"{group}/{version}" if group else version
        found: list[dict[str, Any]] = []
        for type_ in self._table.of(group, version):
            found.append(_described(type_))
            below = type_.subresources if type_.custom is not None else sorted(type_.subresources)
            found += [_subresource(type_, name) for name in below]
        if (group, version) == AUTHORIZATION:
            found.append(_REVIEW)
        head = {"kind": "APIResourceList"} if not group else {"kind": "APIResourceList", "apiVersion": "v1"}
        return {**head, "groupVersion": group_version, "resources": found}

    def _aggregated(self, groups: tuple[str, ...]) -> dict[str, Any]:
        items = []
        for group in groups:
            versions = [
                {
                    "version": version,
                    "resources": list(self._aggregated_resources(group, version)),
                    "freshness": "Current",
                }
                for version in self._groups()[group]
            ]
            items.append({"metadata": {"name": group} if group else {}, "versions": versions})
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": items,
        }

    def _aggregated_resources(self, group: str, version: str) -> Iterator[dict[str, Any]]:
        rows = self._resources(group, version)["resources"]
        for row in rows:
            if "/" in row["name"]:
                continue
            entry = {
                "resource": row["name"],
                "responseKind": {"group": "", "version": "", "kind": row["kind"]},
                "scope": "Namespaced" if row["namespaced"] else "Cluster",
                "singularResource": row["singularName"],
                "verbs": row["verbs"],
            }
            entry.update({key: row[key] for key in ("shortNames", "categories") if key in row})
            below = [
                {
                    "subresource": each["name"].split("/")[1],
                    "responseKind": {
                        "group": each.get("group", ""),
                        "version": each.get("version", ""),
                        "kind": each["kind"],
                    },
                    "verbs": each["verbs"],
                }
                for each in rows
                if each["name"].startswith(row["name"] + "/")
            ]
            if below:
                entry["subresources"] = below
            yield entry

    def openapi_index(self) -> dict[str, Any]:
        paths = {}
        for group, versions in self._table.groups().items():
            for version in versions:
                path = f"apis/{group}/{version}" if group else f"api/{version}"
                digest = hashlib.sha256(encode(self.openapi(group, version))).hexdigest().upper()
                paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={digest}"}
        return {"paths": paths}

    def openapi(self, group: str, version: str) -> dict[str, Any]:
        """Enough of OpenAPI v3 for kubectl to learn that fields are validated here, and to explain them."""
        paths, schemas = {}, {}
        for type_ in self._table.of(group, version):
            base = f"/apis/{group}/{version}" if group else f"/api/{version}"
            scope = "/namespaces/{namespace}" if type_.namespaced else ""
            gvk = {"group": group, "version": version, "kind": type_.kind}
            schema = _schema_name(group, version, type_.kind)
            paths[f"{base}{scope}/{type_.plural}"] = {"post": _operation(gvk, "post", schema)}
            paths[f"{base}{scope}/{type_.plural}/{{name}}"] = {
                verb: _operation(gvk, verb, schema) for verb in ("get", "put", "patch", "delete")
            }
            if type_.custom is not None:
                own = type_.custom.schema
                meta = _schema_name("", "v1", "ObjectMeta")
                known = {
                    **own.get("properties", {}),
                    "metadata": {"allOf": [{"$ref": f"#/components/schemas/{meta}"}]},
                }
                schemas[schema] = {**own, "properties": known, "x-kubernetes-group-version-kind": [gvk]}
                for reached in ("ObjectMeta", *_reached("ObjectMeta")):
                    schemas.setdefault(_schema_name("", "v1", reached), _schema(definitions()[reached]))
                continue
            schemas[schema] = {**_schema(definitions()[type_.kind]), "x-kubernetes-group-version-kind": [gvk]}
            for reached in _reached(type_.kind):
                schemas.setdefault(_schema_name("", "v1", reached), _schema(definitions()[reached]))
        return {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
            "paths": paths,
            "components": {"schemas": schemas},
        }


def _versions(server: str) -> dict[str, Any]:
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}


def _described(type_: ResourceType) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": type_.plural,
        "singularName": type_.singular,
        "namespaced": type_.namespaced,
        "kind": type_.kind,
        "verbs": list(type_.verbs),
    }
    if type_.short_names:
        found["shortNames"] = list(type_.short_names)
    if type_.categories:
        found["categories"] = list(type_.categories)
    return found


def _subresource(type_: ResourceType, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": f"{type_.plural}/{name}",
        "singularName": "",
        "namespaced": type_.namespaced,
        "kind": type_.kind,
        "verbs": ["get"] if name == "log" else list(SUBRESOURCE_VERBS),
    }
    if name == "scale":
        found.update({"group": "autoscaling", "version": "v1", "kind": "Scale"})
    elif name == "eviction":
        found.update({"group": "policy", "version": "v1", "kind": "Eviction", "verbs": ["create"]})
    return found


def _schema_name(group: str, version: str, kind: str) -> str:
    short = (group or "core").split(".")[0]
    return f"io.k8s.api.{short}.{version}.{kind}"


def _operation(gvk: dict[str, str], verb: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    operation: dict[str, Any] = {
        "x-kubernetes-group-version-kind": gvk,
        "x-kubernetes-action": verb,
        "responses": {"200": {"description": "OK", "content": content}},
    }
    if verb in ("post", "put", "patch"):
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "string"}}
            for name in ("dryRun", "fieldManager", "fieldValidation")
        ]
    return operation


def _schema(value: Any) -> Any:
    """A schema as OpenAPI has it: without what is our own, references as they are written there."""
    if isinstance(value, list):
        return [_schema(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _schema(each) for key, each in value.items() if key not in _OWN_WORDS}
    if "$ref" in kept:
        return {"allOf": [{"$ref": f"#/components/schemas/{_schema_name('', 'v1', kept['$ref'])}"}]}
    return kept


def _reached(kind: str) -> list[str]:
    """Names of all types below a kind."""
    found: list[str] = []
    waiting = [kind]
    while waiting:
        for name in _references(definitions()[waiting.pop()]["properties"]):
            if name not in found:
                found.append(name)
                waiting.append(name)
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
