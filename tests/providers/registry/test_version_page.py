"""A version's tags, lineage, description and serving mark, on a real MLflow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from helpers.mlflow_proxy import proxy, refused
from helpers.mlflow_server import MakeModel, MLflowServer, unique
from nighttrain.providers.errors import ConfigurationError, ModelVersionNotFoundError
from nighttrain.providers.registry.artifacts import verify
from nighttrain.providers.registry.feed.changes import followed
from nighttrain.providers.registry.feed.one_look import look
from nighttrain.providers.registry.lineage import (
    DAG_RUN_TAG,
    JOB_TAG,
    LINEAGE_FILE,
    NIGHT_TAG,
    lineage_of,
    read_lineage,
    write_lineage,
)
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.version_page import (
    mark_serving,
    mark_withdrawn,
    record_serving,
    refresh_description,
)
from nighttrain.providers.registry.version_page.serving import SERVING_SINCE_TAG, SERVING_TAG, SERVING_URL_TAG
from nighttrain.providers.registry.versions import DIGEST_TAG
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.runs import Lineage, Run

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.mlflow_proxy import Answer, Asked

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

LINEAGE = Lineage(
    orchestrator="airflow",
    dag_id="nightly",
    run_id="scheduled__2026-11-25",
    task_id="train",
    try_number=1,
    attempt=1,
    cluster="https://cluster:6443",
    namespace="ml",
    job_name="nightly-train-1",
    job_uid="56551313",
    image="train:1",
    image_digest="sha256:abc",
    outcome="succeeded",
    commit="0123abc",
    data_interval_start="2026-11-25T00:00:00+00:00",
    data_interval_end="2026-11-26T00:00:00+00:00",
)


class Trained:
    """A run as a training leaves it, with its lineage, and a model."""

    def __init__(self, server: MLflowServer, make_model: MakeModel, **metrics: float) -> None:
        made = make_model(register=False, **metrics)
        self.server, self.name, self.run_id = server, made.name, made.run_id
        for key, value in LINEAGE.tags().items():
            server.call("POST", "runs/set-tag", run_id=self.run_id, key=key, value=value)

    @property
    def run(self) -> Run:
        return Run.from_api(self.server.call("GET", "runs/get", run_id=self.run_id)["run"])

    def file(self) -> dict[str, Any] | None:
        answer = self.server.http.get("/get-artifact", params={"run_id": self.run_id, "path": LINEAGE_FILE})
        return dict(answer.json()) if answer.is_success else None


@pytest.fixture
def trained(mlflow_server: MLflowServer, make_model: MakeModel) -> Trained:
    return Trained(mlflow_server, make_model, mae=12.5)


async def test_a_version_has_few_tags_and_its_runs_file_has_the_rest(
    registry: ModelRegistry, trained: Trained
) -> None:
    lineage = lineage_of(trained.run)
    version = await registry.register(trained.name, run_id=trained.run_id, lineage=lineage, tags={"mine": 1})
    assert version.tags == {
        NIGHT_TAG: "2026-11-25",
        DAG_RUN_TAG: "nightly/scheduled__2026-11-25",
        JOB_TAG: "ml/nightly-train-1",
        DIGEST_TAG: version.digest,
        "mine": "1",
    }
    written = trained.file()
    assert written is not None
    assert written["mlflow_run_id"] == trained.run_id
    assert {f"nighttrain.{name}": value for name, value in written["lineage"].items()} == lineage
    assert await read_lineage(registry.client, version) == {
        **lineage,
        **{name: value for name, value in version.tags.items() if name.startswith("nighttrain.")},
    }
    # The file lies beside the model: what was registered is what is there.
    await verify(registry.client, version)
    again = await registry.register(trained.name, run_id=trained.run_id, lineage=lineage)
    assert (again.tags, again.last_updated) == (version.tags, version.last_updated)
    found = await registry.versions(trained.name, tags={NIGHT_TAG: "2026-11-25"})
    assert [each.version for each in found] == ["1"]


async def test_where_the_file_cannot_be_written_the_tags_stay(
    mlflow_server: MLflowServer, trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    def judge(asked: Asked) -> Answer | None:
        return refused(403, "PERMISSION_DENIED") if asked.method == "PUT" else None

    lineage = lineage_of(trained.run)
    with proxy(mlflow_server.uri, judge) as server:
        async with MLflowClient(TrackingConfig(server.uri)) as client:
            registry = ModelRegistry(client)
            version = await registry.register(trained.name, run_id=trained.run_id, lineage=lineage)
            assert version.tags == {
                **lineage,
                DAG_RUN_TAG: "nightly/scheduled__2026-11-25",
                JOB_TAG: "ml/nightly-train-1",
                DIGEST_TAG: version.digest,
            }
            assert trained.file() is None
            assert f"takes no {LINEAGE_FILE}" in caplog.text
            assert (await read_lineage(client, version))["nighttrain.image_digest"] == "sha256:abc"
            await refresh_description(registry, trained.name, "1")
            assert "2026-11-25" in (await registry.get_version(trained.name, "1")).description


async def test_into_a_store_that_mlflow_does_not_proxy_its_server_writes_the_file(
    registry: ModelRegistry, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    made = mlflow_server.call(
        "POST", "experiments/create", name=unique("experiment"), artifact_location=tmp_path.as_uri()
    )
    run_id = mlflow_server.run(str(made["experiment_id"]))
    run = Run.from_api(mlflow_server.call("GET", "runs/get", run_id=run_id)["run"])
    assert run.artifact_uri.startswith("file:")
    await write_lineage(registry.client, run, LINEAGE.tags())
    written = tmp_path / run_id / "artifacts" / LINEAGE_FILE
    assert json.loads(written.read_text("utf-8"))["lineage"]["image_digest"] == "sha256:abc"


async def test_a_model_that_is_all_of_its_runs_files_gets_no_file_into_it(
    registry: ModelRegistry, mlflow_server: MLflowServer
) -> None:
    run_id, name = mlflow_server.run(mlflow_server.experiment()), unique("model")
    info = mlflow_server.call("GET", "runs/get", run_id=run_id)["run"]["info"]
    mlflow_server.upload(info["artifact_uri"], "MLmodel", b"flavors: {}\n")
    version = await registry.register(name, run_id=run_id, lineage=LINEAGE.tags())
    assert version.tags["nighttrain.image"] == "train:1"
    answer = mlflow_server.http.get("/get-artifact", params={"run_id": run_id, "path": LINEAGE_FILE})
    assert not answer.is_success
    await verify(registry.client, version)


async def test_a_version_of_an_earlier_release_is_read_from_its_tags(
    registry: ModelRegistry, trained: Trained
) -> None:
    before = {key: value for key, value in LINEAGE.tags().items() if key.startswith("nighttrain.")}
    version = await registry.register(trained.name, run_id=trained.run_id, tags=before)
    assert before.items() <= (await read_lineage(registry.client, version)).items()
    assert await refresh_description(registry, trained.name, "1")
    described = (await registry.get_version(trained.name, "1")).description
    assert "Night 2026-11-25" in described
    assert "nightly/scheduled" in described
    assert "ml/nightly-train-1" in described


async def test_a_file_that_is_not_ours_is_passed_over(registry: ModelRegistry, trained: Trained) -> None:
    lineage = lineage_of(trained.run)
    version = await registry.register(trained.name, run_id=trained.run_id, lineage=lineage)
    for content in (b"no json", b"[]", b'{"lineage": 7}', b"{" * 2_000_000):
        trained.server.upload(trained.run.artifact_uri, LINEAGE_FILE, content)
        assert lineage.items() <= (await read_lineage(registry.client, version)).items()


# The description.


def judged(server: MLflowServer, name: str, version: str, verdict: str = "accepted") -> None:
    """As a gate leaves it."""
    run = server.run(
        server.experiment(), **{"candidate.mae": 12.0, "champion.mae": 13.0, "baseline.mae": 18.0}
    )
    server.call("POST", "runs/log-parameter", run_id=run, key="champion_version", value="7")
    tags = {"verdict": verdict, "summary": f"{verdict}: mae 12 is | fine", "evaluation_run": run}
    for key, value in tags.items():
        body = {"name": name, "version": version, "key": f"nighttrain.gate.{key}", "value": value}
        server.call("POST", "model-versions/set-tag", **body)


async def test_the_description_follows_the_verdict_and_a_persons_text_stays(
    registry: ModelRegistry, trained: Trained
) -> None:
    name = trained.name
    await registry.register(name, run_id=trained.run_id, lineage=lineage_of(trained.run), description="Mine.")
    assert await refresh_description(registry, name, "1")
    described = (await registry.get_version(name, "1")).description
    assert "**Not judged yet.**" in described
    assert described.endswith("Mine.")
    assert not await refresh_description(registry, name, "1")

    judged(trained.server, name, "1")
    assert await refresh_description(registry, name, "1")
    version = await registry.get_version(name, "1")
    assert "**Accepted**: mae 12 is &#124; fine" in version.description
    assert "| mae | 12 | 13 | 18 |" in version.description
    assert "champion (version 7)" in version.description
    assert version.description.endswith("Mine.")
    # Registering again leaves it alone.
    again = await registry.register(name, run_id=trained.run_id, description="Another.")
    assert again.description == version.description
    with pytest.raises(ModelVersionNotFoundError):
        await refresh_description(registry, name, "9")


async def test_a_new_description_is_no_transition(
    registry: ModelRegistry, mlflow_server: MLflowServer, make_model: MakeModel
) -> None:
    made = make_model()
    name = make_model(made.name).name
    mlflow_server.stage(name, "1", "Production")
    mlflow_server.stage(name, "2", "Production")
    production = followed(name, stage="Production")
    before, updated, _ = await look(registry.client, production, None, 0, 1)
    judged(mlflow_server, name, "1")
    judged(mlflow_server, name, "2")
    # The holder is who was updated last: an earlier one's description would make it the holder.
    assert not await refresh_description(registry, name, "1")
    assert await refresh_description(registry, name, "2")
    assert (await registry.version_in_stage(name, "Production")).version == "2"
    assert (await look(registry.client, production, before, updated, 2))[2] == []


# What serves.


async def test_the_mark_of_an_endpoint_comes_and_goes(registry: ModelRegistry, make_model: MakeModel) -> None:
    name = make_model().name

    async def tags() -> dict[str, str]:
        return (await registry.get_version(name, 1)).tags

    # Repeated later it serves since the first time, by whoever rolled it out then.
    for seconds, by in ((1_800_000_000.0, "airflow:deploy/rollout"), (1_800_000_060.0, "somebody else")):
        await mark_serving(
            registry,
            name,
            1,
            "ml/delay",
            url="http://delay.ml.svc:8080",
            by=by,
            clock=lambda now=seconds: now,
        )
    assert await tags() == {
        SERVING_TAG: "ml/delay",
        SERVING_URL_TAG: "http://delay.ml.svc:8080",
        SERVING_SINCE_TAG: "2027-01-15T08:00:00+00:00 airflow:deploy/rollout",
    }
    await mark_serving(registry, name, 1, "test/delay", by="ann", clock=lambda: 1_800_000_120.0)
    assert (await tags())[SERVING_TAG] == "ml/delay, test/delay"
    await mark_withdrawn(registry, name, 1, "ml/delay")
    assert await tags() == {SERVING_TAG: "test/delay", SERVING_SINCE_TAG: "2027-01-15T08:02:00+00:00 ann"}
    for _ in range(2):
        await mark_serving(registry, name, 1, None)
        await mark_withdrawn(registry, name, 1, "test/delay")
    assert await tags() == {}
    for wrong in ("delay", "ml/", "/delay", "ml/delay/x", "ml/a, ml/b"):
        with pytest.raises(ConfigurationError, match="namespace/endpoint"):
            await mark_serving(registry, name, 1, wrong)


async def test_one_version_at_a_time_says_that_an_endpoint_serves_it(
    registry: ModelRegistry, make_model: MakeModel
) -> None:
    made = make_model()
    for _ in range(2):
        make_model(made.name)
    name = made.name
    await record_serving(registry, name, "1", "ml/delay", url="http://delay.ml.svc:8080")
    first = await registry.get_version(name, 1)
    assert "**Serves** [ml/delay](http://delay.ml.svc:8080)" in first.description
    # What an outage left behind on a version goes as well.
    await mark_serving(registry, name, 3, "ml/delay")
    await record_serving(registry, name, "2", "ml/delay", previous="1")
    marked = {each.version: each.tags.get(SERVING_TAG) for each in await registry.versions(name)}
    assert marked == {"1": None, "2": "ml/delay", "3": None}
    assert "No endpoint" in (await registry.get_version(name, 1)).description
    await registry.delete_version(name, 1)
    await record_serving(registry, name, "2", "ml/delay", previous="1")
