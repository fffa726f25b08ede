"""The training's log, line by line while it runs. Best effort: it never decides anything and never fails."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from nighttrain.providers.errors import ClusterError, ClusterForbiddenError
from nighttrain.providers.kubernetes.job.kinds import WorkloadKind, kind_named
from nighttrain.providers.kubernetes.logs.log_lines import LogCursor, ProgressBars
from nighttrain.providers.kubernetes.logs.stream_limits import stream_limits_of
from nighttrain.providers.kubernetes.mirror.hub import subscribe
from nighttrain.providers.kubernetes.values.objects import by_age, main_container, name_of, uid_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.mirror.feed import Sleep
    from nighttrain.providers.kubernetes.mirror.subscription import Subscription
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.plain_json import Json

_log = logging.getLogger(__name__)

# A stream that breaks is opened again after this long: a restarted kubelet is back within seconds.
RESUME_SECONDS = 1.0
# After so many breaks in a row without a new line the log is given up; the workload is not.
BREAKS_IN_A_ROW = 10


class EndSignal:
    """Says to whoever reads a log that the attempt has ended: what is being read is read to its end."""

    def __init__(self) -> None:
        self.said = False
        self._wake: Callable[[], None] | None = None

    def say(self) -> None:
        """No further pod is to be read."""
        self.said = True
        if self._wake is not None:
            self._wake()

    def wakes(self, wake: Callable[[], None]) -> None:
        """Have :meth:`say` call ``wake``."""
        self._wake = wake


async def follow(
    client: ClusterClient,
    workload: Workload,
    sink: Callable[[str], None],
    *,
    narrow: bool = False,
    end: EndSignal | None = None,
    sleep: Sleep = asyncio.sleep,
) -> None:
    """Pass each line of the workload's main container to ``sink``, once, until it has ended.

    Pods that replace one another follow one another. Of many workloads that are followed over one client, a
    hundred have a stream at a time, in turns. Errors of the cluster end in a debug message; exceptions of
    ``sink`` are the caller's.

    :param sink: called with each line, without its line feed
    :param narrow: as for :func:`~nighttrain.providers.attempts.wait_for_end.wait`, whose watch it shares
    :param end: given where the attempt's end may be known before its object says so
    :param sleep: waits so many seconds
    """
    done: set[str] = set()
    namespace, name, uid = workload.namespace, workload.name, workload.uid
    kind, end = kind_named(workload.kind), end or EndSignal()
    try:
        async with subscribe(client, namespace, name, uid, kind=kind, narrow=narrow, sleep=sleep) as view:
            end.wakes(view.wake)
            while True:
                await view.change()
                while (pod := _next(view, done)) is not None:
                    done.add(uid_of(pod))
                    await _Reader(client, workload, view, pod, sink).follow()
                if end.said or (view.synced and _ended(view, kind)):
                    return
    except ClusterError as error:
        _log.debug("the log of %s ends here: %s", workload.name, error)


def _next(view: Subscription, done: set[str]) -> Json | None:
    for pod in by_age(view.live_pods):
        container = main_container(pod)
        if uid_of(pod) not in done and container is not None and container.began:
            return pod
    return None


def _ended(view: Subscription, kind: WorkloadKind) -> bool:
    return view.object is None or kind.ended(view.object, view.pods)


class _Reader:
    """Reads one pod's log, over as many streams as it takes."""

    def __init__(
        self,
        client: ClusterClient,
        workload: Workload,
        view: Subscription,
        pod: Json,
        sink: Callable[[str], None],
    ) -> None:
        self._client = client
        self._namespace = workload.namespace
        self._kind = kind_named(workload.kind)
        self._view = view
        self._name, self._uid = name_of(pod), uid_of(pod)
        container = main_container(pod)
        self._container = container.name if container else None
        self._limits = stream_limits_of(client)
        self._cursor = LogCursor()
        self._bars = ProgressBars(sink)
        self._breaks = 0

    async def follow(self) -> None:
        """Return when the log is read to its end, or given up."""
        try:
            while self._breaks < BREAKS_IN_A_ROW:
                if await self._turn():
                    return
        finally:
            self._bars.flush()

    async def _turn(self) -> bool:
        """Wait for a place among the streams and read until the stream ends.

        :return: true if that was the end of the log
        """
        with self._limits.ticket(self._view.wake) as ticket:
            while not ticket.granted:
                if self._over or _ended(self._view, self._kind):
                    ticket.hurry()
                await self._view.change()
            # Asked before the stream: one that begins after the container's end and closes cleanly is whole.
            over = self._over
            self._cursor.resume()
            try:
                async with ticket.slice():
                    await self._read()
            except TimeoutError:  # others wait: the rest comes with the next turn
                return False
            except ClusterForbiddenError as error:  # asking again grants nothing
                _log.warning("the log of pod %s cannot be read, the training goes on: %s", self._name, error)
                return True
            except ClusterError as error:
                _log.debug("the log of pod %s broke off: %s", self._name, error)
                self._breaks += 1
            else:  # proxies close silent streams: that is no fault
                if over:
                    return True
        if self._uid not in {uid_of(live) for live in self._view.live_pods}:
            return True
        await self._view.change(within=RESUME_SECONDS)
        return False

    async def _read(self) -> None:
        clock = asyncio.get_running_loop().time
        lines = self._client.logs(
            self._namespace,
            self._name,
            container=self._container,
            follow=True,
            since_time=self._cursor.since,
            timestamps=True,
        )
        # Closed here, not whenever the garbage is collected: the connection goes with it.
        async with aclosing(cast("AsyncGenerator[str, None]", lines)) as stream:
            async for line in stream:
                began = clock()
                fresh = self._cursor.fresh(line)
                if fresh is not None:
                    self._breaks = 0
                    self._bars.line(fresh, began)
                await self._limits.breathe(began)

    @property
    def _over(self) -> bool:
        pod = next((live for live in self._view.live_pods if uid_of(live) == self._uid), None)
        container = main_container(pod) if pod is not None else None
        return container is None or container.over
