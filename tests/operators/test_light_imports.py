"""A DAG file is parsed again and again: importing operators and sensors loads no client library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Neither may be loaded at all.
NEVER = {"kubernetes", "kubernetes_asyncio", "mlflow", "pandas", "numpy", "sklearn", "dagster", "stamina"}
# Airflow loads parts of these by itself: nothing may be added beyond them.
NO_MORE = {"aiohttp", "httpx", "pydantic", "requests", "yaml", "jinja2", "sqlalchemy"}
# Airflow's base class of triggers, which Airflow's own operators that defer load too, brings this one.
ALLOWED = {"pydantic.functional_serializers"}

# These are loaded by name, where a task defers and in the triggerer; no DAG file loads them.
TRIGGERS = {
    f"nighttrain.sensors.triggers.{name}" for name in ("endpoint", "mlflow_answers", "registry", "workload")
}

CHILD = """
import importlib, json, pkgutil, sys
from airflow.sdk import DAG, Asset, AssetWatcher, BaseOperator, BaseSensorOperator
before = set(sys.modules)
import nighttrain.operators, nighttrain.sensors
imported = [
    importlib.import_module(module.name).__name__
    for package in (nighttrain.operators, nighttrain.sensors)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if module.name not in sys.argv[1:]
]
loaded = set(sys.modules)
print(json.dumps(dict(imported=imported, loaded=sorted(loaded), added=sorted(loaded - before))))
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is loaded after importing every module of operators and sensors, and what that added."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *TRIGGERS],
        env={**os.environ, "AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow"))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    return dict(json.loads(child.stdout.splitlines()[-1]))


def test_every_module_was_imported(modules: dict[str, list[str]]) -> None:
    root = Path(__file__).resolve().parents[2]
    on_disk = {
        ".".join(("nighttrain", *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for folder in ("operators", "sensors")
        for file in (root / folder).rglob("*.py")
    } - {"nighttrain.operators", "nighttrain.sensors"}
    assert set(modules["imported"]) == on_disk - TRIGGERS
    assert on_disk >= TRIGGERS


def test_triggers_that_only_wait_are_not_loaded(modules: dict[str, list[str]]) -> None:
    assert not TRIGGERS & set(modules["loaded"])


def test_no_client_library_is_loaded(modules: dict[str, list[str]]) -> None:
    assert not [name for name in modules["loaded"] if name.split(".")[0] in NEVER]


def test_nothing_heavy_is_added_to_what_airflow_loads(modules: dict[str, list[str]]) -> None:
    added = set(modules["added"]) - ALLOWED
    assert not [name for name in added if name.split(".")[0] in NO_MORE]


def test_only_airflow_and_nighttrain_are_added(modules: dict[str, list[str]]) -> None:
    """A new dependency at parse time is a decision to take, not an accident: it makes this test fail."""
    foreign = {name.split(".")[0] for name in set(modules["added"]) - ALLOWED} - set(sys.stdlib_module_names)
    # asgiref comes with Airflow's human step, in DAGs that ask a person.
    assert foreign <= {"airflow", "nighttrain", "asgiref"}
