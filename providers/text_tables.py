"""Tables of text for a person at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length, the first one the head, under one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def one_line(text: str) -> str:
    """``text`` on one line, without what a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text).strip()
