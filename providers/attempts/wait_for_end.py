"""Waiting for a workload's end: what the hub shows, against the time that each kind of wait may take."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nighttrain.providers.attempts.end_workload import Look, give_up, note_outcome, send_away
from nighttrain.providers.attempts.workload_objects import list_pods, read_object
from nighttrain.providers.errors import (
    ClusterError,
    LostNodeError,
    ObjectNotFoundError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import EVENTS, KUEUE_WORKLOADS
from nighttrain.providers.kubernetes.job.kinds import kind_named
from nighttrain.providers.kubernetes.mirror.hub import subscribe, subscribe_alone
from nighttrain.providers.kubernetes.outcome.decide import (
    until_quota_grows,
)
from nighttrain.providers.kubernetes.outcome.endings import may_run
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
    WaitFor,
)
from nighttrain.providers.kubernetes.outcome.silent_nodes import is_lost, lost_pod_described
from nighttrain.providers.kubernetes.values.objects import (
    TERMINAL_PHASES,
    items,
    mapping,
    moment,
    status,
    text,
    uid_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.mirror.feed import Sleep
    from nighttrain.providers.kubernetes.mirror.subscription import Subscription
    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.kubernetes.values.timeouts import Timeouts
    from nighttrain.providers.plain_json import Json

# Longer than any sensible grace period: what still terminates after it needs a person.
GONE_SECONDS = 900.0
# After an answer that says "it has changed meanwhile", where the watch does not show the change yet.
LOOK_AGAIN_SECONDS = 1.0
# A start with the image at hand is over by then and needs no explanation.
EXPLAIN_AFTER_SECONDS = 3.0


async def wait(
    client: ClusterClient,
    workload: Workload,
    *,
    timeouts: Timeouts,
    on_observation: Callable[[Observation], None] | None = None,
    narrow: bool = False,
    sleep: Sleep = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Wait until the attempt has ended and say how.

    It deletes what it gives up, as the look that decided saw it: a pod that has not started within its time,
    or the workload where there is no pod. If it changed meanwhile, the wait goes on. Where other
    containers hold up a pod whose main container has ended, that is deleted too. Both outcomes are written on
    the workload. A fault that no waiting mends ends the wait at once and deletes nothing: cancelling is the
    caller's decision then. While the cluster does not answer no time-out ends the wait.

    :param on_observation: called at each change; exceptions it raises end the wait
    :param narrow: watch this one workload alone: for processes that wait for one and not for many
    :raises ClusterError: the cluster refused, or could not be asked for an hour
    """
    limits = Limits(timeouts)
    reported: Observation | None = None
    waiting_since: float | None = None
    written = False
    kind = kind_named(workload.kind)
    async with subscribe(
        client, workload.namespace, workload.name, workload.uid, kind=kind, narrow=narrow, sleep=sleep
    ) as view:
        while True:
            if not view.synced:
                await view.change()
                continue
            now = clock()
            queue = view.queue if kind.is_suspended(view.object) else None
            observation = kind.read(view.object, view.pods, view.events, queue=queue)
            observation = _as_wanted(observation, timeouts)
            if not view.outage and not written:
                written = await _write_end(client, workload, observation)
            if observation.phase is not Phase.WAITING:
                waiting_since = None
            elif waiting_since is None:
                waiting_since = now
            left = limits.left(observation, now, client.cluster_time)
            if left is not None and left <= 0 and not view.outage:
                # What ends the wait is asked for once more: the stream may have been silent.
                look = await _looked_into(client, workload)
                observation = _as_wanted(look.observation, timeouts)
                look = replace(look, observation=observation)
                left = limits.left(observation, now, client.cluster_time)
                if observation.outcome is None and left is not None and left <= 0:
                    if observation.lingering is not None:
                        ended = await send_away(client, workload, observation.lingering)
                    else:
                        seconds = limits.seconds(observation)
                        ended = await give_up(client, workload, view, look, seconds, clock)
                    if ended is not None:
                        return ended
                    left = LOOK_AGAIN_SECONDS
            shown = _with_outage(observation) if view.outage else _with_grace(observation, limits)
            if on_observation is not None and shown != reported:
                on_observation(shown)
            reported = shown
            if observation.outcome is not None:
                return await _final(client, workload, view, observation.outcome)
            explain_in = None if waiting_since is None else waiting_since + EXPLAIN_AFTER_SECONDS - now
            view.explain(explain_in is not None and explain_in <= 0)
            pauses = [left] if left is not None and not view.outage else []
            pauses += [explain_in] if explain_in is not None and explain_in > 0 else []
            await view.change(within=min(pauses, default=None))


