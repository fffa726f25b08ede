"""One watch for all: the Jobs and pods of a namespace as one mirror, shared by everyone who waits there.

A :class:`Hub` runs from its first subscriber to its last. Each change costs one dictionary look-up and wakes
only those whom it concerns; a subscriber that waits costs a future.

The mirror may be older than the Job a subscriber has just created. So "the Job is gone" is concluded only
from its DELETED event, from a list that began after the subscription did, or from a read of that Job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nighttrain.providers.errors import (
    ClusterError,
    ClusterForbiddenError,
    ClusterUnauthorizedError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.explanations import Explanations
from nighttrain.providers.kubernetes.identity import ATTEMPT_KEY_LABEL
from nighttrain.providers.kubernetes.objects import mapping, metadata, uid_of
from nighttrain.providers.kubernetes.resources import JOBS, PODS
from nighttrain.providers.kubernetes.trimming import trim_job, trim_pod
from nighttrain.providers.kubernetes.watch import JOB_NAME_LABEL, Feed, Selection, Sleep, owner_of

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.client import ClusterClient

Json = dict[str, Any]
_log = logging.getLogger(__name__)

# Deleted pods explain a failed Job; a Job rarely has more than a handful.
REMEMBERED = 20
# A cut stream is open again by then; what lasts longer is worth a word.
OUTAGE_NOTED_SECONDS = 5.0
# A watch is behind by milliseconds: most Jobs that the mirror lacks arrive by themselves in this time.
CONFIRM_AFTER_SECONDS = 1.0
CONFIRM_AGAIN_SECONDS = 5.0


class Subscription:
    """One Job and its pods as its subscriber may see them."""

    def __init__(self, hub: Hub, name: str, uid: str, sleep: Sleep) -> None:
        self._hub = hub
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
        """Whether it is known how the Job stands; nothing may be concluded before."""
        return self._hub.synced and (self.gone or self.job is not None)

    @property
    def outage(self) -> bool:
        """Whether what is seen here is old because the cluster does not answer."""
        return self._hub.outage

    @property
    def job(self) -> Json | None:
        """The Job of this uid; ``None`` once it is deleted, even if another took its name."""
        return None if self.gone else self._hub.jobs.get(self.uid, self.fetched)

    @property
    def live_pods(self) -> list[Json]:
        """The Job's pods that exist."""
        return list(self._hub.pods.get(self.uid, {}).values())

    @property
    def pods(self) -> list[Json]:
        """The Job's pods, those deleted as last seen."""
        return [*self.deleted.values(), *self.live_pods]

    def explain(self, wanted: bool) -> None:
        """Say whether events and Kueue's view are of use now; feeds for them run while anyone wants them."""
        if wanted != self._explained:
            self._explained = wanted
            self._hub.explanations.want(self.uid, wanted)

    @property
    def events(self) -> list[Json]:
        """Events of the Job and its pods, as far as they are known."""
        about = [self.uid, *self._hub.pods.get(self.uid, ()), *self.deleted]
        return self._hub.explanations.events_of(about)

    @property
    def queue(self) -> Json | None:
        """Kueue's Workload of the Job; ``{"absent": True}`` in a cluster without Kueue."""
        return self._hub.explanations.queue_of(self.uid)

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
                timer = asyncio.ensure_future(_run(self._sleep(max(0.0, within))))
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


