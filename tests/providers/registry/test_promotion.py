from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from helpers.dying_client import CrashError, DyingClient
from helpers.mlflow_proxy import Answer, Asked, proxy, refused
from helpers.promotions import RECORD, entries, held, made, written_before
from nighttrain.providers.errors import (
    ConfigurationError,
    ModelVersionNotFoundError,
    NothingToUndoError,
    PromotedSinceError,
    RegistryError,
    TrackingError,
)
from nighttrain.providers.registry.gates import judge
from nighttrain.providers.registry.history.changes import Changes
from nighttrain.providers.registry.history.entries import Entry, Kind, Move
from nighttrain.providers.registry.history.noticing import notice
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import NOBODY, Author, note, promote, roll_back
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = pytest.mark.mlflow


def clock() -> float:
    return 1_800_000_000.0


async def test_a_promotion_is_an_entry_and_repeating_it_changes_nothing(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 2)
    first = await promote(registry, name, 1, author=Author(actor="nightly"), clock=clock)
    assert (first.previous_version, first.changed) == (None, True)
    verdict = judge(["mae <= champion"], {"mae": 20.0}, {"mae": 22.0})
    second = await promote(
        registry,
        name,
        2,
        stage="production",
        author=Author(
            actor="nightly",
            approver="ann",
            reason="token=abc123",
            evidence=verdict.to_dict(),
            dag_run="nightly/run-2",
        ),
        clock=clock,
    )
    assert (second.previous_version, second.stage, second.number) == ("1", "Production", 3)
    assert await held(registry, name) == ({"champion": "2"}, {"1": "None", "2": "Production"})
    one, one_done, two, two_done = await entries(registry, name)
    assert (one.kind, one.moves[0].stage, one.at) == (Kind.PROMOTION, None, "2027-01-15T08:00:00+00:00")
    assert (one_done.kind, one_done.finishes, two_done.finishes) == (Kind.DONE, 1, 3)
    assert (two.actor, two.approver, two.reason) == ("nightly", "ann", "token=***")
    assert (two.previous_version, two.dag_run) == ("1", "nightly/run-2")
    assert "mae 20 is at most" in two.evidence
    again = await promote(registry, name, 2, stage="Production", author=Author(actor="somebody else"))
    assert (again.changed, again.previous_version) == (False, "1")
    assert len(await entries(registry, name)) == 4


async def test_without_a_stage_no_stage_moves_and_a_rollback_moves_exactly_what_was_moved(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1)
    await promote(registry, name, 2)
    before = {each.version: each.last_updated for each in await registry.versions(name)}
    undone = await roll_back(registry, name, author=Author(actor="oncall", reason="bad predictions"))
    assert (undone.version, undone.previous_version, undone.stage) == ("1", "2", None)
    assert await held(registry, name) == ({"champion": "1"}, {"1": "None", "2": "None"})
    assert {each.version: each.last_updated for each in await registry.versions(name)} == before
    promoted, _, again, _, rollback, done = await entries(registry, name)
    assert (rollback.kind, rollback.undoes, done.finishes) == (Kind.ROLLBACK, (3,), 5)
    assert (promoted.reason, again.reason, rollback.reason) == ("", "", "bad predictions")


@pytest.mark.parametrize("archive", [True, False])
async def test_a_rollback_gives_stages_back(
    registry: ModelRegistry, make_model: MakeModel, archive: bool
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1, stage="Production")
    await registry.transition_stage(name, "2", "Staging")
    await promote(registry, name, 2, stage="Production", archive_existing=archive)
    await roll_back(registry, name, alias="champion")
    assert await held(registry, name) == ({"champion": "1"}, {"1": "Production", "2": "Staging"})
    assert (await registry.version_in_stage(name, "Production")).version == "1"
    await roll_back(registry, name)
    assert await held(registry, name) == ({}, {"1": "None", "2": "Staging"})
    with pytest.raises(NothingToUndoError, match="no promotion of 'champion' in effect"):
        await roll_back(registry, name, alias="champion")


async def test_back_over_several_promotions(registry: ModelRegistry, make_model: MakeModel) -> None:
    name = made(make_model, 4)
    for version in (1, 2, 3):
        await promote(registry, name, version, stage="Production")
    with pytest.raises(NothingToUndoError, match=r"version 4 of .* was not in place"):
        await roll_back(registry, name, to=4)
    undone = await roll_back(registry, name, to=1)
    assert (undone.version, undone.previous_version) == ("1", "3")
    assert await held(registry, name) == (
        {"champion": "1"},
        {"1": "Production", "2": "None", "3": "None", "4": "None"},
    )
    assert (await entries(registry, name))[-2].undoes == (5, 3)
    assert not (await roll_back(registry, name, to=1)).changed


