"""An embedded cluster with two images: the real flights, and a training of a tenth of a second."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from nighttrain.assets.resources import KubernetesResource, MLflowResource
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import JOBS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.mlflow_server import MLflowServer

HERE = Path(__file__).parent
FLIGHTS = HERE.parents[1] / "dags"


@pytest.fixture(autouse=True)
def _environment_stays() -> Iterator[None]:
    """Nothing in assets/ may tell MLflow or Kubernetes anything through this process's environment."""

    def environment() -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    before = environment()
    yield
    assert environment() == before


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedCluster]:
    images = {
        "localhost/airline-delay": f"{sys.executable}:{FLIGHTS}",
        "localhost/small": f"{sys.executable}:{HERE / 'small_image'}",
    }
    with EmbeddedCluster(images) as running:
        yield running


@pytest.fixture
def kubernetes(cluster: EmbeddedCluster) -> KubernetesResource:
    return KubernetesResource(kubeconfig=str(cluster.kubeconfig))


@pytest.fixture
def mlflow(mlflow_server: MLflowServer) -> MLflowResource:
    return MLflowResource(tracking_uri=mlflow_server.uri)


@pytest.fixture
def resources(kubernetes: KubernetesResource, mlflow: MLflowResource) -> dict[str, Any]:
    return {"kubernetes": kubernetes, "mlflow": mlflow}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture
def small() -> Callable[..., WorkloadSpec]:
    """A spec of the small image: ``small("train", "3.5")``."""

    def make(*arguments: str) -> WorkloadSpec:
        return WorkloadSpec(
            image="localhost/small:1",
            cmds=["python", "-S", "-u", "-m", "small_model"],
            arguments=list(arguments),
            termination_grace_period=1,
        )

    return make


@pytest.fixture
def jobs(cluster: EmbeddedCluster) -> Callable[[], list[dict[str, Any]]]:
    """The Jobs that came since the test began."""

    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cluster.call(lambda store: store.list(JOBS)[0])
        return found

    before = {job["metadata"]["uid"] for job in listed()}
    return lambda: [job for job in listed() if job["metadata"]["uid"] not in before]