class Hub:
    """The mirror of a namespace's workloads, or of a single one.

    :param name: mirror the workload of this name alone
    """

    def __init__(
        self, client: ClusterClient, namespace: str, name: str | None = None, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._sleep = sleep
        self.jobs: dict[str, Json] = {}
        # The pods of each Job, by the Job's uid.
        self.pods: dict[str, dict[str, Json]] = {}
        self._owners: dict[str, str] = {}
        self._subscribers: dict[str, set[Subscription]] = {}
        self._unconfirmed: deque[Subscription] = deque()
        self._to_confirm = asyncio.Event()
        self._first_lists = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._synced = {"jobs": False, "pods": False}
        self._failing: dict[str, float] = {}
        self.outage = False
        self.error: ClusterError | None = None
        self.explanations = Explanations(client, namespace, self._explained, self._start_task)

    @property
    def synced(self) -> bool:
        """Whether the first lists have come."""
        return all(self._synced.values())

    @property
    def idle(self) -> bool:
        return not self._subscribers

    def start(self) -> None:
        """Open the feeds."""
        if self._name is None:
            jobs = Selection(JOBS, self._namespace, label_selector=ATTEMPT_KEY_LABEL)
            pods = Selection(PODS, self._namespace, label_selector=ATTEMPT_KEY_LABEL)
        else:
            jobs = Selection(JOBS, self._namespace, field_selector=f"metadata.name={self._name}")
            pods = Selection(PODS, self._namespace, label_selector=f"{JOB_NAME_LABEL}={self._name}")
        for key, selection, sink, trim in (
            ("jobs", jobs, _Jobs(self), trim_job),
            ("pods", pods, _Pods(self), trim_pod),
        ):
            feed = Feed(
                self._client,
                selection,
                sink,
                trim=trim,
                on_health=lambda error, key=key: self._health(key, error),  # type: ignore[misc]
                sleep=self._sleep,
            )
            self._tasks.append(self._start_task(self._run(feed), f"{key} of {self._namespace}"))
        self._tasks.append(self._start_task(self._confirm(), f"missing Jobs of {self._namespace}"))

    async def stop(self) -> None:
        """Close the feeds; no task is left."""
        tasks = [*self._tasks, *self.explanations.close()]
        self._tasks = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def add(self, subscription: Subscription) -> None:
        """Tell a subscriber of what concerns its Job from here on."""
        self._subscribers.setdefault(subscription.uid, set()).add(subscription)
        if self.error is not None:
            subscription.error = self.error
        if subscription.uid not in self.jobs:
            self._unconfirmed.append(subscription)
            self._to_confirm.set()
        subscription.wake()

    def remove(self, subscription: Subscription) -> None:
        """The inverse of :meth:`add`."""
        subscription.explain(False)
        others = self._subscribers.get(subscription.uid, set())
        others.discard(subscription)
        if not others:
            self._subscribers.pop(subscription.uid, None)

    def subscribers(self, uid: str) -> set[Subscription]:
        """Those who follow the Job of this uid."""
        return self._subscribers.get(uid, set())

    def wake(self, uid: str) -> None:
        """Tell the subscribers of a Job that something changed."""
        for subscription in self._subscribers.get(uid, ()):
            subscription.wake()

    def wake_all(self) -> None:
        for uid in self._subscribers:
            self.wake(uid)

    def mark_synced(self, key: str) -> None:
        self._synced[key] = True
        if self.synced:
            self._first_lists.set()
        self.wake_all()

    def put_pod(self, pod: Json) -> str:
        """Store a pod; the uid of the Job it belongs to, empty if it belongs to none."""
        owner, uid = self._owner(pod), uid_of(pod)
        if owner:
            self.pods.setdefault(owner, {})[uid] = pod
            self._owners[uid] = owner
        return owner

    def drop_pod(self, pod: Json) -> str:
        """Forget a pod, but for those who follow its Job."""
        owner, uid = self._owner(pod), uid_of(pod)
        self._owners.pop(uid, None)
        pods = self.pods.get(owner, {})
        pods.pop(uid, None)
        if not pods:
            self.pods.pop(owner, None)
        for subscription in self.subscribers(owner):
            subscription.bury(pod)
        return owner

    def _owner(self, pod: Json) -> str:
        owner = owner_of(pod)
        if not owner and self._name is not None and len(self._subscribers) == 1:
            return next(iter(self._subscribers))
        return owner

    def _explained(self, uid: str) -> None:
        """Something was said about an object: a Job, or a pod."""
        self.wake(self._owners.get(uid, uid))

    def _start_task(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        # Not in the context of whichever subscriber happens to be first: its task's log is not the hub's.
        return asyncio.get_running_loop().create_task(work, name=name, context=Context())

    async def _run(self, feed: Feed) -> None:
        try:
            await feed.run()
        except ClusterError as error:
            self._fail(error)

    def _fail(self, error: ClusterError) -> None:
        self.error = error
        for subscriptions in self._subscribers.values():
            for subscription in subscriptions:
                subscription.error = error
                subscription.wake()

    def _health(self, key: str, error: ClusterError | None) -> None:
        now = asyncio.get_running_loop().time()
        if error is not None:
            first = self._failing.setdefault(key, now)
            if not self.outage and now - first >= OUTAGE_NOTED_SECONDS:
                self.outage = True
                _log.warning("The cluster does not answer; waiting goes on meanwhile: %s", error)
                self.wake_all()
            return
        self._failing.pop(key, None)
        if self.outage and not self._failing:
            self.outage = False
            _log.warning("The cluster %s answers again", self._client.server)
            self.wake_all()

    async def _confirm(self) -> None:
        """Read, once each, the Jobs that are waited for and that the mirror does not hold."""
        while True:
            # The first list may hold it, or was asked for late enough to say that it is gone.
            await self._first_lists.wait()
            await self._to_confirm.wait()
            self._to_confirm.clear()
            await self._sleep(CONFIRM_AFTER_SECONDS)
            while self._unconfirmed:
                subscription = self._unconfirmed[0]
                if subscription in self.subscribers(subscription.uid) and not subscription.synced:
                    try:
                        await self._confirm_one(subscription)
                    except (ClusterForbiddenError, ClusterUnauthorizedError, WorkloadConflictError) as error:
                        subscription.error = error
                        subscription.wake()
                    except ClusterError:  # the feeds tell of it; the answer is still needed
                        await self._sleep(CONFIRM_AGAIN_SECONDS)
                        continue
                self._unconfirmed.popleft()

    async def _confirm_one(self, subscription: Subscription) -> None:
        try:
            job = await self._client.get(JOBS, self._namespace, subscription.name)
        except ObjectNotFoundError:
            job = {}
        if subscription.uid in self.jobs or subscription.gone:
            return
        if uid_of(job) != subscription.uid:
            subscription.gone = True
        elif self._name is None and ATTEMPT_KEY_LABEL not in mapping(metadata(job).get("labels")):
            raise WorkloadConflictError(
                f"Job {subscription.name} in namespace {self._namespace} lost its label {ATTEMPT_KEY_LABEL}, "
                "by which it is watched: put it back, then retry"
            )
        else:
            subscription.fetched = trim_job(job)
        subscription.wake()


class _Jobs:
    """Takes over what the Jobs' feed brings."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def reset(self, listed: list[Json], began: float) -> None:
        hub = self._hub
        fresh = {uid_of(job): job for job in listed}
        gone = hub.jobs.keys() - fresh.keys()
        hub.jobs = fresh
        for uid in gone:
            self._bury(uid)
        for uid in list(hub._subscribers):
            if uid not in fresh:
                for subscription in hub.subscribers(uid):
                    if began >= subscription.since:
                        subscription.gone = True
        hub.mark_synced("jobs")

    def apply(self, kind: str, job: Json) -> None:
        uid = uid_of(job)
        if kind == "DELETED":
            self._hub.jobs.pop(uid, None)
            self._bury(uid)
        else:
            self._hub.jobs[uid] = job
        self._hub.wake(uid)

    def _bury(self, uid: str) -> None:
        for subscription in self._hub.subscribers(uid):
            subscription.gone = True


class _Pods:
    """Takes over what the pods' feed brings."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def reset(self, listed: list[Json], began: float) -> None:
        hub = self._hub
        fresh = {uid_of(pod) for pod in listed}
        for pods in list(hub.pods.values()):
            for uid, pod in list(pods.items()):
                if uid not in fresh:
                    hub.drop_pod(pod)
        for pod in listed:
            hub.put_pod(pod)
        hub.mark_synced("pods")

    def apply(self, kind: str, pod: Json) -> None:
        hub = self._hub
        hub.wake(hub.drop_pod(pod) if kind == "DELETED" else hub.put_pod(pod))


_hubs: WeakKeyDictionary[ClusterClient, dict[tuple[str, str | None], Hub]] = WeakKeyDictionary()


@asynccontextmanager
async def subscribe(
    client: ClusterClient,
    namespace: str,
    name: str,
    uid: str,
    *,
    narrow: bool = False,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[Subscription]:
    """Follow a Job through the namespace's hub: started for the first subscriber, stopped after the last.

    Users of :func:`~nighttrain.providers.kubernetes.client.shared_client` share it over the whole event loop.

    :param narrow: watch this one Job alone: for processes that wait for one and not for many
    """
    hubs = _hubs.setdefault(client, {})
    key = (namespace, name if narrow else None)
    hub = hubs.get(key)
    if hub is None or hub.error is not None:
        hub = hubs[key] = Hub(client, *key)
        hub.start()
    subscription = Subscription(hub, name, uid, sleep)
    hub.add(subscription)
    try:
        yield subscription
    finally:
        hub.remove(subscription)
        if hub.idle:
            if hubs.get(key) is hub:
                del hubs[key]
            await hub.stop()


@asynccontextmanager
async def subscribe_alone(
    client: ClusterClient, namespace: str, name: str, uid: str
) -> AsyncIterator[Subscription]:
    """Follow a Job through a hub of its own, whose lists begin now: nothing of it is from before."""
    hub = Hub(client, namespace, name)
    subscription = Subscription(hub, name, uid, asyncio.sleep)
    hub.add(subscription)
    hub.start()
    try:
        yield subscription
    finally:
        hub.remove(subscription)
        await hub.stop()


async def _run(awaitable: Any) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await awaitable
