"""Rollouts and rollbacks as Airflow runs them: against a real MLflow, on an embedded cluster of no pods."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferralTimeout, TaskDeferred
from airflow.sdk.execution_time.task_runner import _run_execute_callable
from airflow.triggers.base import TriggerEvent

from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.mlflow_proxy import proxy, refused
from helpers.mlflow_server import MakeModel, MLflowServer, unique
from nighttrain.operators.registry import PromoteModelOperator
from nighttrain.operators.serving import RollbackModelOperator, RolloutModelOperator
from nighttrain.operators.serving.rollout import DEPLOYED_BY
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.deployment_target.deployments import Deployments
from nighttrain.providers.deployment_target.standing import DEPLOYED_BY_ANNOTATION
from nighttrain.providers.errors import NothingToRollBackToError, RolloutFailedError
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.sensors import triggers
from nighttrain.sensors.triggers import settling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk import Context

    from helpers.mlflow_proxy import Answer, Asked

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]


class Controllers:
    """Makes every Deployment ready that is not stuck, as a cluster's controllers would."""

    def __init__(self, cluster: EmbeddedCluster) -> None:
        token = {"Authorization": f"Bearer {cluster.token}"}
        self._http = httpx.Client(base_url=cluster.url, headers=token, trust_env=False)
        self.stuck: set[str] = set()
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._http.close()

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            for item in self.deployments().values():
                if item["metadata"]["name"] not in self.stuck:
                    self._make_ready(item)

    def _make_ready(self, item: dict[str, Any]) -> None:
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        state = dict.fromkeys(counts, item["spec"]["replicas"])
        state["observedGeneration"] = item["metadata"]["generation"]
        if any(item.get("status", {}).get(key) != value for key, value in state.items()):
            self.patch(f"{item['metadata']['name']}/status", {"status": state})

    def deployments(self) -> dict[str, Any]:
        answer = self._http.get("/apis/apps/v1/namespaces/default/deployments").raise_for_status()
        return {item["metadata"]["name"]: item for item in answer.json()["items"]}

    def service(self, endpoint: str) -> dict[str, Any]:
        found = self._http.get(f"/api/v1/namespaces/default/services/{endpoint}").raise_for_status()
        return dict(found.json())

    def patch(self, name: str, body: dict[str, Any]) -> None:
        path = f"/apis/apps/v1/namespaces/default/deployments/{name}"
        self._http.patch(path, json=body, headers={"Content-Type": "application/merge-patch+json"})


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(containers=False) as running:
        yield running


@pytest.fixture
def controllers(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Controllers]:
    connect_kubernetes(monkeypatch, cluster)
    connect_mlflow(monkeypatch, mlflow_server.uri)
    controllers = Controllers(cluster)
    with controllers.running():
        yield controllers


class Night:
    """A model with two versions, an endpoint, and a task's context."""

    def __init__(self, server: MLflowServer, make_model: MakeModel) -> None:
        made = make_model()
        self.server, self.model, self.endpoint = server, made.name, unique("delay")
        server.version(made.name, made.run_id, made.model_id)
        self.xcoms: dict[str, Any] = {}
        ti: Any = SimpleNamespace(dag_id="deploy", run_id="r", task_id="rollout", map_index=-1, try_number=1)
        ti.xcom_push = lambda key, value: self.xcoms.update({key: json.loads(json.dumps(value))})
        ti.xcom_pull = lambda key, **_: self.xcoms[key]
        self.context: Context = {"ti": ti}  # type: ignore[typeddict-item]

    def rollout(self, version: str = "1", **given: Any) -> RolloutModelOperator:
        fields: dict[str, Any] = {"version": version, "image": "scoring:1", "deferrable": False}
        return RolloutModelOperator(
            task_id="rollout", endpoint=self.endpoint, model_name=self.model, **(fields | given)
        )

    def deployment(self, version: str) -> str:
        return f"{self.endpoint}-v{version}"

    def tags(self, version: str) -> dict[str, str]:
        found = self.server.versions(self.model)[int(version) - 1]
        return {tag["key"]: tag["value"] for tag in found.get("tags", [])}

    def holders(self) -> tuple[str, list[str]]:
        """Who holds the alias champion, and who the stage Production."""
        path = "registered-models/alias"
        champion = self.server.call("GET", path, name=self.model, alias="champion")["model_version"]
        staged = [each for each in self.server.versions(self.model) if each["current_stage"] == "Production"]
        return champion["version"], [each["version"] for each in staged]


@pytest.fixture
def night(mlflow_server: MLflowServer, make_model: MakeModel, controllers: Controllers) -> Night:
    return Night(mlflow_server, make_model)


