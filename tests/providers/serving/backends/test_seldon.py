"""The Seldon backend over HTTP. Nobody recorded Seldon: a stand-in says ready, and that is all it shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from helpers.clusters import connected
from helpers.played_kserve import DEFINITIONS
from helpers.rollout_by_hand import Hand
from helpers.subresources import status_of
from nighttrain.providers.errors import (
    ConfigurationError,
    ObjectConflictError,
    ObjectExistsError,
    WorkloadConflictError,
)
from nighttrain.providers.kubernetes.api.resources import SELDON_EXPERIMENTS, SELDON_MODELS
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.choice import make_backend

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.serving.spec import ServingSpec

Make = Callable[..., "ServingSpec"]
NAMESPACE = "default"


def definition(plural: str, kind: str) -> dict[str, Any]:
    """Seldon's own definitions are not among those that tests have."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    version = {"name": "v1alpha1", "served": True, "storage": True, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.mlops.seldon.io"},
        "spec": {
            "group": "mlops.seldon.io",
            "names": names,
            "scope": "Namespaced",
            "versions": [{**version, "schema": {"openAPIV3Schema": schema}}],
        },
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as running:
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with connected(cluster) as opened:
        for body in (definition("models", "Model"), definition("experiments", "Experiment")):
            try:
                await opened.create(DEFINITIONS, None, body)
            except ObjectExistsError:
                continue
        yield opened
        for kind in (SELDON_EXPERIMENTS, SELDON_MODELS):
            for item in (await opened.list(kind, NAMESPACE))["items"]:
                await opened.delete(kind, NAMESPACE, item["metadata"]["name"], propagation="Background")


class Player:
    """Says that everything is ready, after a look at it."""

    def __init__(self, client: ClusterClient) -> None:
        self.client = client

    async def sleep(self, _: float) -> None:
        for kind, condition in ((SELDON_MODELS, "ModelReady"), (SELDON_EXPERIMENTS, "ExperimentReady")):
            for item in (await self.client.list(kind, NAMESPACE))["items"]:
                state = {"conditions": [{"type": condition, "status": "True"}]}
                await self.client.patch(
                    status_of(kind), NAMESPACE, item["metadata"]["name"], {"status": state}
                )


@pytest.fixture
def hand(client: ClusterClient) -> Hand:
    given = {"type": "seldon", "mesh": "http://mesh.example"}
    return Hand(make_backend(client, given), sleep=Player(client).sleep, looks=20)


@pytest.fixture
def spec(serving_spec: Make) -> Make:
    return lambda version="1", **given: serving_spec(version, source=f"s3://models/{version}", **given)


async def served(hand: Hand, spec: Make) -> None:
    target = await hand.bring_up(spec("1"))
    await hand.traffic(target, 100)
    await hand.promote(target)


async def experiment(client: ClusterClient) -> dict[str, Any]:
    return (await client.get(SELDON_EXPERIMENTS, NAMESPACE, "delay"))["spec"]


async def models(client: ClusterClient) -> list[str]:
    return sorted(item["metadata"]["name"] for item in (await client.list(SELDON_MODELS, NAMESPACE))["items"])


async def test_it_goes_up_in_steps_with_copies_and_is_promoted(
    client: ClusterClient, hand: Hand, spec: Make
) -> None:
    await served(hand, spec)
    made = await client.get(SELDON_MODELS, NAMESPACE, "delay-v1")
    assert made["spec"] == {"storageUri": "s3://models/1", "requirements": ["mlflow"], "replicas": 1}
    target = await hand.bring_up(spec("2"))
    assert target.stable == "1"
    look = await hand.traffic(target, 0, mirror_percent=30)
    assert (look.mirrored_percent, look.routed_percent) == (30, 0)
    look = await hand.traffic(target, 20)
    assert (look.routed_percent, look.mirrored_percent) == (20, 0)
    held = await experiment(client)
    assert held["candidates"] == [{"name": "delay-v1", "weight": 80}, {"name": "delay-v2", "weight": 20}]
    assert (held["default"], held["resourceType"], "mirror" in held) == ("delay-v1", "model", False)
    addresses = await hand.backend.addresses(target)
    assert addresses.route.headers == {"Seldon-Model": "delay.experiment"}
    await hand.traffic(target, 100)
    assert await models(client) == ["delay-v1", "delay-v2"], "kept warm"
    await hand.promote(target)
    assert await models(client) == ["delay-v2"]
    assert (await experiment(client))["default"] == "delay-v2"


async def test_it_is_undone(client: ClusterClient, hand: Hand, spec: Make) -> None:
    await served(hand, spec)
    target = await hand.bring_up(spec("2"))
    late = await hand.backend.look(target)
    await hand.traffic(target, 60)
    with pytest.raises(ObjectConflictError):
        await hand.backend.set_traffic(target, late, 1, percent=80)
    look = await hand.traffic(target, 0)
    assert not look.undone
    await hand.undo(target)
    assert await models(client) == ["delay-v1"]
    other = {"spec": {"candidates": [{"name": "else", "weight": 1}]}}
    await client.patch(SELDON_EXPERIMENTS, NAMESPACE, "delay", other)
    assert "somebody added else" in str((await hand.backend.look(target)).strayed)


async def test_what_cannot_be_is_refused_and_it_says_that_it_is_experimental(
    client: ClusterClient, hand: Hand, spec: Make, serving_spec: Make
) -> None:
    assert "experimental" in hand.backend.name
    assert "never recorded" in (await hand.backend.capabilities(NAMESPACE)).split_seen_in
    with pytest.raises(ConfigurationError, match="rclone"):
        await hand.backend.begin(serving_spec("1", source="models:/m/1"))
    await served(hand, spec)
    with pytest.raises(ConfigurationError, match="it serves"):
        await hand.backend.begin(spec("2", model_name="another"))
    marks = {"metadata": {"annotations": {"nighttrain.dev/stable-version": None}}}
    await client.patch(SELDON_EXPERIMENTS, NAMESPACE, "delay", marks)
    with pytest.raises(WorkloadConflictError, match="not made by nighttrain"):
        await hand.backend.begin(spec("2"))
    with pytest.raises(ConfigurationError, match="mesh"):
        make_backend(client, {"type": "seldon"})