async def test_another_champion_than_the_one_that_was_judged_is_not_replaced(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 1, replaces=NOBODY)
    await promote(registry, name, 2, replaces="1")
    before = await entries(registry, name)
    with pytest.raises(
        PromotedSinceError, match=r"judged beside version 1, and alias 'champion' is on version 2"
    ):
        await promote(registry, name, 3, replaces="1")
    with pytest.raises(PromotedSinceError, match="judged beside no version"):
        await promote(registry, name, 3, replaces=NOBODY)
    assert await entries(registry, name) == before
    # A task that is tried again after its promotion was done is not refused.
    assert not (await promote(registry, name, 2, replaces="1")).changed


async def test_what_moved_without_nighttrain_becomes_an_entry(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 1, stage="Production")
    await registry.set_alias(name, "champion", 2)
    await registry.transition_stage(name, 2, "Production")
    await promote(registry, name, 3)
    outside = (await entries(registry, name))[2]
    assert (outside.kind, outside.version, outside.previous_version) == (Kind.OUTSIDE, "2", "1")
    assert sorted(map(str, outside.moves)) == [
        "alias champion -> 2",
        "version 1 -> stage Archived",
        "version 2 -> stage Production",
    ]
    await roll_back(registry, name)
    with pytest.raises(NothingToUndoError, match=r"moved without nighttrain \(entry 3, before: version 1\)"):
        await roll_back(registry, name)
    await roll_back(registry, name, to=1)
    assert await held(registry, name) == ({"champion": "1"}, {"1": "Production", "2": "None", "3": "None"})


