"""The server about itself: version, groups, kinds, and what kubectl asks OpenAPI for."""

from __future__ import annotations

from typing import Any

from nighttrain.providers.local.cluster.store.resources import SUBRESOURCE_VERBS, ResourceTable, ResourceType

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


class Discovery:
    """Answers made from the table of kinds."""

    def __init__(self, table: ResourceTable) -> None:
        self._table = table

    def document(self, parts: list[str], server: str) -> dict[str, Any] | None:
        """The document at ``/api``, ``/apis`` and below, or None if there is none.

        :param parts: the path's parts, the first being ``api`` or ``apis``
        """
        match parts:
            case ["api"]:
                return _versions(server)
            case ["apis"]:
                return self._group_list()
            case ["api", "v1"]:
                return self._resources("", "v1")
            case ["apis", group] if group and group in self._table.groups():
                return self._group(group)
            case ["apis", group, version] if version in self._table.groups().get(group, ()):
                return self._resources(group, version)
        return None

    def _group(self, name: str, *, listed: bool = False) -> dict[str, Any]:
        names = self._table.groups()[name]
        versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in names]
        head = {} if listed else {"kind": "APIGroup", "apiVersion": "v1"}
        return {**head, "name": name, "versions": versions, "preferredVersion": versions[0]}

    def _group_list(self) -> dict[str, Any]:
        groups = [self._group(name, listed=True) for name in self._table.groups() if name]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def _resources(self, group: str, version: str) -> dict[str, Any]:
        group_version = f"{group}/{version}" if group else version
        found: list[dict[str, Any]] = []
        for type_ in self._table.of(group, version):
            found.append(_described(type_))
            below = type_.subresources if type_.custom is not None else sorted(type_.subresources)
            found += [_subresource(type_, name) for name in below]
        head = {"kind": "APIResourceList"} if not group else {"kind": "APIResourceList", "apiVersion": "v1"}
        return {**head, "groupVersion": group_version, "resources": found}

    def openapi_index(self) -> dict[str, Any]:
        paths = {}
        for group, versions in self._table.groups().items():
            for version in versions:
                path = f"apis/{group}/{version}" if group else f"api/{version}"
                paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}"}
        return {"paths": paths}

    def openapi(self, group: str, version: str) -> dict[str, Any]:
        """Enough of OpenAPI v3 for kubectl to learn that fields are validated here."""
        paths = {}
        for type_ in self._table.of(group, version):
            base = f"/apis/{group}/{version}" if group else f"/api/{version}"
            scope = "/namespaces/{namespace}" if type_.namespaced else ""
            gvk = {"group": group, "version": version, "kind": type_.kind}
            paths[f"{base}{scope}/{type_.plural}"] = {"post": _operation(gvk, "post")}
            paths[f"{base}{scope}/{type_.plural}/{{name}}"] = {
                verb: _operation(gvk, verb) for verb in ("get", "put", "patch", "delete")
            }
        info = {"title": "Kubernetes", "version": VERSION["gitVersion"]}
        return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}


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


def _operation(gvk: dict[str, str], verb: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "x-kubernetes-group-version-kind": gvk,
        "x-kubernetes-action": verb,
        "responses": {"200": {"description": "OK"}},
    }
    if verb in ("post", "put", "patch"):
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "string"}}
            for name in ("dryRun", "fieldManager", "fieldValidation")
        ]
    return operation
