"""What a person moved by hand is recorded once, however many look; what nighttrain moved names its author."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.history.entries import Entry, Kind, Move
from nighttrain.providers.registry.history.noticing import notice
from nighttrain.providers.registry.promotion import Author, promote

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel
    from nighttrain.providers.registry.models import ModelRegistry

pytestmark = pytest.mark.mlflow


async def test_a_move_by_hand_becomes_one_entry_however_many_look(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = make_model().name
    make_model(name)
    await promote(registry, name, 1, author=Author(actor="nightly"))
    found = await notice(registry, name, version="1", alias="champion")
    assert found is not None
    assert (found.kind, found.actor) == (Kind.PROMOTION, "nightly")
    await registry.set_alias(name, "champion", 2)
    seen = await asyncio.gather(*(notice(registry, name, version="2", alias="champion") for _ in range(5)))
    assert {each.number for each in seen if each} == {3}
    assert seen[0] is not None
    assert (seen[0].kind, seen[0].previous_version, seen[0].actor) == (Kind.OUTSIDE, "1", "")
    assert len((await Changes(registry, name).history.read()).entries) == 3
    # It moved on since it was seen.
    assert await notice(registry, name, version="1", alias="champion") is None


async def test_a_change_that_is_under_way_explains_what_is_seen_and_is_left_to_its_own_process(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = make_model().name
    history = Changes(registry, name).history
    moves = (Move("1", alias="champion"),)
    begun = Entry(number=0, kind=Kind.PROMOTION, model=name, version="1", moves=moves, actor="nightly")
    await history.append(await history.read(), begun)
    await registry.set_alias(name, "champion", 1)
    found = await notice(registry, name, version="1", alias="champion")
    assert found is not None
    assert found.actor == "nightly"
    assert len((await history.read()).entries) == 1


async def test_a_stage_that_was_moved_by_hand_is_noticed_also_without_any_history(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = make_model().name
    await registry.transition_stage(name, 1, "Production")
    first = await notice(registry, name, version="1", stage="Production")
    assert first is not None
    assert first.kind is Kind.CARRIED_OVER
    await registry.transition_stage(name, 1, "Staging")
    second = await notice(registry, name, version="1", stage="Staging")
    assert second is not None
    assert (second.kind, str(second.moves[0])) == (Kind.OUTSIDE, "version 1 -> stage Staging")
