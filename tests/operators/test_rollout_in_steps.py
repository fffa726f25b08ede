"""Rollouts in steps as Airflow runs them: a real MLflow, real pods on an embedded cluster, a fake model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.clusters import connected
from helpers.mlflow_server import MakeModel, MLflowServer, unique
from helpers.polling import until_async
from nighttrain.operators.serving import RolloutModelOperator, rollout_task_group
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric
from nighttrain.providers.serving.rollouts.state import Phase
from nighttrain.providers.serving.rollouts.store import RolloutStore
from nighttrain.providers.serving.strategy import Approval, Strategy, Weight, blue_green, canary
from nighttrain.sensors.serving import RolloutSensor

if TYPE_CHECKING:
    from airflow.sdk import Context

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

QUICK = canary(50, hold_seconds=0.2, watch_seconds=0.2)
FAKE_IMAGE = Path(__file__).parents[1] / "providers" / "serving" / "fake_image"


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": f"{sys.executable}:{FAKE_IMAGE}"}) as running:
        yield running


class Night:
    """A model whose versions are also folders that the fake image serves, and a task's context."""

    def __init__(self, server: MLflowServer, make_model: MakeModel, store: Path) -> None:
        self.server, self.make, self.store = server, make_model, store
        self.model, self.endpoint = unique("model"), unique("delay")[:20].rstrip("-")
        self.xcoms: dict[str, Any] = {}

    def version(self, text: str) -> str:
        """Register a version that answers ``text``; its number."""
        files = {"MLmodel": b"flavors: {}\n", "model.txt": text.encode()}
        made = self.make(self.model, files=files)
        folder = self.store / self.model / str(made.version)
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return str(made.version)

    def context(self, task_id: str = "rollout", max_tries: int = 0) -> Context:
        ti: Any = SimpleNamespace(
            dag_id="deploy", run_id="r", task_id=task_id, map_index=-1, try_number=1, max_tries=max_tries
        )
        ti.xcom_push = lambda key, value: self.xcoms.update({key: json.loads(json.dumps(value))})
        ti.xcom_pull = lambda key, **_: self.xcoms.get(key)
        dag_run = SimpleNamespace(start_date=datetime(2026, 1, 1, tzinfo=UTC))
        return {"ti": ti, "dag_run": dag_run}  # type: ignore[typeddict-item]

    @property
    def fields(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "model_name": self.model,
            "image": "model-server:1",
            "env_vars": {"FAKE_STORE": str(self.store)},
            "moves_alias": "champion",
        }

    def rollout(self, version: str, **given: Any) -> RolloutModelOperator:
        fields = self.fields | {"version": version, "strategy": QUICK, "deferrable": False}
        return RolloutModelOperator(task_id="rollout", **(fields | given))

    def champion(self) -> str:
        found = self.server.call("GET", "registered-models/alias", name=self.model, alias="champion")
        return str(found["model_version"]["version"])


@pytest.fixture
def night(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Night:
    connect_kubernetes(monkeypatch, cluster)
    connect_mlflow(monkeypatch, mlflow_server.uri)
    return Night(mlflow_server, make_model, tmp_path)


async def test_in_the_worker_and_in_the_triggerer(night: Night) -> None:
    first, second = night.version("one"), night.version("two")
    served = night.rollout(first).execute(night.context())
    assert served is not None
    assert (served["version"], served["previous_version"], night.champion()) == (first, None, first)
    operator = night.rollout(second, deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(night.context())
    path, arguments = deferred.value.trigger.serialize()
    assert path == "nighttrain.sensors.triggers.RolloutTrigger"
    trigger = type(deferred.value.trigger)(**json.loads(json.dumps(arguments)))
    event = await anext(aiter(trigger.run()))
    assert event.payload == {"phase": "promoted", "version": second}
    served = operator.steps_complete(night.context(), event.payload)
    assert (served["version"], served["previous_version"], night.champion()) == (second, first, second)
    assert night.rollout(second).execute(night.context(max_tries=1)) == served | {"url": served["url"]}


def test_what_is_undone_fails_without_a_retry_and_gives_the_alias_back(night: Night) -> None:
    first, broken = night.version("one"), night.version("broken")
    night.rollout(first, strategy=blue_green(watch_seconds=0.1)).execute(night.context())
    with pytest.raises(AirflowFailException, match=r"(?s)RolloutUndoneError.*what_the_model_needs"):
        night.rollout(broken).execute(night.context(max_tries=1))
    assert night.champion() == first


@pytest.mark.thorough
@pytest.mark.parametrize(("answer", "promoted"), [(1.0, True), (9.0, False)])
def test_the_tasks_page_links_the_picture_however_it_ends(
    night: Night, answer: float, promoted: bool
) -> None:
    first, second = (night.version(json.dumps({"predictions": [each]})) for each in (1.0, answer))
    differs = Metric(
        name="disagreement",
        kind=Kind.DISAGREEMENT,
        limit=0.5,
        source={"type": "comparison", "requests_per_interval": 60},
    )
    strategy = replace(
        canary(50, hold_seconds=0.2, watch_seconds=0.2),
        analysis=Analysis(metrics=(differs,), interval_seconds=1),
        golden=Golden(requests=(0,)),
    )
    night.rollout(first).execute(night.context())
    assert "nighttrain_link_rollout" not in night.xcoms, "nothing was analysed"
    with nullcontext() if promoted else pytest.raises(AirflowFailException, match="disagreement"):
        night.rollout(second, strategy=strategy).execute(night.context())
    found = night.server.call("GET", "experiments/get-by-name", experiment_name="nighttrain rollouts")
    page = f"/#/experiments/{found['experiment']['experiment_id']}/runs/"
    link = night.xcoms["nighttrain_link_rollout"]
    assert link.startswith(night.server.uri + page)
    assert link.endswith("/artifacts/nighttrain/rollout.svg")


@pytest.mark.thorough
async def test_a_cleared_task_undoes_its_rollout(night: Night) -> None:
    first, second = night.version("one"), night.version("two")
    night.rollout(first).execute(night.context())
    slow = canary(50, hold_seconds=3600, watch_seconds=1)
    with pytest.raises(TaskDeferred) as deferred:
        night.rollout(second, strategy=slow, deferrable=True).execute(night.context())
    trigger = deferred.value.trigger
    await trigger._abort()  # type: ignore[attr-defined]
    event = await anext(aiter(trigger.run()))
    assert event.payload["phase"] == "undone"
    assert night.champion() == first


class ByHand:
    """``nighttrain rollout`` as a person runs it, in processes of its own."""

    def __init__(self, cluster: EmbeddedCluster, night: Night) -> None:
        self.cluster, self.night = cluster, night

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "nighttrain.providers.commands", "rollout", *words]
        where = ["--kubeconfig", str(self.cluster.kubeconfig), "--mlflow-uri", self.night.server.uri]
        asked = [*command, self.night.endpoint, *where]
        return subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *words: str) -> tuple[int, str]:
        return self.ended(self.start(*words))

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            said, _ = process.communicate(timeout=200)
        finally:
            process.kill()
        return process.returncode, said

    async def phase(self) -> Phase | None:
        async with connected(self.cluster) as client:
            kept = await RolloutStore(client).read(self.night.endpoint, "default")
        return kept.state.phase if kept else None


