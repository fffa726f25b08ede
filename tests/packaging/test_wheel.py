"""The wheel holds the folders, whole and nothing else, and Airflow finds the provider in it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nighttrain.operators.provider_info import get_provider_info

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("providers", "operators", "sensors", "dags", "assets")
LINKS = {
    "MLflowRunLink",
    "ModelVersionLink",
    "EvaluationPlotLink",
    "RolloutPictureLink",
    "WorkloadLink",
    "EndpointLink",
}


@pytest.fixture(scope="module")
def wheel(session_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is; without an environment of its own where setuptools is here already."""
    target = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if importlib.util.find_spec("setuptools") else []
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(target), str(session_tree)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = target.glob("*.whl")
    return found


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def test_every_module_and_nothing_else(wheel: Path, session_tree: Path) -> None:
    """A new folder that pyproject.toml does not list is missed here."""
    expected = {
        f"nighttrain/{file.relative_to(session_tree).as_posix()}"
        for folder in FOLDERS
        for file in (session_tree / folder).rglob("*")
        if file.suffix == ".py"
        or file.name in ("py.typed", "golden_flights.json")
        or file.name.endswith(".json.gz")
    } | {"nighttrain/__init__.py", "nighttrain/py.typed"}
    assert {f"nighttrain/{folder}/py.typed" for folder in FOLDERS} <= expected
    assert contents(wheel) == expected


def test_one_wheel_for_every_platform(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_entry_point_that_airflow_looks_for(wheel: Path) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(read(wheel, "entry_points.txt"))
    assert dict(entry_points["apache_airflow_provider"]) == {
        "provider_info": "nighttrain.operators.provider_info:get_provider_info"
    }


def test_metadata(wheel: Path) -> None:
    metadata = read(wheel, "METADATA")
    lines = metadata.splitlines()
    assert "Name: nighttrain" in lines
    assert "Requires-Python: >=3.11" in lines
    assert "License-Expression: Apache-2.0" in lines
    for extra in ("airflow", "dagster", "demo", "dev", "local"):
        assert f"Provides-Extra: {extra}" in lines
    unconditional = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in unconditional if "airflow" in line or "dagster" in line or "mlflow" in line]


def test_version_is_the_same_everywhere(wheel: Path) -> None:
    (version,) = [line for line in read(wheel, "METADATA").splitlines() if line.startswith("Version: ")]
    assert get_provider_info()["versions"] == [version.removeprefix("Version: ")]


def test_provider_info_is_what_airflow_wants() -> None:
    schema = files("airflow").joinpath("provider_info.schema.json")
    jsonschema.validate(get_provider_info(), json.loads(schema.read_text()))


ASK_AIRFLOW = """
import json
import nighttrain.operators.links
from airflow.providers_manager import ProvidersManager
manager = ProvidersManager()
hook = manager.hooks["mlflow"]
print(json.dumps({
    "file": nighttrain.operators.links.__file__,
    "provider": manager.providers["nighttrain"].version,
    "hook": hook.hook_class_name if hook else None,
    "name": hook.hook_name if hook else None,
    "testable": hook.connection_testable if hook else None,
    "links": sorted(manager.extra_links_class_names),
    "fields": sorted(name for name in manager.connection_form_widgets if "__mlflow__" in name),
    "behaviour": manager.field_behaviours.get("mlflow"),
}))
"""


@pytest.fixture(scope="module")
def seen(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Airflow's own providers manager knows of the wheel's content, in a process of its own."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    settings = {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")), "PYTHONPATH": str(unpacked)}
    child = subprocess.run(
        [sys.executable, "-c", ASK_AIRFLOW],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    answer = dict(json.loads(child.stdout.splitlines()[-1]))
    assert answer["file"].startswith(str(unpacked)), "the tree was asked, not the wheel"
    return answer


def test_airflow_finds_the_provider(seen: dict[str, Any]) -> None:
    assert seen["provider"] == get_provider_info()["versions"][0]


def test_airflow_knows_the_connection_type(seen: dict[str, Any]) -> None:
    assert seen["hook"] == "nighttrain.sensors.common.hooks.MLflowHook"
    assert seen["name"] == "MLflow"
    assert seen["testable"] is True


def test_airflow_shows_the_connections_fields(seen: dict[str, Any]) -> None:
    declared = get_provider_info()["connection-types"][0]["conn-fields"]
    assert seen["fields"] == sorted(f"extra__mlflow__{name}" for name in declared)
    assert seen["behaviour"]["relabeling"]["host"] == "Tracking URI"


def test_airflow_knows_the_links(seen: dict[str, Any]) -> None:
    assert {f"nighttrain.operators.links.{name}" for name in LINKS} <= set(seen["links"])


LOAD_SCHEMAS = """
from nighttrain.providers.local.cluster.kinds import builtin_schemas
print(builtin_schemas.__file__)
print(*(name for name in ("Pod", "Job", "Deployment", "Service") if builtin_schemas.schema_of(name)))
"""


def test_an_installed_wheel_has_the_embedded_clusters_schemas(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    asked = subprocess.run(
        [sys.executable, "-c", LOAD_SCHEMAS],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert asked.returncode == 0, asked.stderr
    file, names = asked.stdout.splitlines()
    assert file.startswith(str(tmp_path)), "the tree was asked, not the wheel"
    assert {"Pod", "Job", "Deployment", "Service"} <= set(names.split())


USER = """
import nighttrain
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec

reveal_type(nighttrain.__version__)
reveal_type(WorkloadSpec(image="py").image)
"""

GUESSES = """
import sys
for guess in sys.argv[1:]:
    module, _, name = guess.partition(":")
    try:
        exec(f"from {module} import {name}")
    except ImportError as error:
        print(guess, type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and nothing else: no extra, none of its requirements."""
    environment = tmp_path_factory.mktemp("alone")
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python3.*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return environment


def test_a_type_checker_reads_the_types_of_an_installed_wheel(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    python = str(alone / "bin" / "python")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    revealed = re.findall(r'user.py:(\d): note: Revealed type is "(.+)"', checked.stdout)
    assert revealed == [("5", "str"), ("6", "str | None")], checked.stdout
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("guess", "package", "extra"),
    [
        ("nighttrain.operators:TrainingJobOperator", "airflow", "airflow"),
        ("nighttrain.operators.training:TrainingJobOperator", "airflow", "airflow"),
        ("nighttrain.sensors:registered_model", "airflow", "airflow"),
        ("nighttrain.assets:training_asset", "dagster", "dagster"),
        ("nighttrain.assets.flights:airline_delay_definitions", "dagster", "dagster"),
        ("nighttrain.providers.local.cluster.server:EmbeddedCluster", "jsonpatch", "local"),
        ("nighttrain.providers.local.demo:main", "jsonpatch", "local"),
    ],
)
def test_a_missing_extra_names_the_command_that_brings_it(
    alone: Path, guess: str, package: str, extra: str
) -> None:
    # Below a folder that is called like a package, as where Airflow's home is.
    (alone / package).mkdir(exist_ok=True)
    asked = subprocess.run(
        [alone / "bin" / "python", "-c", GUESSES, guess],
        env={**os.environ, "PYTHONPATH": str(alone)},
        cwd=ROOT,  # a clone: its folders are not the package
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = f"{guess} MissingExtraError {package} is not installed: pip install 'nighttrain[{extra}]'"
    assert asked.stdout.strip() == told, asked.stderr
