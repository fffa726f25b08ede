"""One container of a pod: image, configuration, process, probes, restarts."""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nighttrain.providers.local.cluster.machine.images import (
    ImageEnvironment,
    ImageTable,
    InvalidImageNameError,
    parse_reference,
)
from nighttrain.providers.local.cluster.machine.mounts import Mount, MountNamespaces, SubPathError
from nighttrain.providers.local.cluster.machine.processes import (
    ContainerLog,
    ContainerProcess,
    ExitStatus,
    StartError,
    base_environment,
    start,
)
from nighttrain.providers.local.cluster.node.environment import ConfigError, Environment
from nighttrain.providers.local.cluster.node.podstatus import Container, Role, waiting
from nighttrain.providers.local.cluster.node.probes import (
    ProbeTarget,
    keep_probing,
)
from nighttrain.providers.local.cluster.store.quantities import quantity
from nighttrain.providers.local.cluster.store.store import Object, Store, timestamp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine

    from nighttrain.providers.local.cluster.controllers.pace import BackOff
    from nighttrain.providers.local.cluster.machine.memory import MemoryLimits
    from nighttrain.providers.local.cluster.machine.network import ClusterNetwork
    from nighttrain.providers.local.cluster.node.volumes import PodVolumes
    from nighttrain.providers.local.cluster.rules.claims import ClaimFolders
    from nighttrain.providers.local.cluster.store.events import EventRecorder

# What the kubelet reports of a log as a termination message.
_MESSAGE_LINES, _MESSAGE_BYTES = 80, 2048

# Where a container leaves its last words unless it says otherwise.
_MESSAGE_PATH = "/dev/termination-log"

# The most the kubelet reads of a termination message file.
_MESSAGE_FILE_BYTES = 4096

# The exit code of what SIGKILL ended.
_KILLED = 137

# A container that never ran has this start time on a real cluster too.
_NEVER_STARTED = "1970-01-01T00:00:00Z"

# A container that ran this long before it failed is not crashing in a loop; its pauses start again.
_STEADY_SECONDS = 600.0

# The kubelet looks at a waiting image again about a second later, and only then says that it backs off.
_SECOND_LOOK_SECONDS = 1.0


# Whoever had to wait for others to end still gets this long after SIGTERM; a real kubelet's number.
_LAST_MOMENT_SECONDS = 2.0


@dataclass
class Node:
    """The things that every pod of the node shares.

    :param starting: how many processes may be starting at a time
    :param configuration_changed: resolves when a ConfigMap or Secret changes; replaced each time
    :param namespaces: starts containers in mount namespaces of their own, if this machine allows it
    :param memory: enforces memory limits
    :param claims: where PersistentVolumeClaims have their data
    """

    store: Store
    images: ImageTable
    network: ClusterNetwork
    directory: Path
    cluster_id: str
    name: str
    recorder: EventRecorder
    starting: asyncio.Semaphore
    back_off: BackOff
    sleep: Callable[[float], Awaitable[None]]
    configuration_changed: asyncio.Event
    namespaces: MountNamespaces
    memory: MemoryLimits
    claims: ClaimFolders

    def now(self) -> str:
        return timestamp(self.store.clock())


class PodContext(Protocol):
    """The part of a pod that its containers need."""

    pod: Object
    node: Node
    ip: str
    directory: Path
    volumes: PodVolumes

    def publish(self) -> None: ...


