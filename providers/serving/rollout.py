"""The rollout engine: bring a version up beside the serving one, wait until ready, switch, keep the old one.

The stages are apart and may each be repeated, by another process too: ``start``, ``wait_ready``, ``finish``,
or ``abort``. What they need is in the serving system, so a worker may die between any two of them. The
rollout that started last wins: an earlier one of that endpoint, still under way, is refused at ``finish``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ArtifactDigestMismatchError,
    NothingToRollBackToError,
    RolloutFailedError,
)
from nighttrain.providers.registry.artifacts import verify

if TYPE_CHECKING:
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.serving.backends.base import (
        EndpointStatus,
        Progress,
        Readiness,
        ServingBackend,
    )
    from nighttrain.providers.serving.spec import ServingSpec

# Two small requests a second for each rollout under way, and a switch within a second of readiness.
POLL_SECONDS = 1.0

# Before a version that lost its requests earlier is taken down: longer than clusters need to tell every node.
DRAIN_SECONDS = 5.0

# A rollback's target is up already and ready; if it was scaled to zero it has its image, and needs a minute
# or two. If it is not ready then, a person should know soon.
ROLLBACK_SECONDS = 300.0

Sleep = Callable[[float], Awaitable[None]]


async def prepare(registry: ModelRegistry, model_name: str, version: str) -> str:
    """Resolve a version and verify its artifact against what was registered, before anything is created.

    :return: the recorded sha256, for ``ServingSpec.artifact_digest``
    :raises ModelVersionNotFoundError: no such version
    :raises ArtifactDigestMismatchError: the artifact differs, or no digest was recorded
    """
    found = await registry.get_version(model_name, version)
    await verify(registry.client, found)
    if found.digest is None:
        raise ArtifactDigestMismatchError(f"version {version} of {model_name!r} has no recorded digest")
    return found.digest


class Rollout:
    """Rolls versions out on one serving backend, and back.

    :param sleep: what waiting is done with
    :param clock: seconds that only grow
    """

    def __init__(
        self,
        backend: ServingBackend,
        *,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._sleep = sleep
        self._clock = clock

    async def start(self, spec: ServingSpec, *, on_progress: Progress | None = None) -> bool:
        """Bring the candidate up without requests, or adopt one that is up.

        Replicas of what exists are left as they are; only what somebody scaled to zero is scaled up.

        :return: False if this version answers already, in this form; the later stages then do nothing
        :raises ConfigurationError: the spec cannot be; nothing was created
        :raises WorkloadConflictError: a name is taken by something that is not this endpoint's
        """
        tell = on_progress or _silent
        spec.validate()
        await self._backend.check(spec)
        before = await self._backend.status(spec.endpoint, spec.namespace)
        changed = await self._backend.deploy(spec, tell)
        about = f"version {spec.version} of {spec.model_name}"
        serves = before is not None and before.stable_version == spec.version
        # With a candidate of that version, an earlier start of this very rollout has changed its form.
        if before and serves and not changed and before.candidate_version != spec.version:
            readiness = await self._backend.readiness(spec.endpoint, spec.namespace, spec.version)
            if readiness.answers:
                await self._backend.switch(spec.endpoint, spec.namespace, spec.version)
                strayed = before.selected_version != spec.version
                mended = "answers, and the Service, which somebody had changed, selects it again"
                tell(f"{spec.endpoint}: {about} {mended if strayed else 'serves already, nothing to do'}")
                return False
            tell(f"{spec.endpoint}: {about} has the requests, and does not answer them: {readiness.detail}")
            return True
        beside = f", beside version {before.stable_version}" if before and not serves else ""
        tell(f"{spec.endpoint}: {about} is {'started' if changed else 'there already'}{beside}")
        return True

    async def wait_ready(
        self,
        spec: ServingSpec,
        *,
        timeout_seconds: float | None = None,
        on_progress: Progress | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        """Return once every replica of the candidate is ready. Changes nothing, so ``abort`` is the caller's.

        :param timeout_seconds: counted from this call; ``spec.startup_timeout_seconds`` if not given
        :raises RolloutFailedError: it will not become ready, or did not in time; the message says why
        """
        seconds = spec.startup_timeout_seconds if timeout_seconds is None else timeout_seconds
        await self.wait_version_ready(
            spec.endpoint,
            spec.namespace,
            spec.version,
            timeout_seconds=seconds,
            on_progress=on_progress,
            sleep=sleep,
        )

    async def finish(self, spec: ServingSpec, *, on_progress: Progress | None = None) -> EndpointStatus:
        """Switch to the ready candidate; the old version stays for a rollback, those before it go.

        Returns only if ready pods are there for the requests after the switch.

        :raises RolloutFailedError: the candidate is not ready any more, or a later rollout has begun
        """
        tell = on_progress or _silent
        endpoint, namespace, version = spec.endpoint, spec.namespace, spec.version
        before = await self._backend.status(endpoint, namespace)
        if before and before.stable_version == version and before.candidate_version is None:
            await self._backend.switch(endpoint, namespace, version)
            return await self._clean(endpoint, namespace, version, tell)
        if before and before.candidate_version != version:
            later = f"of version {before.candidate_version} " if before.candidate_version else ""
            raise RolloutFailedError(
                f"{endpoint}: another rollout or rollback {later}came after the start of this one of version "
                f"{version}, which therefore ends; {before.describe()}"
            )
        readiness = await self._backend.readiness(endpoint, namespace, version)
        if not readiness.ready:
            raise await self._failed(endpoint, namespace, version, readiness, "it is not ready")
        await self._backend.switch(endpoint, namespace, version)
        if not before or before.stable_version != version:
            tell(f"{endpoint}: all requests go to version {version}")
        return await self._clean(endpoint, namespace, version, tell)

    async def abort(self, spec: ServingSpec) -> None:
        """Undo ``start``: the candidate goes; what serves or is kept for a rollback stays as it was."""
        await self._backend.revert(spec.endpoint, spec.namespace, spec.version)

    async def run(
        self,
        spec: ServingSpec,
        *,
        on_progress: Progress | None = None,
    ) -> EndpointStatus:
        """All stages in one.

        A failure or a cancellation aborts. An unreachable cluster leaves all as it is; the next try adopts
        what is there.

        :raises ConfigurationError: see :meth:`start`
        :raises RolloutFailedError: see :meth:`wait_ready`; the version before still serves
        """
        try:
            if await self.start(spec, on_progress=on_progress):
                await self.wait_ready(spec, on_progress=on_progress)
            return await self.finish(spec, on_progress=on_progress)
        except (RolloutFailedError, asyncio.CancelledError):
            await asyncio.shield(asyncio.ensure_future(self.abort(spec)))
            raise

    async def rollback(
        self,
        endpoint: str,
        namespace: str,
        *,
        timeout_seconds: float = ROLLBACK_SECONDS,
        on_progress: Progress | None = None,
    ) -> EndpointStatus:
        """Switch back to the version before, which is up; the one left becomes the version before.

        If somebody scaled it to zero it gets as many replicas as the version that serves has. Other replicas
        are left as they are.

        :param timeout_seconds: until the version before is ready
        :raises NothingToRollBackToError: nothing was rolled out, or no version is kept beside the serving one
        :raises RolloutFailedError: the version before is not ready; nothing was changed
        """
        tell = on_progress or _silent
        before = await self._backend.status(endpoint, namespace)
        if before is None:
            raise NothingToRollBackToError(f"there is no endpoint {endpoint} in namespace {namespace}")
        previous = _kept_previous(before)
        replicas = max(1, before.replicas)
        scaled_up = await self._backend.scale_up(endpoint, namespace, previous, replicas, tell)
        try:
            await self.wait_version_ready(
                endpoint, namespace, previous, timeout_seconds=timeout_seconds, on_progress=on_progress
            )
        except (RolloutFailedError, asyncio.CancelledError) as error:
            if scaled_up:
                undoing = self._backend.revert(endpoint, namespace, previous)
                await asyncio.shield(asyncio.ensure_future(undoing))
            if scaled_up and isinstance(error, RolloutFailedError):
                undone = "It was scaled to zero replicas; the rollback scaled it up, and has taken that back."
                raise RolloutFailedError(f"{error}\n{undone}") from error
            raise
        await self._backend.switch(endpoint, namespace, previous)
        tell(f"{endpoint}: rolled back from version {before.stable_version} to {previous}")
        return await self._answering(endpoint, namespace, previous)

    async def status(self, endpoint: str, namespace: str) -> EndpointStatus | None:
        """The endpoint's state; None if nothing was ever rolled out."""
        return await self._backend.status(endpoint, namespace)

    async def wait_version_ready(
        self,
        endpoint: str,
        namespace: str,
        version: str,
        *,
        timeout_seconds: float,
        on_progress: Progress | None = None,
        sleep: Sleep | None = None,
    ) -> None:
        """Wait as :meth:`wait_ready`, by names only: for a trigger, whose arguments are plain values.

        :raises RolloutFailedError: as :meth:`wait_ready`
        """
        tell, pause = on_progress or _silent, sleep or self._sleep
        end = self._clock() + timeout_seconds
        told = ""
        while True:
            readiness = await self._backend.readiness(endpoint, namespace, version)
            if readiness.detail != told:
                told = readiness.detail
                tell(f"{endpoint}: version {version}: {told}")
            if readiness.ready:
                return
            if readiness.failure:
                raise await self._failed(endpoint, namespace, version, readiness, "it cannot become ready")
            if self._clock() >= end:
                why = f"it was not ready within {timeout_seconds:g} seconds"
                raise await self._failed(endpoint, namespace, version, readiness, why)
            await pause(POLL_SECONDS)

    async def _failed(
        self, endpoint: str, namespace: str, version: str, readiness: Readiness, why: str
    ) -> RolloutFailedError:
        status = await self._backend.status(endpoint, namespace)
        serving = status.describe() if status else "nothing serves yet"
        if status and status.answers:
            serving = f"version {status.stable_version} still serves"
        reasons = readiness.failure or readiness.doubt or f"Last seen: {readiness.detail}."
        lines = [f"{endpoint}: version {version}: {why}; {serving}.", reasons]
        if "Last lines" not in reasons:
            last = await self._backend.last_lines(endpoint, namespace, version)
            lines += ["Last lines of the log:", *(f"  {line}" for line in last)] if last else []
        return RolloutFailedError("\n".join(lines))

    async def _answering(self, endpoint: str, namespace: str, version: str) -> EndpointStatus:
        """The endpoint's state after the switch, if it sends its requests to ready pods of the version.

        :raises RolloutFailedError: it does not
        """
        status = await self._backend.status(endpoint, namespace)
        if status is None:
            raise RolloutFailedError(f"{endpoint}: somebody removed the endpoint right after the switch")
        if status.stable_version != version or not status.answers:
            raise RolloutFailedError(
                f"{endpoint}: version {version} was switched to, and then something else happened to it: "
                f"{status.describe()}. Run this again, or roll back"
            )
        return status

    async def _clean(self, endpoint: str, namespace: str, version: str, tell: Progress) -> EndpointStatus:
        status = await self._answering(endpoint, namespace, version)
        kept = {status.stable_version, status.previous_version, status.candidate_version}
        old = [each.version for each in status.versions if each.version not in kept]
        if not old:
            return status
        await self._sleep(DRAIN_SECONDS)
        for before in old:
            tell(f"{endpoint}: version {before} is removed")
            await self._backend.remove(endpoint, namespace, before)
        return await self._answering(endpoint, namespace, version)


def _kept_previous(status: EndpointStatus) -> str:
    previous = status.previous_version
    if previous is None or previous not in {version.version for version in status.versions}:
        raise NothingToRollBackToError(
            f"{status.endpoint} serves version {status.stable_version}, and no version before it is kept"
        )
    return previous


def _silent(_: str) -> None:
    """Drop progress that nobody asked for."""
