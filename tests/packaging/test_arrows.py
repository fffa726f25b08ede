"""The import contracts can fail: each wrong arrow, drawn on purpose in a copy, is reported by its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ("providers", "operators", "sensors", "dags", "assets")

WRONG = {
    "providers/names_an_orchestrator.py": (
        "import airflow.sdk",
        "providers know no orchestrator",
    ),
    "assets/loads_models.py": (
        "import mlflow",
        "No process of ours loads a model: none knows mlflow",
    ),
    "providers/tracking/looks_up.py": (
        "import nighttrain.providers.registry.models",
        "Inside providers: serving -> registry -> attempts -> kubernetes | tracking -> errors",
    ),
    "providers/kubernetes/values/looks_up.py": (
        "import nighttrain.providers.kubernetes.mirror.hub",
        "The cluster adapter's rooms: arrows point down",
    ),
    "providers/local/uses_adapter.py": (
        "import nighttrain.providers.tracking.client",
        "The embedded cluster imports no adapter",
    ),
    "providers/local/cluster/store/looks_up.py": (
        "import nighttrain.providers.local.cluster.http.routing",
        "The embedded cluster's rooms: arrows point down",
    ),
    "providers/local/cluster/looks_around.py": (
        "import nighttrain.providers.local.stack",
        "The embedded cluster stands on its own",
    ),
    "sensors/looks_up.py": (
        "import nighttrain.operators.training",
        "Arrows point down: dags -> operators -> sensors -> providers",
    ),
    "sensors/common/looks_up.py": (
        "import nighttrain.sensors.triggers.settling",
        "Sensors: what operators use too is below both",
    ),
    "assets/uses_airflow.py": (
        "import nighttrain.sensors.common.connections",
        "Airflow's half and Dagster's half do not know one another",
    ),
    "dags/airline_delay/uses_nighttrain.py": (
        "import nighttrain.providers.errors",
        "Training code is plain Python: no orchestrator and no nighttrain",
    ),
}

# The arrow from sensors/common/looks_up.py makes one.
CIRCLE = "Operators, sensors and assets: no circle among siblings"


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    """lint-imports on the copy: its folders as the package, in front of the installed one."""
    package = tree / "path" / "nighttrain"
    package.mkdir(parents=True, exist_ok=True)
    links = {package / folder: tree / folder for folder in FOLDERS}
    links[package / "__init__.py"] = tree / "package" / "__init__.py"
    links[tree / "path" / "pyproject.toml"] = tree / "pyproject.toml"
    for link, target in links.items():
        if not link.exists():
            link.symlink_to(target)
    return subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
        cwd=tree / "path",
        capture_output=True,
        text=True,
        timeout=120,
    )


def broken(answer: subprocess.CompletedProcess[str]) -> set[str]:
    return set(re.findall(r"^(.+) BROKEN(?: \(\d+ ignored imports?\))?$", answer.stdout, re.MULTILINE))


@pytest.mark.slow
def test_each_wrong_arrow_is_reported(tree: Path) -> None:
    for path, (line, _contract) in WRONG.items():
        (tree / path).write_text(f'"""Wrong."""\n\n{line}\n')
    answer = lint(tree)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert {CIRCLE, *(contract for _line, contract in WRONG.values())} <= broken(answer)
    for path, (line, _contract) in WRONG.items():
        arrow = f"nighttrain.{path.removesuffix('.py').replace('/', '.')} -> {line.split()[1]}"
        # Of a package outside, only the top is in the graph.
        assert arrow.replace("airflow.sdk", "airflow") in answer.stdout, answer.stdout
