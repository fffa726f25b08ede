"""Text, also where somebody gave a number: 20130105, say."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


def text_of(field: str, value: object) -> str:
    """A string as it is, a number or a flag as JSON and YAML write it.

    :param field: the parameter's name, for messages
    :raises ConfigurationError: it is anything else
    """
    if isinstance(value, str):
        # Not a subclass such as the markup-safe strings of template engines.
        return str(value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise ConfigurationError(
        field, value, f"must be a string, not {type(value).__name__}; write a template that gives text"
    )


def text_or_none(field: str, value: object) -> str | None:
    """The same, where nothing may be given.

    :raises ConfigurationError: see :func:`text_of`
    """
    return None if value is None else text_of(field, value)


def as_texts(holder: object, *names: str) -> None:
    """Make the attributes of these names text, where they are given.

    :raises ConfigurationError: see :func:`text_of`
    """
    for name in names:
        setattr(holder, name, text_or_none(name, getattr(holder, name)))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length, the first one the head, under one another; each cell on one line."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def one_line(text: str) -> str:
    """``text`` on one line, without what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text).strip()
