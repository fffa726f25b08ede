from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.registry.feed import Change, RegistryState, diff, read_state
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer


def state(aliases: dict[str, str] | None = None, latest: str | None = None, **stages: str) -> RegistryState:
    """``Production="3,2"``: the newest holder first."""
    holders = {stage: tuple(versions.split(",")) for stage, versions in stages.items()}
    first = {stage: versions[0] for stage, versions in holders.items()}
    return RegistryState(aliases or {}, first, holders, latest, 1, "m")


def test_the_first_look_reports_everything_held() -> None:
    assert diff(None, state({"champion": "2"}, "3", Production="2", Staging="3")) == [
        Change("alias", "m", "champion", "2"),
        Change("stage", "m", "Production", "2"),
        Change("stage", "m", "Staging", "3"),
        Change("version", "m", "latest", "3"),
    ]
    assert diff(None, RegistryState(name="m")) == []


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        (state({"c": "1"}), state({"c": "1"}), []),
        (state({"c": "1"}), state({"c": "2"}), [Change("alias", "m", "c", "2", "1")]),
        (state({"c": "1"}), state(), [Change("alias", "m", "c", None, "1")]),
        (state(Production="1"), state(Production="2"), [Change("stage", "m", "Production", "2", "1")]),
        (state(Production="1"), state(Production="2,1"), [Change("stage", "m", "Production", "2", "1")]),
        # An older version that comes back is a transition.
        (state(Production="2"), state(Production="1"), [Change("stage", "m", "Production", "1", "2")]),
        # A new description moves version 1 to the front: nothing came in.
        (state(Production="2,1"), state(Production="1,2"), []),
        # The newest holder leaves, an older one is left.
        (state(Production="2,1"), state(Production="1"), [Change("stage", "m", "Production", "1", "2")]),
        (state(Production="1"), state(), [Change("stage", "m", "Production", None, "1")]),
        (state(latest="1"), state(latest="3"), [Change("version", "m", "latest", "3", "1")]),
    ],
)
def test_diff(old: RegistryState, new: RegistryState, changes: list[Change]) -> None:
    assert diff(old, new) == changes


def test_the_cursor_is_plain_json() -> None:
    held = state({"champion": "2"}, "3", Production="2,1")
    assert RegistryState.from_dict(json.loads(json.dumps(held.to_dict()))) == held
    change = Change("stage", "m", "Production", "2", "1")
    assert Change.from_dict(json.loads(json.dumps(change.to_dict()))) == change


def test_a_cursor_of_an_older_form_is_read() -> None:
    old = RegistryState.from_dict({"aliases": {"c": 1}, "stages": {"Production": 2}})
    assert (old.aliases, old.holders, old.latest_version) == ({"c": "1"}, {"Production": ("2",)}, None)
    assert RegistryState.from_dict({}) == RegistryState()


@pytest.mark.mlflow
async def test_a_life_read_from_mlflow(mlflow_server: MLflowServer, make_model: MakeModel) -> None:
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        registry = ModelRegistry(client)
        nothing = await read_state(registry, "not-there-yet")
        assert nothing == RegistryState(name="not-there-yet")

        one = make_model()
        first = await read_state(registry, one.name)
        assert diff(None, first) == [Change("version", one.name, "latest", "1")]

        two = make_model(one.name)
        mlflow_server.stage(one.name, "1", "Production")
        second = await read_state(registry, one.name, first)
        assert diff(first, second) == [
            Change("stage", one.name, "Production", "1"),
            Change("version", one.name, "latest", "2", "1"),
        ]

        mlflow_server.stage(one.name, "2", "Production", archive=True)
        third = await read_state(registry, one.name, second)
        assert diff(second, third) == [
            Change("stage", one.name, "Archived", "1"),
            Change("stage", one.name, "Production", "2", "1"),
        ]

        mlflow_server.call("POST", "registered-models/alias", name=two.name, alias="champion", version="2")
        fourth = await read_state(registry, one.name, third)
        assert diff(third, fourth) == [Change("alias", one.name, "champion", "2")]
        assert fourth.holders == third.holders
        assert diff(fourth, await read_state(registry, one.name)) == []

        mlflow_server.call("DELETE", "registered-models/delete", name=one.name)
        gone = await read_state(registry, one.name, fourth)
        assert {(change.kind, change.key) for change in diff(fourth, gone) if change.version is None} == {
            ("alias", "champion"),
            ("stage", "Archived"),
            ("stage", "Production"),
            ("version", "latest"),
        }
