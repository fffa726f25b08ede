from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from helpers.mlflow_server import unique
from nighttrain.providers.errors import (
    ConfigurationError,
    ModelNotFoundError,
    ModelVersionNotFoundError,
    RunWithoutModelError,
    TrackingNotFoundError,
)
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.versions import (
    DIGEST_TAG,
    check_alias,
    check_name,
    check_stage,
    check_version,
)
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.mlflow_server import MakeModel, MLflowServer
    from helpers.scripted_http import Scripted


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a:b", "x" * 257, "a\nb", "both ' and \""])
def test_refused_names(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^model"):
        check_name(name)


@pytest.mark.parametrize(
    "alias", ["", "latest", "LATEST", "v12", "V1", "a b", "a.b", "champion\n", "x" * 256]
)
def test_refused_aliases(alias: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^alias"):
        check_alias(alias)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (check_stage, "Prod"),
        (check_stage, ""),
        (check_version, "abc"),
        (check_version, 0),
        (check_version, "²"),
    ],
)
def test_refused_stages_and_versions(check: Callable[[object], str], value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"stages are|is a number"):
        check(value)


def test_spelling_is_normalised() -> None:
    assert [check_stage(stage) for stage in ("production", "NONE", " Staging ")] == [
        "Production",
        "None",
        "Staging",
    ]
    assert [check_version(version) for version in (7, "07")] == ["7", "7"]
    assert [check_alias(alias) for alias in ("champion", "v1-rc", "latest_good")] == [
        "champion",
        "v1-rc",
        "latest_good",
    ]


@pytest.mark.mlflow
async def test_register_records_the_digest_and_repeats_without_a_double(
    registry: ModelRegistry, make_model: MakeModel, mlflow_server: MLflowServer
) -> None:
    made = make_model(register=False)
    first = await registry.register(
        made.name,
        run_id=made.run_id,
        tags={"nighttrain.dag_id": "nightly", "password": "hunter2", "nothing": None},
        description="from https://user:hunter2@host/x",
    )
    assert (first.version, first.run_id, first.model_id, first.stage) == (
        "1",
        made.run_id,
        made.model_id,
        "None",
    )
    assert first.source == f"models:/{made.model_id}"
    assert first.tags["nighttrain.dag_id"] == "nightly"
    assert (first.tags["password"], first.description) == ("***", "from https://***@host/x")
    assert len(first.digest or "") == 64
    assert first.tags.keys() == {"nighttrain.dag_id", "password", DIGEST_TAG}
    again = await registry.register(made.name, run_id=made.run_id, tags={"more": "1"})
    assert again.version == "1"
    assert again.tags == {**first.tags, "more": "1"}
    assert again.last_updated == first.last_updated
    assert len(mlflow_server.versions(made.name)) == 1


