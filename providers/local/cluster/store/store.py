"""Objects, their versions, and the history that watches read.

Everything here belongs to one event-loop thread and is synchronous: a mutation never gives way half-way, so
controllers, kubelet and API see one order of events.

**Objects handed out are shared, and nobody may change them.** A write stores a new object; the old one stays
as it was. A thousand watchers therefore share one object and one encoding of it, and reading copies nothing.
To change an object use :meth:`Store.mutate`, or :func:`copy_object` followed by :meth:`Store.update`.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias, cast

from nighttrain.providers.local.cluster.store import errors, lifecycle
from nighttrain.providers.local.cluster.store.history import History
from nighttrain.providers.local.cluster.store.lifecycle import Propagation
from nighttrain.providers.local.cluster.store.objects import (
    Key,
    Object,
    at_revision,
    copy_object,
    encode,
    generated_name,
    keep_identity,
    timestamp,
    utc_now,
)
from nighttrain.providers.local.cluster.store.resources import (
    CUSTOMRESOURCEDEFINITIONS,
    NAMESPACES,
    ResourceType,
)
from nighttrain.providers.local.cluster.store.watching import (
    Change,
    EventType,
    Record,
    Watcher,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from nighttrain.providers.local.cluster.store.selection import FieldSelector, LabelSelector

# What the kubelet, the controllers and the API need to speak with a store.
__all__ = [
    "Admission",
    "Change",
    "EventType",
    "Key",
    "Object",
    "Record",
    "Store",
    "Watcher",
    "copy_object",
    "encode",
    "timestamp",
    "utc_now",
]

# Store has a method "list", which hides the builtin inside the class.
Objects: TypeAlias = list[Object]
Records: TypeAlias = list[Record]
Changes: TypeAlias = list[Change]
Strings: TypeAlias = list[str]


Admission: TypeAlias = "Callable[[ResourceType, Object, Object | None], None]"
"""Completes or refuses an object before it is stored: ``(resource, new, old)``; it may change ``new``."""


class Store:
    """Objects in memory, by kind, namespace and name.

    :param admit: called with every object about to be stored (defaults, validation); ``old`` is None on
        creation
    :param release: called with every object that is gone: gives back what admission took for it
    :param clock: the time, for creation and deletion timestamps
    """

    def __init__(
        self,
        *,
        admit: Admission | None = None,
        release: Callable[[ResourceType, Object], None] | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.revision = 1
        self.clock = clock
        self._admit = admit
        self._release = release
        self._objects: dict[ResourceType, dict[str, dict[str, Record]]] = {}
        self._history = History()
        self.journal: Callable[[ResourceType, Change], None] | None = None

    def restore(self, objects: Iterable[tuple[ResourceType, str, Record]], revision: int) -> None:
        """Fill an empty store with what was stored before: kind, namespace, record. Nobody is told, and what
        happened before ``revision`` is history that nobody remembers."""
        for resource, space, record in objects:
            name = record.object["metadata"]["name"]
            self._objects.setdefault(resource, {}).setdefault(space, {})[name] = record
        self.revision = revision
        self._history.forget(revision)

    # Reading

    def find(self, resource: ResourceType, namespace: str | None, name: str) -> Object | None:
        """The object, or None. Shared: do not change it."""
        record = self.record(resource, namespace, name)
        return record.object if record else None

    def get(self, resource: ResourceType, namespace: str | None, name: str) -> Object:
        """The object. Shared: do not change it.

        :raises ApiError: 404
        """
        obj = self.find(resource, namespace, name)
        if obj is None:
            raise errors.not_found(resource, name)
        return obj

    def record(self, resource: ResourceType, namespace: str | None, name: str) -> Record | None:
        return self._objects.get(resource, {}).get(_space(resource, namespace), {}).get(name)

    def list(
        self,
        resource: ResourceType,
        namespace: str | None = None,
        *,
        labels: LabelSelector | None = None,
        fields: FieldSelector | None = None,
    ) -> tuple[Objects, int]:
        """Matching objects ordered by namespace and name, and the revision they are a picture of."""
        found = self.records(resource, namespace, labels=labels, fields=fields)
        return [record.object for record in found], self.revision

    def records(
        self,
        resource: ResourceType,
        namespace: str | None = None,
        *,
        labels: LabelSelector | None = None,
        fields: FieldSelector | None = None,
    ) -> Records:
        """As :meth:`list`, with the shared encodings."""
        spaces = self._objects.get(resource, {})
        chosen = sorted(spaces) if not namespace else [namespace]
        name = fields.name if fields else None
        found = []
        for space in chosen:
            records = spaces.get(space, {})
            names = sorted(records) if name is None else ([name] if name in records else [])
            found += [records[each] for each in names]
        selectors = [selector for selector in (labels, fields) if selector is not None]
        if not selectors:
            return found
        return [record for record in found if all(each.matches(record.object) for each in selectors)]

    def records_at(self, resource: ResourceType, namespace: str | None, revision: int) -> Records:
        """The answer of :meth:`records` at an earlier revision: the later pages of a list.

        :raises ApiError: 410 when the history does not reach back that far
        """
        known = {_key(record): record for record in self.records(resource, namespace)}
        for change in reversed(self.changes_since(resource, revision)):
            if namespace and change.namespace != namespace:
                continue
            if change.before is None:
                known.pop(_key(change.after), None)
            else:
                known[_key(change.before)] = change.before
        return [known[key] for key in sorted(known)]

    def count(self, resource: ResourceType, namespace: str | None = None) -> int:
        spaces = self._objects.get(resource, {})
        return len(spaces.get(namespace, {})) if namespace else sum(map(len, spaces.values()))

    # Writing

    def create(self, resource: ResourceType, obj: Object, *, dry_run: bool = False) -> Object:
        """Store a new object, with uid, resourceVersion, creationTimestamp, generation and a generated name.

        :raises ApiError: 409 AlreadyExists, 404 when the namespace does not exist, 403 while it is deleted
        """
        new = self._normal(resource, copy_object(obj))
        metadata = new["metadata"]
        self._check_namespace(resource, metadata)
        space = metadata.get("namespace", "")
        self._name(resource, space, metadata)
        metadata["uid"] = str(uuid.uuid4())
        metadata.pop("resourceVersion", None)
        metadata.pop("deletionTimestamp", None)
        metadata.pop("deletionGracePeriodSeconds", None)
        if resource.has_generation:
            metadata["generation"] = 1
        metadata["creationTimestamp"] = timestamp(self.clock())
        if self._admit is not None:
            self._admit(resource, new, None)
        taken = self.record(resource, space, metadata.get("name", "")) is not None
        if (taken or dry_run) and self._release is not None:
            self._release(resource, new)
        if taken:
            raise errors.already_exists(resource, metadata["name"])
        if dry_run:
            return new
        return self._commit(resource, EventType.ADDED, None, new)

    def update(
        self, resource: ResourceType, obj: Object, *, status: bool = False, dry_run: bool = False
    ) -> Object:
        """Replace an object, or only its ``.status``. A write that changes nothing is not an event.

        :raises ApiError: 404; 409 when ``metadata.resourceVersion`` or ``uid`` is set and not the current one
        """
        new = self._normal(resource, copy_object(obj))
        metadata = new["metadata"]
        space, name = _space(resource, metadata.get("namespace")), metadata.get("name", "")
        old = self.record(resource, space, name)
        if old is None:
            raise errors.not_found(resource, name)
        self._check_current(resource, old.object, metadata)
        if status:
            merged = {**old.object, "status": new.get("status", {})}
        else:
            merged = new
            if resource.has_status:
                merged.pop("status", None)
                if "status" in old.object:
                    merged["status"] = old.object["status"]
            if resource is NAMESPACES:
                # What empties a namespace is not taken off by whoever writes the rest of it.
                merged["spec"] = old.object.get("spec", {})
        return self._replace(resource, old, merged, dry_run=dry_run)

    def mutate(
        self, resource: ResourceType, namespace: str | None, name: str, fn: Callable[[Object], None]
    ) -> Object | None:
        """Read, change, write: for controllers and the kubelet. ``fn`` changes a private copy in place; any
        part of it may change, ``.status`` too. None if the object is gone (also when it goes by this very
        change: the last finalizer of a deleted object)."""
        old = self.record(resource, namespace, name)
        if old is None:
            return None
        new = copy_object(old.object)
        fn(new)
        stored = self._replace(resource, old, new)
        return stored if self.record(resource, namespace, name) else None

    def delete(
        self,
        resource: ResourceType,
        namespace: str | None,
        name: str,
        *,
        grace_period_seconds: int | None = None,
        propagation: Propagation = Propagation.BACKGROUND,
        preconditions_uid: str | None = None,
        preconditions_rv: str | None = None,
        dry_run: bool = False,
    ) -> Object:
        """Delete, or begin to: a pod waits for its kubelet, an object with finalizers for their owners.

        :param propagation: what becomes of its dependents; the garbage collector sees to it
        :return: the object as it was last stored; it is gone unless :meth:`find` still finds it
        :raises ApiError: 404; 409 when a precondition does not hold
        """
        record = self.record(resource, namespace, name)
        if record is None:
            raise errors.not_found(resource, name)
        old = record.object
        metadata = old["metadata"]
        if preconditions_uid and preconditions_uid != metadata["uid"]:
            raise errors.precondition_failed(resource, name, "UID", preconditions_uid, metadata["uid"])
        if preconditions_rv and preconditions_rv != metadata["resourceVersion"]:
            raise errors.precondition_failed(
                resource, name, "ResourceVersion", preconditions_rv, metadata["resourceVersion"]
            )
        if dry_run:
            return old
        grace = lifecycle.grace(resource, old, grace_period_seconds)
        finalizers = lifecycle.finalizers(metadata, propagation, resource)
        if not finalizers and grace == 0 and not lifecycle.must_linger(resource, old):
            if resource.graceful and "deletionTimestamp" not in metadata:
                # A pod is seen to be on its way out, also when it goes at once.
                record = self._mark(resource, record, 0, [])
            return self._drop(resource, record)
        marked = self._mark(resource, record, grace, finalizers)
        return marked.object

    def remove(
        self, resource: ResourceType, namespace: str | None, name: str, uid: str | None = None
    ) -> None:
        """The kubelet's last word on a pod: nothing of it runs any more. It goes now, or, while it has
        finalizers, as soon as they are gone. Another object of the same name (``uid``) stays."""
        record = self.record(resource, namespace, name)
        if record is None or (uid is not None and record.object["metadata"]["uid"] != uid):
            return
        metadata = record.object["metadata"]
        if metadata.get("deletionGracePeriodSeconds") != 0 or "deletionTimestamp" not in metadata:
            record = self._mark(resource, record, 0, metadata.get("finalizers") or [])
        if not record.object["metadata"].get("finalizers"):
            self._drop(resource, record)

    # Watching

    def watch(
        self,
        resource: ResourceType,
        namespace: str | None = None,
        since_revision: int | None = None,
        *,
        labels: LabelSelector | None = None,
        fields: FieldSelector | None = None,
    ) -> Watcher:
        """Subscribe, from this moment on; close the watcher when done.

        :param since_revision: the last revision already known; None or 0 shows what exists as ADDED first
        :raises ApiError: 410 when the history does not reach back that far
        """
        watcher = self._history.watcher(resource, namespace, labels, fields)
        if not since_revision:
            for record in self.records(resource, namespace):
                watcher.show(record)
        else:
            for change in self.changes_since(resource, since_revision):
                watcher.offer(change)
        self._history.subscribe(resource, watcher)
        return watcher

    def changes_since(self, resource: ResourceType, revision: int) -> Changes:
        """:raises ApiError: 410 when the history does not reach back that far"""
        return self._history.since(resource, revision)

    def compact(self) -> None:
        """Forget the history, as a cluster does after some minutes: older watches get 410."""
        self._history.forget(self.revision)

    def close_watchers(self) -> None:
        """End every watch: the server stops."""
        self._history.close_watchers()

    # Inside

    def _normal(self, resource: ResourceType, obj: Object) -> Object:
        """kind, apiVersion and metadata come first, and name and namespace fit the kind."""
        metadata = obj.get("metadata") or {}
        if not resource.namespaced:
            metadata.pop("namespace", None)
        rest = {key: value for key, value in obj.items() if key not in ("kind", "apiVersion", "metadata")}
        return {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata, **rest}

    def _check_namespace(self, resource: ResourceType, metadata: Object) -> None:
        if not resource.namespaced:
            return
        name = metadata.setdefault("namespace", "default")
        space = self.find(NAMESPACES, None, name)
        if space is None:
            raise errors.not_found(NAMESPACES, name)
        if "deletionTimestamp" in space["metadata"]:
            why = f"unable to create new content in namespace {name} because it is being terminated"
            refusal = errors.forbidden(resource, metadata.get("name", ""), why)
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {name} is being terminated"}
            details = refusal.details or {}
            details["causes"] = [{**cause, "field": "metadata.namespace"}]
            raise refusal

    def _name(self, resource: ResourceType, space: str, metadata: Object) -> None:
        base = metadata.get("generateName")
        if metadata.get("name") or not base:
            return
        metadata["name"] = generated_name(base)
        while self.record(resource, space, metadata["name"]):
            metadata["name"] = generated_name(base)

    def _check_current(self, resource: ResourceType, old: Object, metadata: Object) -> None:
        known = old["metadata"]
        if metadata.get("uid") and metadata["uid"] != known["uid"]:
            why = (
                f"Precondition failed: UID in precondition: {metadata['uid']}, "
                f"UID in object meta: {known['uid']}"
            )
            raise errors.conflict(resource, known["name"], why)
        if metadata.get("resourceVersion") and metadata["resourceVersion"] != known["resourceVersion"]:
            raise errors.conflict(resource, known["name"])

    def _replace(
        self, resource: ResourceType, record: Record, new: Object, *, dry_run: bool = False
    ) -> Object:
        old = record.object
        keep_identity(old["metadata"], new["metadata"])
        # A status is checked by the schema of a custom kind alone.
        if self._admit is not None and (
            resource.custom is not None or not lifecycle.same_but(old, new, "status")
        ):
            self._admit(resource, new, old)
        if resource.has_generation and lifecycle.is_new_generation(resource, old, new):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if new == old:
            return old
        if dry_run:
            return new
        if lifecycle.is_finished(resource, new):
            # The DELETED event shows the object as it was, with the finalizer that has just gone.
            return self._drop(resource, record)
        return self._commit(resource, EventType.MODIFIED, record, new)

    def _mark(self, resource: ResourceType, record: Record, grace: int, finalizers: Strings) -> Record:
        """Set or shorten the deletion timestamp."""
        old = record.object
        metadata = dict(old["metadata"])
        known = metadata.get("deletionGracePeriodSeconds")
        if "deletionTimestamp" not in metadata:
            if "generation" in metadata:
                metadata["generation"] += 1
        elif known is not None and grace >= known:
            grace = known
        if known != grace or "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = timestamp(self.clock() + timedelta(seconds=grace))
        metadata["deletionGracePeriodSeconds"] = grace
        if finalizers:
            metadata["finalizers"] = finalizers
        new = {**old, "metadata": metadata}
        if resource in (NAMESPACES, CUSTOMRESOURCEDEFINITIONS):
            now = timestamp(self.clock())
            new["status"] = lifecycle.terminating(resource, old.get("status") or {}, now)
        if new == old:
            return record
        self._commit(resource, EventType.MODIFIED, record, new)
        return cast("Record", self.record(resource, metadata.get("namespace"), metadata["name"]))

    def _commit(self, resource: ResourceType, type_: EventType, before: Record | None, new: Object) -> Object:
        self.revision += 1
        new["metadata"] = {**new["metadata"], "resourceVersion": str(self.revision)}
        record = Record(new, self.revision)
        metadata = new["metadata"]
        space = metadata.get("namespace", "")
        self._objects.setdefault(resource, {}).setdefault(space, {})[metadata["name"]] = record
        self._publish(resource, Change(self.revision, type_, space, before, record))
        return new

    def _drop(self, resource: ResourceType, record: Record) -> Object:
        metadata = record.object["metadata"]
        space = metadata.get("namespace", "")
        self.revision += 1
        records = self._objects[resource][space]
        del records[metadata["name"]]
        if not records:
            del self._objects[resource][space]
        last = Record(at_revision(record.object, self.revision), self.revision)
        self._publish(resource, Change(self.revision, EventType.DELETED, space, record, last))
        if self._release is not None:
            self._release(resource, record.object)
        return last.object

    def _publish(self, resource: ResourceType, change: Change) -> None:
        # Before the watchers: whoever they wake finds it written.
        if self.journal is not None:
            self.journal(resource, change)
        self._history.add(resource, change)

    def resources(self) -> Iterator[ResourceType]:
        """Kinds that have objects now."""
        return iter([resource for resource, spaces in self._objects.items() if any(spaces.values())])


def _key(record: Record) -> Key:
    metadata = record.object["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _space(resource: ResourceType, namespace: str | None) -> str:
    return (namespace or "default") if resource.namespaced else ""
