"""One workload and its pods, as whoever waits for it sees them in a mirror that many share."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from nighttrain.providers.kubernetes.mirror.mirrored import key_by_name
from nighttrain.providers.kubernetes.values.objects import uid_of

if TYPE_CHECKING:
    from nighttrain.providers.errors import ClusterError
    from nighttrain.providers.kubernetes.mirror.feed import Sleep
    from nighttrain.providers.kubernetes.mirror.mirrored import Mirror
    from nighttrain.providers.kubernetes.mirror.wait_reasons import WaitReasons
    from nighttrain.providers.plain_json import Json

# Deleted pods explain a failed workload; one rarely has more than a handful.
REMEMBERED = 20


class Subscription:
    """One workload and its pods as its subscriber may see them.

    :param name: the workload's name
    :param uid: its uid, which tells it from a later one of the same name
    :param sleep: waits so many seconds
    """

    def __init__(self, mirror: Mirror, reasons: WaitReasons, name: str, uid: str, sleep: Sleep) -> None:
        self._mirror = mirror
        self._reasons = reasons
        self._sleep = sleep
        self._dirty = False
        self._waiter: asyncio.Future[None] | None = None
        self._explained = False
        self.name = name
        self.uid = uid
        self.since = asyncio.get_running_loop().time()
        self.gone = False
        self.fetched: Json | None = None
        self.deleted: dict[str, Json] = {}
        self.error: ClusterError | None = None

    @property
    def synced(self) -> bool:
        """True once the state of the workload is known; nothing may be concluded before."""
        return self._mirror.synced and (self.gone or self.object is not None)

    @property
    def outage(self) -> bool:
        """True while the view is old because the cluster does not answer."""
        return self._mirror.outage

    @property
    def object(self) -> Json | None:
        """The workload of this uid; ``None`` once it is deleted, even if another took its name."""
        return None if self.gone else self._mirror.workloads.get(self.uid, self.fetched)

    @property
    def live_pods(self) -> list[Json]:
        """The workload's pods that exist."""
        return self._mirror.pods_of(self.keys)

    @property
    def keys(self) -> tuple[str, str]:
        """The keys that its pods are filed under: its uid, or its name where a pod does not know more."""
        return self.uid, key_by_name(self.name)

    @property
    def pods(self) -> list[Json]:
        """The workload's pods, those deleted as last seen."""
        return [*self.deleted.values(), *self.live_pods]

    def explain(self, wanted: bool) -> None:
        """Say whether events and Kueue's view are wanted now; feeds for them run while anyone wants them."""
        if wanted != self._explained:
            self._explained = wanted
            self._reasons.want(self.uid, wanted)

    @property
    def events(self) -> list[Json]:
        """Events of the workload and its pods, as far as they are known."""
        return self._reasons.events_of([self.uid, *map(uid_of, self.live_pods), *self.deleted])

    @property
    def queue(self) -> Json | None:
        """Kueue's Workload of it; ``{"absent": True}`` in a cluster without Kueue."""
        return self._reasons.queue_of(self.uid)

    def wake(self) -> None:
        """Have :meth:`change` return."""
        self._dirty = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def bury(self, pod: Json) -> None:
        """Remember a deleted pod."""
        self.deleted[uid_of(pod)] = pod
        while len(self.deleted) > REMEMBERED:
            del self.deleted[next(iter(self.deleted))]

    async def change(self, within: float | None = None) -> None:
        """Return at the next change, or after ``within`` seconds.

        :raises ClusterError: the mirror cannot be kept current
        """
        if not self._dirty and self.error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            timer = None
            if within is not None:
                timer = asyncio.ensure_future(_pause(self._sleep, max(0.0, within)))
                timer.add_done_callback(lambda _: self.wake())
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None and not timer.done():
                    timer.cancel()
                    await asyncio.wait({timer})
        self._dirty = False
        if self.error is not None:
            raise self.error.with_traceback(None)


async def _pause(sleep: Sleep, seconds: float) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await sleep(seconds)
