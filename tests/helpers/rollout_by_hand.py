"""A rollout in steps as the engine drives it, by hand: look, change one thing, look again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ObjectConflictError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nighttrain.providers.serving.backends.traffic import Look, Target, TrafficBackend
    from nighttrain.providers.serving.spec import ServingSpec


class Hand:
    """Drives one backend. Each change has a fence of its own, as each phase of a rollout has.

    :param sleep: between two looks
    """

    def __init__(
        self,
        backend: TrafficBackend,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        looks: int = 600,
    ) -> None:
        self.backend = backend
        self.told: list[str] = []
        self.fence = 0
        self._sleep = sleep
        self._looks = looks

    async def bring_up(self, spec: ServingSpec) -> Target:
        """Bring the candidate up, and wait until it is ready."""
        target = await self.backend.begin(spec)
        self.fence += 1
        await self.backend.bring_up(spec, target, self.fence, self.told.append)
        seen = await self.until(target, lambda look: look.readiness.ready)
        assert seen.asked_percent == 0
        return target

    async def traffic(self, target: Target, percent: int, mirror_percent: int = 0) -> Look:
        """Ask for a share until a look says that it was asked for, and is routed."""
        self.fence += 1
        wanted = (percent, mirror_percent)
        for _ in range(self._looks):
            look = await self.backend.look(target)
            assert look.strayed is None, look.strayed
            differs = look.fence < self.fence or (look.asked_percent, look.mirrored_percent) != wanted
            ends = percent in (0, 100)
            if (
                not differs
                and look.routed_percent is not None
                and (not ends or look.routed_percent == percent)
            ):
                return look
            if differs:
                await self._try(
                    self.backend.set_traffic(
                        target, look, self.fence, percent=percent, mirror_percent=mirror_percent
                    )
                )
            await self._sleep(0.05)
        raise AssertionError(f"not so: {look}")

    async def promote(self, target: Target) -> Look:
        """Make the candidate the stable version."""
        return await self._to(target, self.backend.promote, lambda look: look.promoted)

    async def undo(self, target: Target) -> Look:
        """Take the candidate down."""
        return await self._to(target, self.backend.undo, lambda look: look.undone)

    async def until(self, target: Target, condition: Callable[[Look], bool]) -> Look:
        """Look until it is so."""
        for _ in range(self._looks):
            look = await self.backend.look(target)
            if condition(look):
                return look
            await self._sleep(0.05)
        raise AssertionError(f"not so: {look}")

    async def _to(
        self,
        target: Target,
        step: Callable[[Target, Look, int], Awaitable[None]],
        condition: Callable[[Look], bool],
    ) -> Look:
        self.fence += 1
        for _ in range(self._looks):
            look = await self.backend.look(target)
            assert look.strayed is None, look.strayed
            if condition(look):
                return look
            await self._try(step(target, look, self.fence))
            await self._sleep(0.05)
        raise AssertionError(f"not so: {look}")

    @staticmethod
    async def _try(change: Awaitable[None]) -> None:
        try:
            await change
        except ObjectConflictError:
            return