class ContainerRunner:
    """Runs one container until it is not to be started again, or until the task is cancelled.

    Cancelling :meth:`run` leaves the process alone: :meth:`stop` ends it.
    """

    def __init__(self, context: PodContext, container: Container, policy: str) -> None:
        self._context = context
        self._node = context.node
        self._container = container
        self._policy = policy
        self._crashes = 0
        self._probes: set[asyncio.Task[None]] = set()
        self._target: ProbeTarget | None = None
        self._starts = 0
        self._message_file: Path | None = None

    async def run(self) -> None:
        container = self._container
        while True:
            image = await self._image()
            env = await self._environment(image)
            process = await self._begin(image, env)
            self._context.publish()
            if process is not None:
                self._begin_probes()
                self.record_exit(process, await process.wait())
            await self._end_probes()
            code = container.exit_code or 0
            if not container.restarts_after(code, self._policy):
                self._context.publish()
                return
            self._context.publish()
            await self._pause_before_restart(process)

    async def stop(self, grace_seconds: float, after: Collection[asyncio.Task[None]] = ()) -> None:
        """SIGTERM, then SIGKILL, within the grace period.

        :param after: what has to end before SIGTERM; it may leave nothing of the grace period but a moment
        """
        process = self._container.process
        await self._end_probes()
        if process is None or "terminated" in self._container.state:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_seconds
        least = 0.0
        if after:
            await asyncio.wait(after, timeout=max(0.0, end - loop.time()))
            least = min(grace_seconds, _LAST_MOMENT_SECONDS)
        self.record_exit(process, await process.stop(max(least, end - loop.time())))

    # Image

    async def _image(self) -> ImageEnvironment:
        """The environment that stands for the image; waits, as long as it takes, if there is none."""
        name = self._container.spec.get("image") or ""
        try:
            image = self._node.images.find(name)
        except InvalidImageNameError as error:
            why = f'Failed to apply default image tag "{name}": couldn\'t parse image name "{name}": {error}'
            await self._wait_for_ever("InspectFailed", "InvalidImageName", why)
            raise AssertionError("unreachable") from error
        base, tag = parse_reference(name)
        self._container.image = name if "@" in name else f"{base}:{tag}"
        if image is not None:
            return image
        if self._container.spec.get("imagePullPolicy") == "Never":
            why = f'Container image "{name}" is not present with pull policy of Never'
            await self._wait_for_ever("ErrImageNeverPull", "ErrImageNeverPull", why)
        return await self._fail_to_pull(name)

    async def _wait_for_ever(self, event: str, reason: str, message: str) -> None:
        self._warn(event, message)
        self._warn("Failed", f"Error: {reason}")
        self._wait_as(reason, message)
        await asyncio.get_running_loop().create_future()

    async def _fail_to_pull(self, name: str) -> ImageEnvironment:
        known = ", ".join(self._node.images.names()) or "none"
        why = (
            f'failed to pull and unpack image "{name}": failed to resolve image: {name}: not found: '
            f"the embedded cluster pulls nothing and has these images: {known}"
        )
        pause = 0
        while True:
            self._tell("Pulling", f'Pulling image "{name}"')
            self._warn("Failed", f'Failed to pull image "{name}": {why}')
            self._warn("Failed", "Error: ErrImagePull")
            self._wait_as("ErrImagePull", why)
            await self._node.sleep(_SECOND_LOOK_SECONDS)
            self._tell("BackOff", f'Back-off pulling image "{name}"')
            self._warn("Failed", "Error: ImagePullBackOff")
            self._wait_as("ImagePullBackOff", f'Back-off pulling image "{name}": ErrImagePull: {why}')
            await self._node.sleep(self._node.back_off.seconds(pause))
            pause += 1
            image = self._node.images.find(name)
            if image is not None:
                return image

    # Configuration

    async def _environment(self, image: ImageEnvironment) -> dict[str, str]:
        """The container's variables; waits until every ConfigMap and Secret they need is there."""
        name = self._container.spec["image"]
        pulled = f'Container image "{name}" already present on machine and can be accessed by the pod'
        while True:
            changed = self._node.configuration_changed
            self._tell("Pulled", pulled)
            try:
                return self._resolver().resolve(self._base(image))
            except ConfigError as error:
                self._warn("Failed", f"Error: {error}")
                self._wait_as("CreateContainerConfigError", str(error))
            await changed.wait()

    def _resolver(self) -> Environment:
        return Environment(
            self._node.store,
            self._context.pod,
            self._container.spec,
            pod_ip=self._context.ip,
            host_ip=self._node.network.host_ip,
        )

    def _base(self, image: ImageEnvironment) -> dict[str, str]:
        hostname = self._context.pod["spec"].get("hostname") or self._context.pod["metadata"]["name"]
        return base_environment(
            image, cluster_id=self._node.cluster_id, folder=self._folder, hostname=hostname
        )

    @property
    def _folder(self) -> Path:
        return self._context.directory / self._container.name

    # Process

    async def _begin(self, image: ImageEnvironment, env: dict[str, str]) -> ContainerProcess | None:
        """Start the process; waits as long as one of its mounts cannot be made."""
        while True:
            try:
                async with self._node.starting:
                    return self._start(image, env)
            except SubPathError as error:
                self._warn("Failed", f"Error: {error}")
                self._wait_as("CreateContainerConfigError", str(error))
            await self._node.sleep(self._node.back_off.first)

    def _start(self, image: ImageEnvironment, env: dict[str, str]) -> ContainerProcess | None:
        """Start the process; None if the command cannot be run, which is an end of its own."""
        container = self._container
        mounts = [*self._context.volumes.mounts(container.spec), *self._message_mount()]
        (self._folder / "tmp").mkdir(parents=True, exist_ok=True)
        log = ContainerLog(self._context.directory / f"{container.name}-{self._starts}.log")
        self._starts += 1
        container.previous_log, container.log = container.log, log
        container.image_id = image.digest
        container.container_id = f"nighttrain://{secrets.token_hex(32)}"
        cwd = Path(container.spec.get("workingDir") or self._folder)
        try:
            argv = self._resolver().command(env)
            process = start(argv, env=env, cwd=cwd, log=log, namespaces=self._node.namespaces, mounts=mounts)
        except SubPathError as error:
            log.close()
            raise SubPathError(
                f"failed to prepare subPath of container {container.name!r}: {error}"
            ) from error
        except StartError as error:
            log.close()
            self._created()
            self._warn("Failed", f"Error: {error}")
            self._terminated(128, "StartError", str(error), _NEVER_STARTED, self._node.now())
            return None
        self._created()
        self._limit_memory(process)
        container.process = process
        container.last_state = container.state if "terminated" in container.state else container.last_state
        container.state = {"running": {"startedAt": _stamp(process.started_at)}}
        container.started = "startupProbe" not in container.spec
        container.ready = container.started and "readinessProbe" not in container.spec
        if container.role is Role.INIT:
            container.ready = False
        self._target = ProbeTarget(
            container.spec, self._context.ip, env, cwd, self._folder, self._node.namespaces, process
        )
        self._tell("Started", "Container started")
        return process

    def _created(self) -> None:
        if "terminated" in self._container.state or self._container.last_state:
            self._container.restarts += 1
        self._tell("Created", "Container created")

    def _limit_memory(self, process: ContainerProcess) -> None:
        limit = ((self._container.spec.get("resources") or {}).get("limits") or {}).get("memory")
        if limit is not None and quantity(limit) > 0:
            self._node.memory.watch(process, int(quantity(limit)))

    def record_exit(self, process: ContainerProcess, status: ExitStatus) -> None:
        container = self._container
        if process is not container.process or "terminated" in container.state:
            return
        message = self._termination_message(status.code)
        reason = "Completed" if status.code == 0 else "Error"
        if process.out_of_memory and status.code == _KILLED:
            reason = "OOMKilled"
        self._terminated(status.code, reason, message, _stamp(process.started_at), _stamp(status.finished_at))
        if container.role is Role.INIT:
            container.ready = status.code == 0

    def _terminated(self, code: int, reason: str, message: str, started: str, finished: str) -> None:
        container = self._container
        state: Object = {"exitCode": code, "reason": reason}
        if message:
            state["message"] = message
        state |= {"startedAt": started, "finishedAt": finished, "containerID": container.container_id}
        if "terminated" in container.state:
            container.last_state = container.state
        container.state = {"terminated": state}
        container.ready = container.started = False

    # Termination message

    def _message_mount(self) -> list[Mount]:
        """A new file for the container's last words, where it expects one."""
        given = self._container.spec.get("terminationMessagePath") or _MESSAGE_PATH
        path = Path(os.path.normpath(self._folder / given))
        if path.is_relative_to(self._folder):
            # It has a folder of its own there; what an earlier start wrote is not this one's. A link in it
            # could lead anywhere.
            self._message_file = path
            if path.is_file() and path.parent.resolve().is_relative_to(self._folder.resolve()):
                path.unlink()
            return []
        self._message_file = None
        if not self._node.namespaces.available:
            return []
        folder = self._context.directory / ".messages"
        folder.mkdir(parents=True, exist_ok=True)
        self._message_file = folder / f"{self._container.name}-{self._starts}"
        self._message_file.touch()
        self._message_file.chmod(0o666)
        return [Mount(str(self._message_file), os.path.normpath(f"/{given.lstrip('/')}"))]

    def _termination_message(self, code: int) -> str:
        """The container's last words: from its file, or its log if the policy says so."""
        text = ""
        if self._message_file is not None and self._message_file.is_file():
            with self._message_file.open("rb") as file:
                text = file.read(_MESSAGE_FILE_BYTES).decode(errors="replace")
        fallback = self._container.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not text and fallback and code != 0 and self._container.log is not None:
            text = self._container.log.tail(_MESSAGE_LINES, _MESSAGE_BYTES)
        return text

    async def _pause_before_restart(self, process: ContainerProcess | None) -> None:
        container = self._container
        metadata = self._context.pod["metadata"]
        if process is not None and process.seconds >= _STEADY_SECONDS:
            self._crashes = 0
        self._crashes += 1
        if self._crashes == 1:
            return  # the first restart comes at once
        seconds = self._node.back_off.seconds(self._crashes - 2)
        whole = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        self._warn("BackOff", f"Back-off restarting failed container {container.name} in pod {whole}")
        container.last_state = container.state
        why = f"back-off {_duration(seconds)} restarting failed container={container.name} pod={whole}"
        self._wait_as("CrashLoopBackOff", why)
        await self._node.sleep(seconds)

    # Probes

    def _begin_probes(self) -> None:
        spec = self._container.spec
        if "startupProbe" in spec:
            self._probe("startupProbe", self._startup_passed, self._must_live("Startup", "startup"))
        else:
            self._begin_steady_probes()

    def _begin_steady_probes(self) -> None:
        spec = self._container.spec
        if "readinessProbe" in spec:
            self._probe("readinessProbe", self._readiness_passed, self._readiness_failed)
        if "livenessProbe" in spec:
            self._probe("livenessProbe", lambda: False, self._must_live("Liveness", "liveness"))

    def _probe(self, kind: str, passed: Callable[[], bool], failed: Callable[[str, bool], bool]) -> None:
        if self._target is not None:
            probing = keep_probing(
                self._container.spec[kind], self._target, passed=passed, failed=failed, sleep=self._node.sleep
            )
            self._background(probing)

    def _background(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)

    async def _end_probes(self) -> None:
        probes = list(self._probes)
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    def _startup_passed(self) -> bool:
        self._container.started = True
        self._container.ready = "readinessProbe" not in self._container.spec
        self._context.publish()
        self._begin_steady_probes()
        return True

    def _readiness_passed(self) -> bool:
        if self._container.running and not self._container.ready:
            self._container.ready = True
            self._context.publish()
        return False

    def _readiness_failed(self, message: str, over: bool) -> bool:
        self._warn("Unhealthy", f"Readiness probe failed: {message}")
        if over and self._container.ready:
            self._container.ready = False
            self._context.publish()
        return False

    def _must_live(self, title: str, word: str) -> Callable[[str, bool], bool]:
        def failed(message: str, over: bool) -> bool:
            self._warn("Unhealthy", f"{title} probe failed: {message}")
            if over:
                self._tell(
                    "Killing", f"Container {self._container.name} failed {word} probe, will be restarted"
                )
                process = self._container.process
                if process is not None:
                    self._background(_stop(process, self._grace_seconds()))
            return over

        return failed

    def _grace_seconds(self) -> float:
        return float(self._context.pod["spec"].get("terminationGracePeriodSeconds", 30))

    # Telling

    def _wait_as(self, reason: str, message: str) -> None:
        self._container.state = waiting(reason, message)
        self._context.publish()

    def _tell(self, reason: str, message: str) -> None:
        self._node.recorder.normal(self._context.pod, reason, message, field=self._container.field_path)

    def _warn(self, reason: str, message: str) -> None:
        self._node.recorder.warning(self._context.pod, reason, message, field=self._container.field_path)


async def _stop(process: ContainerProcess, seconds: float) -> None:
    await process.stop(seconds)


def _stamp(seconds: float) -> str:
    return timestamp(datetime.fromtimestamp(seconds, UTC))


def _duration(seconds: float) -> str:
    """Seconds the way Go writes them: 10s, 2m40s, 5m0s."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
