"""The registry of the session's MLflow server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from helpers.mlflow_server import MLflowServer


@pytest.fixture
async def registry(mlflow_server: MLflowServer) -> AsyncIterator[ModelRegistry]:
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        yield ModelRegistry(client)
