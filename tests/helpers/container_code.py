"""Code for the containers of several tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def lasts_until(path: Path) -> str:
    """Code that goes on until the file is there; more may follow it."""
    return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.02)\n"