async def _write_end(client: ClusterClient, workload: Workload, observation: Observation) -> bool:
    """Write the main container's end on the workload as soon as it is seen; whether that was to be done.

    Until its pod ends a lot can happen, a drain for instance, and this process may be gone by then.
    """
    lingering = observation.lingering
    if lingering is None or lingering.outcome is None:
        return False
    await note_outcome(client, workload, lingering.outcome)
    return True


def _as_wanted(observation: Observation, timeouts: Timeouts) -> Observation:
    return observation if timeouts.fail_if_over_quota else until_quota_grows(observation)


class Limits:
    """Counts the time of each kind of wait; another kind, and any healthy state, starts it anew."""

    def __init__(self, timeouts: Timeouts) -> None:
        startup, schedule = timeouts.startup, timeouts.schedule
        self._seconds = {
            WaitFor.START: startup,
            WaitFor.NODE: startup if schedule is None else schedule,
            WaitFor.QUOTA: timeouts.queue,
            WaitFor.SIDECARS: timeouts.sidecar_grace,
            WaitFor.NODE_BACK: timeouts.node_lost,
        }
        self._kind: WaitFor | None = None
        self._since = 0.0

    def left(self, observation: Observation, now: float, cluster_now: float | None = None) -> float | None:
        """The seconds that are left of the wait; ``None`` if it has no bound.

        :param now: by a clock of this process
        :param cluster_now: by the cluster's clock, in seconds since 1970: a wait that began before this
            process did is not younger for it
        """
        kind = _kind(observation)
        if kind != self._kind:
            self._kind, self._since = kind, now
        if kind is None:
            return None
        seconds = self._seconds_of(kind, observation)
        if seconds is None:
            return None
        if observation.lingering is not None and observation.lingering.going:
            return 0.0
        elapsed = now - self._since
        began = moment(observation.since or "")
        if began is not None and cluster_now is not None:
            elapsed = max(elapsed, cluster_now - began)
        return seconds + observation.grace_seconds - elapsed

    def seconds(self, observation: Observation) -> float:
        """The bound of this kind of wait."""
        kind = _kind(observation)
        return (self._seconds_of(kind, observation) if kind else None) or 0.0

    def _seconds_of(self, kind: WaitFor, observation: Observation) -> float | None:
        seconds = self._seconds[kind]
        if kind is not WaitFor.QUOTA or observation.permanent_wait is None:
            return seconds
        # No waiting grants it: the bound of a start holds, unless the queue's is shorter.
        startup = self._seconds[WaitFor.START]
        return min(bound for bound in (seconds, startup) if bound is not None)


def _kind(observation: Observation) -> WaitFor | None:
    if observation.phase is Phase.FINISHED:
        return None
    if observation.waiting_for is not None:
        return observation.waiting_for
    return None if observation.permanent_wait is None else WaitFor.START


def _with_grace(observation: Observation, limits: Limits) -> Observation:
    if observation.waiting_for is not WaitFor.SIDECARS or observation.lingering is None:
        return observation
    if observation.lingering.going:
        return observation
    words = f"for {limits.seconds(observation):g} s at most, then the pod is told to go"
    return replace(observation, detail=f"{observation.detail} {words}")


def _with_outage(observation: Observation) -> Observation:
    detail = "the cluster does not answer; waiting goes on"
    return replace(observation, detail=f"{detail} (last seen: {observation.detail})")


async def _looked_into(client: ClusterClient, workload: Workload) -> Look:
    obj, pods = await read_object(client, workload), await list_pods(client, workload)
    events, queue = await explanations(client, workload, obj)
    return Look(obj, pods, kind_named(workload.kind).read(obj, pods, events, queue=queue))


