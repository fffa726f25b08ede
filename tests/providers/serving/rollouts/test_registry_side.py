"""Alias, stage, history and picture of a rollout on a real MLflow server; the serving system is simulated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import httpx
import pytest

from helpers.dying_client import CrashError
from helpers.promotions import entries, held, made
from helpers.simulated_serving import AskedRoute, ConfigMaps, SimulatedBackend, Traffic, Version, World
from nighttrain.providers.errors import PromotedSinceError, RolloutFailedError, TrackingUnreachableError
from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.history.entries import Kind
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import Author, promote
from nighttrain.providers.serving.backends.traffic import Target
from nighttrain.providers.serving.rollouts.engine import RolloutEngine
from nighttrain.providers.serving.rollouts.picture import draw
from nighttrain.providers.serving.rollouts.record import PICTURE_FILE, MLflowRecorder
from nighttrain.providers.serving.rollouts.registry_side import MLflowRegistrar
from nighttrain.providers.serving.rollouts.state import STRAIGHT_BACK, Names, Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

from .conftest import CANARY, only_traffic

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer
    from nighttrain.providers.serving.spec import ServingSpec

pytestmark = pytest.mark.mlflow


@pytest.fixture
async def registry(mlflow_server: MLflowServer) -> AsyncIterator[ModelRegistry]:
    async with MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as client:
        yield ModelRegistry(client)


async def roll_out(
    registry: ModelRegistry,
    world: World,
    spec: ServingSpec,
    names: Names,
    *,
    tracking: MLflowClient | None = None,
    in_between: Callable[[], Awaitable[None]] | None = None,
) -> State:
    engine = RolloutEngine(
        SimulatedBackend(world),
        RolloutStore(ConfigMaps(world)),  # type: ignore[arg-type]
        MLflowRegistrar(registry),
        sources={"traffic": Traffic(world)},
        check_metric=only_traffic,
        ask_route=AskedRoute(world),
        recorder=MLflowRecorder(tracking or registry.client),
        clock=lambda: world.now,
        sleep=world.sleep,
    )
    told: list[str] = []
    begun = await engine.begin(
        spec,
        CANARY,
        # Rollouts of one id that begin at one moment are one: their run in MLflow is, too.
        rollout_id=f"{spec.model_name}/night-1@1",
        actor="airflow:deploy",
        names=names,
        tell=told.append,
    )
    assert begun is not None
    if in_between:
        await engine.drive(
            spec.endpoint, spec.namespace, spec=spec, until=lambda state: state.moved, tell=told.append
        )
        await in_between()
    return await engine.drive(spec.endpoint, spec.namespace, spec=spec, tell=told.append)


async def test_a_promoted_version_gets_the_alias_and_each_step_is_an_entry(
    registry: ModelRegistry,
    make_model: MakeModel,
    world: World,
    serving_spec: Callable[..., ServingSpec],
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1)
    end = await roll_out(registry, world, serving_spec("2", model_name=name), Names(alias="champion"))
    assert end.phase is Phase.PROMOTED
    assert (await held(registry, name))[0] == {"champion": "2"}
    found = (await entries(registry, name))[2:]
    assert [entry.kind for entry in found] == [
        Kind.ROLLOUT,
        Kind.ROLLOUT,
        Kind.ROLLOUT,
        Kind.PROMOTION,
        Kind.DONE,
        Kind.ROLLOUT,
        Kind.ROLLOUT,
    ]
    assert found[1].reason.startswith(f"10 percent of the requests go to the candidate ({name}/night-1@1, ")
    assert {entry.actor for entry in found if entry.kind is not Kind.DONE} == {"airflow:deploy"}


async def test_an_undone_version_gives_alias_and_stage_back_to_who_held_them(
    registry: ModelRegistry,
    make_model: MakeModel,
    world: World,
    serving_spec: Callable[..., ServingSpec],
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1, stage="Production")
    # As the nightly DAG does: the gate promotes, and the transition starts the deployment.
    await promote(registry, name, 2, stage="Production", author=Author(actor="nightly"))
    world.versions["2"] = Version(errors=1.0)
    spec = serving_spec("2", model_name=name)
    end = await roll_out(registry, world, spec, Names(alias="champion", stage="Production"))
    assert end.phase is Phase.UNDONE
    assert await held(registry, name) == ({"champion": "1"}, {"1": "Production", "2": "None"})
    (back,) = [entry for entry in await entries(registry, name) if entry.kind is Kind.ROLLBACK]
    assert "rollout on delay undone" in back.reason
    assert (await entries(registry, name))[-1].reason.startswith("undone: version 1 serves")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("taken", [{"alias": "champion"}, {"alias": None, "stage": "Production"}])
async def test_what_is_left_of_alias_and_stage_is_given_back_when_somebody_takes_one_away(
    registry: ModelRegistry,
    make_model: MakeModel,
    world: World,
    serving_spec: Callable[..., ServingSpec],
    taken: dict[str, str],
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 1, stage="Production")

    async def take_one_away() -> None:
        await promote(registry, name, 3, **taken)

    spec = serving_spec("2", model_name=name)
    names = Names(alias="champion", stage="Production")
    end = await roll_out(registry, world, spec, names, in_between=take_one_away)
    assert end.phase is Phase.UNDONE
    assert "moved" in end.reason
    aliases, stages = await held(registry, name)
    in_production = [version for version, stage in stages.items() if stage == "Production"]
    assert (aliases, in_production) == (
        ({"champion": "3"}, ["1"]) if "stage" not in taken else ({"champion": "1"}, ["3"])
    )


async def test_two_versions_may_hold_alias_and_stage_before(
    registry: ModelRegistry,
    make_model: MakeModel,
    world: World,
    serving_spec: Callable[..., ServingSpec],
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 1)
    await promote(registry, name, 3, alias=None, stage="Production")
    spec = serving_spec("2", model_name=name)
    end = await roll_out(registry, world, spec, Names(alias="champion", stage="Production"))
    assert end.phase is Phase.PROMOTED
    assert await held(registry, name) == (
        {"champion": "2"},
        {"1": "None", "2": "Production", "3": "Archived"},
    )


@pytest.mark.parametrize("errors", [0.0, 1.0])
async def test_a_process_that_dies_between_a_move_and_its_end_leaves_nothing_half_made(
    registry: ModelRegistry,
    make_model: MakeModel,
    world: World,
    serving_spec: Callable[..., ServingSpec],
    monkeypatch: pytest.MonkeyPatch,
    errors: float,
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1)
    spec, names = serving_spec("2", model_name=name), Names(alias="champion")
    if errors:  # then it is the way back that dies
        await promote(registry, name, 2)
        world.versions["2"] = Version(errors=errors)

    async def dies(*_given: object, **_named: object) -> None:
        raise CrashError

    with monkeypatch.context() as patching:
        patching.setattr(Changes, "_close", dies)
        with pytest.raises(CrashError):
            await roll_out(registry, world, spec, names)
    assert (await Changes(registry, name).read()).unfinished is not None
    end = await roll_out(registry, world, spec, names)
    assert end.phase is (Phase.UNDONE if errors else Phase.PROMOTED)
    ledger = await Changes(registry, name).read()
    assert (ledger.unfinished, ledger.faults) == (None, ())
    assert (await held(registry, name))[0] == {"champion": "1" if errors else "2"}


async def test_a_model_that_somebody_deletes_during_its_rollout_takes_the_version_along(
    registry: ModelRegistry,
    make_model: MakeModel,
    world: World,
    serving_spec: Callable[..., ServingSpec],
    mlflow_server: MLflowServer,
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1)

    async def somebody_deletes_it() -> None:
        url = f"{mlflow_server.uri}/api/2.0/mlflow/registered-models/delete"
        async with httpx.AsyncClient(trust_env=False) as client:
            (await client.request("DELETE", url, json={"name": name})).raise_for_status()

    with pytest.raises(RolloutFailedError, match=f"is undone.*{name}"):
        await roll_out(
            registry,
            world,
            serving_spec("2", model_name=name),
            Names(alias="champion"),
            in_between=somebody_deletes_it,
        )
    assert (world.stable, world.asked, world.versions["2"].up_since) == ("1", 0, None)


@pytest.mark.parametrize(("errors", "in_production"), [(0.0, "2"), (1.0, "1")])
async def test_a_stage_that_somebody_moved_alone_goes_alone(
    registry: ModelRegistry,
    make_model: MakeModel,
    world: World,
    serving_spec: Callable[..., ServingSpec],
    errors: float,
    in_production: str,
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1, stage="Production")
    await promote(registry, name, 2, alias=None, stage="Production")
    world.versions["2"] = Version(errors=errors)
    spec = serving_spec("2", model_name=name)
    await roll_out(registry, world, spec, Names(alias="champion", stage="Production"))
    aliases, stages = await held(registry, name)
    assert aliases == {"champion": "1"}
    assert [version for version, stage in stages.items() if stage == "Production"] == [in_production]
    assert world.stable == in_production


async def test_the_series_and_the_picture_are_in_the_rollouts_run(
    registry: ModelRegistry,
    make_model: MakeModel,
    mlflow_server: MLflowServer,
    world: World,
    serving_spec: Callable[..., ServingSpec],
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1)
    end = await roll_out(registry, world, serving_spec("2", model_name=name), Names(alias="champion"))
    assert end.run_id is not None
    run = (await registry.client.get("runs/get", {"run_id": end.run_id}))["run"]
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["run_name"] == "delay version 2"
    assert {metric["key"] for metric in run["data"]["metrics"]} == {
        "percent",
        "errors/candidate",
        "errors/stable",
    }
    history = await registry.client.get(
        "metrics/get-history", {"run_id": end.run_id, "metric_key": "percent", "max_results": 1000}
    )
    assert len(history["metrics"]) == len(end.points), "each point once"
    picture = b"".join(
        [
            piece
            async for piece in registry.client.stream(
                "/get-artifact", {"run_uuid": end.run_id, "path": PICTURE_FILE}
            )
        ]
    )
    assert picture.decode() == draw(end)
    ET.fromstring(picture.decode())  # noqa: S314  (our own)


async def test_mlflow_gone_for_the_series_does_not_hold_the_rollout_up(
    registry: ModelRegistry,
    make_model: MakeModel,
    world: World,
    serving_spec: Callable[..., ServingSpec],
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1)

    class Gone(MLflowClient):
        async def get(self, *_: object, **__: object) -> dict[str, object]:
            raise TrackingUnreachableError("connection refused")

    tracking = Gone(TrackingConfig(uri="http://127.0.0.1:9"))
    spec = serving_spec("2", model_name=name)
    end = await roll_out(registry, world, spec, Names(alias="champion"), tracking=tracking)
    assert (end.phase, end.run_id) == (Phase.PROMOTED, None)


def test_hostile_names_stay_text_in_the_picture(serving_spec: Callable[..., ServingSpec]) -> None:
    from nighttrain.providers.serving.backends.traffic import Target

    target = Target(endpoint="<script>", namespace="d", model_name="m", candidate='"&<b>', stable="1")
    state = State(
        rollout_id="r", actor="a", target=target, strategy=CANARY, names=Names(), begun_at=0.0, since=0.0
    )
    text = draw(replace(state, reason="</svg><script>alert(1)</script>"))
    tags = [element.tag for element in ET.fromstring(text).iter()]  # noqa: S314
    assert not any("script" in tag for tag in tags)


async def test_a_way_back_undoes_the_promotion_and_is_given_back_itself(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 1, stage="Production")
    await promote(registry, name, 2, stage="Production")
    names = Names(alias="champion", stage="Production")
    target = Target(endpoint="delay", namespace="ml", model_name=name, candidate="1", stable="2")
    state = State(
        rollout_id="back@1",
        actor="ann",
        target=target,
        strategy=STRAIGHT_BACK,
        names=names,
        begun_at=0,
        since=0,
        replaces="2",
        returns_because="wrong since noon",
    )
    registrar = MLflowRegistrar(registry)
    for _ in range(2):
        await registrar.move(state)
        assert (await registrar.holders(name, names)).hold_all("1")
    back = [entry for entry in await entries(registry, name) if entry.kind is Kind.ROLLBACK]
    assert [(each.reason, each.version) for each in back] == [("wrong since noon", "1")]
    await registrar.give_back(replace(state, reason="not ready"))
    assert (await registrar.holders(name, names)).hold_all("2")
    await promote(registry, name, 3, stage="Production")
    with pytest.raises(PromotedSinceError):
        await registrar.move(state)
    assert (await registrar.holders(name, names)).hold_all("3")


async def test_a_way_back_moves_what_no_promotion_had_moved(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    """The stage came to the withdrawn version by another hand."""
    name = made(make_model, 2)
    await promote(registry, name, 1)
    await promote(registry, name, 2)
    await promote(registry, name, 2, alias=None, stage="Production")
    names = Names(alias="champion", stage="Production")
    target = Target(endpoint="delay", namespace="ml", model_name=name, candidate="1", stable="2")
    begun = State(
        rollout_id="r", actor="ann", target=target, strategy=STRAIGHT_BACK, names=names, begun_at=0, since=0
    )
    await MLflowRegistrar(registry).move(replace(begun, replaces="2", returns_because="wrong"))
    assert (await MLflowRegistrar(registry).holders(name, names)).hold_all("1")
