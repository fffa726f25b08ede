"""Embedded clusters over HTTP, and nighttrain's client of one. A file that needs another one has its own."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    """Runs containers: the image ``py`` is this Python."""
    with EmbeddedCluster(images={"py": sys.executable}) as running:
        yield running


@pytest.fixture(scope="module")
def idle_cluster() -> Iterator[EmbeddedCluster]:
    """Stores objects and runs nothing: the tests are the controllers and the nodes."""
    with EmbeddedCluster(containers=False) as running:
        yield running


@asynccontextmanager
async def connected(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    """A client with the rights of the cluster's own kubeconfig."""
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        yield client


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    """A client of the file's cluster."""
    async with connected(cluster) as opened:
        yield opened
