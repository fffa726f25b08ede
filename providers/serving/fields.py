"""Checks of what people write into fields."""

from __future__ import annotations

import sys
from typing import Any

from nighttrain.providers.errors import ConfigurationError


def is_number(value: object) -> bool:
    """True for a number that calculates: not a truth value, not NaN, not infinite, no larger than a float."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def require_a(kind: type | tuple[type, ...], field: str, value: Any, fix: str) -> None:
    """Refuse what is of another type.

    :raises ConfigurationError: names the field, the value and the fix
    """
    if not isinstance(value, kind):
        raise ConfigurationError(field, value, fix)
