"""Lists kept current: one list, then watches, resumed after disconnects, listed again after 410.

Each of the three has a place of its own: :meth:`ClusterClient.watch` is one request, :func:`keep_current`
resumes and lists again, :class:`WorkloadView` is what a wait looks at. A hub that serves many waits from one
list and watch per namespace needs only to feed :class:`Mirror` objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self

from nighttrain.providers.errors import ClusterRequestError, ClusterUnreachableError, WatchExpiredError
from nighttrain.providers.kubernetes.objects import items, mapping, metadata, text, uid_of
from nighttrain.providers.kubernetes.resources import JOBS, PODS, Resource

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.client import ClusterClient

Sleep = Callable[[float], Awaitable[object]]
Json = dict[str, Any]

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
# An API server that is upgraded or fails over is back within minutes; with pauses growing to half a minute
# twenty failures in a row are about ten.
FAILURES_IN_A_ROW = 20
PAUSE_MAXIMUM_SECONDS = 30.0
# A watch that ended without an event is not reopened at once: a server that closes it at once is in need.
EMPTY_WATCH_PAUSE_SECONDS = 0.5
# Deleted pods explain a failed Job; a Job rarely has more than a handful.
REMEMBERED = 20


@dataclass(frozen=True)
class Selection:
    """Which objects a mirror holds."""

    resource: Resource
    namespace: str
    label_selector: str = ""
    field_selector: str = ""


class Mirror:
    """The objects of a selection as last seen, and the last that were deleted."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self.objects: dict[str, Json] = {}
        self.deleted: dict[str, Json] = {}
        self.synced = False
        self._notify = notify

    def reset(self, listed: list[Json]) -> None:
        """Take over a fresh list."""
        fresh = {uid_of(obj): obj for obj in listed}
        for uid in self.objects.keys() - fresh.keys():
            self._bury(uid, self.objects[uid])
        self.objects = fresh
        self.synced = True
        self._notify()

    def apply(self, kind: str, obj: Json) -> None:
        """Take over one watch event."""
        uid = uid_of(obj)
        if kind == "DELETED":
            self.objects.pop(uid, None)
            self._bury(uid, obj)
        else:
            self.objects[uid] = obj
        self._notify()

    def _bury(self, uid: str, obj: Json) -> None:
        self.deleted[uid] = obj
        while len(self.deleted) > REMEMBERED:
            del self.deleted[next(iter(self.deleted))]


async def keep_current(
    client: ClusterClient, selection: Selection, mirror: Mirror, *, sleep: Sleep = asyncio.sleep
) -> NoReturn:
    """Keep ``mirror`` current until cancelled.

    :raises ClusterError: a refusal that no repetition mends, or about ten minutes without the cluster
    """
    version: str | None = None
    failures = 0
    while True:
        try:
            if version is None:
                version = await _list(client, selection, mirror)
                failures = 0
            before = version
            async for event in client.watch(
                selection.resource,
                selection.namespace,
                resource_version=version,
                label_selector=selection.label_selector,
                field_selector=selection.field_selector,
            ):
                failures = 0
                version = text(metadata(event.object).get("resourceVersion")) or version
                if event.type != "BOOKMARK":
                    mirror.apply(event.type, event.object)
            if version == before:
                await sleep(EMPTY_WATCH_PAUSE_SECONDS)
        except WatchExpiredError:
            version = None
        except (ClusterUnreachableError, ClusterRequestError) as error:
            failures += 1
            refused = isinstance(error, ClusterRequestError) and 400 <= error.status < 429
            if refused or failures > FAILURES_IN_A_ROW:
                raise
            # Only a guess would say what was missed while an ERROR event other than 410 came: list again.
            version = None if isinstance(error, ClusterRequestError) else version
            await sleep(min(PAUSE_MAXIMUM_SECONDS, 0.5 * 2.0**failures) * random.uniform(0.5, 1.0))


async def _list(client: ClusterClient, selection: Selection, mirror: Mirror) -> str:
    listed = await client.list(
        selection.resource,
        selection.namespace,
        label_selector=selection.label_selector,
        field_selector=selection.field_selector,
    )
    mirror.reset(items(listed.get("items")))
    return text(metadata(listed).get("resourceVersion"))


class Mirrors:
    """Several mirrors kept current while the context lasts, with one place to wait for a change."""

    def __init__(self, client: ClusterClient, *selections: Selection, sleep: Sleep = asyncio.sleep) -> None:
        self._client = client
        self._sleep = sleep
        self._changed = asyncio.Event()
        self._selections = selections
        self.mirrors = tuple(Mirror(self._changed.set) for _ in selections)
        self._tasks: list[asyncio.Task[NoReturn]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(keep_current(self._client, selection, mirror, sleep=self._sleep))
            for selection, mirror in zip(self._selections, self.mirrors, strict=True)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await _stop(self._tasks)

    @property
    def synced(self) -> bool:
        """Whether each mirror has seen its first list; nothing may be concluded before."""
        return all(mirror.synced for mirror in self.mirrors)

    async def change(self, within: float | None = None) -> None:
        """Return at the next change, or after ``within`` seconds.

        :raises ClusterError: a mirror cannot be kept current
        """
        waiters: list[asyncio.Task[Any]] = [asyncio.create_task(self._changed.wait())]
        if within is not None:
            waiters.append(asyncio.create_task(_run(self._sleep(max(0.0, within)))))
        try:
            await asyncio.wait([*waiters, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _stop(waiters)
        for task in self._tasks:
            if task.done():
                task.result()
        self._changed.clear()


class WorkloadView(Mirrors):
    """One Job and its pods."""

    def __init__(
        self, client: ClusterClient, namespace: str, name: str, uid: str, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        super().__init__(
            client,
            Selection(JOBS, namespace, field_selector=f"metadata.name={name}"),
            Selection(PODS, namespace, label_selector=f"{JOB_NAME_LABEL}={name}"),
            sleep=sleep,
        )
        self._uid = uid

    @property
    def job(self) -> Json | None:
        """The Job of this uid; ``None`` once it is deleted, even if another took its name."""
        return self.mirrors[0].objects.get(self._uid)

    @property
    def live_pods(self) -> list[Json]:
        """The Job's pods that exist."""
        return [pod for pod in self.mirrors[1].objects.values() if owned_by(pod, self._uid)]

    @property
    def pods(self) -> list[Json]:
        """The Job's pods, those deleted as last seen."""
        gone = [pod for pod in self.mirrors[1].deleted.values() if owned_by(pod, self._uid)]
        return [*gone, *self.live_pods]


def owned_by(pod: Json, uid: str) -> bool:
    """Whether a pod belongs to the Job of this uid."""
    owners = items(metadata(pod).get("ownerReferences"))
    if not owners:
        labels = mapping(metadata(pod).get("labels"))
        return labels.get("batch.kubernetes.io/controller-uid") in (None, uid)
    return any(owner.get("uid") == uid for owner in owners)


async def _run(awaitable: Awaitable[object]) -> None:
    await awaitable


async def _stop(tasks: list[Any]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
