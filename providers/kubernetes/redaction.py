"""Keep secrets out of whatever is logged or stored."""

from __future__ import annotations

import re

_MASK = "***"
_PATTERNS = (
    # user:password@ in a URL
    (re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"), _MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {_MASK}"),
    # name=value and "name": "value", where the name says what it is
    (
        re.compile(
            r"(?i)((?:[\w-]*(?:password|passwd|secret|token|api[_-]?key|access[_-]?key|credential|authorization)"
            r"[\w-]*)[\"']?\s*[=:]\s*[\"']?)(?!\*\*\*)(?!(?:bearer|basic)\b)[^\s\"',;]{3,}"
        ),
        rf"\1{_MASK}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), _MASK),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), _MASK),
)


def redact(text: str) -> str:
    """``text`` with what looks like a credential masked."""
    for pattern, mask in _PATTERNS:
        text = pattern.sub(mask, text)
    return text
