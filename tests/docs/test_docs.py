"""The documents say what the code does: compared, not trusted."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from nighttrain.providers.serving.model_servers import servers
from nighttrain.providers.serving.model_servers.model_server import ModelServer

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").rglob("*.yaml"),
    ]
)
MARKDOWN = [page for page in PAGES if page.suffix == ".md"]
REFERENCE = ROOT / "docs" / "reference"

OPERATORS = [
    "nighttrain.operators.workload.WorkloadOperator",
    "nighttrain.operators.training.TrainingJobOperator",
    "nighttrain.operators.training.EvaluateModelOperator",
    "nighttrain.operators.registry.SelectBestModelOperator",
    "nighttrain.operators.registry.RegisterModelOperator",
    "nighttrain.operators.registry.ModelGateOperator",
    "nighttrain.operators.registry.approval.ApproveModelOperator",
    "nighttrain.operators.registry.PromoteModelOperator",
    "nighttrain.operators.registry.GetModelVersionOperator",
    "nighttrain.operators.registry.SetModelVersionTagsOperator",
    "nighttrain.operators.registry.DeleteModelVersionOperator",
    "nighttrain.operators.serving.RolloutModelOperator",
    "nighttrain.operators.serving.RollbackModelOperator",
    "nighttrain.operators.maintenance.ReapWorkloadsOperator",
]
SENSORS = [
    "nighttrain.sensors.registry.ModelStageSensor",
    "nighttrain.sensors.registry.ModelAliasSensor",
    "nighttrain.sensors.registry.ModelVersionSensor",
    "nighttrain.sensors.registry.ModelTagSensor",
    "nighttrain.sensors.serving.EndpointReadySensor",
    "nighttrain.sensors.serving.RolloutSensor",
]

Row = tuple[str, ...]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def sections(page: Path) -> dict[str, str]:
    """Heading of the second level -> what stands below it."""
    parts = re.split(r"^## (.+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[Row]:
    """The cells of every table's body."""
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    bodies = [line for table in tables for line in table.splitlines()[2:]]
    return [tuple(cell.strip() for cell in line.strip().removesuffix("|").split("|")[1:]) for line in bodies]


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


# The README.


def test_the_readme_begins_with_a_dag_of_ten_lines_that_airflow_takes() -> None:
    (shown,) = code_blocks(ROOT / "README.md", "python")
    assert len(shown.strip().splitlines()) <= 11
    names: dict[str, Any] = {}
    exec(shown.replace('"):', '") as dag:'), names)  # noqa: S102
    assert {task.task_id: task.upstream_task_ids for task in names["dag"].tasks} == {
        "train": set(),
        "register": {"train"},
        "promote": {"register"},
    }


def test_the_readmes_first_screen_names_the_versions_that_are_needed() -> None:
    """Those of pyproject.toml and of the demo."""
    screen = (ROOT / "README.md").read_text("utf-8").split("## Try it")[0]
    assert len(screen.splitlines()) <= 45
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = " ".join([*extras["optional-dependencies"]["airflow"], *extras["optional-dependencies"]["demo"]])
    wanted = f"{wanted} {extras['optional-dependencies']['dagster'][0]} python{extras['requires-python']}"
    for name, package in {"Airflow": "apache-airflow", "Dagster": "dagster", "MLflow": "mlflow"}.items():
        (least,) = re.findall(rf"(?<![\w-]){package}>=([\d.]+)", wanted)
        assert f"{name} {least}" in screen
    assert f"Python {extras['requires-python'].removeprefix('>=')}" in screen


def test_the_two_commands_are_the_first_thing_to_run() -> None:
    first = code_blocks(ROOT / "README.md", "sh")[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["./run demo", "./run test"]


def test_every_command_named_is_a_command_of_run() -> None:
    known = set(re.findall(r"^  (\w+)\)", (ROOT / "run").read_text("utf-8"), re.MULTILINE))
    for page in MARKDOWN:
        for command in re.findall(r"\./run ([a-z]+)", page.read_text("utf-8")):
            assert command in known, f"{name_of(page)}: ./run {command}"


# Links, names, leftovers.


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name_of(page)} links to {target}: no such heading"


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", index.read_text("utf-8"))
    }
    pages = {page for page in PAGES if page.is_relative_to(index.parent)} - {index}
    assert pages <= linked


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_host_of_a_registry_and_no_path_of_one_machine(page: Path) -> None:
    text = page.read_text("utf-8")
    hosts = r"\b(?:docker\.io|ghcr\.io|quay\.io|gcr\.io|pkg\.dev|azurecr\.io|amazonaws\.com|pypi\.org)\b"
    assert not re.findall(hosts, text)
    assert not re.findall(r"(?<![\w.])/(?:work|opt|root|home|Users)/\S*", text)


