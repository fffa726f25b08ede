"""The reasons for waits: one feed of events and one of Kueue's Workloads for all who wait in a namespace.

They explain and never decide. So they run only while somebody asks, and a right that is missing leaves the
reasons shorter and is no error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ClusterError, ObjectNotFoundError
from nighttrain.providers.kubernetes.api.resources import EVENTS, KUEUE_WORKLOADS
from nighttrain.providers.kubernetes.mirror.feed import Feed, Selection
from nighttrain.providers.kubernetes.mirror.trimming import trim_event, trim_queue
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, text, uid_of

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.plain_json import Json

_log = logging.getLogger(__name__)

QUEUE_LABEL = "kueue.x-k8s.io/job-uid"
# Tasks that start one after another share the feeds instead of opening them anew.
LINGER_SECONDS = 30.0
# An event often arrives before the pod it is about; one that is about others' pods is forgotten with the
# oldest. At ten events of half a kilobyte each this is 10 MB at the very most.
REMEMBERED_OBJECTS = 2000
REMEMBERED_EVENTS = 10
# Rights are granted, and Kueue is installed, while trainings wait.
AGAIN_SECONDS = 300.0

StartTask = Callable[[Coroutine[Any, Any, Any], str], "asyncio.Task[Any]"]


class WaitReasons:
    """Events and queue entries by the uid of what they are about.

    :param changed: called with the uid of an object when something new is known about it
    :param start_task: starts a task of this name
    """

    def __init__(
        self, client: ClusterClient, namespace: str, changed: Callable[[str], None], start_task: StartTask
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._changed = changed
        self._start_task = start_task
        self._wanted: dict[str, int] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._stopping: list[asyncio.Task[Any]] = []
        self._linger: asyncio.TimerHandle | None = None
        self._events: OrderedDict[str, dict[str, Json]] = OrderedDict()
        self._queues: dict[str, Json] = {}
        self._no_queues = False

    def want(self, uid: str, wanted: bool) -> None:
        """Count one reader more, or one less, of what is known about the Job of this uid."""
        count = self._wanted.get(uid, 0) + (1 if wanted else -1)
        if count > 0:
            self._wanted[uid] = count
        else:
            self._wanted.pop(uid, None)
        if self._wanted and self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._wanted and not self._tasks:
            self._tasks = [
                self._start_task(self._follow_events(), f"events of {self._namespace}"),
                self._start_task(self._follow_queues(), f"queues of {self._namespace}"),
            ]
        if not self._wanted and self._tasks and self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._stop)

    def close(self) -> list[asyncio.Task[Any]]:
        """Stop the feeds.

        :return: the tasks that the caller must still await
        """
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        self._stop()
        return self._stopping

    def events_of(self, about: Iterable[str]) -> list[Json]:
        """The events about these objects."""
        return [event for uid in about for event in self._events.get(uid, {}).values()]

    def queue_of(self, job_uid: str) -> Json | None:
        """Kueue's Workload of a Job; ``{"absent": True}`` in a cluster without Kueue."""
        return {"absent": True} if self._no_queues else self._queues.get(job_uid)

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._stopping = [task for task in [*self._stopping, *self._tasks] if not task.done()]
        self._tasks = []
        self._linger = None
        self._events.clear()
        self._queues.clear()
        self._no_queues = False

    async def _follow_events(self) -> None:
        while True:
            feed = Feed(self._client, Selection(EVENTS, self._namespace), _Events(self), trim=trim_event)
            try:
                await feed.run()
            except ClusterError as error:
                _log.debug("events of namespace %s cannot be read: %s", self._namespace, error)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _follow_queues(self) -> None:
        while True:
            try:
                for resource in KUEUE_WORKLOADS:
                    selection = Selection(resource, self._namespace, label_selector=QUEUE_LABEL)
                    with contextlib.suppress(ObjectNotFoundError):
                        await Feed(self._client, selection, _Queues(self), trim=trim_queue).run()
                self._no_queues = True
                self._all_changed()
            except ClusterError as error:
                _log.debug("Kueue's workloads in %s cannot be read: %s", self._namespace, error)
            await asyncio.sleep(AGAIN_SECONDS)

    def reset_queues(self, listed: list[Json]) -> None:
        """Take over all of Kueue's Workloads."""
        self._no_queues = False
        self._queues = {_job_of(entry): entry for entry in listed}
        self._all_changed()

    def put_queue(self, entry: Json) -> None:
        """Store one of Kueue's Workloads."""
        self._queues[_job_of(entry)] = entry
        self._changed(_job_of(entry))

    def drop_queue(self, entry: Json) -> None:
        """Forget one of Kueue's Workloads."""
        self._queues.pop(_job_of(entry), None)
        self._changed(_job_of(entry))

    def _all_changed(self) -> None:
        for uid in list(self._wanted):
            self._changed(uid)

    def remember(self, event: Json) -> None:
        """Store an event, and forget the oldest."""
        about = text((mapping(event.get("involvedObject")) or mapping(event.get("regarding"))).get("uid"))
        if not about:
            return
        known = self._events.setdefault(about, {})
        known.pop(uid_of(event), None)
        known[uid_of(event)] = event
        while len(known) > REMEMBERED_EVENTS:
            del known[next(iter(known))]
        self._events.move_to_end(about)
        while len(self._events) > REMEMBERED_OBJECTS + 4 * len(self._wanted):
            self._events.popitem(last=False)
        self._changed(about)


class _Events:
    """Takes over what the feed of events brings."""

    def __init__(self, reasons: WaitReasons) -> None:
        self._reasons = reasons

    def reset(self, listed: list[Json], began: float) -> None:
        for event in listed:
            self._reasons.remember(event)

    def apply(self, kind: str, event: Json) -> None:
        if kind != "DELETED":  # an event that expires was true
            self._reasons.remember(event)


class _Queues:
    """Takes over what the feed of Kueue's Workloads brings."""

    def __init__(self, reasons: WaitReasons) -> None:
        self._reasons = reasons

    def reset(self, listed: list[Json], began: float) -> None:
        self._reasons.reset_queues(listed)

    def apply(self, kind: str, entry: Json) -> None:
        if kind == "DELETED":
            self._reasons.drop_queue(entry)
        else:
            self._reasons.put_queue(entry)


def _job_of(entry: Json) -> str:
    return text(mapping(metadata(entry).get("labels")).get(QUEUE_LABEL))
