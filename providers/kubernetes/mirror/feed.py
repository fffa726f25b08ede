"""Feeds of objects: one list, then watches, resumed after disconnects, listed again after 410.

:meth:`ClusterClient.watch` is one request; a :class:`Feed` keeps a :class:`Sink` current with many.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from nighttrain.providers.errors import (
    ClusterError,
    ClusterForbiddenError,
    ClusterRequestError,
    ClusterUnauthorizedError,
    ClusterUnreachableError,
    ObjectNotFoundError,
    WatchExpiredError,
)
from nighttrain.providers.kubernetes.values.objects import items, metadata, text
from nighttrain.providers.plain_json import Json

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.api.resources import Resource

Sleep = Callable[[float], Awaitable[object]]
# An upgrade of the control plane, or the restore of its database, is done within the hour; the trainings run
# on meanwhile. Who waits longer than that for a cluster should hear of it as a failed task.
OUTAGE_SECONDS = 3600.0
# Once a connection has died without a word, nothing is heard until the server's time-out has passed. A minute
# costs a feed one request a minute and bounds that silence.
WATCH_SECONDS = 60
PAUSE_SECONDS = 0.5
PAUSE_MAXIMUM_SECONDS = 30.0
# A watch that ends sooner is a server in need (or one that drains); those that follow wait longer each time.
SHORT_WATCH_SECONDS = 5.0
# A restarting API server refuses for a moment until it has read its roles: five tries take some six seconds.
REFUSALS_IN_A_ROW = 5
# 200 objects are parsed in some 10 ms, and the event loop is free in between.
PAGE = 200


@dataclass(frozen=True)
class Selection:
    """The objects that a feed brings."""

    resource: Resource
    namespace: str
    label_selector: str = ""
    field_selector: str = ""


class Sink(Protocol):
    """The receiver of a feed."""

    def reset(self, listed: list[Json], began: float) -> None:
        """Take over a fresh list; ``began`` is the loop's time at which it was asked for."""

    def apply(self, kind: str, obj: Json) -> None:
        """Take over one ADDED, MODIFIED or DELETED object."""


class Feed:
    """Keeps a sink current.

    :param trim: reduces each object to what is kept of it
    :param on_health: called with the error after each failure, and with ``None`` once it is over
    :param sleep: waits so many seconds
    """

    def __init__(
        self,
        client: ClusterClient,
        selection: Selection,
        sink: Sink,
        *,
        trim: Callable[[Json], Json] = lambda obj: obj,
        on_health: Callable[[ClusterError | None], None] = lambda _: None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._client = client
        self._selection = selection
        self._sink = sink
        self._trim = trim
        self._on_health = on_health
        self._sleep = sleep
        self._failures = 0
        self._refusals = 0
        self._short = 0
        self._failing_since: float | None = None
        self._version: str | None = None

    async def run(self) -> NoReturn:
        """Keep the sink current until cancelled.

        :raises ClusterError: a refusal that no repetition mends, or an hour without the cluster
        """
        while True:
            try:
                if self._version is None:
                    self._version = await self._list()
                await self._watch(self._version)
            except WatchExpiredError:
                self._version = None
                await self._pause_if_short(0.0)
            except ClusterError as error:
                await self._failed(error)

    async def _list(self) -> str:
        began = asyncio.get_running_loop().time()
        selection, found = self._selection, list[Json]()
        async for page in self._client.pages(
            selection.resource,
            selection.namespace,
            label_selector=selection.label_selector,
            field_selector=selection.field_selector,
            limit=PAGE,
        ):
            found += [self._trim(obj) for obj in items(page.get("items"))]
        self._sink.reset(found, began)
        self._healthy()
        return text(metadata(page).get("resourceVersion"))

    async def _watch(self, version: str) -> None:
        loop = asyncio.get_running_loop()
        selection, opened, last_yield = self._selection, loop.time(), loop.time()
        async for event in self._client.watch(
            selection.resource,
            selection.namespace,
            resource_version=version,
            label_selector=selection.label_selector,
            field_selector=selection.field_selector,
            # Many feeds that began together do not come back together.
            timeout_seconds=round(WATCH_SECONDS * random.uniform(0.75, 1.0)),
        ):
            self._healthy()
            self._version = text(metadata(event.object).get("resourceVersion")) or self._version
            if event.type != "BOOKMARK":
                self._sink.apply(event.type, self._trim(event.object))
            if loop.time() - last_yield > 0.01:  # a burst that is read already does not hold up the loop
                await asyncio.sleep(0)
                last_yield = loop.time()
        self._healthy()
        await self._pause_if_short(loop.time() - opened)

    async def _pause_if_short(self, lasted: float) -> None:
        self._short = self._short + 1 if lasted < SHORT_WATCH_SECONDS else 0
        if self._short:
            await self._sleep(_pause(self._short - 1))

    def _healthy(self) -> None:
        self._failures = self._refusals = 0
        if self._failing_since is not None:
            self._failing_since = None
            self._on_health(None)

    async def _failed(self, error: ClusterError) -> None:
        if _is_refusal(error):
            self._refusals += 1
            persists = isinstance(error, (ClusterForbiddenError, ClusterUnauthorizedError))
            if not persists or self._refusals >= REFUSALS_IN_A_ROW:
                raise error
        now = asyncio.get_running_loop().time()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since > OUTAGE_SECONDS:
            raise error
        self._on_health(error)
        self._failures += 1
        asked = 0.0
        # What was missed while an ERROR event other than 410 came is a guess: list again.
        if isinstance(error, ClusterRequestError):
            self._version = self._version if error.status in (429, 503) else None
            asked = error.retry_after or 0.0
        await self._sleep(max(_pause(self._failures - 1), min(asked, PAUSE_MAXIMUM_SECONDS)))


def _pause(failures: int) -> float:
    return min(PAUSE_MAXIMUM_SECONDS, PAUSE_SECONDS * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)


def _is_refusal(error: ClusterError) -> bool:
    """Tell whether the cluster has answered that it will not, which is no outage."""
    if isinstance(error, ClusterUnreachableError):
        return False
    if isinstance(error, ClusterRequestError):
        return 400 <= error.status < 500 and error.status not in (408, 429)
    return isinstance(error, (ClusterForbiddenError, ClusterUnauthorizedError, ObjectNotFoundError))
