"""Which promotions a rollback undoes, and that it moves exactly what they had moved."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from helpers.promotions import FIRST, entries, held, made, written_before
from nighttrain.providers.errors import ConfigurationError, NothingToUndoError
from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.history.entries import Entry, Kind, Move
from nighttrain.providers.registry.history.noticing import notice
from nighttrain.providers.registry.promotion import Author, promote, roll_back

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer
    from nighttrain.providers.registry.models import ModelRegistry

pytestmark = pytest.mark.mlflow


async def test_aliases_that_share_a_stage_are_rolled_back_in_any_order(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 1, alias="a", stage="Production")
    await promote(registry, name, 2, alias="b", stage="Production")
    await promote(registry, name, 3, alias="c", stage="Production")
    # Its version was put aside by the next one, which keeps the stage.
    await roll_back(registry, name, alias="a")
    await roll_back(registry, name, alias="b")
    aliases, stages = await held(registry, name)
    assert (aliases, stages["3"]) == ({"c": "3"}, "Production")
    back = await roll_back(registry, name, alias="c")
    assert await held(registry, name) == ({}, {"1": "None", "2": "None", "3": "None"})
    assert (back.version, back.stage) == (None, None)


async def test_what_held_the_stage_before_two_withdrawn_versions_gets_it_back(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 4)
    await promote(registry, name, 1, alias="base", stage="Production")
    await promote(registry, name, 2, alias="a", stage="Production")
    await promote(registry, name, 3, alias="a", stage="Production")
    await promote(registry, name, 4, alias="b", stage="Production")
    # Over several: the stage is the other alias's, and stays so.
    with pytest.raises(NothingToUndoError, match=r"version 1 of .*'base' are on record, too"):
        await roll_back(registry, name, alias="a", to=1)
    for _ in range(2):
        await roll_back(registry, name, alias="a")
    aliases, stages = await held(registry, name)
    assert (aliases, stages["4"]) == ({"base": "1", "b": "4"}, "Production")
    await roll_back(registry, name, alias="b")
    assert await held(registry, name) == (
        {"base": "1"},
        {"1": "Production", "2": "None", "3": "None", "4": "None"},
    )


async def test_back_over_several_leaves_a_stage_to_who_took_it_since(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 4)
    for version in (1, 2, 3):
        await promote(registry, name, version, alias="a", stage="Production")
    await promote(registry, name, 4, alias="b", stage="Production")
    await roll_back(registry, name, alias="a", to=1)
    aliases, stages = await held(registry, name)
    assert aliases == {"a": "1", "b": "4"}
    assert [each for each, stage in stages.items() if stage == "Production"] == ["4"]
    await roll_back(registry, name, alias="b")
    assert await held(registry, name) == (
        {"a": "1"},
        {"1": "Production", "2": "None", "3": "None", "4": "None"},
    )


async def test_a_version_that_went_on_to_another_stage_is_left_there(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 1)
    await promote(registry, name, 1, alias="tried", stage="Staging")
    await promote(registry, name, 1, stage="Production")
    await roll_back(registry, name, alias="tried")
    assert await held(registry, name) == ({"champion": "1"}, {"1": "Production"})
    await roll_back(registry, name, alias="champion")
    assert await held(registry, name) == ({}, {"1": "None"})


async def test_a_promotion_whose_version_was_deleted_is_undone(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1, stage="Production")
    await promote(registry, name, 2, stage="Production")
    await registry.delete_version(name, 2)
    undone = await roll_back(registry, name, alias="champion")
    assert undone.version == "1"
    assert await held(registry, name) == ({"champion": "1"}, {"1": "Production"})


async def test_promotions_of_the_version_before_are_undone_without_an_alias_as_with_one(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 2)
    await written_before(registry, name)
    first = await roll_back(registry, name)
    assert (first.version, first.alias) == ("1", "champion")
    assert await held(registry, name) == ({"champion": "1"}, {"1": "Production", "2": "None"})
    second = await roll_back(registry, name)
    assert (second.version, second.alias) == (None, "champion")
    assert await held(registry, name) == ({}, {"1": "None", "2": "None"})
    with pytest.raises(NothingToUndoError, match="no promotion in effect"):
        await roll_back(registry, name)


@pytest.mark.parametrize("alias", ["champion", None])
async def test_each_record_of_the_version_before_is_undone_once(
    registry: ModelRegistry, make_model: MakeModel, alias: str | None
) -> None:
    name = made(make_model, 2)
    # 1, then 2, then 1 again: only the last record of a version is kept.
    await written_before(registry, name)
    await registry.set_tags(
        name, "1", {"nighttrain.promotion": json.dumps({**FIRST, "previous_version": "2"})}
    )
    await roll_back(registry, name, alias=alias)
    await roll_back(registry, name, alias=alias)
    assert (await held(registry, name))[0] == {"champion": "2"}
    with pytest.raises(NothingToUndoError):
        await roll_back(registry, name, alias=alias)


async def test_which_of_several_aliases_goes_back_to_a_version_is_not_guessed(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    for alias in ("champion", "shadow"):
        for version in (1, 2):
            await promote(registry, name, version, alias=alias)
    await promote(registry, name, 3, alias=None, stage="Staging")
    before = await held(registry, name)
    with pytest.raises(
        ConfigurationError,
        match=r"alias: stage 'Staging' and alias 'shadow' and alias 'champion' of .* goes back to version 1",
    ):
        await roll_back(registry, name, to=1)
    assert await held(registry, name) == before
    await roll_back(registry, name, alias="champion", to=1)
    assert (await held(registry, name))[0] == {"champion": "1", "shadow": "2"}


async def test_a_named_entry_is_undone_once_whoever_says_it_again(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    for version in (1, 2, 3):
        await promote(registry, name, version)
    with pytest.raises(
        NothingToUndoError, match=r"entry 3 .* entry 5 moved 'champion' since: undo that first"
    ):
        await roll_back(registry, name, undo=3)
    undone = await roll_back(registry, name, undo=5)
    assert (undone.version, undone.previous_version, undone.number) == ("2", "3", 7)
    for again in (5, 5):
        with pytest.raises(NothingToUndoError, match=r"entry 5 .* was undone already, by entry 7"):
            await roll_back(registry, name, undo=again)
    assert (await held(registry, name))[0] == {"champion": "2"}
    for number, why in ((7, "rollback"), (4, "done"), (99, "there is no entry 99")):
        with pytest.raises(NothingToUndoError, match=why):
            await roll_back(registry, name, undo=number)
    with pytest.raises(ConfigurationError, match="to = 1: leave it out"):
        await roll_back(registry, name, undo=3, to=1)
    with pytest.raises(ConfigurationError, match="undo = True"):
        await roll_back(registry, name, undo=True)


async def test_of_many_that_undo_the_same_entry_one_does(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    for version in (1, 2, 3):
        await promote(registry, name, version)
    answers = await asyncio.gather(
        *(roll_back(registry, name, undo=5, author=Author(actor=f"{n}")) for n in range(4)),
        return_exceptions=True,
    )
    assert sum(not isinstance(each, Exception) for each in answers) == 1
    assert (await held(registry, name))[0] == {"champion": "2"}


async def test_a_model_that_is_made_again_has_a_history_of_its_own(
    mlflow_server: MLflowServer, registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1)
    await promote(registry, name, 2, stage="Production")
    history = Changes(registry, name).history
    ledger = (await history.read()).of_model((await registry.get_model(name)).created)
    begun = Entry(
        number=0, kind=Kind.PROMOTION, model=name, version="1", moves=(Move("1", alias="champion"),)
    )
    await history.append(ledger, begun)
    mlflow_server.call("DELETE", "registered-models/delete", name=name)
    made_again = [make_model(name).version for _ in range(2)]
    assert made_again == ["1", "2"]
    with pytest.raises(NothingToUndoError, match="no promotion"):
        await roll_back(registry, name)
    # What was begun for the other model is not finished on this one.
    assert (await held(registry, name))[0] == {}
    await registry.set_alias(name, "champion", 2)
    by_hand = await notice(registry, name, version="2", alias="champion")
    assert by_hand is not None
    assert (by_hand.kind, by_hand.actor, by_hand.number) == (Kind.CARRIED_OVER, "", 6)
    await promote(registry, name, 1)
    await roll_back(registry, name)
    assert (await held(registry, name))[0] == {"champion": "2"}
    own = await Changes(registry, name).read()
    assert ([each.number for each in own.entries], own.earlier) == ([6, 7, 8, 9, 10], 5)
    # Nothing of the other one is lost, and it is still one chain.
    whole = await history.read()
    assert ([each.number for each in whole.entries], whole.faults) == (list(range(1, 11)), ())


async def test_a_model_with_a_new_name_begins_a_history_and_finds_the_old_one_under_the_old_name(
    mlflow_server: MLflowServer, registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1)
    await promote(registry, name, 2)
    mlflow_server.call("POST", "registered-models/rename", name=name, new_name=f"{name}-renamed")
    with pytest.raises(NothingToUndoError):
        await roll_back(registry, f"{name}-renamed")
    (first,) = await entries(registry, f"{name}-renamed")
    assert (first.kind, str(first.moves[0])) == (Kind.CARRIED_OVER, "alias champion -> 2")
    make_model(name)
    assert (await Changes(registry, name).read()).entries == ()
    mlflow_server.call("DELETE", "registered-models/delete", name=name)
    mlflow_server.call("POST", "registered-models/rename", name=f"{name}-renamed", new_name=name)
    assert (await roll_back(registry, name)).version == "1"


async def test_a_version_that_was_archived_before_its_promotion_is_archived_after_it(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1, stage="Production")
    await registry.transition_stage(name, 2, "Archived")
    await promote(registry, name, 2, stage="Production")
    await roll_back(registry, name)
    assert await held(registry, name) == ({"champion": "1"}, {"1": "Production", "2": "Archived"})
