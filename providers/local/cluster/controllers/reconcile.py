"""The ground that controllers stand on: one queue, one view of the objects, timers.

All controllers take turns in one task. A reconciliation is synchronous, and sees every change made before it
began, its own included: nothing is created twice because a watch was slow.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store.errors import ApiError
from nighttrain.providers.local.cluster.store.store import EventType, Object, Store, Watcher, copy_object

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nighttrain.providers.local.cluster.controllers.pace import Bucket
    from nighttrain.providers.local.cluster.store.resources import ResourceType

Key = tuple[str, str]

_log = logging.getLogger(__name__)

# A refused write (a namespace on its way out, a full quota) is tried again this much later, not in a circle.
_RETRY_SECONDS = 1.0

# New pods of one object, before others get their turn: a real controller's number.
PODS_AT_A_TIME = 500


class Controller:
    """Brings the objects of one kind to what their spec says.

    ``bucket`` limits its writes; without one they take no time.
    """

    bucket: Bucket | None = None

    def __init__(self, loop: ReconcileLoop) -> None:
        self._loop = loop
        self.store = loop.store

    def changed(self, type_: EventType, resource: ResourceType, obj: Object) -> None:
        """Something happened: call :meth:`enqueue` for every object to look at."""
        raise NotImplementedError

    def reconcile(self, namespace: str, name: str) -> None:
        """Look at one object, which may be gone."""
        raise NotImplementedError

    def enqueue(self, namespace: str, name: str) -> None:
        self._loop.enqueue(self, (namespace, name))

    def enqueue_after(self, namespace: str, name: str, seconds: float) -> None:
        """Look again in a while; of several wishes for one object the earliest counts."""
        self._loop.enqueue_after(self, (namespace, name), seconds)

    def owned(self, owner: Object, resource: ResourceType) -> list[Object]:
        """The objects of a kind that ``owner`` controls, in order of creation."""
        found = self._loop.dependents(owner["metadata"]["uid"], resource)
        return [
            obj for obj in found if (ref := controller_of(obj)) and ref["uid"] == owner["metadata"]["uid"]
        ]


def controller_of(obj: Object) -> Object | None:
    """The owner reference of the controller, if there is one."""
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return dict(reference)
    return None


def owner_reference(owner: Object) -> Object:
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def new_pod(owner: Object) -> Object:
    """A pod as the owner's template describes it."""
    metadata, template = owner["metadata"], copy_object(owner["spec"]["template"])
    given = template.get("metadata") or {}
    made = {
        "generateName": f"{metadata['name']}-",
        "namespace": metadata["namespace"],
        "labels": given.get("labels") or {},
        "ownerReferences": [owner_reference(owner)],
    }
    if given.get("annotations"):
        made["annotations"] = given["annotations"]
    return {"metadata": made, "spec": template["spec"]}


