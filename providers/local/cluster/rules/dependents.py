"""The dependents of a custom object that goes: the garbage collector looks at built-in kinds only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nighttrain.providers.local.cluster.store.objects import Object
    from nighttrain.providers.local.cluster.store.resources import ResourceType
    from nighttrain.providers.local.cluster.store.store import Store


def collect(store: Store, owner: Object) -> None:
    """Delete what belonged to an object that is gone, and to nobody else."""
    for kind, obj in _dependents(store, owner):
        metadata = obj["metadata"]
        if "deletionTimestamp" not in metadata and len(metadata["ownerReferences"]) == 1:
            store.delete(kind, metadata.get("namespace"), metadata["name"])
            collect(store, obj)


def disown(store: Store, owner: Object) -> None:
    """Leave behind what belongs to an object that is about to go."""
    uid = owner["metadata"]["uid"]

    def write(new: Object) -> None:
        references = new["metadata"]["ownerReferences"]
        new["metadata"]["ownerReferences"] = [each for each in references if each["uid"] != uid]

    for kind, obj in _dependents(store, owner):
        store.mutate(kind, obj["metadata"].get("namespace"), obj["metadata"]["name"], write)


def _dependents(store: Store, owner: Object) -> Iterator[tuple[ResourceType, Object]]:
    uid = owner["metadata"]["uid"]
    for kind in list(store.resources()):
        for obj in store.list(kind, owner["metadata"].get("namespace"))[0]:
            if any(each["uid"] == uid for each in obj["metadata"].get("ownerReferences") or ()):
                yield kind, obj
