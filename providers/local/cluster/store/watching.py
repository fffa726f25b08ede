"""Versions of objects, the changes between them, and those who watch."""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.objects import Object, at_revision, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.local.cluster.store.selection import FieldSelector, LabelSelector


class EventType(enum.StrEnum):
    """What a watch tells of an object. A history has the first three."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


WATCHER_LIMIT = 16384
"""Events one watcher may lag behind: twice the history, so that replaying all of it cannot overflow a watcher
that has just started."""


class Record:
    """One version of one object, and its JSON once somebody asked for it."""

    __slots__ = ("_encoded", "object", "revision")

    def __init__(self, obj: Object, revision: int) -> None:
        self.object = obj
        self.revision = revision
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        if self._encoded is None:
            self._encoded = encode(self.object)
        return self._encoded

    def of_version(self, api_version: str) -> Record:
        """The record as another version of its kind shows it: they differ by name only."""
        obj = self.object
        same = obj["apiVersion"] == api_version
        return self if same else Record({**obj, "apiVersion": api_version}, self.revision)


class Change(NamedTuple):
    """One entry of the history. ``before`` is None for a creation; ``after`` is never None."""

    revision: int
    type: EventType
    namespace: str
    before: Record | None
    after: Record


class Watcher:
    """An async iterator of ``(type, object)``. Subscribed from the moment it is made, until closed.

    A watcher that lags too far behind ends with ApiError 410, as a real API server does it: list again.
    """

    def __init__(
        self,
        unsubscribe: Callable[[Watcher], None],
        namespace: str | None,
        labels: LabelSelector | None,
        fields: FieldSelector | None,
    ) -> None:
        self._unsubscribe = unsubscribe
        self._namespace = namespace or None
        self._selectors = tuple(selector for selector in (labels, fields) if selector is not None)
        self._pending: deque[tuple[EventType, Record]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._failure: errors.ApiError | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[EventType, Object]:
        type_, record = await self.next_record()
        return type_, record.object

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until something is pending; False when the time is up or the watcher was closed.

        :raises ApiError: 410 once too far behind
        """
        if not self._pending and self._failure is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._wake = loop.create_future()
            timer = loop.call_later(seconds, self._awaken) if seconds is not None else None
            try:
                await self._wake
            finally:
                self._wake = None
                if timer is not None:
                    timer.cancel()
        if not self._pending and self._failure is not None:
            raise self._failure
        return bool(self._pending)

    @property
    def closed(self) -> bool:
        return self._closed

    async def next_record(self) -> tuple[EventType, Record]:
        """The next event with its shared record, whose JSON is encoded once for every watcher.

        :raises StopAsyncIteration: after :meth:`close`
        :raises ApiError: 410 once too far behind
        """
        while not await self.wait():
            if self._closed:
                raise StopAsyncIteration
        return self._pending.popleft()

    def drain(self) -> list[tuple[EventType, Record]]:
        """Everything that is pending, without waiting."""
        found = list(self._pending)
        self._pending.clear()
        return found

    def close(self) -> None:
        self._closed = True
        self._unsubscribe(self)
        self._awaken()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def offer(self, change: Change) -> None:
        """Called by the store for every change of the kind."""
        if self._namespace is not None and change.namespace != self._namespace:
            return
        event = (change.type, change.after) if not self._selectors else self._selected(change)
        if event is not None:
            self._push(event)

    def show(self, record: Record) -> None:
        """An object that was there before the watch began."""
        if self._matches(record):
            self._push((EventType.ADDED, record))

    def _push(self, event: tuple[EventType, Record]) -> None:
        if self._failure is not None:
            return
        if len(self._pending) >= WATCHER_LIMIT:
            oldest = self._pending[0][1].revision
            self._failure = errors.expired(oldest, event[1].revision)
            self._unsubscribe(self)
        else:
            self._pending.append(event)
        self._awaken()

    def _awaken(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _matches(self, record: Record) -> bool:
        return all(selector.matches(record.object) for selector in self._selectors)

    def _selected(self, change: Change) -> tuple[EventType, Record] | None:
        """The change as somebody sees it who only sees matching objects."""
        was = change.before is not None and self._matches(change.before)
        now = change.type is not EventType.DELETED and self._matches(change.after)
        if now:
            return (EventType.MODIFIED if was else EventType.ADDED, change.after)
        if not was:
            return None
        if change.type is EventType.DELETED:
            return (EventType.DELETED, change.after)
        # The watcher gets the object as it last knew it, at the revision of the change that took it away.
        assert change.before is not None  # noqa: S101 - "was" says so
        return (
            EventType.DELETED,
            Record(at_revision(change.before.object, change.revision), change.revision),
        )
