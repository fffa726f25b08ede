"""What several tests use. pytest has ``tests`` on its path; processes that tests start get it from here."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
RECORDINGS = TESTS / "data" / "recordings"
"""What a real cluster did; see also the folders of this name beside single tests."""


def importable_helpers(*folders: Path) -> dict[str, str]:
    """This process's environment, in which a child finds the helpers, and modules of the folders."""
    inherited = os.environ.get("PYTHONPATH")
    paths = [*map(str, (TESTS, *folders)), *([inherited] if inherited else [])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