async def explanations(
    client: ClusterClient, workload: Workload, obj: Json | None
) -> tuple[list[Json], Json | None]:
    """Events and Kueue's view, read once. They explain and never decide: a missing right is not an error."""
    events: list[Json] = []
    try:
        about = [workload.uid, *(uid_of(pod) for pod in await list_pods(client, workload))]
        for uid in about:
            listed = await client.list(
                EVENTS, workload.namespace, field_selector=f"involvedObject.uid={uid}", limit=100
            )
            events += items(listed.get("items"))
    except ClusterError:
        events = []
    suspended = kind_named(workload.kind).is_suspended(obj)
    return events, await _queue(client, workload) if suspended else None


async def kills(client: ClusterClient, workload: Workload) -> list[Json]:
    """The events in which kubelets stop containers. They explain: a missing right is no error."""
    try:
        listed = await client.list(EVENTS, workload.namespace, field_selector="reason=Killing", limit=500)
    except ClusterError:
        return []
    return [
        event
        for event in items(listed.get("items"))
        if text(mapping(event.get("involvedObject")).get("name")).startswith(f"{workload.name}-")
    ]


async def _queue(client: ClusterClient, workload: Workload) -> Json | None:
    selector = f"kueue.x-k8s.io/job-uid={workload.uid}"
    try:
        for resource in KUEUE_WORKLOADS:
            try:
                found = await client.list(resource, workload.namespace, label_selector=selector)
            except ObjectNotFoundError:
                continue
            return next(iter(items(found.get("items"))), None)
    except ClusterError:
        return None
    return {"absent": True}


async def _final(client: ClusterClient, workload: Workload, view: Subscription, outcome: Outcome) -> Outcome:
    """Two streams bring workloads and pods: the workload's end may have overtaken its pod's last words."""
    if view.object is None or not _may_change(view, outcome):
        return outcome
    try:
        fresh = {uid_of(pod): pod for pod in await list_pods(client, workload)}
    except ClusterError:
        return outcome
    known = {uid_of(pod): pod for pod in view.pods} | fresh
    # Nobody saw the pod: what a kubelet said of it tells a training that was stopped from one that is done.
    events = [] if known else await kills(client, workload)
    again = kind_named(workload.kind).read(view.object, list(known.values()), events).outcome
    return again if again is not None else outcome


def _may_change(view: Subscription, outcome: Outcome) -> bool:
    """True while a pod's own end is unseen. A thousand that end at once need not all ask."""
    ends = [text(status(pod).get("phase")) in TERMINAL_PHASES for pod in view.pods]
    return outcome.kind is OutcomeKind.UNKNOWN or not ends or not all(ends)


async def until_gone(
    client: ClusterClient, workload: Workload, *, with_object: bool, replace_on_lost_node: bool = False
) -> None:
    """Wait until none of the workload's pods runs, and its own object is gone if ``with_object``.

    :param replace_on_lost_node: a pod on a node that does not answer counts as gone, although it may run on
    :raises LostNodeError: a pod may still run on a node that does not answer: that can take for ever
    :raises WorkloadConflictError: it still terminates after a quarter of an hour
    :raises ClusterError: the cluster refused or cannot be asked
    """
    kind = kind_named(workload.kind)
    try:
        async with (
            asyncio.timeout(GONE_SECONDS),
            subscribe_alone(client, workload.namespace, workload.name, workload.uid, kind) as view,
        ):
            while True:
                alive = [pod for pod in view.live_pods if may_run(pod)]
                lost = [pod for pod in alive if is_lost(pod)]
                if view.synced and lost and not replace_on_lost_node:
                    raise LostNodeError(f"{workload.described} is not over: {lost_pod_described(lost[0])}")
                exists = with_object and view.object is not None and not lost
                if view.synced and not exists and len(alive) == len(lost):
                    return
                await view.change()
    except TimeoutError as error:
        raise WorkloadConflictError(
            f"{workload.described} still terminates after {GONE_SECONDS:g} s: look for a finalizer that "
            "nobody removes, a process that cannot be killed (it waits for a disk or a device), or a node "
            "that does not answer"
        ) from error
