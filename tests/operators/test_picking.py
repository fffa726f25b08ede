"""The best of mapped trainings, and single steps at the registry, as Airflow runs them on a real MLflow."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from helpers.airflow_connections import connect_mlflow
from nighttrain.operators.registry import (
    DeleteModelVersionOperator,
    GetModelVersionOperator,
    RegisterModelOperator,
    SelectBestModelOperator,
    SetModelVersionTagsOperator,
)
from nighttrain.providers.errors import (
    ConfigurationError,
    ModelVersionNotFoundError,
    NothingToSelectError,
    RegistryError,
)

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]


@pytest.fixture
def context(mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    connect_mlflow(monkeypatch, mlflow_server.uri)
    ti = SimpleNamespace(dag_id="nightly", run_id="r", task_id="t", map_index=-1, xcoms={})
    ti.xcom_push = lambda key, value: ti.xcoms.update({key: json.loads(json.dumps(value))})
    return {"ti": ti}


def tags(server: MLflowServer, model: str, version: str) -> dict[str, str]:
    (found,) = [each for each in server.versions(model) if each["version"] == version]
    return {tag["key"]: tag["value"] for tag in found.get("tags", [])}


def test_the_best_of_several_trainings_is_registered(context: Any, make_model: MakeModel) -> None:
    made = [make_model(register=False, val_mae=mae) for mae in (3.0, 1.0, 2.0)]
    results: list[Any] = [
        # One carries its metrics, of the others MLflow is asked.
        {"run_id": made[0].run_id, "metrics": {"val_mae": 3.0}, "map_index": 0},
        None,
        {"run_id": made[1].run_id, "map_index": 2},
        {"run_id": made[2].run_id, "map_index": 3},
        {"run_id": "f" * 32, "map_index": 4},
    ]
    picked = SelectBestModelOperator(task_id="pick", results=results, metric="val_mae").execute(context)
    assert (picked["run_id"], picked["value"], picked["index"]) == (made[1].run_id, 1.0, 2)
    assert [each["index"] for each in picked["missing"]] == [1, 4]
    assert context["ti"].xcoms["nighttrain_link_run"].endswith(f"/runs/{made[1].run_id}")
    name = made[1].name
    done = RegisterModelOperator(task_id="register", model_name=name, run_id=picked["run_id"]).execute(
        context
    )
    assert (done["version"], done["run_id"]) == ("1", made[1].run_id)


def test_mistakes_at_picking_are_told_at_once_and_no_number_fails_without_a_retry(context: Any) -> None:
    with pytest.raises(ConfigurationError, match="mode = 'best'"):
        SelectBestModelOperator(task_id="pick", results=[], metric="mae", mode="best")
    for results, error in (
        (None, ConfigurationError),
        ("text", ConfigurationError),
        ([None], NothingToSelectError),
    ):
        operator = SelectBestModelOperator(task_id="pick", results=results, metric="mae")
        with pytest.raises(AirflowFailException) as failed:
            operator.execute(context)
        assert isinstance(failed.value.__cause__, error)


def test_a_version_is_looked_up_by_number_alias_stage_or_as_the_newest(
    context: Any, mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    made = make_model()
    name = make_model(made.name).name
    mlflow_server.stage(name, "1", "Production")
    mlflow_server.call("POST", "registered-models/alias", name=name, alias="champion", version="1")

    def looked_up(**by: str) -> dict[str, Any]:
        return GetModelVersionOperator(task_id="get", model_name=name, **by).execute(context)

    assert [looked_up(**by)["version"] for by in ({"version": "1"}, {"alias": "champion"})] == ["1", "1"]
    assert looked_up()["version"] == "2"
    found = looked_up(stage="Production")
    assert (found["aliases"], found["stage"], found["run_id"]) == (["champion"], "Production", made.run_id)
    assert found["model_uri"] == f"models:/{name}/1"
    with pytest.raises(ModelVersionNotFoundError):
        looked_up(stage="Staging")
    with pytest.raises(ConfigurationError, match="at most one"):
        looked_up(stage="Staging", alias="champion")


def test_tags_are_set_and_secrets_are_not(
    context: Any, mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    name = make_model().name
    given = {"reviewed": "yes", "rows": 900, "password": "hunter2xyz"}
    SetModelVersionTagsOperator(
        task_id="tag",
        model_name=name,
        version="1",
        tags=given,  # type: ignore[arg-type]
    ).execute(context)
    assert tags(mlflow_server, name, "1") == {"reviewed": "yes", "rows": "900", "password": "***"}
    with pytest.raises(AirflowFailException, match="MLflow refuses this name"):
        SetModelVersionTagsOperator(task_id="tag", model_name=name, version="1", tags={"a|b": "1"}).execute(
            context
        )


def test_a_version_that_is_in_use_is_not_deleted(
    context: Any, mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    made = make_model()
    for _ in range(3):
        make_model(made.name)
    name = made.name
    mlflow_server.stage(name, "1", "Production")
    mlflow_server.call("POST", "registered-models/alias", name=name, alias="champion", version="2")
    body = {"name": name, "version": "3", "key": "nighttrain.serving", "value": "ml/delay"}
    mlflow_server.call("POST", "model-versions/set-tag", **body)

    def delete(version: str) -> None:
        DeleteModelVersionOperator(task_id="delete", model_name=name, version=version).execute(context)

    for version, use in (("1", "stage Production"), ("2", "alias champion"), ("3", "endpoint ml/delay")):
        with pytest.raises(RegistryError, match=use):
            delete(version)
    for _ in range(2):
        delete("4")
    assert [each["version"] for each in mlflow_server.versions(name)] == ["1", "2", "3"]
