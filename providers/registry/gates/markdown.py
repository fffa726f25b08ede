"""Texts of others as cells of a Markdown table: they stay text, whatever is in them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from nighttrain.providers.errors import clip

MAX_CELL = 1_000
"""A version's description holds 5,000 characters."""

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "@": "&#64;"}
_SPECIAL = re.compile(r"[&<>|@\\`*_\[\]~#!$]")
# By GitHub's rules an address becomes a link by itself if it has a scheme, a www. or an @. A bare name with a
# dot does not: every metric has one.
_AUTOLINK = re.compile(r"(?i)(https?|ftp|mailto|javascript|data)(:)|(\bwww)(\.)")


def markdown_row(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(markdown_text(cell) for cell in cells)} |"


def markdown_text(text: str) -> str:
    """A text that stands in a line of Markdown, or of HTML, as it is written.

    Line breaks become blanks; characters that cannot be seen (those that turn the direction of writing, too)
    become U+FFFD.
    """
    line = " ".join(clip(text, MAX_CELL).split())
    line = "".join("\N{REPLACEMENT CHARACTER}" if _invisible(character) else character for character in line)
    line = _SPECIAL.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), line)
    return _AUTOLINK.sub(_unlinked, line)


def _unlinked(found: re.Match[str]) -> str:
    return f"{found[1]}&#58;" if found[1] else f"{found[3]}&#46;"


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
