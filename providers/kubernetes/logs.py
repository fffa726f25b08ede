"""The training's log, line by line while it runs. Best effort: it never decides anything and never fails."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ClusterError, ClusterForbiddenError
from nighttrain.providers.kubernetes.objects import Json, by_age, condition, main_container, name_of, uid_of
from nighttrain.providers.kubernetes.watch import Sleep, WorkloadView

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.client import ClusterClient
    from nighttrain.providers.kubernetes.workload import Workload

_log = logging.getLogger(__name__)

# A stream that breaks is opened again after this long: a restarted kubelet is back within seconds.
RESUME_SECONDS = 1.0
# After so many breaks in a row without a new line the log is given up; the workload is not.
BREAKS_IN_A_ROW = 10
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z ?(.*)", re.DOTALL)


class LogCursor:
    """Where a container's log has been read to, so that a resumed stream repeats and loses nothing."""

    def __init__(self) -> None:
        self._last = ""
        self._at_last = 0
        self._skipped = 0

    @property
    def since(self) -> str | None:
        """The time to resume from. The server looks at whole seconds, so some lines come again."""
        return f"{self._last[:19]}Z" if self._last else None

    def resume(self) -> None:
        """Say that a new stream begins."""
        self._skipped = 0

    def fresh(self, line: str) -> str | None:
        """The line without its time stamp, or ``None`` if it has been seen."""
        match = _STAMP.fullmatch(line)
        if match is None:  # the continuation of a line too long for one piece
            return line
        stamp = f"{match[1]}.{(match[2] or '').ljust(9, '0')}"
        if stamp < self._last:
            return None
        if stamp > self._last:
            self._last, self._at_last, self._skipped = stamp, 1, 1
            return match[3]
        # Several lines can share a time stamp: those counted before the break come again, in order.
        self._skipped += 1
        if self._skipped <= self._at_last:
            return None
        self._at_last = self._skipped
        return match[3]


async def follow(
    client: ClusterClient, workload: Workload, sink: Callable[[str], None], *, sleep: Sleep = asyncio.sleep
) -> None:
    """Pass each line of the workload's main container to ``sink``, once, until the Job has ended.

    Pods that replace one another follow one another. Errors of the cluster end in a debug message; exceptions
    of ``sink`` are the caller's.
    """
    done: set[str] = set()
    try:
        async with WorkloadView(client, workload.namespace, workload.name, workload.uid, sleep=sleep) as view:
            while True:
                await view.change()
                while (pod := _next(view, done)) is not None:
                    done.add(uid_of(pod))
                    await _follow_pod(client, workload, view, pod, sink, sleep)
                if view.synced and _ended(view):
                    return
    except ClusterError as error:
        _log.debug("the log of %s ends here: %s", workload.name, error)


def _next(view: WorkloadView, done: set[str]) -> Json | None:
    for pod in by_age(view.live_pods):
        container = main_container(pod)
        if uid_of(pod) not in done and container is not None and container.state in ("running", "terminated"):
            return pod
    return None


def _ended(view: WorkloadView) -> bool:
    job = view.job
    return job is None or condition(job, "Complete") is not None or condition(job, "Failed") is not None


async def _follow_pod(
    client: ClusterClient,
    workload: Workload,
    view: WorkloadView,
    pod: Json,
    sink: Callable[[str], None],
    sleep: Sleep,
) -> None:
    container = main_container(pod)
    cursor, breaks = LogCursor(), 0
    while breaks < BREAKS_IN_A_ROW:
        # Asked before the stream: one that begins after the container's end and closes cleanly is whole.
        over = _is_over(view, uid_of(pod))
        cursor.resume()
        clean = True
        try:
            async for line in client.logs(
                workload.namespace,
                name_of(pod),
                container=container.name if container else None,
                follow=True,
                since_time=cursor.since,
                timestamps=True,
            ):
                fresh = cursor.fresh(line)
                if fresh is not None:
                    breaks = 0
                    sink(fresh)
        except ClusterForbiddenError as error:  # asking again grants nothing
            _log.warning("the log of pod %s cannot be read, the training goes on: %s", name_of(pod), error)
            return
        except ClusterError as error:
            _log.debug("the log of pod %s broke off: %s", name_of(pod), error)
            clean = False
        if over and clean:
            return
        breaks += 0 if clean else 1  # proxies close silent streams: that is no fault
        if uid_of(pod) not in {uid_of(live) for live in view.live_pods}:
            return
        await view.change(within=RESUME_SECONDS)


def _is_over(view: WorkloadView, uid: str) -> bool:
    pod = next((live for live in view.live_pods if uid_of(live) == uid), None)
    container = main_container(pod) if pod is not None else None
    return container is None or container.state == "terminated"
