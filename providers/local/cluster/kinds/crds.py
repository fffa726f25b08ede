"""CustomResourceDefinitions, and the kinds that they add to the API."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from nighttrain.providers.local.cluster.kinds.crd_definitions import storage_version
from nighttrain.providers.local.cluster.kinds.schemas import Schema, broken_rules
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.lifecycle import CLEANUP_FINALIZER
from nighttrain.providers.local.cluster.store.resources import (
    CUSTOMRESOURCEDEFINITIONS,
    ResourceTable,
    ResourceType,
)
from nighttrain.providers.local.cluster.store.store import Object, Store, timestamp

# What a definition's status says once it is served.
_ACCEPTED = (
    ("NamesAccepted", "NoConflicts", "no conflicts found"),
    ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
)
# The order in which a real API server lists the verbs of a custom resource.
_VERBS = ("delete", "get", "list", "patch", "create", "update", "watch")

# The Gateway API's and KServe's definitions, as ``tests/helpers/definition_generator.py`` wrote them.
SERVING = Path(__file__).with_name("serving.json.gz")


def install_serving(store: Store) -> dict[str, ResourceType]:
    """Create the definitions of the Gateway API and KServe that are not there; their types by kind."""
    found = {}
    for definition in json.loads(gzip.decompress(SERVING.read_bytes())):
        name = definition["metadata"]["name"]
        if store.find(CUSTOMRESOURCEDEFINITIONS, None, name) is None:
            store.create(CUSTOMRESOURCEDEFINITIONS, definition)
        type_ = _types(store.get(CUSTOMRESOURCEDEFINITIONS, None, name))[0]
        found[type_.kind] = type_
    return found


@dataclass(frozen=True, slots=True)
class CustomVersion:
    """One version of a custom resource.

    :param schema: its structural schema
    """

    schema: Schema
    list_kind: str = ""
    terminating: bool = False

    def check(self, resource: ResourceType, new: Object, old: Object | None) -> None:
        """:raises ApiError: 422 with every cause; 405 for a new object while the definition goes"""
        if old is None and self.terminating:
            why = "create not allowed while custom resource definition is terminating"
            raise errors.method_not_allowed(why)
        causes = broken_rules(self.schema, new, custom=True)
        if causes:
            raise errors.invalid(resource, new["metadata"].get("name", ""), causes)


class CustomResources:
    """Keeps the table of kinds in step with the definitions in the store.

    It does so when asked (:meth:`refresh`, before and after each request): a definition is served at once,
    and a store that was read from a file needs nothing more.
    """

    def __init__(self, store: Store, table: ResourceTable) -> None:
        self._store = store
        self._table = table
        self._watcher = store.watch(CUSTOMRESOURCEDEFINITIONS)
        self._served: set[str] = set()

    def refresh(self) -> None:
        changed = self._watcher.drain()
        for name in dict.fromkeys(str(record.object["metadata"]["name"]) for _, record in changed):
            self._see(name)
        if self._served:
            self._finish_deletions()

    def _see(self, name: str) -> None:
        definition = self._store.find(CUSTOMRESOURCEDEFINITIONS, None, name)
        self._table.remove_custom(name)
        if definition is None:
            self._served.discard(name)
            return
        if "deletionTimestamp" not in definition["metadata"]:
            self._store.mutate(CUSTOMRESOURCEDEFINITIONS, None, name, self._establish)
            definition = self._store.get(CUSTOMRESOURCEDEFINITIONS, None, name)
        self._served.add(name)
        for type_ in _types(definition):
            self._table.add(type_)
        self._watcher.drain()

    def _establish(self, definition: Object) -> None:
        """Conditions, names and stored versions, as the API server's controllers write them."""
        # Whoever writes the status may leave out, or take away, what stands in it.
        spec, status = definition["spec"], definition.setdefault("status", {})
        was = {each["type"]: each for each in status.get("conditions") or ()}
        status["acceptedNames"] = spec["names"]
        for kind, reason, message in _ACCEPTED:
            if was.get(kind, {}).get("status") != "True":
                was[kind] = {
                    "type": kind,
                    "status": "True",
                    "lastTransitionTime": timestamp(self._store.clock()),
                    "reason": reason,
                    "message": message,
                }
        status["conditions"] = list(was.values())
        stored = storage_version(definition)
        known = status.get("storedVersions") or []
        if stored not in known:
            status["storedVersions"] = [*known, stored]

    def _finish_deletions(self) -> None:
        for name in list(self._served):
            definition = self._store.find(CUSTOMRESOURCEDEFINITIONS, None, name)
            if definition is None or "deletionTimestamp" not in definition["metadata"]:
                continue
            kind = _types(definition, all_versions=True)[0]
            for obj in self._store.list(kind)[0]:
                if "deletionTimestamp" not in obj["metadata"]:
                    self._store.delete(kind, obj["metadata"].get("namespace"), obj["metadata"]["name"])
            if not self._store.count(kind):
                self._table.remove_custom(name)
                self._served.discard(name)
                self._store.mutate(CUSTOMRESOURCEDEFINITIONS, None, name, _release)
                self._watcher.drain()


def _release(definition: Object) -> None:
    metadata = definition["metadata"]
    metadata["finalizers"] = [each for each in metadata.get("finalizers") or () if each != CLEANUP_FINALIZER]


def _types(definition: Object, *, all_versions: bool = False) -> list[ResourceType]:
    spec = definition["spec"]
    names = spec["names"]
    return [
        ResourceType(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            singular=names["singular"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            subresources=tuple(each for each in ("status",) if each in (version.get("subresources") or {})),
            verbs=_VERBS,
            has_generation=True,
            custom=CustomVersion(
                schema=version["schema"]["openAPIV3Schema"],
                list_kind=names["listKind"],
                terminating="deletionTimestamp" in definition["metadata"],
            ),
        )
        for version in spec["versions"]
        if version.get("served") or all_versions
    ]
