"""Keep secrets out of whatever is logged or stored."""

from __future__ import annotations

from nighttrain.providers.redaction import redact

__all__ = ["redact"]
