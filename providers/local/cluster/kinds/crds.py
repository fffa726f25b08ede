"""CustomResourceDefinitions, and the kinds that they add to the API."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.kinds.crd_definitions import storage_version
from nighttrain.providers.local.cluster.kinds.schemas import Schema, complete, prune, validate
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.resources import (
    CUSTOMRESOURCEDEFINITIONS,
    ResourceTable,
    ResourceType,
)
from nighttrain.providers.local.cluster.store.store import Object, Store, copy_object, timestamp
from nighttrain.providers.local.cluster.store.watching import Record, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from nighttrain.providers.local.cluster.store.selection import FieldSelector, LabelSelector
    from nighttrain.providers.local.cluster.store.store import Records

CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
# What a definition's status says once it is served.
_ACCEPTED = (
    ("NamesAccepted", "NoConflicts", "no conflicts found"),
    ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
)
# The order in which a real API server lists the verbs of a custom resource.
_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")


@dataclass(frozen=True, slots=True)
class CustomVersion:
    """One version of a custom resource.

    :param schema: its structural schema
    :param home: the version under which the store keeps the objects of all versions
    """

    schema: Schema
    home: str
    list_kind: str = ""
    terminating: bool = False

    def decode(self, body: Object) -> list[str]:
        """Prune and complete the object in place, but for its metadata; the paths of unknown fields."""
        unknown = prune(self.schema, body, root=True)
        complete(self.schema, body)
        return unknown

    def check(self, resource: ResourceType, new: Object) -> None:
        """:raises ApiError: 422 with every cause"""
        causes = validate(self.schema, new)
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
        self._homes: dict[str, tuple[str, str]] = {}

    def refresh(self) -> None:
        changed = self._watcher.drain()
        for name in dict.fromkeys(str(record.object["metadata"]["name"]) for _, record in changed):
            self._see(name)
        if self._homes:
            self._finish_deletions()

    def view(self, resource: ResourceType) -> CustomStore:
        return CustomStore(self._store, resource)

    def _see(self, name: str) -> None:
        definition = self._store.find(CUSTOMRESOURCEDEFINITIONS, None, name)
        if definition is None:
            self._table.remove_custom(name)
            self._homes.pop(name, None)
            return
        if "deletionTimestamp" not in definition["metadata"]:
            self._store.mutate(CUSTOMRESOURCEDEFINITIONS, None, name, self._establish)
            definition = self._store.get(CUSTOMRESOURCEDEFINITIONS, None, name)
        self._serve(definition)
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

    def _serve(self, definition: Object) -> None:
        name = definition["metadata"]["name"]
        self._table.remove_custom(name)
        uid = definition["metadata"]["uid"]
        known = self._homes.get(name)
        if known is None or known[0] != uid:
            # The first version that was ever stored: later ones convert to it and back.
            known = self._homes[name] = (uid, definition["status"]["storedVersions"][0])
        for type_ in _types(definition, known[1]):
            self._table.add(type_)

    def begin_deletion(self, name: str) -> Object:
        """Mark the definition and delete its objects; it goes when the last of them has gone.

        :return: the definition as it is marked
        """
        marked: list[Object] = []

        def mark(definition: Object) -> None:
            metadata, status = definition["metadata"], definition.setdefault("status", {})
            if "deletionTimestamp" in metadata:
                return
            now = timestamp(self._store.clock())
            metadata["finalizers"] = [*(metadata.get("finalizers") or []), CLEANUP_FINALIZER]
            metadata["deletionTimestamp"] = now
            status["conditions"] = [
                *(status.get("conditions") or []),
                {
                    "type": "Terminating",
                    "status": "True",
                    "lastTransitionTime": now,
                    "reason": "InstanceDeletionPending",
                    "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will "
                    "begin soon",
                },
            ]

        marked.append(self._store.mark_deleted(CUSTOMRESOURCEDEFINITIONS, None, name, mark))
        self.refresh()
        return marked[0]

    def _finish_deletions(self) -> None:
        for name in list(self._homes):
            definition = self._store.find(CUSTOMRESOURCEDEFINITIONS, None, name)
            if definition is None or "deletionTimestamp" not in definition["metadata"]:
                continue
            home = next(iter(_types(definition, self._homes[name][1], all_versions=True)))
            kept = replace(home, version=self._homes[name][1])
            view = CustomStore(self._store, kept)
            for obj in self._store.list(kept)[0]:
                if "deletionTimestamp" not in obj["metadata"]:
                    view.delete(kept, obj["metadata"].get("namespace"), obj["metadata"]["name"])
            if not self._store.count(kept):
                self._table.remove_custom(name)
                del self._homes[name]
                self._store.mutate(CUSTOMRESOURCEDEFINITIONS, None, name, _release)
                self._watcher.drain()


def _release(definition: Object) -> None:
    metadata = definition["metadata"]
    metadata["finalizers"] = [each for each in metadata.get("finalizers") or () if each != CLEANUP_FINALIZER]


def _types(definition: Object, home: str, *, all_versions: bool = False) -> list[ResourceType]:
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
                home=home,
                list_kind=names["listKind"],
                terminating="deletionTimestamp" in definition["metadata"],
            ),
        )
        for version in spec["versions"]
        if version.get("served") or all_versions
    ]


class CustomStore(Store):
    """The store as one version of a custom resource sees it: the same objects under that version's name,
    written through its schema.
    """

    def __init__(self, store: Store, resource: ResourceType) -> None:
        assert isinstance(resource.custom, CustomVersion)  # noqa: S101 - callers ask only for custom kinds
        self._below = store
        self._custom = resource.custom
        self._shown = resource
        self._kept = replace(resource, version=resource.custom.home)

    @property
    def revision(self) -> int:  # type: ignore[override]
        return self._below.revision

    @property
    def clock(self) -> Callable[[], datetime]:  # type: ignore[override]
        return self._below.clock

    def _present(self, obj: Object) -> Object:
        return obj if self._same else {**obj, "apiVersion": self._shown.api_version}

    @functools.cached_property
    def _same(self) -> bool:
        return self._kept.version == self._shown.version

    def _record(self, record: Record) -> Record:
        return record if self._same else Record(self._present(record.object), record.revision)

    def record(self, resource: ResourceType, namespace: str | None, name: str) -> Record | None:
        found = self._below.record(self._kept, namespace, name)
        return None if found is None else self._record(found)

    def records(
        self,
        resource: ResourceType,
        namespace: str | None = None,
        *,
        labels: LabelSelector | None = None,
        fields: FieldSelector | None = None,
    ) -> Records:
        found = self._below.records(self._kept, namespace, labels=labels, fields=fields)
        return [self._record(each) for each in found]

    def records_at(self, resource: ResourceType, namespace: str | None, revision: int) -> Records:
        return [self._record(each) for each in self._below.records_at(self._kept, namespace, revision)]

    def watch(
        self,
        resource: ResourceType,
        namespace: str | None = None,
        since_revision: int | None = None,
        *,
        labels: LabelSelector | None = None,
        fields: FieldSelector | None = None,
    ) -> Watcher:
        watcher = self._below.watch(self._kept, namespace, since_revision, labels=labels, fields=fields)
        if not self._same:
            watcher.convert = self._record
        return watcher

    def create(self, resource: ResourceType, obj: Object, *, dry_run: bool = False) -> Object:
        if self._custom.terminating:
            raise errors.method_not_allowed(
                "create not allowed while custom resource definition is terminating"
            )
        new = copy_object(obj)
        complete(self._custom.schema, new)
        self._custom.check(self._shown, new)
        return self._present(self._below.create(self._kept, new, dry_run=dry_run))

    def update(
        self, resource: ResourceType, obj: Object, *, status: bool = False, dry_run: bool = False
    ) -> Object:
        metadata = obj["metadata"]
        old = self.get(resource, metadata.get("namespace"), metadata.get("name", ""))
        new = copy_object(obj)
        if status:
            new = {**copy_object(old), "status": new.get("status", {})}
        elif self._shown.has_status:
            new.pop("status", None)
            new.update({"status": copy_object(old["status"])} if "status" in old else {})
        complete(self._custom.schema, new)
        self._custom.check(self._shown, new)
        written = new if not status else {**new, "metadata": metadata}
        stored = self._below.update(self._kept, written, status=status, dry_run=dry_run)
        if not dry_run and self.find(resource, metadata.get("namespace"), metadata["name"]) is None:
            self._collect(stored["metadata"])
        return self._present(stored)

    def delete(
        self,
        resource: ResourceType,
        namespace: str | None,
        name: str,
        *,
        grace_period_seconds: int | None = None,
        propagation: str = "Background",
        preconditions_uid: str | None = None,
        preconditions_rv: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        last = self._below.delete(
            self._kept,
            namespace,
            name,
            preconditions_uid=preconditions_uid,
            preconditions_rv=preconditions_rv,
            dry_run=dry_run,
        )
        gone = self._below.find(self._kept, namespace, name) is None
        if gone and not dry_run and propagation != "Orphan":
            self._collect(last["metadata"])
        return self._present(last)

    def _collect(self, owner: Object) -> None:
        """Delete what belonged to an object that is gone. The garbage collector knows built-in kinds only."""
        for kind in list(self._below.resources()):
            for obj in self._below.list(kind, owner.get("namespace"))[0]:
                metadata = obj["metadata"]
                owners = metadata.get("ownerReferences") or ()
                if "deletionTimestamp" not in metadata and [each["uid"] for each in owners] == [owner["uid"]]:
                    self._below.delete(kind, metadata.get("namespace"), metadata["name"])
                    self._collect(metadata)
