"""The model server of a version, by name or by its flavors, on a real MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.errors import ConfigurationError, RegistryError
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.serving.model_servers.chosen import BY_FLAVOR, chosen_server
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = pytest.mark.mlflow

ONNX = b"flavors:\n  onnx: {data: model.onnx}\n  python_function: {loader_module: mlflow.onnx}\n"
SKLEARN = b"flavors:\n  sklearn: {}\n  python_function: {loader_module: mlflow.sklearn}\n"


@pytest.mark.parametrize(
    ("mlmodel", "asked", "server"),
    [(ONNX, BY_FLAVOR, "triton"), (SKLEARN, BY_FLAVOR, "mlflow"), (ONNX, "mlflow", "mlflow")],
)
async def test_flavors_choose_and_a_name_wins(
    mlflow_server: MLflowServer, make_model: MakeModel, mlmodel: bytes, asked: str, server: str
) -> None:
    name = make_model(files={"MLmodel": mlmodel, "model.onnx": b"x"}).name
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        version = await ModelRegistry(client).get_version(name, 1)
        assert (await chosen_server(client, version, asked)).name == server


@pytest.mark.parametrize(
    ("mlmodel", "asked", "said"),
    [
        (b"flavors:\n  what_nobody_knows: {}\n", BY_FLAVOR, "no model server is known for these flavors"),
        (b"- a list", BY_FLAVOR, "lists no flavors"),
        (b"\xff\xfe: [", BY_FLAVOR, "is no YAML"),
        (SKLEARN, "trition", "use one of"),
    ],
)
async def test_what_cannot_be_chosen_is_told(
    mlflow_server: MLflowServer, make_model: MakeModel, mlmodel: bytes, asked: str, said: str
) -> None:
    name = make_model(files={"MLmodel": mlmodel}).name
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        version = await ModelRegistry(client).get_version(name, 1)
        with pytest.raises((ConfigurationError, RegistryError), match=said):
            await chosen_server(client, version, asked)
