"""The project's tree, and copies of it to try things on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("package", "providers", "operators", "sensors", "dags", "assets")
FILES = ("pyproject.toml", "README.md", "LICENSE", "run")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the package and its commands are made from: no environment, no caches."""
    copy_tree(tmp_path / "tree")
    return tmp_path / "tree"


@pytest.fixture(scope="session")
def session_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, one for all tests that only read or build."""
    return copy_tree(tmp_path_factory.mktemp("packaging") / "tree")


def copy_tree(target: Path) -> Path:
    target.mkdir()
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, target / folder, ignore=shutil.ignore_patterns("__pycache__", ".*_cache")
        )
    for file in FILES:
        shutil.copy2(ROOT / file, target / file)
    return target
