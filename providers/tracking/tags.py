"""What may be written into MLflow's tags and params: clipped, redacted, with keys MLflow accepts.

Tags are read by everybody who can open the tracking server's page, so nothing that looks like a credential
may reach them, not even by accident (an image with a registry password, a command line with ``--token=...``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nighttrain.providers.errors import clip

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "nighttrain."
"""Every tag of ours starts with it, so that people see at a glance who wrote what."""

MAX_KEY = 250
"""MLflow refuses longer keys of tags, params and metrics."""

MAX_RUN_TAG = 8_000
"""MLflow cuts a run's tag here without a word; we cut first, with an ellipsis that says so."""

MAX_PARAM = 6_000
"""MLflow cuts a param here."""

MAX_VERSION_TAG = 5_000
"""MLflow takes 100,000 characters in a registry tag on new schemas and 5,000 on servers upgraded from old
ones; the smaller number works on both."""

_HIDDEN = "***"
_KEY_REFUSED = re.compile(r"[^\w.\-: /]", re.ASCII)
_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)?$|secret|token(?![a-z_\-])|credential|authorization"
    r"|api[_-]?key|access[_-]?key|private[_-]?key",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(?<![A-Za-z0-9+.\-])(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]{0,30}://)[^\s/@'\"]{1,512}@")
# "max_tokens" and "tokenizer" are no secrets. Starting at a word's beginning and bounded: a tag may be long,
# and searching it must not take quadratic time.
_ASSIGNMENT = re.compile(
    r"(?<![\w\-])(?P<name>[\w\-]{0,64}?"
    r"(?:password|passwd|passphrase|secret|token(?![a-z_\-])|credential|api[_-]?key|access[_-]?key|private[_-]?key)"
    r"[\w\-]{0,64}[\"']?\s{0,8}[=:]\s{0,8}"
    r"|--[\w\-]{0,64}?(?:password|secret|token|key)\s{1,8})"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(?P<word>bearer|basic)\s+[A-Za-z0-9._~+/\-]{8,}=*", re.IGNORECASE)
_WELL_KNOWN = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}\b"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
)


def redact(text: str) -> str:
    """Replace what is obviously a credential by ``***``: user:password@ in URLs, ``token=...`` and the
    like."""
    text = _USERINFO.sub(lambda found: f"{found['scheme']}{_HIDDEN}@", text)
    text = _BEARER.sub(lambda found: f"{found['word']} {_HIDDEN}", text)
    text = _ASSIGNMENT.sub(lambda found: f"{found['name']}{_HIDDEN}", text)
    return _WELL_KNOWN.sub(_HIDDEN, text)


def clean_key(key: str) -> str:
    """``key`` with the characters MLflow refuses replaced by ``_``, clipped to its limit."""
    return _KEY_REFUSED.sub("_", key)[:MAX_KEY] or "_"


def clean_tags(tags: Mapping[str, object] | None, *, limit: int = MAX_RUN_TAG) -> dict[str, str]:
    """Tags as MLflow stores them: values as text, redacted and clipped to ``limit``; ``None`` values left
    out."""
    cleaned: dict[str, str] = {}
    for key, value in (tags or {}).items():
        if value is None:
            continue
        text = _HIDDEN if _SECRET_NAME.search(key) else redact(str(value)[: 2 * limit])
        cleaned[clean_key(key)] = clip(text, limit)
    return cleaned


def quoted(value: str) -> str | None:
    """``value`` as a literal of MLflow's filter language, or ``None`` where it cannot be written as one.

    The language knows no escapes: a value may hold one sort of quote only.
    """
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    return None
