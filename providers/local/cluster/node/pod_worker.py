"""One pod on the node: from its binding to its end, in one task."""

from __future__ import annotations

import asyncio
import enum
import logging
import shutil
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.node import podstatus
from nighttrain.providers.local.cluster.node.container_runner import ContainerRunner, Node
from nighttrain.providers.local.cluster.node.podstatus import Container, Picture, PodPhase, Role, waiting
from nighttrain.providers.local.cluster.node.volumes import PodVolumes, VolumeError
from nighttrain.providers.local.cluster.store.lifecycle import GRACE_PERIOD_SECONDS
from nighttrain.providers.local.cluster.store.resources import PODS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from nighttrain.providers.local.cluster.store.objects import Object

_log = logging.getLogger(__name__)

_DEADLINE = "Pod was active on the node longer than the specified deadline"

# A volume that cannot be mounted is tried again after half a second, then twice as long each time, up to two
# minutes: what a kubelet does.
_MOUNT_FIRST, _MOUNT_LONGEST = 0.5, 122.0


class Interrupt(enum.Enum):
    """The reasons for which a pod's life is cut short."""

    DELETED = enum.auto()
    DEADLINE = enum.auto()


class PodWorker:
    """Runs one pod. :meth:`update` tells it what happened to the object; :meth:`close` ends it at once."""

    def __init__(self, node: Node, pod: Object, finished: Callable[[PodWorker], None]) -> None:
        self.node = node
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.name: str = pod["metadata"]["name"]
        self.ended = False
        self.ip = ""
        self.volumes: PodVolumes
        self.containers = self._containers()
        policy: str = pod["spec"].get("restartPolicy") or "Always"
        self._policy = policy
        self._runners = {each.name: ContainerRunner(self, each, policy) for each in self.containers}
        self._changed = asyncio.Event()
        self._finished = finished
        self.directory = node.directory / self.uid
        self._sandbox = False
        self._show_ip = False
        self._start_time = node.now()
        self._reason = self._message = ""
        self._phase = PodPhase.PENDING
        self._ended_early = self._failing = False
        self._interrupt: asyncio.Future[Interrupt] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sidecars: list[asyncio.Task[None]] = []
        self._task = asyncio.create_task(self._run())

    def _containers(self) -> list[Container]:
        spec = self.pod["spec"]
        inits = spec.get("initContainers") or []
        reason = "PodInitializing" if inits else "ContainerCreating"
        every = []
        for item in inits:
            role = Role.SIDECAR if item.get("restartPolicy") == "Always" else Role.INIT
            every.append(Container(item, role, waiting(reason)))
        every += [Container(item, Role.MAIN, waiting(reason)) for item in spec["containers"]]
        return every

    # What happens to the object

    def update(self, pod: Object) -> None:
        """The object changed: it may be on its way out."""
        self.pod = pod
        if "deletionTimestamp" not in pod["metadata"]:
            return
        if not self._interrupt.done():
            self._interrupt.set_result(Interrupt.DELETED)
        elif pod["metadata"].get("deletionGracePeriodSeconds") == 0:
            self._kill()

    def gone(self) -> None:
        """The object is removed: nothing of it may run any more."""
        if not self._interrupt.done():
            self._announce_killing()
            self._interrupt.set_result(Interrupt.DELETED)
        self._kill()

    def find(self, name: str) -> Container | None:
        return next((each for each in self.containers if each.name == name), None)

    def _kill(self) -> None:
        for container in self.containers:
            if container.process is not None:
                container.process.kill()

    async def close(self) -> None:
        """The cluster stops: SIGKILL, no status."""
        self._kill()
        for task in [self._task, *self._tasks]:
            task.cancel()
        await asyncio.gather(self._task, *self._tasks, return_exceptions=True)
        for container in self.containers:
            if container.process is not None:
                await container.process.wait()

    def clean(self) -> None:
        """Give back what the pod held on the node, once the object is gone and the worker has ended."""
        if self.ip and self.ip != self.node.network.host_ip:
            self.node.network.pods.give_back(self.ip)
            self.ip = ""
        shutil.rmtree(self.directory, ignore_errors=True)

    # The life of a pod

    async def _run(self) -> None:
        try:
            await self._live_and_end()
        except Exception as error:
            # A fault of the kubelet itself: say so, and let nothing of the pod run on unseen.
            _log.exception("pod %s/%s", self.namespace, self.name)
            self.node.recorder.warning(self.pod, "FailedSync", f"error running the pod: {error!r}")
            await self._cancel_tasks()
            self._kill()
        finally:
            self.ended = True
            self._finished(self)

    async def _live_and_end(self) -> None:
        self.publish()
        spec = self.pod["spec"]
        self.ip = self.node.network.host_ip if spec.get("hostNetwork") else self.node.network.pods.take()
        self.volumes = PodVolumes(
            self.node.store, self.node.namespaces, self.pod, self.directory, self.node.claims
        )
        life = self._spawn(self._life())
        if spec.get("activeDeadlineSeconds"):
            self._spawn(self._watch_deadline(float(spec["activeDeadlineSeconds"])))
        if "deletionTimestamp" in self.pod["metadata"]:
            self.update(self.pod)
        pending: set[asyncio.Future[Any]] = {life, self._interrupt}
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()
        else:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            await self._leave_sidecars()
            await self._cut_short(self._interrupt.result())
        await self._end()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end(self) -> None:
        """Write the terminal status, and the pod's last word if it is deleted."""
        await self._cancel_tasks()
        self._sandbox = False
        self.publish(final=True)
        if self._is_deleted():
            self.node.store.remove(PODS, self.namespace, self.name, self.uid)

    async def _life(self) -> None:
        await self._mount_volumes()
        self._sandbox = True
        self.publish()
        self._show_ip = True
        for container in self.containers:
            if container.role is Role.SIDECAR:
                self._sidecars.append(self._spawn(self._runners[container.name].run()))
                await self._until_started(container)
            elif container.role is Role.INIT:
                await self._runners[container.name].run()
                if container.exit_code != 0:
                    break
        else:
            await self._run_mains()
        if self._sidecars:
            await self._leave_sidecars()
            self._announce_killing()
            await self._stop(self._grace_seconds())
            self._sandbox = False
            self.publish()

    async def _leave_sidecars(self) -> None:
        """Restart no sidecar any more; those that run are still to be stopped."""
        for task in self._sidecars:
            task.cancel()
        await asyncio.gather(*self._sidecars, return_exceptions=True)

    async def _run_mains(self) -> None:
        mains = [each for each in self.containers if each.role is Role.MAIN]
        for container in mains:
            if container.state == waiting("PodInitializing"):
                container.state = waiting("ContainerCreating")
        if len(mains) == 1:
            await self._runners[mains[0].name].run()
            return
        async with asyncio.TaskGroup() as group:
            for container in mains:
                group.create_task(self._runners[container.name].run())

    async def _until_started(self, container: Container) -> None:
        while not container.started:
            await self._changed.wait()

    async def _mount_volumes(self) -> None:
        pause = _MOUNT_FIRST
        while True:
            try:
                self.volumes.set_up()
            except VolumeError as error:
                self.node.recorder.warning(self.pod, "FailedMount", str(error))
            else:
                return
            await self.node.sleep(pause)
            pause = min(_MOUNT_LONGEST, pause * 2)

    async def _watch_deadline(self, seconds: float) -> None:
        await self.node.sleep(seconds)
        if not self._interrupt.done():
            self._interrupt.set_result(Interrupt.DEADLINE)

    async def _cut_short(self, why: Interrupt) -> None:
        grace = self._grace_seconds()
        if why is Interrupt.DEADLINE:
            self.node.recorder.normal(self.pod, "DeadlineExceeded", _DEADLINE)
            self._reason, self._message = "DeadlineExceeded", _DEADLINE
            self._failing = True
            self.publish()
        else:
            asked = self.pod["metadata"].get("deletionGracePeriodSeconds")
            grace = grace if asked is None else float(asked)
        if self.is_gone():
            grace = 0
        if why is Interrupt.DELETED:
            self._show_crashed()
        self._announce_killing()
        await self._stop(grace)
        if why is Interrupt.DELETED:
            self._show_emptied()
        for container in self.containers:
            if "waiting" in container.state:
                container.state = container.last_state or podstatus.never_found()
                container.ready = container.started = False
        self._ended_early = True

    def _show_crashed(self) -> None:
        """Show containers that crashed as they ended: there is no next try."""
        crashed = [each for each in self.containers if "waiting" in each.state and each.last_state]
        for container in crashed:
            container.state = container.last_state
        if crashed:
            self.publish()

    def _show_emptied(self) -> None:
        """A kubelet that ends a pod forgets why its containers waited, then takes its sandbox away."""
        waiting_ones = [each for each in self.containers if "waiting" in each.state]
        if not waiting_ones:
            return
        reason = "PodInitializing" if any(each.role is not Role.MAIN for each in self.containers) else ""
        for container in waiting_ones:
            container.state = waiting(reason or "ContainerCreating")
        self.publish()
        self._sandbox = False
        self.publish()

    def _announce_killing(self) -> None:
        for container in self.containers:
            if container.running:
                message = f"Stopping container {container.name}"
                self.node.recorder.normal(self.pod, "Killing", message, field=container.field_path)

    async def _stop(self, grace: float) -> None:
        """Stop what runs: sidecars after all that needs them, the first one last."""
        sidecars = [each for each in self.containers if each.role is Role.SIDECAR]
        others = [each for each in self.containers if each.role is not Role.SIDECAR]
        stops = [self._spawn(self._runners[each.name].stop(grace)) for each in others]
        for container in reversed(sidecars):
            stops.append(self._spawn(self._runners[container.name].stop(grace, after=list(stops))))
        await asyncio.gather(*stops)

    def _grace_seconds(self) -> float:
        seconds = float(self.pod["spec"].get("terminationGracePeriodSeconds", GRACE_PERIOD_SECONDS))
        return seconds if seconds >= 0 else 1.0

    # Status

    def is_gone(self) -> bool:
        """True if the object is removed, or another of its name has taken its place."""
        current = self.node.store.find(PODS, self.namespace, self.name)
        return current is None or current["metadata"]["uid"] != self.uid

    def _is_deleted(self) -> bool:
        current = self.node.store.find(PODS, self.namespace, self.name)
        return not self.is_gone() and current is not None and "deletionTimestamp" in current["metadata"]

    def _starting(self) -> bool:
        """True if only some of the containers that start together have been started: nobody is told yet."""
        mains = [each for each in self.containers if each.role is Role.MAIN]
        creating = [each for each in mains if each.state == waiting("ContainerCreating")]
        return bool(creating) and any(each.running for each in mains) and not self._interrupt.done()

    def publish(self, *, final: bool = False) -> None:
        """Write the pod's status. Only the last call, when nothing runs any more, writes a terminal phase."""
        self._changed.set()
        self._changed = asyncio.Event()
        if self.is_gone() or (not final and self._starting()):
            return
        outlook = podstatus.phase_of(self.containers, self._policy, ended=self._ended_early)
        if self._failing:
            outlook = PodPhase.FAILED
        if final or not outlook.terminal:
            self._phase = outlook
        picture = Picture(
            containers=self.containers,
            phase=self._phase,
            outlook=outlook,
            sandbox=self._sandbox,
            host_ip=self.node.network.host_ip,
            pod_ip=self.ip if self._show_ip else "",
            start_time=self._start_time,
            now=self.node.now(),
            reason=self._reason if final else "",
            message=self._message if final else "",
        )

        def write(pod: Object) -> None:
            pod["status"] = podstatus.status_of(pod, picture)

        stored = self.node.store.mutate(PODS, self.namespace, self.name, write)
        if stored is not None:
            self.pod = stored
