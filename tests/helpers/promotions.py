"""What a model's versions hold, its history, and what a nighttrain without a history left on versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from nighttrain.providers.registry.history.changes import Changes

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel
    from nighttrain.providers.registry.history.entries import Entry
    from nighttrain.providers.registry.models import ModelRegistry


async def entries(registry: ModelRegistry, name: str) -> list[Entry]:
    return list((await Changes(registry, name).history.read()).entries)


async def held(registry: ModelRegistry, name: str) -> tuple[dict[str, str], dict[str, str]]:
    model = await registry.get_model(name)
    return model.aliases, {each.version: each.stage for each in await registry.versions(name)}


def made(make_model: MakeModel, versions: int) -> str:
    name = make_model().name
    for _ in range(versions - 1):
        make_model(name)
    return name


# What 0.1 wrote on a version: no history was there yet.
RECORD = {
    "alias": "champion",
    "stage": "Production",
    "previous_version": "1",
    "previous_stage": "None",
    "stage_holders": ["1"],
    "archived": True,
    "actor": "airflow:nightly/promote/run",
    "reason": "promoted by a DAG",
    "evidence": "accepted: mae 20 is at most 22",
    "at": "2026-11-20T02:00:00+00:00",
    "state": "done",
}
FIRST = {**RECORD, "previous_version": None, "stage_holders": [], "at": "2026-11-19T02:00:00+00:00"}


async def written_before(registry: ModelRegistry, name: str, **changed: object) -> None:
    await registry.set_alias(name, "champion", 2)
    await registry.transition_stage(name, 1, "Production")
    await registry.transition_stage(name, 2, "Production")
    await registry.set_tags(name, "1", {"nighttrain.promotion": json.dumps(FIRST)})
    await registry.set_tags(name, "2", {"nighttrain.promotion": json.dumps({**RECORD, **changed})})
