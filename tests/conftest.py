"""Fixtures for every test. Helpers that several folders share are modules beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mlflow_server import make_model, mlflow_server

__all__ = ["make_model", "mlflow_server"]