# In the worker


def test_a_rollout_in_the_worker_serves_and_again_does_nothing(
    night: Night, controllers: Controllers
) -> None:
    served = night.rollout(replicas=2).execute(night.context)
    assert served is not None
    assert {key: served[key] for key in ("endpoint", "model_name", "version", "previous_version")} == {
        "endpoint": night.endpoint,
        "model_name": night.model,
        "version": "1",
        "previous_version": None,
    }
    assert served["url"] == f"http://{night.endpoint}.default.svc:8080"
    before = controllers.deployments()[night.deployment("1")]
    assert before["spec"]["replicas"] == 2
    assert night.rollout(replicas=2).execute(night.context) == served
    assert controllers.deployments()[night.deployment("1")] == before


def test_a_rollout_of_what_was_scaled_to_zero_ends_with_ready_pods(
    night: Night, controllers: Controllers
) -> None:
    night.rollout().execute(night.context)
    controllers.patch(night.deployment("1"), {"spec": {"replicas": 0}})
    night.rollout().execute(night.context)
    found = controllers.deployments()[night.deployment("1")]
    assert (found["spec"]["replicas"], found["status"]["readyReplicas"]) == (1, 1)
    controllers.patch(night.deployment("1"), {"spec": {"replicas": 3}})
    night.rollout("2").execute(night.context)
    assert controllers.deployments()[night.deployment("2")]["spec"]["replicas"] == 3


def test_a_candidate_that_is_not_ready_in_time_goes(night: Night, controllers: Controllers) -> None:
    night.rollout().execute(night.context)
    controllers.stuck.add(night.deployment("2"))
    with pytest.raises(RolloutFailedError, match=r"within 1 seconds; version 1 still serves"):
        night.rollout("2", startup_timeout_seconds=1).execute(night.context)
    nothing_of_the_candidate(night, controllers)


class TimeoutOnceItWaits:
    """A task's log. Airflow's time-out is a signal, which comes here with the first word of the wait."""

    def info(self, message: str, *_: object) -> None:
        if "pods are ready" in message:
            os.kill(os.getpid(), signal.SIGALRM)

    warning = error = info


