"""DAG files of the tests can be imported by their names."""

from __future__ import annotations

import sys
from pathlib import Path

from scripted_http import scripted

__all__ = ["scripted"]

sys.path.insert(0, str(Path(__file__).parent))