async def test_what_an_endpoint_withdrew_loses_the_alias_unless_somebody_promoted_since(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await registry.set_alias(name, "champion", 2)
    await registry.transition_stage(name, 2, "Production")
    unknown = await roll_back(registry, name, alias="champion", to=1, withdraws=2)
    assert (unknown.version, unknown.changed) == ("1", True)
    assert await held(registry, name) == (
        {"champion": "1"},
        {"1": "Production", "2": "Archived", "3": "None"},
    )
    await promote(registry, name, 3)
    since = await roll_back(registry, name, alias="champion", to=1, withdraws=2)
    assert (since.version, since.changed) == ("3", False)


async def test_promotions_of_the_version_before_are_read_undone_and_continued(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await written_before(registry, name)
    await promote(registry, name, 3)
    carried = (await entries(registry, name))[0]
    assert (carried.kind, carried.version, carried.previous_version) == (Kind.CARRIED_OVER, "2", "1")
    assert (carried.actor, carried.at) == (RECORD["actor"], RECORD["at"])
    await roll_back(registry, name, alias="champion")
    assert (await held(registry, name))[0] == {"champion": "2"}
    await roll_back(registry, name, alias="champion")
    assert await held(registry, name) == (
        {"champion": "1"},
        {"1": "Production", "2": "None", "3": "None"},
    )
    await roll_back(registry, name, alias="champion")
    assert await held(registry, name) == ({}, {"1": "None", "2": "None", "3": "None"})


async def test_what_the_version_before_left_half_done_is_finished(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1, alias="other")  # there is a history already
    await registry.set_alias(name, "champion", 2)
    started = json.dumps({**RECORD, "state": "started"})
    await registry.transition_stage(name, 1, "Production")
    await registry.set_tags(name, "2", {"nighttrain.promotion": started})
    done = await promote(registry, name, 2, stage="Production")
    assert (done.previous_version, done.changed) == ("1", True)
    await roll_back(registry, name, alias="champion")
    aliases, stages = await held(registry, name)
    assert (aliases["champion"], stages) == ("1", {"1": "Production", "2": "None"})


async def test_what_somebody_may_not_move_is_given_up_and_done_by_nobody_with_more_rights(
    mlflow_server: MLflowServer, registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 1)

    def judge(asked: Asked) -> Answer | None:
        moves = asked.method != "GET" and asked.path.endswith("registered-models/alias")
        return refused(403, "PERMISSION_DENIED") if moves else None

    with proxy(mlflow_server.uri, judge) as before:
        async with MLflowClient(TrackingConfig(before.uri)) as client:
            with pytest.raises(RegistryError, match="403"):
                await promote(ModelRegistry(client), name, 2)
    kinds = [each.kind for each in await entries(registry, name)]
    assert kinds == [Kind.PROMOTION, Kind.DONE, Kind.PROMOTION, Kind.ABANDONED]
    assert (await promote(registry, name, 3)).previous_version == "1"
    assert (await held(registry, name))[0] == {"champion": "3"}


async def test_a_change_that_cannot_be_made_any_more_is_given_up_by_whoever_takes_it_over(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 1)
    history = Changes(registry, name).history
    moves = (Move("2", alias="champion"), Move("2", stage="Production", archive=True))
    back = (Move("2", stage="None"), Move("1", alias="champion"))
    begun = Entry(number=0, kind=Kind.PROMOTION, model=name, version="2", moves=moves, back=back)
    await history.append(await history.read(), begun)
    await registry.set_alias(name, "champion", 2)
    await registry.delete_version(name, 2)
    assert (await promote(registry, name, 3, patience=0)).changed
    kinds = [each.kind for each in await entries(registry, name)]
    assert kinds[2:5] == [Kind.PROMOTION, Kind.TAKEN_OVER, Kind.ABANDONED]
    assert (await held(registry, name))[0] == {"champion": "3"}
    await roll_back(registry, name)
    assert (await held(registry, name))[0] == {"champion": "1"}


async def test_a_rollback_that_is_repeated_after_an_error_goes_back_once(
    mlflow_server: MLflowServer, registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    for version in (1, 2, 3):
        await promote(registry, name, version, stage="Production")

    def judge(asked: Asked) -> Answer | None:
        moves = asked.method != "GET" and asked.path.endswith("registered-models/alias")
        return refused(500, "INTERNAL_ERROR") if moves else None

    author = Author(actor="oncall@host")
    with proxy(mlflow_server.uri, judge) as before:
        async with MLflowClient(TrackingConfig(before.uri)) as client:
            with pytest.raises(TrackingError, match="500"):
                await roll_back(ModelRegistry(client), name, author=author)
    again = await roll_back(registry, name, author=author, patience=0)
    assert (again.version, again.previous_version) == ("2", "3")
    assert (await held(registry, name))[0] == {"champion": "2"}
    # The same task of the same DAG run, tried again though it was done.
    task = Author(actor="airflow:back/roll_back/r", dag_run="back/r")
    for _ in range(2):
        assert (await roll_back(registry, name, author=task)).version == "1"
    assert (await held(registry, name))[0] == {"champion": "1"}


async def test_who_looks_or_answers_moves_nothing_and_a_persons_later_move_wins(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 4)
    await promote(registry, name, 1)
    await promote(registry, name, 2)
    history = Changes(registry, name).history
    begun = Entry(
        number=0, kind=Kind.PROMOTION, model=name, version="3", moves=(Move("3", alias="champion"),)
    )
    await history.append(await history.read(), begun)
    await registry.set_alias(name, "champion", 4)
    assert await notice(registry, name, version="4", alias="champion") is None
    await note(registry, name, Kind.REJECTED, version=3, author=Author(approver="ann"))
    assert (await held(registry, name))[0] == {"champion": "4"}
    assert (await promote(registry, name, 1, patience=0)).previous_version == "4"
    kinds = [each.kind for each in await entries(registry, name)][4:]
    assert kinds[:5] == [Kind.PROMOTION, Kind.REJECTED, Kind.TAKEN_OVER, Kind.ABANDONED, Kind.OUTSIDE]


async def test_a_withdrawal_by_hand_right_after_a_takeover_is_a_persons(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 3)
    await promote(registry, name, 2)
    history = Changes(registry, name).history
    moves, back = (Move("3", alias="champion"),), (Move("2", alias="champion"),)
    begun = Entry(number=0, kind=Kind.PROMOTION, model=name, version="3", moves=moves, back=back)
    await history.append(await history.read(), begun)
    await promote(registry, name, 3, patience=0)
    await registry.set_alias(name, "champion", 2)
    found = await notice(registry, name, version="2", alias="champion")
    assert found is not None
    assert found.kind is Kind.OUTSIDE
    assert (await held(registry, name))[0] == {"champion": "2"}


async def test_aliases_that_were_moved_by_hand_together_are_undone_one_by_one(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 4)
    await promote(registry, name, 1)
    await promote(registry, name, 2)
    await promote(registry, name, 1, alias="canary")
    await registry.set_alias(name, "champion", 3)
    await registry.set_alias(name, "canary", 4)
    await roll_back(registry, name, alias="champion", to=2)
    assert (await held(registry, name))[0] == {"champion": "2", "canary": "4"}
    await roll_back(registry, name, alias="champion")
    assert (await held(registry, name))[0] == {"champion": "1", "canary": "4"}


async def test_a_champion_that_was_deleted_or_archived_by_hand_does_not_hold_a_rollback_up(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    deleted = made(make_model, 2)
    await promote(registry, deleted, 1)
    await promote(registry, deleted, 2)
    await registry.delete_version(deleted, 2)
    await roll_back(registry, deleted, alias="champion")
    assert (await held(registry, deleted))[0] == {"champion": "1"}
    archived = made(make_model, 2)
    await promote(registry, archived, 1, stage="Production")
    await promote(registry, archived, 2, stage="Production")
    await registry.transition_stage(archived, 2, "Archived")
    await roll_back(registry, archived, alias="champion")
    assert await held(registry, archived) == ({"champion": "1"}, {"1": "Production", "2": "None"})


@pytest.mark.parametrize("changed", [{"previous_version": "x9"}, {"at": 5}, {"previous_version": "2"}])
async def test_a_record_that_nobody_of_ours_wrote_blocks_nothing(
    registry: ModelRegistry, make_model: MakeModel, changed: dict[str, object]
) -> None:
    name = made(make_model, 3)
    await written_before(registry, name, **changed)
    await promote(registry, name, 3)
    assert (await roll_back(registry, name)).version == "2"


async def test_records_of_two_aliases_are_undone_each_by_itself(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = made(make_model, 4)
    await registry.set_alias(name, "champion", 3)
    await registry.set_alias(name, "canary", 4)
    own = {**RECORD, "stage": None, "stage_holders": [], "previous_version": "2"}
    await registry.set_tags(name, "3", {"nighttrain.promotion": json.dumps(own)})
    other = {**own, "alias": "canary", "previous_version": "1", "at": "2026-11-26T02:00:00+00:00"}
    await registry.set_tags(name, "4", {"nighttrain.promotion": json.dumps(other)})
    await roll_back(registry, name, alias="champion")
    assert (await held(registry, name))[0] == {"champion": "2", "canary": "4"}


CALLS = 60
"""More than a promotion of two moves makes."""


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.slow
async def test_a_crash_at_any_call_is_repaired_by_the_next(
    mlflow_server: MLflowServer,
    registry: ModelRegistry,
    make_model: MakeModel,
    answered: bool,
    pytestconfig: pytest.Config,
) -> None:
    """In CI at every sixth call, from another one on for each way to die; ``--thorough`` takes all."""
    first, step = (1, 1) if pytestconfig.getoption("--thorough") else (2 - answered, 6)
    died = 0
    for tried, number in enumerate(range(first, CALLS, step), start=1):
        name = made(make_model, 2)
        await promote(registry, name, 1, stage="Production")
        async with DyingClient(TrackingConfig(mlflow_server.uri)) as dying:
            dying.dies_at, dying.answered = number, answered
            try:
                await promote(ModelRegistry(dying), name, 2, stage="Production")
            except CrashError:
                died += 1
        done = await promote(registry, name, 2, stage="Production", patience=0)
        assert done.previous_version == "1"
        assert await held(registry, name) == ({"champion": "2"}, {"1": "Archived", "2": "Production"})
        promotions = [each for each in await entries(registry, name) if each.kind is Kind.PROMOTION]
        assert [each.version for each in promotions] == ["1", "2"]
        await roll_back(registry, name, patience=0)
        assert await held(registry, name) == ({"champion": "1"}, {"1": "Production", "2": "None"})
        if died < tried:
            break
    assert 10 < died * step < CALLS - step


async def test_alias_only_stage_only_and_bad_input(registry: ModelRegistry, make_model: MakeModel) -> None:
    name = made(make_model, 2)
    await promote(registry, name, 1, alias=None, stage="Staging")
    staged = await promote(registry, name, 2, alias=None, stage="Staging")
    assert (staged.previous_version, (await registry.get_version(name, 2)).aliases) == ("1", ())
    await roll_back(registry, name, stage="Staging")
    assert (await held(registry, name))[1] == {"1": "Staging", "2": "None"}
    with pytest.raises(ConfigurationError, match="an alias, a stage, or both"):
        await promote(registry, name, 1, alias=None, stage=None)
    with pytest.raises(ConfigurationError, match="reserves"):
        await promote(registry, name, 1, alias="latest")
    with pytest.raises(ModelVersionNotFoundError):
        await promote(registry, name, 9)
