"""An API without containers for tests of the API: starts in a fraction of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from nighttrain.providers.local.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def api_cluster() -> Iterator[EmbeddedCluster]:
    """Shared by a module's tests: each takes names or a namespace of its own."""
    with EmbeddedCluster(containers=False, forbidden_namespaces={"closed"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def http(api_cluster: EmbeddedCluster) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {api_cluster.token}"}
    with httpx.Client(base_url=api_cluster.url, headers=headers, timeout=20) as client:
        yield client


@pytest.fixture
def space(http: httpx.Client, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    created = http.post("/api/v1/namespaces", json={"metadata": {"generateName": "test-"}})
    created.raise_for_status()
    name: str = created.json()["metadata"]["name"]
    return name
