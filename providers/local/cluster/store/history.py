"""The changes to the objects of each kind, as far as they are remembered, and those who watch for more."""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.watching import Change, Watcher

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.resources import ResourceType
    from nighttrain.providers.local.cluster.store.selection import FieldSelector, LabelSelector

HISTORY_LENGTH = 8192
"""Changes kept for each kind: a burst of a thousand pods makes about seven each, and a watch interrupted in
it should resume without listing again."""


class History:
    """The changes of every kind, the oldest forgotten first, and the watchers that get new ones."""

    def __init__(self) -> None:
        self._changes: dict[ResourceType, deque[Change]] = {}
        self._compacted: dict[ResourceType, int] = {}
        self._watchers: dict[ResourceType, list[Watcher]] = {}
        # Where the history of every kind begins: later than 0 in a store that was filled from a file.
        self._floor = 0

    def add(self, resource: ResourceType, change: Change) -> None:
        """Remember a change, and tell those who watch."""
        changes = self._changes.get(resource)
        if changes is None:
            changes = self._changes[resource] = deque(maxlen=HISTORY_LENGTH)
        if len(changes) == HISTORY_LENGTH:
            self._compacted[resource] = changes[0].revision
        changes.append(change)
        for watcher in list(self._watchers.get(resource, ())):
            watcher.offer(change)

    def since(self, resource: ResourceType, revision: int) -> list[Change]:
        """The changes after a revision, in order.

        :raises ApiError: 410 when the history does not reach back that far
        """
        compacted = self._compacted.get(resource, self._floor)
        if revision < compacted:
            raise errors.expired(revision, compacted)
        found: list[Change] = []
        for change in reversed(self._changes.get(resource, ())):
            if change.revision <= revision:
                break
            found.append(change)
        found.reverse()
        return found

    def forget(self, revision: int) -> None:
        """Forget everything up to this revision."""
        self._changes.clear()
        self._compacted.clear()
        self._floor = revision

    def watcher(
        self,
        resource: ResourceType,
        namespace: str | None,
        labels: LabelSelector | None,
        fields: FieldSelector | None,
    ) -> Watcher:
        """A watcher that is told nothing before :meth:`subscribe`."""
        return Watcher(functools.partial(self._unsubscribe, resource), namespace, labels, fields)

    def subscribe(self, resource: ResourceType, watcher: Watcher) -> None:
        self._watchers.setdefault(resource, []).append(watcher)

    def close_watchers(self) -> None:
        for watchers in self._watchers.values():
            for watcher in list(watchers):
                watcher.close()

    def _unsubscribe(self, resource: ResourceType, watcher: Watcher) -> None:
        watchers = self._watchers.get(resource, [])
        if watcher in watchers:
            watchers.remove(watcher)
