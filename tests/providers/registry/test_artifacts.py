from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.mlflow_server import SMALL_MODEL, unique
from nighttrain.providers.errors import ArtifactDigestMismatchError, RegistryError
from nighttrain.providers.registry.artifacts import (
    EXCLUDED_FILES,
    ArtifactManifest,
    artifact_location,
    artifact_manifest,
    logged_model_manifest,
    manifest_of_directory,
    verify,
)
from nighttrain.providers.registry.models import ModelRegistry, ensure_recorded
from nighttrain.providers.registry.versions import DIGEST_TAG
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from helpers.mlflow_server import MakeModel, MLflowServer

LOG_AND_DOWNLOAD = """
import json, pathlib, sys, mlflow
uri, name, target = sys.argv[1:]
mlflow.set_tracking_uri(uri)
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return [1] * len(model_input)
extra = pathlib.Path(target) / "extra"
(extra / "deep" / "er").mkdir(parents=True)
(extra / "deep" / "er" / "table.csv.gz").write_bytes(b"not really gzip")
(extra / "empty.txt").write_bytes(b"")
mlflow.set_experiment(name)
with mlflow.start_run() as run:
    mlflow.pyfunc.log_model(name="model", python_model=Model(), artifacts={"extra": str(extra)},
                            pip_requirements=["mlflow"], registered_model_name=name)
copy = mlflow.artifacts.download_artifacts(f"models:/{name}/1", dst_path=str(pathlib.Path(target) / "copy"))
print(json.dumps({"run_id": run.info.run_id, "copy": copy}))
"""


@pytest.fixture
async def client(mlflow_server: MLflowServer) -> AsyncIterator[MLflowClient]:
    async with MLflowClient(TrackingConfig(mlflow_server.uri)) as client:
        yield client


def write(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def test_the_digest_is_that_of_sha256sum_lines(tmp_path: Path) -> None:
    write(tmp_path, {"b": b"2", "a/c": b"1", "registered_model_meta": b"x", "a/registered_model_meta": b"y"})
    (tmp_path / "nothing").mkdir()
    lines = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {path}\n"
        for path, content in [("a/c", b"1"), ("a/registered_model_meta", b"y"), ("b", b"2")]
    )
    assert manifest_of_directory(tmp_path).digest == hashlib.sha256(lines.encode()).hexdigest()
    assert {"registered_model_meta"} == EXCLUDED_FILES


def test_every_change_of_a_folder_changes_the_digest(tmp_path: Path) -> None:
    write(tmp_path, {"MLmodel": b"1", "data/x": b"2"})
    digests = [manifest_of_directory(tmp_path).digest]
    write(tmp_path, {"data/x": b"3"})
    digests.append(manifest_of_directory(tmp_path).digest)
    write(tmp_path, {"new": b""})
    digests.append(manifest_of_directory(tmp_path).digest)
    (tmp_path / "MLmodel").unlink()
    digests.append(manifest_of_directory(tmp_path).digest)
    assert len(set(digests)) == 4


def test_links_and_odd_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(RegistryError, match="link is a link"):
        manifest_of_directory(tmp_path)
    (tmp_path / "link").unlink()
    (tmp_path / "a\nb").write_bytes(b"")
    with pytest.raises(RegistryError, match="cannot stand in a manifest"):
        manifest_of_directory(tmp_path)
    with pytest.raises(RegistryError, match="is not a folder"):
        manifest_of_directory(tmp_path / "absent")


@pytest.mark.mlflow
async def test_the_stream_gives_the_folder_s_digest(
    client: MLflowClient, make_model: MakeModel, tmp_path: Path
) -> None:
    files = {
        **SMALL_MODEL,
        "a/b/c.txt": b"deep",
        "empty": b"",
        "t.csv.gz": b"x" * 300_000,
        "registered_model_meta": b"",
    }
    made = make_model(files=files)
    version = await ModelRegistry(client).get_version(made.name, 1)
    write(tmp_path, files)
    expected = manifest_of_directory(tmp_path)
    assert await artifact_manifest(client, version) == expected
    assert await logged_model_manifest(client, made.model_id) == expected
    assert len(expected.files) == 6


