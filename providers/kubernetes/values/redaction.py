"""Keep secrets out of whatever is logged or stored."""

from __future__ import annotations

from nighttrain.providers.redaction import (
    Assignment,
    assignments,
    is_secret,
    looks_made_up,
    names_a_secret,
    redact,
)

__all__ = ["Assignment", "assignments", "is_secret", "looks_made_up", "names_a_secret", "redact"]
