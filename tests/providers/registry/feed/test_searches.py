"""The searches, asked of a real MLflow; and that the registry of the faster tests answers as it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from helpers.fake_registry import FakeRegistry, fake_registry
from helpers.mlflow_proxy import Asked, Proxy, proxy, refused
from helpers.mlflow_server import unique
from nighttrain.providers.registry.feed.changes import ChangeKind, Interest
from nighttrain.providers.registry.feed.reader import RegistryReader, Scope
from nighttrain.providers.registry.feed.searches import Searches
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = pytest.mark.mlflow

NAMES = ("alpha", "be'ta", "gam(ma), x = \u00e9")


@pytest.fixture
def counted(mlflow_server: MLflowServer) -> Iterator[Proxy]:
    with proxy(mlflow_server.uri, lambda asked: None) as running:
        yield running


def fill_real(server: MLflowServer, make_model: MakeModel, names: list[str]) -> None:
    for name in names:
        made = make_model(name)
        for _ in range(2):
            server.version(name, made.run_id, made.model_id)
        server.call("POST", "registered-models/alias", name=name, alias="champion", version="2")
        server.call("POST", "model-versions/set-tag", name=name, version="1", key="k x", value="v's")
        server.stage(name, "1", "Production")
        server.stage(name, "3", "Production")
        server.stage(name, "1", "Archived")
        server.call("DELETE", "model-versions/delete", name=name, version="3")


def fill_fake(registry: FakeRegistry, names: list[str]) -> None:
    for name in names:
        for _ in range(3):
            registry.version(name)
            registry.now += 1
        registry.alias(name, "champion", 2)
        registry.tag(name, 1, "k x", "v's")
        for number, key in ((1, "Production"), (3, "Production"), (1, "Archived")):
            registry.stage(name, number, key)
            registry.now += 1
        registry.delete_version(name, 3)


async def answers(uri: str, names: list[str]) -> Any:
    async with MLflowClient(TrackingConfig(uri)) as client:
        searches = Searches(client)
        models = await searches.models(names)
        return (
            sorted((m["name"], [(a["alias"], a["version"]) for a in m["aliases"]]) for m in models),
            sorted((v["version"], v["current_stage"]) for m in models for v in m["latest_versions"]),
            [(v.name, v.version, v.stage, v.tags) for v in await searches.versions(names)],
            [(v.name, v.version) for v in await searches.tagged(("k x", "v's"), names)],
            [(v.name, v.version) for v in await searches.updated(names, lambda v: v.version == "2", 2)],
            [(v.name, v.version) for v in await searches.updated(names, lambda v: False, 1)],
        )


async def test_the_registry_of_the_tests_answers_as_mlflow_does(
    mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    names = [f"{name} {unique('m')}" for name in NAMES]
    fill_real(mlflow_server, make_model, names)
    with fake_registry() as registry:
        fill_fake(registry, names)
        assert await answers(registry.uri, names) == await answers(mlflow_server.uri, names)


async def test_two_requests_a_poll(
    mlflow_server: MLflowServer, make_model: MakeModel, counted: Proxy
) -> None:
    names = [unique("model") for _ in range(3)]
    fill_real(mlflow_server, make_model, names)
    interests = [Interest(name, kind, key) for name in names for kind, key in KINDS]
    interests += [Interest(name, ChangeKind.TAG, "k x", "v's") for name in names]
    async with MLflowClient(TrackingConfig(counted.uri)) as client:
        reader = RegistryReader(client)
        await reader.read(Scope.of(interests))

        async def poll() -> tuple[int, Any]:
            before = len(counted.asked)
            return (states := await reader.read(Scope.of(interests))) and len(counted.asked) - before, states

        for _ in range(3):
            assert (await poll())[0] == 3, "models, updates, and one filter on tags"
        mlflow_server.stage(names[0], "2", "Production", archive=True)
        mlflow_server.call("POST", "registered-models/alias", name=names[1], alias="champion", version="1")
        mlflow_server.call(
            "POST", "model-versions/set-tag", name=names[2], version="2", key="k x", value="v's"
        )
        requests, states = await poll()
        assert requests == 3
        assert states[names[0]].holders("Production") == ("2",)
        assert states[names[1]].aliases == {"champion": "1"}
        assert states[names[2]].tagged == {("k x", "v's"): ("1", "2")}
        mlflow_server.call("DELETE", "model-versions/delete", name=names[0], version="2")
        assert (await poll())[1][names[0]].holders("Production") == ()
        mlflow_server.call("DELETE", "registered-models/delete", name=names[1])
        requests, states = await poll()
        assert (requests, states[names[1]].aliases, states[names[1]].versions) == (3, {}, {})


KINDS = (
    (ChangeKind.ALIAS, "champion"),
    (ChangeKind.STAGE, "Production"),
    (ChangeKind.VERSION, "latest"),
)


async def test_a_server_that_takes_no_lists_is_asked_without(
    mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    name = make_model().name

    def older(asked: Asked) -> Any:
        return refused(400, "INVALID_PARAMETER_VALUE") if " IN (" in asked.query.get("filter", "") else None

    with proxy(mlflow_server.uri, older) as running:
        async with MLflowClient(TrackingConfig(running.uri)) as client:
            reader = RegistryReader(client)
            scope = Scope.of([Interest(name, ChangeKind.VERSION)])
            for _ in range(2):
                assert (await reader.read(scope))[name].numbers == [1]
            asked = len(running.asked)
            assert (await reader.read(scope))[name].numbers == [1]
            assert len(running.asked) - asked == 2
