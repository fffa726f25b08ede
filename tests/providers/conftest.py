from __future__ import annotations

from scripted_http import scripted

__all__ = ["scripted"]
