"""Judging is done in an orchestrator's process: it brings no library along."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numpy", "scipy", "pandas", "mlflow", "httpx", "kubernetes_asyncio")


def test_judging_loads_no_library() -> None:
    code = (
        "import sys; import nighttrain.providers.serving.analysis.judging; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
