"""Models that plain training code logs: in nested runs, by MLflow 2's client, as files only."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from helpers.mlflow_server import SMALL_MODEL, unique
from nighttrain.providers.errors import RunInTrashError, RunWithoutModelError
from nighttrain.providers.registry import run_models
from nighttrain.providers.registry.artifacts import verify

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.registry.models import ModelRegistry

pytestmark = [pytest.mark.mlflow]


@dataclass(frozen=True)
class Training:
    """A run in an experiment of its own, and what training code does in it."""

    server: MLflowServer
    experiment: str
    run: str

    def nested(self, parent: str | None = None) -> str:
        """As ``mlflow.start_run(nested=True)``."""
        tags = [{"key": "mlflow.parentRunId", "value": parent or self.run}]
        made = self.server.call(
            "POST",
            "runs/create",
            experiment_id=self.experiment,
            start_time=int(time.time() * 1000),
            tags=tags,
        )
        return str(made["run"]["info"]["run_id"])

    def files(self, path: str, run: str | None = None) -> str:
        """As ``mlflow.log_artifacts(folder, path)``; the folder's address."""
        run = run or self.run
        root = self.server.call("GET", "runs/get", run_id=run)["run"]["info"]["artifact_uri"]
        for name, content in SMALL_MODEL.items():
            self.server.upload(root, f"{path}/{name}".lstrip("/"), content)
        return f"{root}/{path}".rstrip("/")

    def logged_by_mlflow_2(self, path: str, run: str | None = None) -> str:
        """What ``log_model`` of MLflow 2.22 leaves on a server of MLflow 3: files, and a note in a tag."""
        place = self.files(path, run)
        note = {"run_id": run or self.run, "artifact_path": path, "flavors": {"python_function": {}}}
        tag = {"key": "mlflow.log-model.history", "value": json.dumps([note])}
        self.server.call("POST", "runs/set-tag", run_id=run or self.run, **tag)
        return place


@pytest.fixture
def training(mlflow_server: MLflowServer) -> Training:
    experiment = mlflow_server.experiment()
    return Training(mlflow_server, experiment, mlflow_server.run(experiment))


@pytest.mark.parametrize("path", ["model", "", "out/best", "a model"])
@pytest.mark.parametrize("logged", ["files", "logged_by_mlflow_2"])
async def test_files_that_are_a_model(
    registry: ModelRegistry, training: Training, path: str, logged: str
) -> None:
    place = getattr(training, logged)(path)
    name = unique("model")
    version = await registry.register(name, run_id=training.run)
    assert (version.version, version.run_id, version.source, version.model_id) == (
        "1",
        training.run,
        place,
        None,
    )
    await verify(registry.client, version)
    assert (await registry.register(name, run_id=training.run)).version == "1"


async def test_files_that_are_no_model(registry: ModelRegistry, training: Training) -> None:
    root = training.server.call("GET", "runs/get", run_id=training.run)["run"]["info"]["artifact_uri"]
    training.server.upload(root, "plots/MLmodel.png", b"1")
    with pytest.raises(RunWithoutModelError, match=r"logged no model: .*MLmodel.*log_model\(model, name="):
        await registry.register(unique("model"), run_id=training.run)


async def test_a_model_beside_a_data_set_of_many_folders_is_found(
    registry: ModelRegistry, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = training.server.call("GET", "runs/get", run_id=training.run)["run"]["info"]["artifact_uri"]
    for day in range(250):
        training.server.upload(root, f"data/day={day}/part.csv", b"x")
    place = training.files("models/best")
    assert (await run_models.find_model(registry.client, training.run)).source == place
    monkeypatch.setattr(run_models, "MAX_FOLDERS", 100)
    with pytest.raises(RunWithoutModelError, match=r"more than 100 folders.*log one in the training code"):
        await run_models.find_model(registry.client, training.run)


async def test_several_folders_are_told_and_one_may_be_named(
    registry: ModelRegistry, training: Training
) -> None:
    training.files("first/model")
    second = training.files("second/model")
    with pytest.raises(RunWithoutModelError, match=r"first/model.*second/model.*logged_model_name"):
        await registry.register(unique("model"), run_id=training.run)
    version = await registry.register(unique("model"), run_id=training.run, model_name="second/model")
    assert version.source == second


async def test_a_logged_model_wins_over_files(registry: ModelRegistry, training: Training) -> None:
    training.files("copy")
    model_id = training.server.logged_model(training.experiment, training.run)
    version = await registry.register(unique("model"), run_id=training.run)
    assert version.model_id == model_id


@pytest.mark.parametrize("depth", [1, 2])
async def test_the_only_model_of_nested_runs(registry: ModelRegistry, training: Training, depth: int) -> None:
    child = training.nested()
    for _ in range(depth - 1):
        child = training.nested(child)
    training.nested()
    training.server.logged_model(training.experiment, training.nested(), name="broken", ready=False)
    model_id = training.server.logged_model(training.experiment, child, name="best")
    name = unique("model")
    version = await registry.register(name, run_id=training.run)
    assert (version.model_id, version.run_id) == (model_id, child)
    await verify(registry.client, version)
    assert (await registry.register(name, run_id=training.run)).version == "1"


async def test_a_nested_runs_files_that_mlflow_2_noted(registry: ModelRegistry, training: Training) -> None:
    child = training.nested()
    place = training.logged_by_mlflow_2("model", child)
    version = await registry.register(unique("model"), run_id=training.run)
    assert (version.source, version.run_id) == (place, child)


async def test_several_models_of_nested_runs_are_listed(registry: ModelRegistry, training: Training) -> None:
    first, second = training.nested(), training.nested()
    training.server.logged_model(training.experiment, first, name="a")
    wanted = training.server.logged_model(training.experiment, second, name="b")
    with pytest.raises(RunWithoutModelError) as caught:
        await registry.register(unique("model"), run_id=training.run)
    for words in (first, second, "a (", "b (", "logged_model_name", "run_id"):
        assert words in str(caught.value)
    by_name = await registry.register(unique("model"), run_id=training.run, model_name="b")
    by_run = await registry.register(unique("model"), run_id=second)
    assert by_name.model_id == by_run.model_id == wanted


async def test_another_runs_models_are_not_taken(registry: ModelRegistry, training: Training) -> None:
    training.nested()
    other = training.server.run(training.experiment)
    training.server.logged_model(training.experiment, other)
    with pytest.raises(RunWithoutModelError, match="logged no model"):
        await registry.register(unique("model"), run_id=training.run)


@pytest.mark.parametrize("deleted", ["run", "experiment"])
async def test_a_run_in_the_trash_is_told_with_the_way_back(
    registry: ModelRegistry, training: Training, deleted: str
) -> None:
    training.files("model")
    given = {"run_id": training.run} if deleted == "run" else {"experiment_id": training.experiment}
    training.server.call("POST", f"{deleted}s/delete", **given)
    with pytest.raises(RunInTrashError, match=f"mlflow runs restore --run-id {training.run}"):
        await registry.register(unique("model"), run_id=training.run)
