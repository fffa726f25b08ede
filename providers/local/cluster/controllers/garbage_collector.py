"""The end of objects whose owner is gone."""

from __future__ import annotations

import enum

from nighttrain.providers.local.cluster.controllers.reconcile import Controller, ReconcileLoop
from nighttrain.providers.local.cluster.store.lifecycle import (
    FOREGROUND_FINALIZER,
    ORPHAN_FINALIZER,
    Propagation,
)
from nighttrain.providers.local.cluster.store.resources import ResourceTable, ResourceType
from nighttrain.providers.local.cluster.store.store import EventType, Object


class _Task(enum.StrEnum):
    """What a key's first half says is to be done with the object named by the second."""

    GONE = enum.auto()
    FINALIZE = enum.auto()
    CHECK = enum.auto()


class GarbageCollector(Controller):
    """Deletes dependents in the background or in the foreground, or orphans them, as the deletion asked."""

    def __init__(self, loop: ReconcileLoop, resources: tuple[ResourceType, ...]) -> None:
        super().__init__(loop)
        self._table = ResourceTable(resources)
        self._resources = {resource.qualified: resource for resource in resources}

    def changed(self, type_: EventType, resource: ResourceType, obj: Object) -> None:
        metadata = obj["metadata"]
        if type_ is EventType.DELETED:
            self.enqueue(_Task.GONE, metadata["uid"])
            for reference in metadata.get("ownerReferences") or []:
                self._look_at_owner(obj, reference)
        elif "deletionTimestamp" in metadata:
            if {FOREGROUND_FINALIZER, ORPHAN_FINALIZER} & set(metadata.get("finalizers") or []):
                self.enqueue(_Task.FINALIZE, _path(resource, obj))
        elif metadata.get("ownerReferences"):
            self.enqueue(_Task.CHECK, _path(resource, obj))

    def reconcile(self, namespace: str, name: str) -> None:
        if namespace == _Task.GONE:
            for dependent in self._loop.dependents(name):
                self._collect(dependent)
            return
        found = self._find(name)
        if found is None:
            return
        resource, obj = found
        if namespace == _Task.FINALIZE:
            self._finalize(resource, obj)
        else:
            self._collect(obj)

    def _collect(self, obj: Object) -> None:
        """Delete an object none of whose owners exists any more."""
        metadata = obj["metadata"]
        if "deletionTimestamp" in metadata:
            return
        owners = [self._owner(obj, reference) for reference in metadata.get("ownerReferences") or []]
        if not owners or any(owner is not None for owner in owners):
            return
        resource = self._table.by_kind(obj["apiVersion"], obj["kind"])
        if resource is not None:
            self.store.delete(resource, metadata.get("namespace"), metadata["name"])

    def _finalize(self, resource: ResourceType, obj: Object) -> None:
        finalizers = obj["metadata"].get("finalizers") or []
        dependents = self._loop.dependents(obj["metadata"]["uid"])
        if ORPHAN_FINALIZER in finalizers:
            for dependent in dependents:
                self._disown(dependent, obj["metadata"]["uid"])
            self._drop_finalizer(resource, obj, ORPHAN_FINALIZER)
        elif FOREGROUND_FINALIZER in finalizers:
            blocking = False
            for dependent in dependents:
                metadata = dependent["metadata"]
                kind = self._table.by_kind(dependent["apiVersion"], dependent["kind"])
                if kind is not None and "deletionTimestamp" not in metadata:
                    nested = bool(self._loop.dependents(metadata["uid"]))
                    propagation = Propagation.FOREGROUND if nested else Propagation.BACKGROUND
                    self.store.delete(
                        kind, metadata.get("namespace"), metadata["name"], propagation=propagation
                    )
                blocking = blocking or self._blocks(dependent, obj["metadata"]["uid"])
            if not blocking:
                self._drop_finalizer(resource, obj, FOREGROUND_FINALIZER)

    def _blocks(self, dependent: Object, uid: str) -> bool:
        kind = self._table.by_kind(dependent["apiVersion"], dependent["kind"])
        metadata = dependent["metadata"]
        if kind is None or self.store.find(kind, metadata.get("namespace"), metadata["name"]) is None:
            return False
        references = metadata.get("ownerReferences") or []
        return any(each["uid"] == uid and each.get("blockOwnerDeletion") for each in references)

    def _disown(self, dependent: Object, uid: str) -> None:
        kind = self._table.by_kind(dependent["apiVersion"], dependent["kind"])
        metadata = dependent["metadata"]
        if kind is None:
            return

        def write(new: Object) -> None:
            references = new["metadata"].get("ownerReferences") or []
            new["metadata"]["ownerReferences"] = [each for each in references if each["uid"] != uid]

        self.store.mutate(kind, metadata.get("namespace"), metadata["name"], write)

    def _drop_finalizer(self, resource: ResourceType, obj: Object, finalizer: str) -> None:
        def write(new: Object) -> None:
            new["metadata"]["finalizers"] = [
                each for each in new["metadata"].get("finalizers") or [] if each != finalizer
            ]

        self.store.mutate(resource, obj["metadata"].get("namespace"), obj["metadata"]["name"], write)

    def _look_at_owner(self, obj: Object, reference: Object) -> None:
        owner = self._owner(obj, reference)
        resource = self._table.by_kind(reference["apiVersion"], reference["kind"])
        if owner is not None and resource is not None and "deletionTimestamp" in owner["metadata"]:
            self.enqueue(_Task.FINALIZE, _path(resource, owner))

    def _owner(self, obj: Object, reference: Object) -> Object | None:
        """The owner, if it is the very one meant and exists; one of an unknown kind counts as there."""
        resource = self._table.by_kind(reference["apiVersion"], reference["kind"])
        if resource is None:
            return reference
        found = self.store.find(resource, obj["metadata"].get("namespace"), reference["name"])
        return found if found is not None and found["metadata"]["uid"] == reference["uid"] else None

    def _find(self, path: str) -> tuple[ResourceType, Object] | None:
        kind, namespace, name = path.split("/")
        resource = self._resources[kind]
        obj = self.store.find(resource, namespace, name)
        return None if obj is None else (resource, obj)


def _path(resource: ResourceType, obj: Object) -> str:
    return f"{resource.qualified}/{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"
