"""One watch for all: the workloads of a kind in a namespace and their pods as one mirror, shared by all who
wait there.

A :class:`Hub` runs from its first subscriber to its last. Each change costs one dictionary look-up and wakes
only those whom it concerns; a subscriber that waits costs a future.

The mirror may be older than the workload a subscriber has just created. So "it is gone" is concluded only
from its DELETED event, from a list that began after the subscription did, or from a read of that workload.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import asynccontextmanager
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from nighttrain.providers.errors import (
    ClusterError,
    ClusterForbiddenError,
    ClusterUnauthorizedError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.kubernetes.job.kinds import JOB
from nighttrain.providers.kubernetes.mirror.feed import Feed, Selection, Sleep
from nighttrain.providers.kubernetes.mirror.mirrored import Mirror
from nighttrain.providers.kubernetes.mirror.subscription import Subscription
from nighttrain.providers.kubernetes.mirror.trimming import trim_pod, trim_workload
from nighttrain.providers.kubernetes.mirror.wait_reasons import WaitReasons
from nighttrain.providers.kubernetes.values.identity import ATTEMPT_KEY_LABEL
from nighttrain.providers.kubernetes.values.objects import mapping, metadata, uid_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.job.kinds import WorkloadKind
    from nighttrain.providers.plain_json import Json

_log = logging.getLogger(__name__)

# A cut stream is open again by then; what lasts longer is worth a word.
OUTAGE_NOTED_SECONDS = 5.0
# A watch is behind by milliseconds: most workloads that the mirror lacks arrive by themselves in this time.
CONFIRM_AFTER_SECONDS = 1.0
CONFIRM_AGAIN_SECONDS = 5.0


class Hub:
    """Keeps a mirror current and wakes its subscribers.

    :param name: mirror the workload of this name alone
    :param kind: the kind of workload that is mirrored
    :param sleep: waits so many seconds
    """

    def __init__(
        self,
        client: ClusterClient,
        namespace: str,
        name: str | None = None,
        kind: WorkloadKind = JOB,
        *,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._kind = kind
        self._client = client
        self._namespace = namespace
        self._name = name
        self._sleep = sleep
        self._all: set[Subscription] = set()
        self._subscribers: dict[str, set[Subscription]] = {}
        self._unconfirmed: deque[Subscription] = deque()
        self._to_confirm = asyncio.Event()
        self._first_lists = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._failing: dict[str, float] = {}
        self._reasons = WaitReasons(client, namespace, self._explained, self._start_task)
        self.mirror = Mirror(kind)
        self.error: ClusterError | None = None

    @property
    def idle(self) -> bool:
        """True while nobody subscribes."""
        return not self._all

    def subscription(self, name: str, uid: str, sleep: Sleep) -> Subscription:
        """A view of one workload; it changes once it was added."""
        return Subscription(self.mirror, self._reasons, name, uid, sleep)

    def start(self) -> None:
        """Open the feeds."""
        resource, pod_label = self._kind.resource, self._kind.pod_label
        if self._name is None:
            objects = Selection(resource, self._namespace, label_selector=ATTEMPT_KEY_LABEL)
            pods = Selection(PODS, self._namespace, label_selector=ATTEMPT_KEY_LABEL)
        else:
            objects = Selection(resource, self._namespace, field_selector=f"metadata.name={self._name}")
            pods = Selection(PODS, self._namespace, label_selector=f"{pod_label}={self._name}")
        for key, selection, sink, trim in (
            ("workloads", objects, _Workloads(self), partial(trim_workload, spec=self._kind.spec_kept)),
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
            name = f"{selection.resource.plural} of {self._namespace}"
            self._tasks.append(self._start_task(self._run(feed), name))
        self._tasks.append(self._start_task(self._confirm(), f"missing {resource.plural}"))

    async def stop(self) -> None:
        """Close the feeds; no task is left."""
        tasks = [*self._tasks, *self._reasons.close()]
        self._tasks = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def add(self, subscription: Subscription) -> None:
        """Wake a subscriber at every change of its workload from here on."""
        self._all.add(subscription)
        for key in subscription.keys:
            self._subscribers.setdefault(key, set()).add(subscription)
        if self.error is not None:
            subscription.error = self.error
        if subscription.uid not in self.mirror.workloads:
            self._unconfirmed.append(subscription)
            self._to_confirm.set()
        subscription.wake()

    def remove(self, subscription: Subscription) -> None:
        """The inverse of :meth:`add`."""
        subscription.explain(False)
        self._all.discard(subscription)
        for key in subscription.keys:
            others = self._subscribers.get(key, set())
            others.discard(subscription)
            if not others:
                self._subscribers.pop(key, None)

    @property
    def everyone(self) -> list[Subscription]:
        """All subscribers."""
        return list(self._all)

    def subscribers(self, key: str) -> set[Subscription]:
        """Those who follow the workload with this key."""
        return self._subscribers.get(key, set())

    def wake(self, key: str) -> None:
        """Wake the subscribers of the workload with this key."""
        for subscription in self._subscribers.get(key, ()):
            subscription.wake()

    def wake_all(self) -> None:
        """Wake every subscriber."""
        for subscription in self._all:
            subscription.wake()

    def listed(self) -> None:
        """Go on now that a list has come."""
        if self.mirror.synced:
            self._first_lists.set()
        self.wake_all()

    def drop_pod(self, pod: Json) -> str:
        """Forget a pod, but for those who follow its workload.

        :return: the key of that workload, empty if there is none
        """
        owner = self.mirror.drop_pod(pod)
        for subscription in self.subscribers(owner):
            subscription.bury(pod)
        return owner

    def _explained(self, uid: str) -> None:
        """Wake those to whose workload, or whose pod, an explanation has come."""
        self.wake(self.mirror.key_of(uid))

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
        for subscription in self._all:
            subscription.error = error
            subscription.wake()

    def _health(self, key: str, error: ClusterError | None) -> None:
        now = asyncio.get_running_loop().time()
        if error is not None:
            first = self._failing.setdefault(key, now)
            if not self.mirror.outage and now - first >= OUTAGE_NOTED_SECONDS:
                self.mirror.outage = True
                _log.warning("The cluster does not answer; waiting goes on meanwhile: %s", error)
                self.wake_all()
            return
        self._failing.pop(key, None)
        if self.mirror.outage and not self._failing:
            self.mirror.outage = False
            _log.warning("The cluster %s answers again", self._client.server)
            self.wake_all()

    async def _confirm(self) -> None:
        """Read once each of the workloads that somebody waits for and that the mirror does not hold."""
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
        resource = self._kind.resource
        try:
            found = await self._client.get(resource, self._namespace, subscription.name)
        except ObjectNotFoundError:
            found = {}
        if subscription.uid in self.mirror.workloads or subscription.gone:
            return
        if uid_of(found) != subscription.uid:
            subscription.gone = True
        elif self._name is None and ATTEMPT_KEY_LABEL not in mapping(metadata(found).get("labels")):
            raise WorkloadConflictError(
                f"{resource.kind} {subscription.name} in namespace {self._namespace} lost its label "
                f"{ATTEMPT_KEY_LABEL}, by which it is watched: put it back, then retry"
            )
        else:
            subscription.fetched = trim_workload(found, self._kind.spec_kept)
        subscription.wake()


class _Workloads:
    """Takes over what the workloads' feed brings."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def reset(self, listed: list[Json], began: float) -> None:
        hub = self._hub
        fresh = {uid_of(obj): obj for obj in listed}
        gone = hub.mirror.workloads.keys() - fresh.keys()
        hub.mirror.workloads = fresh
        for uid in gone:
            self._bury(uid)
        for subscription in hub.everyone:
            if subscription.uid not in fresh and began >= subscription.since:
                subscription.gone = True
        hub.mirror.workloads_listed = True
        hub.listed()

    def apply(self, kind: str, obj: Json) -> None:
        uid = uid_of(obj)
        if kind == "DELETED":
            self._hub.mirror.workloads.pop(uid, None)
            self._bury(uid)
        else:
            self._hub.mirror.workloads[uid] = obj
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
        for pods in list(hub.mirror.pods.values()):
            for uid, pod in list(pods.items()):
                if uid not in fresh:
                    hub.drop_pod(pod)
        for pod in listed:
            hub.mirror.put_pod(pod)
        hub.mirror.pods_listed = True
        hub.listed()

    def apply(self, kind: str, pod: Json) -> None:
        hub = self._hub
        hub.wake(hub.drop_pod(pod) if kind == "DELETED" else hub.mirror.put_pod(pod))