def test_an_execution_timeout_in_the_worker_leaves_no_candidate(
    night: Night, controllers: Controllers, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.rollout().execute(night.context)
    controllers.stuck.add(night.deployment("2"))
    task = night.rollout("2", execution_timeout=timedelta(hours=1))
    monkeypatch.setattr(RolloutModelOperator, "log", TimeoutOnceItWaits())
    with pytest.raises(AirflowTaskTimeout):
        _run_execute_callable(night.context, task.execute, task)
    nothing_of_the_candidate(night, controllers)


def test_a_task_that_is_killed_in_the_worker_leaves_no_candidate(
    night: Night, controllers: Controllers
) -> None:
    """As Airflow's task runner does it: SIGTERM calls ``on_kill`` in the midst of what runs."""
    night.rollout().execute(night.context)
    controllers.stuck.add(night.deployment("2"))
    task = night.rollout("2")
    before = signal.signal(signal.SIGTERM, lambda *_: task.on_kill())
    try:
        with (
            watching(controllers, night.deployment("2"), lambda: os.kill(os.getpid(), signal.SIGTERM)),
            pytest.raises(RolloutFailedError, match="somebody deleted it"),
        ):
            task.execute(night.context)
    finally:
        signal.signal(signal.SIGTERM, before)
    nothing_of_the_candidate(night, controllers)


def test_a_kill_after_the_end_takes_nothing_down(night: Night, controllers: Controllers) -> None:
    task = night.rollout()
    task.execute(night.context)
    before = controllers.service(night.endpoint)
    task.on_kill()
    assert controllers.service(night.endpoint) == before
    assert night.deployment("1") in controllers.deployments()


# Deferred


async def the_event(deferred: TaskDeferred) -> dict[str, Any]:
    """What the trigger says, made anew from what Airflow stores of it."""
    path, arguments = deferred.trigger.serialize()
    trigger = getattr(triggers, path.rpartition(".")[2])(**json.loads(json.dumps(arguments)))
    event = await anext(trigger.run())
    assert isinstance(event, TriggerEvent)
    return dict(event.payload)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trigger holds its event back until Airflow has noticed the end of a process; here is none."""
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")
    monkeypatch.setattr(settling, "REPORT_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
async def test_a_deferred_rollout_switches_when_its_candidate_is_ready(
    night: Night, controllers: Controllers
) -> None:
    task = night.rollout(deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(night.context)
    event = await the_event(deferred.value)
    served = night.rollout(deferrable=True).execute_complete(night.context, event)
    assert served["version"] == "1"


@pytest.mark.usefixtures("at_once")
async def test_a_deferred_rollout_that_fails_leaves_no_candidate(
    night: Night, controllers: Controllers
) -> None:
    night.rollout().execute(night.context)
    controllers.stuck.add(night.deployment("2"))
    with pytest.raises(TaskDeferred) as deferred:
        night.rollout("2", deferrable=True, startup_timeout_seconds=1).execute(night.context)
    event = await the_event(deferred.value)
    assert not event["ready"]
    with pytest.raises(RolloutFailedError, match=r"within 1 seconds; version 1 still serves"):
        night.rollout("2", deferrable=True).execute_complete(night.context, event)
    nothing_of_the_candidate(night, controllers)


@pytest.mark.usefixtures("at_once")
async def test_a_candidate_that_lost_its_pods_before_the_switch_is_no_success(
    night: Night, controllers: Controllers
) -> None:
    night.rollout().execute(night.context)
    with pytest.raises(TaskDeferred) as deferred:
        night.rollout("2", deferrable=True).execute(night.context)
    event = await the_event(deferred.value)
    assert event["ready"]
    controllers.stuck.add(night.deployment("2"))
    controllers.patch(night.deployment("2"), {"spec": {"replicas": 0}})
    with pytest.raises(RolloutFailedError, match="scaled to zero"):
        night.rollout("2", deferrable=True).execute_complete(night.context, event)
    nothing_of_the_candidate(night, controllers)


def test_a_deferral_that_times_out_leaves_no_candidate(night: Night, controllers: Controllers) -> None:
    night.rollout().execute(night.context)
    controllers.stuck.add(night.deployment("2"))
    with pytest.raises(TaskDeferred) as deferred:
        night.rollout("2", deferrable=True, execution_timeout=timedelta(minutes=7)).execute(night.context)
    assert deferred.value.timeout == timedelta(minutes=7)
    assert night.deployment("2") in controllers.deployments()
    with pytest.raises(TaskDeferralTimeout):
        night.rollout("2", deferrable=True).resume_execution(
            "__fail__", {"error": "Trigger timeout"}, night.context
        )
    nothing_of_the_candidate(night, controllers)


# Back


def test_a_rollback_undoes_the_promotion_and_once_more_makes_it_again(night: Night) -> None:
    for version in ("1", "2"):
        PromoteModelOperator(
            task_id="promote", model_name=night.model, version=version, stage="Production"
        ).execute(night.context)
        night.rollout(version).execute(night.context)
    assert night.holders() == ("2", ["2"])

    back = RollbackModelOperator(task_id="back", endpoint=night.endpoint, reason="wrong predictions")
    assert back.execute(night.context)["version"] == "1"
    assert night.holders() == ("1", ["1"])
    kinds = [
        (tags["nighttrain.history.kind"], tags.get("nighttrain.history.undoes"))
        for tags in night.server.history(night.model)
    ]
    assert kinds == [("promotion", None), ("done", None)] * 2 + [("rollback", "3"), ("done", None)]
    assert night.server.history(night.model)[4]["nighttrain.history.reason"] == "wrong predictions"

    assert back.execute(night.context)["version"] == "2"
    assert night.holders() == ("2", ["2"])


def test_a_rollback_that_fails_moves_neither_alias_nor_stage(night: Night, controllers: Controllers) -> None:
    PromoteModelOperator(task_id="promote", model_name=night.model, version="1", stage="Production").execute(
        night.context
    )
    night.rollout().execute(night.context)
    before = night.holders(), night.tags("1")
    with pytest.raises(NothingToRollBackToError):
        RollbackModelOperator(task_id="back", endpoint=night.endpoint).execute(night.context)
    assert (night.holders(), night.tags("1")) == before


@pytest.mark.parametrize("state", [{"state": "edited by hand"}, {"somebody": "else's"}])
def test_a_rollback_needs_no_state_of_a_rollout_and_mlflows_list_says_what_is_odd(
    night: Night,
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, str],
) -> None:
    for version in ("1", "2"):
        night.rollout(version).execute(night.context)
    labels = {"nighttrain.dev/endpoint": night.endpoint, "app.kubernetes.io/managed-by": "nighttrain"}
    body = {"metadata": {"name": f"{night.endpoint}-rollout", "labels": labels}, "data": state}
    url, headers = (
        f"{cluster.url}/api/v1/namespaces/default/configmaps",
        {"Authorization": f"Bearer {cluster.token}"},
    )
    httpx.post(url, json=body, headers=headers, trust_env=False).raise_for_status()
    back = RollbackModelOperator(task_id="back", endpoint=night.endpoint)
    assert back.execute(night.context)["version"] == "1"
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    listed = run_sync(Deployments("kubernetes:/default", mlflow_server.uri, actor="ann", tell=print).list())
    (told,) = (each["rollout"] for each in listed if each["name"] == night.endpoint)
    assert f"ConfigMap {night.endpoint}-rollout" in told


# What MLflow says of it


def serving(night: Night) -> dict[str, str | None]:
    return {version: night.tags(version).get("nighttrain.serving") for version in ("1", "2")}


def test_the_version_that_serves_says_so_and_the_one_before_no_longer(night: Night) -> None:
    here = f"default/{night.endpoint}"
    night.rollout("1").execute(night.context)
    assert serving(night) == {"1": here, "2": None}
    night.rollout("2").execute(night.context)
    assert serving(night) == {"1": None, "2": here}
    described = night.server.versions(night.model)[1]["description"]
    assert f"**Serves** [{here}](http://{night.endpoint}.default.svc:8080)" in described
    back = RollbackModelOperator(task_id="back", endpoint=night.endpoint, alias=None, stage=None)
    back.execute(night.context)
    assert serving(night) == {"1": here, "2": None}


def test_an_mlflow_that_refuses_the_mark_fails_no_rollout_and_the_next_one_makes_up_for_it(
    night: Night, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(asked: Asked) -> Answer | None:
        refuses = asked.path.endswith(("model-versions/set-tag", "model-versions/delete-tag"))
        return refused(403, "PERMISSION_DENIED") if refuses else None

    here = f"default/{night.endpoint}"
    for version in ("1", "2"):
        night.rollout(version).execute(night.context)
    with proxy(mlflow_server.uri, judge) as server:
        connect_mlflow(monkeypatch, server.uri)
        back = RollbackModelOperator(task_id="back", endpoint=night.endpoint, alias=None, stage=None)
        assert back.execute(night.context)["version"] == "1"
    assert serving(night) == {"1": None, "2": here}
    connect_mlflow(monkeypatch, mlflow_server.uri)
    night.rollout("1").execute(night.context)
    assert serving(night) == {"1": here, "2": None}


def nothing_of_the_candidate(night: Night, controllers: Controllers) -> None:
    """Version 1 has the requests as before, and of version 2 nothing is left."""
    service = controllers.service(night.endpoint)
    assert service["spec"]["selector"]["nighttrain.dev/version"] == "1"
    assert "nighttrain.dev/candidate-version" not in service["metadata"]["annotations"]
    names = controllers.deployments()
    assert night.deployment("1") in names
    assert night.deployment("2") not in names


@contextmanager
def watching(controllers: Controllers, name: str, act: Callable[[], Any]) -> Iterator[None]:
    """Act once the Deployment is there."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            if name in controllers.deployments():
                act()
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# Beside MLflow's command line


def test_an_endpoint_goes_from_the_command_line_to_a_task_and_back(
    night: Night, cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DEPLOYED_BY == DEPLOYED_BY_ANNOTATION
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    told: list[str] = []
    by_hand = Deployments("kubernetes:/default", mlflow_server.uri, actor="ann", tell=told.append)
    first, second = (f"models:/{night.model}/{version}" for version in ("1", "2"))
    made = run_sync(by_hand.create(night.endpoint, first, {"image": "scoring:1", "env_vars": {"A": "1"}}))
    assert (made["version"], made["created_by"]) == ("1", "ann")
    served = night.rollout("2").execute(night.context)
    assert served is not None
    assert (served["version"], served["previous_version"]) == ("2", "1")
    shown = run_sync(by_hand.get(night.endpoint))
    assert (shown["model_uri"], shown["image"]) == (second, "scoring:1")
    assert "deploy" in shown["created_by"]
    assert night.endpoint in {each["name"] for each in run_sync(by_hand.list())}

    told.clear()
    shown = run_sync(by_hand.update(night.endpoint, first, {"env_vars": {"A": "1"}}))
    assert (shown["version"], shown["previous_version"]) == ("1", "2")
    assert [line for line in told if "of its settings only the image is kept" in line]
    back = RollbackModelOperator(task_id="back", endpoint=night.endpoint, reason="wrong predictions")
    assert back.execute(night.context)["version"] == "2"
    run_sync(by_hand.delete(night.endpoint))
    assert "nighttrain.serving" not in night.tags("2")
    assert night.rollout("2").execute(night.context)["previous_version"] is None  # type: ignore[index]
