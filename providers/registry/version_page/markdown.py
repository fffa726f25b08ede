"""Texts from anywhere inside Markdown: whatever they hold, they are shown as text."""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit

from nighttrain.providers.errors import clip

# Markdown's own characters and HTML's, as entities: renderers differ in which backslashes they know.
_ACTIVE = frozenset("&<>\"'`*_[]()|\\#~!@^{}$")
_ENTITIES = {ord(character): f"&#{ord(character)};" for character in _ACTIVE}
# Line breaks and other control characters; also those that turn the direction of what follows.
_INVISIBLE = re.compile("[\x00-\x20\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")
_ADDRESS = re.compile(r"(?i)(?:\b(?:[a-z][a-z0-9+.\-]*)?:(?=//)|\bwww\.)")
_LEADING = re.compile(r"^(?:[-+=:>]|\d+[.)])")
_IN_ADDRESS = "/:?#@!$&*+,;=~%-._"
_LONGEST_ADDRESS = 1_000


def text(value: object, limit: int = 200) -> str:
    """``value`` on one line, as itself: no emphasis, link, cell, heading, list or element begins in it.

    :param limit: characters of ``value`` that are shown
    """
    plain = clip(_INVISIBLE.sub(" ", str(value)).strip(), limit)
    # Some renderers make links of bare addresses.
    plain = _ADDRESS.sub(lambda found: f"{found[0][:-1]}\0{ord(found[0][-1])};", plain)
    escaped = plain.translate(_ENTITIES).replace("\0", "&#")
    return _LEADING.sub(lambda found: f"{found[0][:-1]}&#{ord(found[0][-1])};", escaped)


def link(label: object, url: object) -> str:
    """A link, or its text where the address is none of the web's."""
    shown, address = text(label), _address(url)
    return f"[{shown}]({address})" if shown and address else shown


def row(*cells: str) -> str:
    """A row of a table; the cells are Markdown already."""
    return f"| {' | '.join(cells)} |"


def _address(url: object) -> str:
    given = str(url)
    if len(given) > _LONGEST_ADDRESS or _INVISIBLE.search(given):
        return ""
    try:
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            return ""
    except ValueError:
        return ""
    # What is left of Markdown's: brackets, quotes, pipes, backslashes.
    return quote(given, safe=_IN_ADDRESS).replace("*", "%2A").replace("_", "%5F").replace("~", "%7E")