@pytest.mark.parametrize("page", MARKDOWN, ids=name_of)
def test_python_in_the_documents_parses(page: Path) -> None:
    for block in code_blocks(page, "python"):
        ast.parse(block)


FILE = re.compile(r"`((?:providers|operators|sensors|assets|dags|tests|docs)/[\w/.-]+\.\w+)`")


@pytest.mark.parametrize("page", [ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_every_file_named_exists(page: Path) -> None:
    named = FILE.findall(page.read_text("utf-8"))
    assert named
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_every_module_and_class_named_exists() -> None:
    for page in MARKDOWN:
        for dotted in re.findall(r"`(nighttrain(?:\.[a-z_]+)+)`", page.read_text("utf-8")):
            if dotted.startswith(TAG_PREFIXES):
                continue
            *folders, last = dotted.split(".")[1:]
            folder = ROOT.joinpath(*folders)
            assert (folder / last).is_dir() or (folder / f"{last}.py").is_file(), f"{name_of(page)}: {dotted}"


# Names of tags in MLflow begin like the package.
TAG_PREFIXES = tuple(
    f"nighttrain.{name}"
    for name in (
        "gate",
        "history",
        "promotion",
        "verdict",
        "attempt",
        "outcome",
        "region",
        "superseded_by",
        "run_number",
        "run_key",
        "night",
        "dag_run",
        "job",
        "artifact",
        "serving",
    )
)


def test_every_test_that_a_guarantee_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "guarantees.md").read_text("utf-8"))
    assert len(named) > 70
    functions: dict[str, set[str]] = {}
    for path, function in named:
        if path not in functions:
            tree = ast.parse((ROOT / path).read_text("utf-8"))
            functions[path] = {
                node.name
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        assert function in functions[path], f"{path} has no {function}"


# The reference of operators and sensors.


# A base that no DAG names: its parameters stand with those of the first public class below it.
BASES = {
    "nighttrain.sensors.deferring_sensor.DeferringSensor",
    "nighttrain.sensors.common.templating.TextTemplates",
    "nighttrain.operators.registry.base.RegistryOperator",
    "nighttrain.operators.serving.task_group.RolloutStepOperator",
    "nighttrain.operators.workload_parameters.WorkloadParameters",
}


def parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """Those of the class itself and of its private bases; public bases have a section of their own."""
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(cls.__mro__):
        ours = base.__module__.startswith("nighttrain") and "__init__" in vars(base)
        between = cls.__mro__[1 : cls.__mro__.index(base)]
        taken = any(f"{each.__module__}.{each.__qualname__}" in (*OPERATORS, *SENSORS) for each in between)
        of_base = f"{base.__module__}.{base.__qualname__}" in BASES and not taken
        shared = base.__name__.startswith("_") or of_base
        if ours and (base is cls or shared):
            found |= inspect.signature(base.__init__).parameters
    return {name: parameter for name, parameter in found.items() if name not in ("self", "kwargs")}


def shown_default(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return "required"
    return f"`{parameter.default!r}`".replace("'", '"')


@pytest.mark.parametrize("path", [*OPERATORS, *SENSORS])
def test_the_reference_lists_each_parameter_as_it_is(path: str) -> None:
    cls = load(path)
    page = REFERENCE / ("operators.md" if path in OPERATORS else "sensors.md")
    table = [row for row in rows(sections(page)[cls.__name__]) if len(row) == 4]
    documented = {name.strip("`"): (default, templated == "yes") for name, default, templated, _ in table}
    expected = {
        name: (shown_default(parameter), name in cls.template_fields)
        for name, parameter in parameters(cls).items()
    }
    assert documented == expected
    assert all(meaning for *_, meaning in table)


@pytest.mark.parametrize("path", [*OPERATORS, *SENSORS])
def test_the_docstrings_name_no_parameter_that_is_not_there(path: str) -> None:
    cls = load(path)
    accepted = {
        name
        for base in cls.__mro__
        if base.__module__.startswith("nighttrain") and "__init__" in vars(base)
        for name in inspect.signature(base.__init__).parameters
    }
    assert set(re.findall(r":param (\w+):", cls.__doc__ or "")) <= accepted


def test_the_reference_has_every_public_operator_and_sensor() -> None:
    from airflow.sdk import BaseOperator

    for package, listed in (("operators", OPERATORS), ("sensors", SENSORS)):
        found = set()
        for file in (ROOT / package).rglob("*.py"):
            module = ".".join(
                ("nighttrain", package, *file.relative_to(ROOT / package).with_suffix("").parts)
            )
            for node in ast.parse(file.read_text("utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    cls = load(f"{module}.{node.name}")
                    if issubclass(cls, BaseOperator) and f"{module}.{node.name}" not in BASES:
                        found.add(cls)
        assert found == {load(path) for path in listed}


def test_the_reference_of_the_asset_lists_its_parameters() -> None:
    from nighttrain.sensors.assets import registered_model

    table = [row for row in rows(sections(REFERENCE / "sensors.md")["registered_model"]) if len(row) == 3]
    documented = {name.strip("`"): default for name, default, _ in table}
    signature = inspect.signature(registered_model).parameters
    assert documented == {name: shown_default(parameter) for name, parameter in signature.items()}


def test_the_reference_of_connections_lists_the_mlflow_fields() -> None:
    from nighttrain.operators.provider_info import get_provider_info

    (declared,) = get_provider_info()["connection-types"]
    text = sections(REFERENCE / "connections.md")["Type `mlflow`"]
    documented = set(re.findall(r"extra `(\w+)`", text))
    code = (ROOT / "sensors" / "common" / "connections.py").read_text("utf-8")
    read = set(re.findall(r'extra\.get\("(\w+)"\)', code))
    assert documented == read
    assert set(declared["conn-fields"]) <= documented


def test_the_reference_has_every_model_server_as_it_is() -> None:
    known = {name: server for name, server in vars(servers).items() if isinstance(server, ModelServer)}
    table = {
        row[0].strip("`"): row
        for row in rows(sections(REFERENCE / "model-servers.md")["Those that are known"])
    }
    assert table.keys() == known.keys()
    assert {server.name for server in known.values()} == {server.name for server in servers.KNOWN}
    for name, server in known.items():
        _, flavor, ready, asked, version, metrics, _ = table[name]
        assert [each.name for each in server.flavors] == re.findall(r"^`(\w+)`", flavor)
        assert ready == f"`{server.readiness_path}`"
        assert asked == f"`{server.request_path}`, `{server.payload}`"
        where = (
            f"header `{server.version_header}`"
            if server.version_header
            else f"field `{server.version_field}`"
        )
        assert version == (where if server.names_version else "nothing")
        port = f", port {server.metrics.port}" if server.metrics and server.metrics.port else ""
        assert metrics == (f"`{server.metrics.path}`{port}" if server.metrics else "none")


def test_dags_in_the_documents_can_be_built(tmp_path: Path) -> None:
    from airflow.sdk import DAG

    built = 0
    for page in MARKDOWN:
        for block in code_blocks(page, "python"):
            if "with DAG(" in block:
                names: dict[str, Any] = {}
                file = tmp_path / f"{page.stem}_{built}.py"  # @task.train reads its function's source
                file.write_text(block, "utf-8")
                exec(compile(block, str(file), "exec"), names)  # noqa: S102
                dags = [value for value in names.values() if isinstance(value, DAG)]
                built += len(dags) or 1
    assert built >= 4


def test_the_definitions_in_the_documents_load_in_dagster(monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster as dg

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    block, *_ = code_blocks(ROOT / "docs" / "how-to" / "dagster.md", "python")
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    dg.Definitions.validate_loadable(names["defs"])
    keys = {key.to_user_string() for key in names["defs"].resolve_all_asset_keys()}
    assert keys == {"airline_delay", "airline_delay_production"}


# Gates and outcomes.


def gate_rows() -> list[tuple[str, str]]:
    table = rows(sections(REFERENCE / "gates.md")["One line for a rule"])
    return [(written.strip("`"), becomes.strip("`")) for written, becomes, _ in table]


@pytest.mark.parametrize(("written", "becomes"), gate_rows())
def test_each_form_of_a_rule_becomes_what_the_page_says(written: str, becomes: str) -> None:
    from nighttrain.providers.registry import gates

    names = {name: getattr(gates, name) for name in gates.__all__}
    assert gates.parse_rule(written) == eval(becomes, names)  # noqa: S307


def test_every_outcome_is_explained() -> None:
    from nighttrain.providers.kubernetes.outcome import outcome

    table = [row for row in rows((REFERENCE / "outcomes.md").read_text("utf-8")) if len(row) == 4]
    documented = {kind.strip("`"): error.strip("`") for kind, error, _, _ in table}
    expected = {kind.value: error.__name__ for kind, error in outcome._ERRORS.items()}
    assert documented == {**expected, outcome.OutcomeKind.SUCCEEDED.value: ""}
    assert all(what and remedy for _, _, what, remedy in table)
