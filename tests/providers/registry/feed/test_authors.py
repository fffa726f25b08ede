"""Who made a change that the feed saw, on a real MLflow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from helpers.mlflow_proxy import Asked, proxy
from nighttrain.providers.registry.feed.authors import with_authors
from nighttrain.providers.registry.feed.changes import Change, ChangeKind
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import Author, promote
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = pytest.mark.mlflow


async def test_a_promotion_names_its_author_and_a_move_by_hand_becomes_an_entry(
    mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    name = make_model().name
    make_model(name)
    config = TrackingConfig(mlflow_server.uri)
    async with MLflowClient(config) as client:
        await promote(ModelRegistry(client), name, 1, stage="Production", author=Author(actor="nightly"))
    alias = Change(ChangeKind.ALIAS, name, "champion", "1")
    stage = Change(ChangeKind.STAGE, name, "Production", "1")
    version = Change(ChangeKind.VERSION, name, "latest", "2", "1")
    told = await with_authors(config, [alias, version, stage])
    assert [each.author for each in told] == ["nightly", None, "nightly"]
    mlflow_server.call("POST", "registered-models/alias", name=name, alias="champion", version="2")
    (told_by_hand,) = await with_authors(config, [Change(ChangeKind.ALIAS, name, "champion", "2", "1")])
    assert told_by_hand.author is None
    last = mlflow_server.history(name)[-1]
    assert (last["nighttrain.history.kind"], last["nighttrain.history.version"]) == ("outside", "2")


async def test_news_does_not_wait_for_an_mlflow_that_went_away() -> None:
    change = Change(ChangeKind.ALIAS, "model", "champion", "1")
    assert await with_authors(TrackingConfig("http://127.0.0.1:9"), [change]) == (change,)


async def test_watchers_who_are_told_of_the_same_move_ask_once(
    mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    """A hundred of them, told at the same moment: one of them reads the history, and all are told."""
    name = make_model().name
    config = TrackingConfig(mlflow_server.uri)
    async with MLflowClient(config) as client:
        await promote(ModelRegistry(client), name, 1, author=Author(actor="nightly"))
    change = Change(ChangeKind.ALIAS, name, "champion", "1")

    def never(_: Asked) -> None:
        return None

    with proxy(mlflow_server.uri, never) as between:
        alone = TrackingConfig(between.uri)
        await with_authors(alone, [change])
        one = len(between.asked)
        told = await asyncio.gather(*(with_authors(alone, [change]) for _ in range(100)))
    assert {each.author for (each,) in told} == {"nightly"}
    assert len(between.asked) == 2 * one
