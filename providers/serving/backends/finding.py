"""Objects that may not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nighttrain.providers.errors import ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable

_Answer = TypeVar("_Answer")


async def found(asked: Awaitable[_Answer]) -> _Answer | None:
    """What was asked for, e.g. an object; ``None`` where there is none."""
    try:
        return await asked
    except ObjectNotFoundError:
        return None