_hubs: WeakKeyDictionary[ClusterClient, dict[tuple[str, str | None, str], Hub]] = WeakKeyDictionary()


@asynccontextmanager
async def subscribe(
    client: ClusterClient,
    namespace: str,
    name: str,
    uid: str,
    *,
    kind: WorkloadKind = JOB,
    narrow: bool = False,
    sleep: Sleep = asyncio.sleep,
) -> AsyncIterator[Subscription]:
    """Follow a workload through the hub of its namespace and kind: started for the first subscriber, stopped
    after the last.

    Users of :func:`~nighttrain.providers.kubernetes.api.client.shared_client` share it over the whole event
    loop.

    :param narrow: watch this one workload alone: for processes that wait for one and not for many
    """
    hubs = _hubs.setdefault(client, {})
    key = (namespace, name if narrow else None, kind.name)
    hub = hubs.get(key)
    if hub is None or hub.error is not None:
        hub = hubs[key] = Hub(client, namespace, name if narrow else None, kind)
        hub.start()
    subscription = hub.subscription(name, uid, sleep)
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
    client: ClusterClient, namespace: str, name: str, uid: str, kind: WorkloadKind = JOB
) -> AsyncIterator[Subscription]:
    """Follow a workload through a hub of its own, whose lists begin now: nothing of it is from before."""
    hub = Hub(client, namespace, name, kind)
    subscription = hub.subscription(name, uid, asyncio.sleep)
    hub.add(subscription)
    hub.start()
    try:
        yield subscription
    finally:
        hub.remove(subscription)
        await hub.stop()