@pytest.mark.mlflow
async def test_a_version_registered_by_the_training_code_is_adopted(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    made = make_model()
    make_model(made.name)
    version = await registry.register(made.name, run_id=made.run_id)
    assert version.version == made.version == "1"
    assert DIGEST_TAG in version.tags


@pytest.mark.mlflow
async def test_a_retried_training_gets_a_version_of_its_new_model(
    registry: ModelRegistry, make_model: MakeModel, mlflow_server: MLflowServer
) -> None:
    made = make_model(register=False)
    first = await registry.register(made.name, run_id=made.run_id)
    newer = mlflow_server.logged_model(made.experiment_id, made.run_id, files={"MLmodel": b"other"})
    second = await registry.register(made.name, run_id=made.run_id)
    assert (second.version, second.model_id) == ("2", newer)
    assert second.digest != first.digest


@pytest.mark.mlflow
async def test_concurrent_registrations_agree_on_the_lowest(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    made = make_model(register=False)
    versions = await asyncio.gather(*(registry.register(made.name, run_id=made.run_id) for _ in range(4)))
    assert {version.version for version in versions} == {"1"}


@pytest.mark.mlflow
@pytest.mark.parametrize(
    "lose", ["model-versions/create", "registered-models/create", "model-versions/search"]
)
async def test_a_lost_answer_makes_no_double(
    make_model: MakeModel, mlflow_server: MLflowServer, scripted: Scripted, lose: str
) -> None:
    scripted.upstream, scripted.lose = mlflow_server.uri, lose
    made = make_model(register=False)
    async with MLflowClient(TrackingConfig(scripted.uri)) as client:
        version = await ModelRegistry(client).register(made.name, run_id=made.run_id)
    assert (scripted.lose, version.version) == ("", "1")
    assert len(mlflow_server.versions(made.name)) == 1


@pytest.mark.mlflow
async def test_runs_without_a_ready_model(
    registry: ModelRegistry, make_model: MakeModel, mlflow_server: MLflowServer
) -> None:
    experiment = mlflow_server.experiment()
    empty = mlflow_server.run(experiment)
    name = unique("model")
    with pytest.raises(
        RunWithoutModelError, match=rf"run {empty} .*logged no model: .*log_model\(model, name="
    ):
        await registry.register(name, run_id=empty)
    pending = make_model(register=False, ready=False)
    with pytest.raises(RunWithoutModelError, match=rf"no READY model; .*{pending.model_id}, PENDING"):
        await registry.register(name, run_id=pending.run_id)
    two = make_model(register=False)
    other = mlflow_server.logged_model(two.experiment_id, two.run_id, name="second")
    with pytest.raises(RunWithoutModelError, match=r"several models, model, second: .*model_name"):
        await registry.register(name, run_id=two.run_id)
    with pytest.raises(RunWithoutModelError, match=r"no model with model_name='third'; it logged"):
        await registry.register(name, run_id=two.run_id, model_name="third")
    with pytest.raises(TrackingNotFoundError, match=r"f" * 32):
        await registry.register(name, run_id="f" * 32)
    with pytest.raises(ModelNotFoundError):
        await registry.get_model(name)
    assert (await registry.register(name, run_id=two.run_id, model_name="second")).model_id == other
    assert (await registry.register(name, run_id=two.run_id, model_id=two.model_id)).model_id == two.model_id


@pytest.mark.mlflow
async def test_aliases(registry: ModelRegistry, make_model: MakeModel) -> None:
    made = make_model()
    with pytest.raises(ModelVersionNotFoundError, match=r"no alias 'champion'; its aliases: none"):
        await registry.version_by_alias(made.name, "champion")
    for _ in range(2):
        await registry.set_alias(made.name, "champion", 1)
    held = await registry.version_by_alias(made.name, "champion")
    assert (held.version, held.aliases) == ("1", ("champion",))
    assert (await registry.get_model(made.name)).aliases == {"champion": "1"}
    with pytest.raises(ModelVersionNotFoundError, match=r"no version 9"):
        await registry.set_alias(made.name, "champion", "9")
    for _ in range(2):
        await registry.delete_alias(made.name, "champion")
    assert (await registry.get_model(made.name)).aliases == {}


@pytest.mark.mlflow
async def test_stages(registry: ModelRegistry, make_model: MakeModel) -> None:
    name = make_model().name
    make_model(name)
    with pytest.raises(ModelVersionNotFoundError, match=r"is in stage Production"):
        await registry.version_in_stage(name, "production")
    first = await registry.transition_stage(name, "1", "production")
    assert (await registry.version_in_stage(name, "Production")).version == "1"
    assert (await registry.transition_stage(name, "1", "Production")).last_updated == first.last_updated
    await registry.transition_stage(name, "2", "Production", archive_existing=False)
    assert (await registry.version_in_stage(name, "Production")).version == "2"
    assert (await registry.get_version(name, "1")).stage == "Production"
    await registry.transition_stage(name, "2", "Production", archive_existing=True)
    assert (await registry.get_version(name, "1")).stage == "Archived"
    # MLflow answers 500 to archive_existing for a stage without holders of its own.
    assert (await registry.transition_stage(name, "2", "none", archive_existing=True)).stage == "None"
    with pytest.raises(ModelVersionNotFoundError, match=r"no version 7"):
        await registry.transition_stage(name, "7", "Staging")


@pytest.mark.mlflow
async def test_names_with_quotes_do_not_break_filters(registry: ModelRegistry, make_model: MakeModel) -> None:
    for name in (
        unique("it's"),
        unique('the "best" model'),
        unique("x' or name like '%"),
        unique("päth %41 & more"),
    ):
        made = make_model(name, register=False)
        assert (await registry.register(name, run_id=made.run_id)).version == "1"
        assert [version.name for version in await registry.versions(name)] == [name]


@pytest.mark.mlflow
async def test_tags_descriptions_and_missing_things(registry: ModelRegistry, make_model: MakeModel) -> None:
    name = make_model().name
    await registry.set_tags(name, 1, {"reason": "token=abcdefgh and more", "long": "x" * 200_000, "k y": 1})
    await registry.set_description(name, 1, "first")
    version = await registry.get_version(name, 1)
    assert version.tags["reason"] == "token=*** and more"
    assert (len(version.tags["long"]), version.tags["k y"]) == (5_000, "1")
    assert version.description == "first"
    assert [found.version for found in await registry.versions(name, tags={"k y": "1"})] == ["1"]
    await registry.set_description(name, 1, "first")
    assert (await registry.get_version(name, 1)).last_updated == version.last_updated
    with pytest.raises(ModelVersionNotFoundError):
        await registry.set_tags(name, 5, {"a": "b"})
    with pytest.raises(ModelNotFoundError):
        await registry.version_in_stage("absent", "Production")
    with pytest.raises(ModelVersionNotFoundError, match=r"no version 5"):
        await registry.get_version(name, 5)
