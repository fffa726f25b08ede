"""``./run`` says what it can do, and what is missing, before it makes anything."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

COMMANDS = ("demo", "test", "test-airflow-next", "check", "bench", "status", "stop", "setup")
# Answers as Python 3.9 would: to --version, and to the question whether it is new enough.
OLD_PYTHON = """#!/bin/sh
case "$1" in
  --version) echo "Python 3.9.18" ;;
  -c) exit 1 ;;
  *) echo "ran $*" >>"$0.used" ;;
esac
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tree: Path) -> Run:
    """Runs the script of the copied tree."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {"PATH": os.environ["PATH"], "HOME": str(tree.parent), **environment}
        command = [str(tree / "run"), *arguments]
        # From another folder: the script finds its own.
        return subprocess.run(
            command, env=settings, cwd=tree.parent, capture_output=True, text=True, timeout=30
        )

    return run


@pytest.fixture
def old_python(tmp_path: Path) -> Path:
    """An interpreter that is too old; it writes down what else it was asked to do."""
    folder = tmp_path / "old"
    folder.mkdir()
    path = folder / "python3"
    path.write_text(OLD_PYTHON)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_usage(run: Run, tree: Path, arguments: tuple[str, ...]) -> None:
    answer = run(*arguments)
    assert answer.returncode == 0
    assert answer.stderr == ""
    assert answer.stdout.startswith("usage: ./run COMMAND")
    described = {line.split()[0] for line in answer.stdout.splitlines() if line.startswith("  ")}
    assert described == set(COMMANDS)
    assert not (tree / ".venv").exists()


def test_unknown_command(run: Run, tree: Path) -> None:
    answer = run("tset")
    assert answer.returncode == 2
    assert "unknown command: tset" in answer.stderr
    assert "usage: ./run COMMAND" in answer.stderr
    assert not (tree / ".venv").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_python_too_old(run: Run, tree: Path, old_python: Path, command: str) -> None:
    answer = run(command, NIGHTTRAIN_PYTHON=str(old_python))
    assert answer.returncode == 2
    assert "needs Python 3.11 or newer" in answer.stderr
    assert "found: Python 3.9.18" in answer.stderr
    assert f"NIGHTTRAIN_PYTHON=/path/to/python3.11 ./run {command}" in answer.stderr
    assert not (tree / ".venv").exists()
    assert not Path(f"{old_python}.used").exists()


def test_only_an_old_python_on_the_path(run: Run, tree: Path, old_python: Path, tmp_path: Path) -> None:
    """No variable: every name that the script tries leads to something old, or nowhere."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "cksum", "dirname", "env", "head", "sh"):
        (tools / tool).symlink_to(_which(tool))
    answer = run("setup", PATH=f"{old_python.parent}{os.pathsep}{tools}")
    assert answer.returncode == 2
    assert "found: Python 3.9.18" in answer.stderr
    assert not (tree / ".venv").exists()


def test_no_python_at_all(run: Run, tree: Path) -> None:
    answer = run("setup", NIGHTTRAIN_PYTHON=str(tree / "no-such-python"))
    assert answer.returncode == 2
    assert "needs Python 3.11 or newer" in answer.stderr
    assert "no-such-python" in answer.stderr
    assert not (tree / ".venv").exists()


def _which(tool: str) -> Path:
    for folder in os.environ["PATH"].split(os.pathsep):
        if (path := Path(folder) / tool).exists():
            return path
    raise AssertionError(f"{tool} is not here")
