"""Upstream's definitions on an embedded cluster, and what is made of them taken away again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.clusters import connected
from helpers.played_kserve import DEFINITIONS, NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.kubernetes.api.resources import Resource
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

CRDS = Path(os.environ.get("NIGHTTRAIN_CRDS") or Path(__file__).parents[3] / "shared" / "crds")


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips where one of the definitions is not at hand."""
    return pytest.mark.skipif(
        not all(_file(name).exists() for name in names),
        reason=f"no definitions in {CRDS}: set NIGHTTRAIN_CRDS to a folder that has them",
    )


async def define(cluster: EmbeddedCluster, names: Iterable[str], *more: dict[str, Any]) -> None:
    """Create them, which takes the server seconds."""
    async with connected(cluster) as opened:
        for body in (*(json.loads(_file(name).read_text()) for name in names), *more):
            await opened.create(DEFINITIONS, None, body)


async def emptied(client: ClusterClient, kinds: Iterable[Resource]) -> None:
    """Nothing is left of an endpoint."""
    for kind in kinds:
        for item in (await client.list(kind, NAMESPACE))["items"]:
            await client.delete(kind, NAMESPACE, item["metadata"]["name"], propagation="Background")


def _file(name: str) -> Path:
    return CRDS / f"{name}.json"
