from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.errors import ConfigurationError, ModelVersionNotFoundError, RegistryError
from nighttrain.providers.registry.gates import judge
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import (
    ACTOR_TAG,
    PREVIOUS_TAG,
    PROMOTION_TAG,
    TIME_TAG,
    Promotion,
    promote,
    recorded,
    undo,
)
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = pytest.mark.mlflow


class CrashError(Exception):
    """The worker dies here."""


class DyingClient(MLflowClient):
    """A client whose process dies at its n-th write."""

    writes_left = 1_000

    async def post(self, path: str, body: Mapping[str, Any], *, idempotent: bool = True) -> dict[str, Any]:
        if self.writes_left == 0:
            raise CrashError
        self.writes_left -= 1
        return await super().post(path, body, idempotent=idempotent)


def clock() -> float:
    return 1_800_000_000.0


async def snapshot(registry: ModelRegistry, name: str) -> object:
    model = await registry.get_model(name)
    versions = sorted(await registry.versions(name), key=lambda version: version.version)
    return model.aliases, [(version.stage, version.tags, version.last_updated) for version in versions]


async def test_promote_records_moves_and_repeats_without_a_change(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = make_model().name
    make_model(name)
    first = await promote(
        registry, name, "1", alias="champion", stage="production", actor="nightly", clock=clock
    )
    assert (first.previous_version, first.changed, first.at) == (None, True, "2027-01-15T08:00:00+00:00")
    verdict = judge(["mae <= champion"], {"mae": 20.0}, {"mae": 22.0})
    second = await promote(
        registry, name, "2", actor="nightly", reason="token=abc123", evidence=verdict.to_dict(), clock=clock
    )
    assert (second.previous_version, second.previous_stage, second.stage_holders) == ("1", "None", ("1",))
    version = await registry.get_version(name, "2")
    assert (version.stage, version.aliases) == ("Production", ("champion",))
    assert (await registry.get_version(name, "1")).stage == "Archived"
    assert (version.tags[ACTOR_TAG], version.tags[PREVIOUS_TAG]) == ("nightly", "1")
    assert version.tags[TIME_TAG] == "2027-01-15T08:00:00+00:00"
    record = json.loads(version.tags[PROMOTION_TAG])
    assert (record["state"], record["reason"]) == ("done", "token=***")
    assert "mae 20 is at most" in record["evidence"]
    before = await snapshot(registry, name)
    again = await promote(registry, name, "2", actor="somebody else")
    assert again == replace(second, changed=False)
    assert await snapshot(registry, name) == before
    assert Promotion.from_dict(json.loads(json.dumps(second.to_dict()))) == second


@pytest.mark.parametrize("archive", [True, False])
async def test_undo_restores_what_was_there(
    registry: ModelRegistry, make_model: MakeModel, archive: bool
) -> None:
    name = make_model().name
    make_model(name)
    await promote(registry, name, "1")
    await registry.transition_stage(name, "2", "Staging")
    promotion = await promote(registry, name, "2", archive_existing=archive)
    undone = await undo(registry, promotion, actor="oncall", reason="bad predictions", clock=clock)
    assert (undone.state, undone.changed) == ("undone", True)
    assert (await registry.version_by_alias(name, "champion")).version == "1"
    assert (await registry.version_in_stage(name, "Production")).version == "1"
    two = await registry.get_version(name, "2")
    assert (two.stage, two.tags[ACTOR_TAG]) == ("Staging", "oncall")
    before = await snapshot(registry, name)
    assert not (await undo(registry, promotion)).changed
    assert await snapshot(registry, name) == before
    # Promoting the same version later is a new promotion.
    assert (await promote(registry, name, "2")).changed


async def test_undo_of_the_first_promotion_leaves_nothing(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = make_model().name
    await undo(registry, await promote(registry, name, 1))
    assert (await registry.get_model(name)).aliases == {}
    assert (await registry.get_version(name, 1)).stage == "None"


async def test_undo_refuses_when_somebody_promoted_since(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = make_model().name
    make_model(name)
    make_model(name)
    await promote(registry, name, 1)
    second = await promote(registry, name, 2)
    await promote(registry, name, 3)
    before = await snapshot(registry, name)
    with pytest.raises(RegistryError, match="no longer on version 2 but on 3"):
        await undo(registry, second)
    assert await snapshot(registry, name) == before


WRITES = 9
"""A promotion's."""


@pytest.mark.parametrize("writes", range(WRITES))
async def test_a_crash_at_any_write_is_finished_by_the_retry(
    mlflow_server: MLflowServer, registry: ModelRegistry, make_model: MakeModel, writes: int
) -> None:
    name = make_model().name
    make_model(name)
    await promote(registry, name, 1)
    async with DyingClient(TrackingConfig(mlflow_server.uri)) as dying:
        dying.writes_left = writes
        with pytest.raises(CrashError):
            await promote(ModelRegistry(dying), name, 2, actor="first try")
    done = await promote(registry, name, 2, actor="retry")
    assert (done.previous_version, done.stage_holders, done.state) == ("1", ("1",), "done")
    two = await registry.get_version(name, 2)
    assert (two.stage, two.aliases) == ("Production", ("champion",))
    assert recorded(two) == done
    await undo(registry, done)
    assert (await registry.version_by_alias(name, "champion")).version == "1"
    assert (await registry.version_in_stage(name, "Production")).version == "1"


async def test_a_promotion_makes_no_more_writes_than_those_at_which_it_was_crashed(
    mlflow_server: MLflowServer, registry: ModelRegistry, make_model: MakeModel
) -> None:
    name = make_model().name
    make_model(name)
    await promote(registry, name, 1)
    async with DyingClient(TrackingConfig(mlflow_server.uri)) as dying:
        dying.writes_left = WRITES
        done = await promote(ModelRegistry(dying), name, 2)
    assert done.state == "done"


async def test_alias_only_stage_only_and_bad_input(registry: ModelRegistry, make_model: MakeModel) -> None:
    name = make_model().name
    make_model(name)
    await promote(registry, name, 1, alias="challenger", stage=None)
    assert (await registry.get_version(name, 1)).stage == "None"
    await promote(registry, name, 1, alias=None, stage="Staging")
    staged = await promote(registry, name, 2, alias=None, stage="Staging")
    assert (staged.previous_version, (await registry.get_version(name, 2)).aliases) == ("1", ())
    with pytest.raises(ConfigurationError, match="alias, a stage, or both"):
        await promote(registry, name, 1, alias=None, stage=None)
    with pytest.raises(ConfigurationError, match="reserves"):
        await promote(registry, name, 1, alias="latest")
    with pytest.raises(ModelVersionNotFoundError):
        await promote(registry, name, 9)