class ReconcileLoop:
    """The queue, the watches and the timers that the controllers share.

    :param resources: the kinds to watch
    :param sleep: waits for timers; replaced in tests that do not want to wait
    """

    def __init__(
        self,
        store: Store,
        resources: tuple[ResourceType, ...],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.store = store
        self._sleep = sleep
        self._resources = resources
        self._controllers: list[Controller] = []
        self._watchers: dict[ResourceType, Watcher] = {}
        self._dependents: dict[str, dict[tuple[ResourceType, str, str], None]] = defaultdict(dict)
        self._queue: dict[tuple[Controller, Key], None] = {}
        self._wake = asyncio.Event()
        self._timers: dict[tuple[Controller, Key], tuple[float, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, controller: Controller) -> None:
        self._controllers.append(controller)

    def start(self) -> None:
        for resource in self._resources:
            self._watchers[resource] = self.store.watch(resource)
        self._tasks = [asyncio.create_task(self._follow(resource)) for resource in self._resources]
        self._tasks.append(asyncio.create_task(self._work(), name="controllers"))

    async def stop(self) -> None:
        tasks = [*self._tasks, *(task for _when, task in self._timers.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for watcher in self._watchers.values():
            watcher.close()
        self._timers.clear()

    def enqueue(self, controller: Controller, key: Key) -> None:
        self._queue[controller, key] = None
        self._wake.set()

    def enqueue_after(self, controller: Controller, key: Key, seconds: float) -> None:
        if seconds <= 0:
            self.enqueue(controller, key)
            return
        when = asyncio.get_running_loop().time() + seconds
        known = self._timers.get((controller, key))
        if known is not None:
            if known[0] <= when:
                return
            known[1].cancel()
        self._timers[controller, key] = (when, asyncio.create_task(self._later(controller, key, seconds)))

    async def _later(self, controller: Controller, key: Key, seconds: float) -> None:
        await self._sleep(seconds)
        self._timers.pop((controller, key), None)
        self.enqueue(controller, key)

    def dependents(self, uid: str, resource: ResourceType | None = None) -> list[Object]:
        """The objects that name the owner ``uid``, of one kind or of all."""
        self._catch_up()
        found = []
        for kind, namespace, name in self._dependents.get(uid, ()):
            if resource is None or kind is resource:
                obj = self.store.find(kind, namespace, name)
                if obj is not None:
                    found.append(obj)
        return found

    async def _follow(self, resource: ResourceType) -> None:
        while True:
            watcher = self._watchers[resource]
            try:
                type_, record = await watcher.next_record()
            except StopAsyncIteration:
                return
            except ApiError as error:
                if error.code != 410:
                    raise
                # Too far behind: what exists is shown again, and looking twice does no harm.
                self._watchers[resource] = self.store.watch(resource)
                continue
            self._apply(resource, type_, record.object)
            self._catch_up()

    def _catch_up(self) -> None:
        for resource, watcher in self._watchers.items():
            for type_, record in watcher.drain():
                self._apply(resource, type_, record.object)

    def _apply(self, resource: ResourceType, type_: EventType, obj: Object) -> None:
        metadata = obj["metadata"]
        entry = (resource, metadata.get("namespace", ""), metadata["name"])
        for reference in metadata.get("ownerReferences") or []:
            if type_ is EventType.DELETED:
                self._dependents[reference["uid"]].pop(entry, None)
                if not self._dependents[reference["uid"]]:
                    del self._dependents[reference["uid"]]
            else:
                self._dependents[reference["uid"]][entry] = None
        for controller in self._controllers:
            controller.changed(type_, resource, obj)

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (entry := self._next()) is not None:
                del self._queue[entry]
                self._reconcile(*entry)
                await asyncio.sleep(0)  # the kubelet's turn

    def _next(self) -> tuple[Controller, Key] | None:
        """Whose turn it is; those whose controller has to pause keep their place and come later."""
        loop = asyncio.get_running_loop()
        pauses: dict[Controller, float] = {}
        for entry in self._queue:
            controller = entry[0]
            if controller.bucket is None:
                return entry
            if controller not in pauses:
                pauses[controller] = controller.bucket.seconds_left(loop.time())
            if pauses[controller] <= 0:
                return entry
        if pauses:
            loop.call_later(min(pauses.values()), self._wake.set)
        return None

    def _reconcile(self, controller: Controller, key: Key) -> None:
        before = self.store.revision
        try:
            self._catch_up()
            controller.reconcile(*key)
        except ApiError as error:
            _log.debug("%s %s/%s: %s", type(controller).__name__, *key, error)
            self.enqueue_after(controller, key, _RETRY_SECONDS)
        except Exception:
            # One object that a controller cannot digest must not stop the others.
            _log.exception("%s %s/%s", type(controller).__name__, *key)
            self.enqueue_after(controller, key, _RETRY_SECONDS)
        finally:
            if controller.bucket is not None:
                controller.bucket.take(self.store.revision - before)
