"""Fixtures for every test. Helpers that several folders share are modules beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from typing import TYPE_CHECKING

from mlflow_server import make_model, mlflow_server

if TYPE_CHECKING:
    import pytest

__all__ = ["make_model", "mlflow_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """What both tests/conformance and tests/benchmarks take."""
    group = parser.getgroup("a cluster that runs")
    group.addoption("--kubeconfig", default=None, help="the cluster to run against; none: embedded")
    group.addoption("--image", default=None, help="an image with python3 and sh, for --kubeconfig")