@pytest.mark.timeout(600)
async def test_a_person_carries_a_rollout_to_its_end_where_the_task_is_dead(
    night: Night, cluster: EmbeddedCluster
) -> None:
    first, second, third = (night.version(text) for text in ("one", "two", "three"))
    night.rollout(first).execute(night.context())
    share = Weight(percent=50, hold_seconds=0.2)
    steps = Strategy(steps=(share, Approval(reason="look at it")), watch_seconds=0.2)
    # The task hands over to a triggerer that there is not.
    with pytest.raises(TaskDeferred):
        night.rollout(second, strategy=steps, deferrable=True).execute(night.context())
    person, asks = ByHand(cluster, night), Phase.WAITING
    driver = person.start("resume", "--drive")
    try:
        await until_async(lambda: _is(person, asks, driver), 90)
        code, said = await asyncio.to_thread(person.run, "promote", "--reason", "it looks good")
        assert (code, "Whoever drives it obeys" in said) == (0, True), said
    finally:
        code, said = await asyncio.to_thread(person.ended, driver)
    assert (code, f"promoted: version {second} serves" in said) == (0, True), said
    assert (await person.phase(), night.champion()) == (Phase.PROMOTED, second)

    slow = canary(50, hold_seconds=3600, watch_seconds=1)
    with pytest.raises(TaskDeferred):
        night.rollout(third, strategy=slow, deferrable=True).execute(night.context("another"))
    code, said = await asyncio.to_thread(person.run, "abort", "--drive", "--reason", "complaints")
    assert (code, f"undone: version {second} serves" in said) == (0, True), said
    assert (await person.phase(), night.champion()) == (Phase.UNDONE, second)


async def _is(person: ByHand, phase: Phase, driver: subprocess.Popen[str]) -> bool:
    assert driver.poll() is None, "it ended too early"
    return await person.phase() is phase


def test_each_step_is_a_task(night: Night) -> None:
    first, second = night.version("one"), night.version("two")
    night.rollout(first).execute(night.context())
    with DAG("deploy", schedule=None):
        group = rollout_task_group("canary", strategy=QUICK, version=second, deferrable=False, **night.fields)
    tasks = {task.label: task for task in group.children.values()}  # type: ignore[union-attr]
    assert list(tasks) == ["begin", "step_1_weight_50", "promote"]
    ends = {label: task.execute(night.context(label)) for label, task in tasks.items()}  # type: ignore[union-attr]
    assert ends["begin"]["phase"] in ("shifting", "holding")
    assert ends["step_1_weight_50"]["phase"] in ("switching", "watching")
    assert ends["promote"]["version"] == second
    assert night.champion() == second
    with pytest.raises(AirflowSkipException, match="serves already"):
        tasks["begin"].execute(night.context("begin"))  # type: ignore[union-attr]
    sensor = RolloutSensor(task_id="wait", endpoint=night.endpoint, version=second, deferrable=False)
    assert sensor.execute(night.context("wait"))["phase"] == "promoted"


def test_mistakes_are_told_when_the_dag_is_read(night: Night) -> None:
    with pytest.raises(ConfigurationError, match=r"backend.*choose one of"):
        night.rollout("1", backend="deploiment")
    with pytest.raises(ConfigurationError, match=r"strategy\.steps"):
        night.rollout("1", strategy={"steps": [50, 10]})
    with pytest.raises(ConfigurationError, match="task_id"):
        rollout_task_group("canary", strategy=QUICK, task_id="x", version="1", **night.fields)
