"""Artifacts of a server that signs addresses and passes no bytes on."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from helpers.mlflow_proxy import Answer, Asked, proxy, refused
from helpers.mlflow_server import unique
from nighttrain.providers.errors import TrackingRequestError, TrackingUnauthorizedError
from nighttrain.providers.registry.artifacts import artifact_manifest, logged_model_manifest
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from helpers.mlflow_server import MakeModel, MLflowServer

pytestmark = [pytest.mark.mlflow]

DOWNLOADS = ("/get-artifact", "/model-versions/get-artifact", "/artifacts/files")


def is_download(asked: Asked) -> bool:
    return asked.method == "GET" and asked.path.endswith(DOWNLOADS)


async def test_signed_addresses_are_followed_without_mlflows_credentials(
    mlflow_server: MLflowServer, make_model: MakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def store_says(asked: Asked) -> Answer | None:
        if asked.query.pop("X-Amz-Signature", None) != "s1gned":
            return refused(403, "SIGNATURE")
        return None

    def mlflow_says(asked: Asked) -> Answer | None:
        if asked.headers.get("authorization") != "Bearer mlflow-secret":
            return refused(401, "UNAUTHENTICATED")
        if not is_download(asked):
            return None
        if asked.query.pop("presigned", None) != "true":
            return refused(403, "PERMISSION_DENIED")
        url = f"{store.uri}{asked.path}?{urlencode({**asked.query, 'X-Amz-Signature': 's1gned'})}"
        return 200, {}, json.dumps({"url": url, "headers": {"x-amz-request-payer": "us"}}).encode()

    made = make_model()
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as direct:
        version = await ModelRegistry(direct).get_version(made.name, "1")
        expected = await artifact_manifest(direct, version)
    with proxy(mlflow_server.uri, store_says) as store, proxy(mlflow_server.uri, mlflow_says) as server:
        config = TrackingConfig(server.uri, token="mlflow-secret", workspace=None)
        async with MLflowClient(config) as client:
            assert await artifact_manifest(client, version) == expected
            assert await logged_model_manifest(client, made.model_id) == expected
            again = await ModelRegistry(client).register(unique("model"), run_id=made.run_id)
    assert again.digest == expected.digest
    assert len(store.asked) == 3 * len(expected.files)
    for asked in store.asked:
        assert asked.headers["x-amz-request-payer"] == "us"
        assert "mlflow-secret" not in str(asked.headers)
        assert not [name for name in asked.headers if name.startswith(("authorization", "x-mlflow"))]
    assert "s1gned" not in caplog.text


async def test_a_right_that_is_missing_stays_missing(
    mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    made = make_model(register=False)
    with proxy(
        mlflow_server.uri, lambda asked: refused(403, "PERMISSION_DENIED") if is_download(asked) else None
    ) as server:
        async with MLflowClient(TrackingConfig(server.uri)) as client:
            with pytest.raises(TrackingUnauthorizedError, match="lack the right"):
                await logged_model_manifest(client, made.model_id)


async def test_a_store_that_refuses_the_signed_address(
    mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    made = make_model(register=False)

    def mlflow_says(asked: Asked) -> Answer | None:
        if not is_download(asked):
            return None
        if "presigned" not in asked.query:
            return refused(403, "PERMISSION_DENIED")
        return 200, {}, json.dumps({"url": f"{store.uri}/bucket?Signature=s1gned"}).encode()

    with (
        proxy("http://127.0.0.1:1", lambda _: refused(403, "EXPIRED")) as store,
        proxy(mlflow_server.uri, mlflow_says) as server,
    ):
        async with MLflowClient(TrackingConfig(server.uri)) as client:
            with pytest.raises(TrackingRequestError, match="answers 403") as caught:
                await logged_model_manifest(client, made.model_id)
    assert store.uri in str(caught.value)
    assert "s1gned" not in str(caught.value)
