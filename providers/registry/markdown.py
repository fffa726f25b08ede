"""Texts from anywhere inside Markdown or HTML: whatever they hold, they are shown as text."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, urlsplit

from nighttrain.providers.errors import clip

MAX_CELL = 1_000
"""Characters of a text in a cell: a version's description holds 5,000."""

# Markdown's own characters and HTML's, as entities: renderers differ in which backslashes they know.
_ACTIVE = frozenset("&<>\"'`*_[]()|\\#~!@^{}$")
_ENTITIES = {ord(character): f"&#{ord(character)};" for character in _ACTIVE}
# Some renderers make links of bare addresses. A bare name with a dot is none: every metric has one.
_ADDRESS = re.compile(
    r"(?i):(?=//)|(?<=http|data):|(?<=https):|(?<=ftp):|(?<=mailto):|(?<=javascript):|(?<=www)\."
)
_LEADING = re.compile(r"^(?:[-+=:>]|\d+[.)])")
_IN_ADDRESS = "/:?#@!$&*+,;=~%-._"
_LONGEST_ADDRESS = 1_000


def text(value: object, limit: int = 200) -> str:
    """``value`` on one line, as itself: no emphasis, link, cell, heading, list or element begins in it.

    Line breaks and what else cannot be seen (what turns the direction of writing, too) become blanks.

    :param limit: characters of ``value`` that are shown
    """
    return _LEADING.sub(lambda found: found[0][:-1] + _entity(found[0][-1]), cell(value, limit))


def cell(value: object, limit: int = MAX_CELL) -> str:
    """The same within a line, such as in a cell of a table, where neither heading nor list can begin."""
    seen = "".join(" " if _is_invisible(character) else character for character in str(value))
    escaped = clip(" ".join(seen.split()), limit).translate(_ENTITIES)
    return _ADDRESS.sub(lambda found: _entity(found[0]), escaped)


def link(label: object, url: object) -> str:
    """A link, or its text where the address is none of the web's."""
    shown, address = text(label), _address(url)
    return f"[{shown}]({address})" if shown and address else shown


def row(*cells: str) -> str:
    """A row of a table; the cells are Markdown already."""
    return f"| {' | '.join(cells)} |"


def _address(url: object) -> str:
    given = str(url)
    if len(given) > _LONGEST_ADDRESS or any(each.isspace() or _is_invisible(each) for each in given):
        return ""
    try:
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            return ""
    except ValueError:
        return ""
    # What is left of Markdown's: brackets, quotes, pipes, backslashes.
    return quote(given, safe=_IN_ADDRESS).replace("*", "%2A").replace("_", "%5F").replace("~", "%7E")


def _entity(character: str) -> str:
    return f"&#{ord(character)};"


def _is_invisible(character: str) -> bool:
    # Halves of surrogate pairs are not among them: they become U+FFFD where the text is clipped.
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Zl", "Zp")
