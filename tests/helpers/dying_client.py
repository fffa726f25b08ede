"""An MLflow client whose process dies at its n-th call, before or after the server acted on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nighttrain.providers.tracking.client import MLflowClient

if TYPE_CHECKING:
    from collections.abc import Mapping


class CrashError(BaseException):
    """The process dies here; nothing may catch it."""


class DyingClient(MLflowClient):
    """Dies at a call.

    ``dies_at`` counts from 1; ``answered`` tells whether the server acted on that call first.
    """

    calls = 0
    dies_at = 1_000_000
    answered = False

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        idempotent: bool = True,
    ) -> dict[str, Any]:
        self.calls += 1
        if self.calls == self.dies_at and not self.answered:
            raise CrashError
        mine = self.calls
        try:
            return await super()._call(method, path, params=params, body=body, idempotent=idempotent)
        finally:
            if mine == self.dies_at:
                raise CrashError
