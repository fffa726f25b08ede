"""Namespaces: what each one starts with, and how it is emptied when it is deleted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.resources import NAMESPACES, SERVICEACCOUNTS
from nighttrain.providers.local.cluster.store.store import EventType, Object, Store

if TYPE_CHECKING:
    from collections.abc import Coroutine


# As in every cluster; "default" is where a client goes that says nothing.
INITIAL = ("default", "kube-system", "kube-public", "kube-node-lease")

# Pods leave at their own pace; this often a namespace is looked at again until it is empty.
_LOOK_AGAIN_SECONDS = 0.1


def bootstrap(store: Store) -> None:
    """The namespaces every cluster has."""
    for name in INITIAL:
        if store.find(NAMESPACES, None, name) is None:
            store.create(NAMESPACES, {"metadata": {"name": name}})
        _furnish(store, name)
    # A cluster is older than its history: whoever asks for its first version learns what 410 is.
    store.compact()


def _furnish(store: Store, name: str) -> None:
    with contextlib.suppress(errors.ApiError):
        store.create(SERVICEACCOUNTS, {"metadata": {"name": "default", "namespace": name}})


class NamespaceController:
    """Furnishes new namespaces and empties deleted ones."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        self._emptied: set[str] = set()

    def start(self) -> None:
        self._spawn(self._follow())

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="namespaces")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self) -> None:
        with self._store.watch(NAMESPACES) as watcher:
            async for type_, namespace in watcher:
                self._see(type_, namespace)

    def _see(self, type_: EventType, namespace: Object) -> None:
        metadata = namespace["metadata"]
        if type_ is EventType.DELETED:
            self._emptied.discard(metadata["uid"])
        elif "deletionTimestamp" not in metadata:
            _furnish(self._store, metadata["name"])
        elif metadata["uid"] not in self._emptied:
            self._emptied.add(metadata["uid"])
            self._spawn(self._empty(metadata["name"]))

    async def _empty(self, name: str) -> None:
        # Its last objects may be of any kind: looking again is simpler than a watch on each of them.
        while not self._is_empty(name):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

        def finalize(namespace: Object) -> None:
            namespace["spec"]["finalizers"] = []

        self._store.mutate(NAMESPACES, None, name, finalize)

    def _is_empty(self, name: str) -> bool:
        """Delete what is not yet being deleted; True once nothing is left."""
        left = 0
        for resource in list(self._store.resources()):
            if not resource.namespaced:
                continue
            for obj in self._store.list(resource, name)[0]:
                if "deletionTimestamp" not in obj["metadata"]:
                    self._store.delete(resource, name, obj["metadata"]["name"])
                left += 1
        return left == 0
