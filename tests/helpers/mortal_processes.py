"""A process that dies at its n-th call to the cluster or to MLflow, before or after the server acted."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from helpers.dying_client import CrashError
from nighttrain.providers.kubernetes.api.client import ClusterClient
from nighttrain.providers.kubernetes.api.transport import Transport
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from nighttrain.providers.kubernetes.api.calls import Call
    from nighttrain.providers.kubernetes.api.connection import ClusterConfig


class Life:
    """Counts one process's calls; once it is dead, none of its tasks gets any further.

    :param dies_at: the number of the call, from 1; ``None`` for never
    :param answered: the server acts on that call first
    :param between: happens before each call, whoever makes it
    """

    def __init__(
        self, dies_at: int | None, *, answered: bool, between: Callable[[], Awaitable[None]]
    ) -> None:
        self.calls = 0
        self.dead = False
        self._dies_at = dies_at
        self._answered = answered
        self._between = between

    async def begins(self) -> int:
        """A call leaves the process; its number."""
        if self.dead:
            raise CrashError
        await self._between()
        self.calls += 1
        if self.calls == self._dies_at and not self._answered:
            self.dead = True
        if self.dead:
            raise CrashError
        return self.calls

    def ends(self, number: int) -> None:
        """Its answer would come back."""
        if number == self._dies_at:
            self.dead = True
        if self.dead:
            raise CrashError


class _Transport(Transport):
    life: Life

    async def answer(self, call: Call) -> dict[str, Any]:
        number = await self.life.begins()
        try:
            return await super().answer(call)
        finally:
            self.life.ends(number)


class _Tracking(MLflowClient):
    life: Life

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        idempotent: bool = True,
    ) -> dict[str, Any]:
        number = await self.life.begins()
        try:
            return await super()._call(method, path, params=params, body=body, idempotent=idempotent)
        finally:
            self.life.ends(number)


class MortalProcess:
    """The connections of one process, which end with it."""

    def __init__(self, life: Life, cluster: ClusterConfig, mlflow: str, *, attempts: int) -> None:
        self._life = life
        self._configs = cluster, TrackingConfig(uri=mlflow)
        self._attempts = attempts
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        transport = await _Transport.open(self._configs[0], attempts=self._attempts)
        assert isinstance(transport, _Transport)
        transport.life = self._life
        self.cluster = await self._open.enter_async_context(ClusterClient(transport))
        tracking = _Tracking(self._configs[1])
        tracking.life = self._life
        self.tracking = await self._open.enter_async_context(tracking)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()
