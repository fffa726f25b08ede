"""Where KServe can read a version from, and what it is not asked to."""

from __future__ import annotations

import pytest

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.backends.kserve.storage import storage_uri


def resolved(source: str, given: str | None = None) -> str:
    return storage_uri(source, given, model="delay", version="7")


@pytest.mark.parametrize(
    "source",
    [
        "s3://bucket/1/models/m-2/artifacts",
        "gs://bucket/1/models/m-2/artifacts",
        "hf://team/model",
        "hdfs://host:9000/models/1",
        "webhdfs://host/models/1",
        "pvc://models/1",
        "oci://registry.example/model:1",
        "https://account.blob.core.windows.net/container/1",
        "https://example.com/model.tar.gz",
        "https://example.com/team/model.git",
    ],
)
def test_what_kserve_reads_is_left_as_it_is(source: str) -> None:
    assert resolved(source) == source


@pytest.mark.parametrize("scheme", ["wasb", "wasbs", "abfs", "abfss"])
def test_mlflows_address_of_azure_becomes_the_one_that_kserve_knows(scheme: str) -> None:
    host = "account.dfs.core.windows.net" if scheme.startswith("abfs") else "account.blob.core.windows.net"
    expected = "https://account.blob.core.windows.net/container/1/artifacts"
    assert resolved(f"{scheme}://container@{host}/1/artifacts") == expected


@pytest.mark.parametrize(
    "source",
    [
        "models:/delay/7",
        "models:/m-0123",
        "runs:/abc/model",
        "mlflow-artifacts:/1/models/m-2/artifacts",
        "mlflow-artifacts://host:5000/1/models",
        "dbfs:/mlflow/1",
        "file:///mlruns/1",
        "/mlruns/1",
        "ftp://host/models/1",
        "s3:///no-bucket",
        "https://[broken/1",
        "",
    ],
)
def test_what_kserve_cannot_read_is_refused_with_the_way_out(source: str) -> None:
    with pytest.raises(ConfigurationError, match="storage_uri="):
        resolved(source)


def test_the_users_own_address_wins_and_is_held_to_the_same() -> None:
    given = "s3://mirror/{model}/{version}"
    assert resolved("mlflow-artifacts:/1", given) == "s3://mirror/delay/7"
    with pytest.raises(ConfigurationError, match="storage_uri"):
        resolved("s3://good/1", "models:/delay/7")


def test_credentials_are_neither_sent_nor_shown() -> None:
    with pytest.raises(ConfigurationError) as refused:
        resolved("https://user:pa55word@example.com/model")
    assert "pa55word" not in str(refused.value)
