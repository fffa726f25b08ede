"""Where the behaviours are tried: an embedded cluster, or with ``--kubeconfig`` any other one.

``pytest tests/conformance`` starts an embedded cluster. ``pytest tests/conformance --kubeconfig FILE --image
IMAGE`` uses a cluster that runs: the image is there already or can be pulled and has ``python3`` and ``sh``.
With ``-m api`` only what an API server alone can show, without controllers or nodes. What is marked
``not_embedded`` runs elsewhere only: docs/embedded-cluster.md says why.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.conformance_client import Cluster, Space, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

# What the embedded cluster is told to run; any image with python3 will do elsewhere.
EMBEDDED_IMAGE = "localhost/python:3.11"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "api: needs an API server only: no controllers, no node")
    config.addinivalue_line("markers", "not_embedded(what): the embedded cluster does not serve it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--kubeconfig", default=None):
        return
    for item in items:
        marker = item.get_closest_marker("not_embedded")
        if marker is not None:
            reason = f"the embedded cluster has no {marker.args[0]}: give --kubeconfig"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def kubeconfig(request: pytest.FixtureRequest) -> Iterator[Path]:
    given = request.config.getoption("--kubeconfig", default=None)
    if given:
        yield Path(given)
        return
    from nighttrain.providers.local.cluster.controllers.pace import BackOff
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

    # A Job's pause after a failed pod is ten seconds on a real cluster, and nobody's behaviour here.
    pauses = BackOff(first=1.0, longest=10.0)
    images = {EMBEDDED_IMAGE.split(":")[0]: sys.executable}
    with EmbeddedCluster(images=images, job_back_off=pauses) as embedded:
        yield embedded.kubeconfig


@pytest.fixture(scope="session")
def cluster(kubeconfig: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    image = request.config.getoption("--image", default=None) or EMBEDDED_IMAGE
    with connect(kubeconfig, image) as connected:
        yield connected
        connected.wait_until_clean()


@pytest.fixture
def space(cluster: Cluster) -> Iterator[Space]:
    """A namespace of the test's own, deleted behind it."""
    made = cluster.make_space()
    yield made
    made.remove()