@pytest.mark.mlflow
async def test_verify_notices_a_changed_an_added_and_a_deleted_file(
    client: MLflowClient, make_model: MakeModel, mlflow_server: MLflowServer
) -> None:
    registry = ModelRegistry(client)
    made = make_model(register=False)
    version = await registry.register(made.name, run_id=made.run_id)
    await verify(client, version)
    stored = next(mlflow_server.artifacts.glob(f"**/{made.model_id}/artifacts"))
    for path, content in {"MLmodel": b"evil", "added": b""}.items():
        before = (stored / path).read_bytes() if (stored / path).exists() else None
        (stored / path).write_bytes(content)
        with pytest.raises(ArtifactDigestMismatchError, match=f"expected {version.digest}, found"):
            await verify(client, version)
        if before is None:
            (stored / path).unlink()
        else:
            (stored / path).write_bytes(before)
    removed = (stored / "MLmodel").read_bytes()
    (stored / "MLmodel").unlink()
    with pytest.raises(ArtifactDigestMismatchError, match=f"expected {version.digest}, found"):
        await verify(client, version)
    (stored / "MLmodel").write_bytes(removed)
    await verify(client, version)
    for path in SMALL_MODEL:
        (stored / path).unlink()
    with pytest.raises(ArtifactDigestMismatchError, match="no files in the artifact store"):
        await verify(client, version)


@pytest.mark.mlflow
async def test_a_version_registered_by_hand_is_recorded_at_first_sight(
    client: MLflowClient, make_model: MakeModel
) -> None:
    registry = ModelRegistry(client)
    made = make_model()
    version = await registry.get_version(made.name, 1)
    with pytest.raises(ArtifactDigestMismatchError, match=r"no recorded digest .*ensure_recorded"):
        await verify(client, version)
    digest = await ensure_recorded(registry, version)
    recorded = await registry.get_version(made.name, 1)
    assert recorded.tags[DIGEST_TAG] == digest
    assert await ensure_recorded(registry, recorded) == digest
    await verify(client, recorded)


@pytest.mark.mlflow
async def test_models_of_older_kinds_are_listed_through_their_run_and_the_proxy(
    client: MLflowClient, mlflow_server: MLflowServer
) -> None:
    registry = ModelRegistry(client)
    name, experiment = unique("model"), mlflow_server.experiment()
    run_id = mlflow_server.run(experiment)
    root = mlflow_server.call("GET", "runs/get", run_id=run_id)["run"]["info"]["artifact_uri"]
    mlflow_server.upload(root, "old/MLmodel", b"old")
    mlflow_server.upload(root, "old/data/x", b"x")
    mlflow_server.call("POST", "registered-models/create", name=name)
    expected = ArtifactManifest(
        {"MLmodel": hashlib.sha256(b"old").hexdigest(), "data/x": hashlib.sha256(b"x").hexdigest()}
    )
    for source in (f"runs:/{run_id}/old", f"{root}/old"):
        answer = mlflow_server.call("POST", "model-versions/create", name=name, source=source, run_id=run_id)
        version = await registry.get_version(name, answer["model_version"]["version"])
        assert version.model_id is None
        assert await artifact_manifest(client, version) == expected, source


@pytest.mark.mlflow
async def test_a_version_s_location_is_where_its_files_are_whatever_it_was_made_from(
    client: MLflowClient, mlflow_server: MLflowServer
) -> None:
    name, call = unique("model"), mlflow_server.call
    made = call("POST", "experiments/create", name=unique("e"), artifact_location="s3://bucket/experiment")
    run_id = mlflow_server.run(made["experiment_id"])
    body = {"experiment_id": made["experiment_id"], "source_run_id": run_id, "name": "model"}
    model_id = call("POST", "logged-models", **body)["model"]["info"]["model_id"]
    version = await ModelRegistry(client).get_version(name, mlflow_server.version(name, run_id, model_id))
    assert version.source == f"models:/{model_id}"
    location = await artifact_location(client, version)
    assert location == f"s3://bucket/experiment/models/{model_id}/artifacts"


@pytest.mark.mlflow
@pytest.mark.slow
async def test_mlflow_s_own_download_has_the_digest_recorded_at_registration(
    client: MLflowClient, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    name = unique("real")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", LOG_AND_DOWNLOAD, mlflow_server.uri, name, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    version = await ModelRegistry(client).register(name, run_id=said["run_id"])
    assert version.version == "1"
    downloaded = manifest_of_directory(said["copy"])
    assert "artifacts/extra/deep/er/table.csv.gz" in downloaded.files
    assert version.digest == downloaded.digest
    await verify(client, version)
