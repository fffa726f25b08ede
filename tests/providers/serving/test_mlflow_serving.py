"""The real thing: a version in a real MLflow, its real scoring server in pods of the embedded cluster."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from nighttrain.providers.errors import (
    ArtifactDigestMismatchError,
    ModelVersionNotFoundError,
    RolloutFailedError,
)
from nighttrain.providers.kubernetes.api.client import ClusterClient
from nighttrain.providers.kubernetes.api.connection import ClusterConfig
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.registry.models import ModelRegistry, ensure_recorded
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollout import Rollout, prepare
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from helpers.mlflow_server import MakeModel, MLflowServer
    from nighttrain.providers.serving.spec import ServingSpec

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

CODE = """
class Model:
    def __init__(self, delay):
        self.delay = delay
    def predict(self, frame, params=None):
        return [self.delay + value for value in frame["dep_delay"]]

def _load_pyfunc(path):
    with open(path) as file:
        return Model(float(file.read()))
"""


def model_files(delay: float) -> dict[str, bytes]:
    """A model of MLflow's python_function flavor, written by hand: importing mlflow takes seconds."""
    flavor = (
        "flavors:\n  python_function:\n    loader_module: the_model\n    code: code\n    data: delay.txt\n"
    )
    return {
        "MLmodel": flavor.encode(),
        "requirements.txt": b"mlflow\n",
        "code/the_model.py": CODE.encode(),
        "delay.txt": str(delay).encode(),
    }


@pytest.fixture
async def registry(mlflow_server: MLflowServer) -> AsyncIterator[ModelRegistry]:
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        yield ModelRegistry(client)


@pytest.fixture
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"scoring": sys.executable}) as cluster:
        yield cluster


@pytest.fixture
async def rollout(cluster: EmbeddedCluster) -> AsyncIterator[Rollout]:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        yield Rollout(KubernetesDeployments(client))


async def test_a_registered_version_serves_and_a_changed_one_does_not(
    mlflow_server: MLflowServer,
    make_model: MakeModel,
    registry: ModelRegistry,
    rollout: Rollout,
    serving_spec: Callable[..., ServingSpec],
) -> None:
    made = make_model(files=model_files(10.0))
    assert made.version is not None
    with pytest.raises(ModelVersionNotFoundError):
        await prepare(registry, made.name, "7")
    with pytest.raises(ArtifactDigestMismatchError, match="no recorded digest"):
        await prepare(registry, made.name, made.version)
    await ensure_recorded(registry, await registry.get_version(made.name, made.version))

    def spec(version: str, digest: str) -> ServingSpec:
        return serving_spec(
            version,
            model_name=made.name,
            artifact_digest=digest,
            tracking_uri=mlflow_server.uri,
            image="scoring",
            env_vars={"MLFLOW_DISABLE_TELEMETRY": "true"},
        )

    began = time.monotonic()
    status = await rollout.run(spec(made.version, await prepare(registry, made.name, made.version)))
    print(f"from the start to the switch: {time.monotonic() - began:.1f} s")
    question = {"dataframe_split": {"columns": ["dep_delay"], "data": [[1.0], [2.5]]}}
    async with httpx.AsyncClient(base_url=status.cluster_ip_url, trust_env=False, timeout=30) as web:
        answer = await web.post("/invocations", json=question)
        assert answer.json() == {"predictions": [11.0, 12.5]}
        assert answer.headers["x-model-version"] == made.version
        # MLflow's server answers 400 for both; only one of them is the model's fault.
        raises = {"dataframe_split": {"columns": ["dep_delay"], "data": [["late"]]}}
        for body in (raises, {"rubbish": 1}):
            assert (await web.post("/invocations", json=body)).status_code == 400
        counted = (await web.get("/metrics")).text
        series = f'{{model="{made.name}",version="{made.version}",'
        assert f'nighttrain_requests_total{series}code="200"}} 1\n' in counted
        assert f'nighttrain_requests_total{series}code="400"}} 2\n' in counted
        assert f'nighttrain_request_errors_total{series}reason="model_raised"}} 1\n' in counted

        second = mlflow_server.version(made.name, made.run_id, made.model_id)
        digest = await ensure_recorded(registry, await registry.get_version(made.name, second))
        mlflow_server.upload(artifact_location(mlflow_server, made.model_id), "delay.txt", b"99.0")
        with pytest.raises(ArtifactDigestMismatchError):
            await prepare(registry, made.name, second)
        # Changed after the orchestrator looked: the pod looks too.
        with pytest.raises(RolloutFailedError, match=f"exit code 78(?s:.*)expected sha256 {digest}"):
            await rollout.run(spec(second, digest))
        assert (await web.post("/invocations", json=question)).json() == {"predictions": [11.0, 12.5]}


def artifact_location(server: MLflowServer, model_id: str) -> str:
    return str(server.call("GET", f"logged-models/{model_id}")["model"]["info"]["artifact_uri"])
