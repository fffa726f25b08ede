"""What several tests use. pytest has ``tests`` on its path; processes that tests start get it from here."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
RECORDINGS = TESTS / "data" / "recordings"
"""What a real cluster did; see also the folders of this name beside single tests."""


def importable_helpers() -> dict[str, str]:
    """This process's environment, in which a process finds the helpers too."""
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *([inherited] if inherited else [])])}
