"""First guesses work, such as ``from nighttrain.operators import TrainingJobOperator``."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import nighttrain
from nighttrain.providers.errors import MissingExtraError
from nighttrain.providers.public_names import require

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("operators", "sensors", "assets")


def typed_names(package: str) -> set[str]:
    """What the package imports for type checkers only."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text("utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_a_type_checker_sees_the_same(package: str) -> None:
    module = importlib.import_module(f"nighttrain.{package}")
    assert set(module.__all__) == typed_names(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        found = getattr(module, name)
        assert found is getattr(importlib.import_module(found.__module__), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_is_not_there_is_an_ordinary_error(package: str) -> None:
    module = importlib.import_module(f"nighttrain.{package}")
    with pytest.raises(AttributeError, match=f"'nighttrain.{package}' has no attribute 'TrainJobOperator'"):
        _ = module.TrainJobOperator


def test_every_operator_and_sensor_is_a_public_name() -> None:
    """Those of the reference, which tests/docs compares with the code."""
    for package in ("operators", "sensors"):
        documented = {
            line.removeprefix("## ").strip()
            for line in (ROOT / "docs" / "reference" / f"{package}.md").read_text("utf-8").splitlines()
            if line.startswith("## ") and line.endswith(("Operator", "Sensor"))
        }
        assert len(documented) >= 4
        assert documented <= set(importlib.import_module(f"nighttrain.{package}").__all__)


def test_the_version_by_the_usual_means() -> None:
    command = [sys.executable, "-m", "nighttrain.providers.commands", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert nighttrain.__version__ == version("nighttrain")
    assert said.stdout == f"nighttrain {version('nighttrain')}\n"
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        _ = nighttrain.version  # type: ignore[attr-defined]


def test_a_folder_of_the_same_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~/airflow``, Airflow's home, below the current folder."""
    (tmp_path / "orchestrator").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"orchestrator is not.*'nighttrain\[x\]'"):
        require("orchestrator", extra="x")
    with pytest.raises(MissingExtraError):
        require("orchestrator.sdk", extra="x")
    require("json", "json.decoder", extra="x")
