"""An API without containers, which starts in a fraction of a second; and kubectl with a whole cluster."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from helpers.kubectl import IMAGE, PROGRAM, Kubectl
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


@pytest.fixture(scope="module")
def running() -> Iterator[EmbeddedCluster]:
    """A cluster that runs containers, for kubectl."""
    if PROGRAM is None:
        pytest.skip("kubectl is not installed")
    with EmbeddedCluster(images={IMAGE.split(":")[0]: sys.executable}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def make(running: EmbeddedCluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Kubectl]:
    cache = tmp_path_factory.mktemp("kubectl")
    count = iter(range(1000))

    def new() -> Kubectl:
        name = f"k{next(count)}"
        made = json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        Kubectl(running, cache, "default")("create", "-f", "-", stdin=made)
        return Kubectl(running, cache, name)

    return new


@pytest.fixture
def kubectl(make: Callable[[], Kubectl]) -> Kubectl:
    """kubectl in a namespace of the test's own."""
    return make()
