"""The page on the way from airflow-provider-mlflow has each of its operators, fields and hooks."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from nighttrain import operators

PAGE = Path(__file__).parents[2] / "docs/how-to/migrate-from-airflow-provider-mlflow.md"
TEXT = PAGE.read_text("utf-8")

# Read from the source of version 1.1.0, which does not install beside Airflow 3.
THEIRS = {
    "CreateRegisteredModelOperator": {"mlflow_conn_id", "name", "tags", "description"},
    "GetRegisteredModelOperator": {"mlflow_conn_id", "name"},
    "DeleteRegisteredModelOperator": {"mlflow_conn_id", "name"},
    "GetLatestModelVersionsOperator": {"mlflow_conn_id", "name", "stages"},
    "CreateModelVersionOperator": {
        *("mlflow_conn_id", "name", "source", "run_id", "tags", "run_link", "description"),
    },
    "GetModelVersionOperator": {"mlflow_conn_id", "name", "version"},
    "DeleteModelVersionOperator": {"mlflow_conn_id", "name", "version"},
    "TransitionModelVersionStageOperator": {
        *("mlflow_conn_id", "name", "version", "stage", "archive_existing_versions"),
    },
    "CreateDeploymentOperator": {
        *(
            "mlflow_conn_id",
            "name",
            "model_uri",
            "target_uri",
            "target_conn_id",
            "flavor",
            "config",
            "endpoint",
        ),
    },
    "PredictOperator": {
        *("mlflow_conn_id", "deployment_name", "inputs", "endpoint", "target_uri", "target_conn_id"),
    },
    "ModelLoadAndPredictOperator": {"mlflow_conn_id", "model_uri", "suppress_warnings", "dst_path", "data"},
}
HOOKS = {"MLflowBaseHook", "MLflowClientHook", "MLflowDeploymentHook", "MLflowPyfuncHook"}


def sections() -> dict[str, str]:
    parts = re.split(r"^###? (.+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE))


def parameters(name: str) -> set[str]:
    """Those of an operator of ours, its bases' too."""
    return {
        parameter
        for base in getattr(operators, name).__mro__
        if "__init__" in vars(base) and base.__module__.startswith("nighttrain")
        for parameter in inspect.signature(base.__init__).parameters
    } - {"self", "kwargs"}


@pytest.mark.parametrize("operator", THEIRS)
def test_every_field_of_every_operator_has_a_row(operator: str) -> None:
    assert set(rows(sections()[operator])) == THEIRS[operator]


def test_every_hook_has_a_row() -> None:
    assert set(rows(sections()["Hook by hook"])) == HOOKS


def test_every_parameter_that_is_named_in_its_place_exists() -> None:
    named = re.findall(r"`(\w+)`\s+of\s+`(\w+Operator)`", TEXT)
    assert len(named) > 30
    for parameter, operator in named:
        assert parameter in parameters(operator), f"{parameter} of {operator}"


@pytest.mark.parametrize("operator", THEIRS)
def test_what_is_not_there_says_so_and_the_rest_names_its_place(operator: str) -> None:
    for field, text in rows(sections()[operator]).items():
        kept = re.search(r"`\w+` of |an argument of the function", text)
        assert kept or re.match("(by design )?not there", text), field


def test_what_has_the_same_name_takes_the_place_of_theirs() -> None:
    for name in set(THEIRS) & set(operators.__all__):
        assert f"`model_name` of `{name}`" in rows(sections()[name])["name"]
        assert f"`version` of `{name}`" in rows(sections()[name])["version"]
