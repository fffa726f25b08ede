"""A trigger whose task was marked removes its workload, however often Airflow cancels it meanwhile."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from helpers.airflow_connections import connect_kubernetes
from nighttrain.providers.attempts.lifecycle import submit, wait
from nighttrain.providers.errors import AirflowError, ClusterForbiddenError, ClusterUnreachableError
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.api.resources import DEPLOYMENTS
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.outcome.outcome import (
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.backends.kubernetes_deployment import KubernetesDeployments
from nighttrain.providers.serving.rollout import Rollout
from nighttrain.providers.serving.spec import ServingSpec
from nighttrain.sensors.triggers import EndpointTrigger, MLflowAnswersTrigger, WorkloadTrigger, removal
from nighttrain.sensors.triggers.removal import until_removed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nighttrain.providers.kubernetes.values.submitted_workload import Workload

REGION = "019b0f5e-0a84-7c6c-a3a5-3a6b30d5a1d0"
GOES_ON = WorkloadSpec(
    image="py", cmds=["python", "-S", "-c", "import time; time.sleep(60)"], termination_grace_period=1
)
IDENTITY = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id="r", task_id="train")
SUPERVISOR = "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}, forbidden_namespaces=["forbidden"]) as running:
        connect_kubernetes(monkeypatch, running)
        yield running


async def test_a_workload_goes_although_its_trigger_is_cancelled_while_it_removes_it(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a busy triggerer does: its supervisor takes a minute to say what became of the task."""
    asked, answer = threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    clock = loop.time

    def slow_supervisor(**_: Any) -> dict[str, Any]:
        asked.set()
        answer.wait(60)
        return {"r": {"train": "failed"}}

    monkeypatch.setattr(SUPERVISOR, staticmethod(slow_supervisor))
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        job = await submit(client, check_workload(GOES_ON), IDENTITY, namespace="default")
        trigger = _trigger(job)
        killing = asyncio.create_task(trigger.on_kill())
        try:
            assert await asyncio.to_thread(asked.wait, 30)
            monkeypatch.setattr(loop, "time", lambda: clock() + 60)
            for _ in range(20):  # whoever waits for less than a minute gives up now
                await asyncio.sleep(0)
            killing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await killing
        finally:
            answer.set()
        async with asyncio.timeout(20):
            outcome = await wait(client, job, timeouts=Timeouts(60))
        assert outcome.kind is OutcomeKind.CANCELLED
        assert await _jobs(client) == set()


async def test_a_workload_goes_once_airflow_answers_again(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its database was locked, or it was upgraded, when a person marked the task."""
    answers = iter([ConnectionError("the API server is away")] * 2)

    def away_at_first(**_: Any) -> dict[str, Any]:
        if (error := next(answers, None)) is not None:
            raise error
        return {"r": {"train": "failed"}}

    monkeypatch.setattr(SUPERVISOR, staticmethod(away_at_first))
    monkeypatch.setattr(removal, "FIRST_PAUSE_SECONDS", 0.0)
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        job = await submit(client, check_workload(GOES_ON), IDENTITY, namespace="default")
        await _trigger(job).on_kill()
        assert await _jobs(client) == set()
    assert capsys.readouterr().out.count(f"Job {job.name} is not removed yet, will try again") == 1


async def test_a_workload_goes_once_the_cluster_answers_again() -> None:
    paused: list[float] = []
    outages = iter([ClusterUnreachableError("no answer")] * 7)

    async def remove() -> None:
        if (error := next(outages, None)) is not None:
            raise error
        removed.append(True)

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    removed: list[bool] = []
    trigger = MLflowAnswersTrigger(mlflow_conn_id="mlflow_default", event={})  # any one, of no task
    await until_removed(trigger, remove, "Job j", "kubectl", sleep=sleep)
    assert removed == [True]
    assert paused == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("answers_first", [True, False])
async def test_a_triggerer_that_ends_while_it_asks_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch, answers_first: bool
) -> None:
    """Its end, and that of the supervisor whom it asks, may come in either order."""
    asked, answer, answered = threading.Event(), threading.Event(), threading.Event()

    def supervisor_goes(**_: Any) -> dict[str, Any]:
        asked.set()
        answer.wait(30)
        threading.Timer(0.05, answered.set).start()
        raise ConnectionError("the supervisor is gone")

    monkeypatch.setattr(SUPERVISOR, staticmethod(supervisor_goes))
    monkeypatch.setattr(removal, "FIRST_PAUSE_SECONDS", 0.0)
    trigger = MLflowAnswersTrigger(mlflow_conn_id="mlflow_default", event={})
    trigger.task_instance = SimpleNamespace(dag_id="nightly", run_id="r", task_id="train", map_index=-1)

    async def remove() -> None:
        raise AssertionError("nobody said that the task is over")

    removing = asyncio.create_task(until_removed(trigger, remove, "Job j", "kubectl"))
    assert await asyncio.to_thread(asked.wait, 30)
    for step in (answer.set, removing.cancel) if answers_first else (removing.cancel, answer.set):
        step()
        if step == answer.set:
            answered.wait(30)  # in the event loop's thread: it hears of both at once
    _, unended = await asyncio.wait({removing}, timeout=5)
    assert not unended
    assert removing.cancelled()


async def test_an_hour_without_an_answer_is_told_with_what_removes_the_workload(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Job is left alone: nobody can tell whether a task waits for it."""

    def no_answer(**_: Any) -> dict[str, Any]:
        raise ConnectionError("the API server is away")

    monkeypatch.setattr(SUPERVISOR, staticmethod(no_answer))
    monkeypatch.setattr(removal, "REMOVING_SECONDS", 0.0)
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        job = await submit(client, check_workload(GOES_ON), IDENTITY, namespace="default")
        with pytest.raises(AirflowError, match="the API server is away"):
            await _trigger(job).on_kill()
        assert await _jobs(client) == {job.name}
    told = capsys.readouterr().out
    assert "Airflow did not say whether the task still waits" in told
    assert f"kubectl delete job -n default {job.name}" in told


async def test_a_refusal_is_told_at_once(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No waiting mends it; a trigger that Airflow has cut off meanwhile has no other place to say so."""
    monkeypatch.setattr(SUPERVISOR, staticmethod(lambda **_: {"r": {"train": "failed"}}))
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        job = await submit(client, check_workload(GOES_ON), IDENTITY, namespace="default")
    with pytest.raises(ClusterForbiddenError):
        await _trigger(replace(job, namespace="forbidden")).on_kill()
    assert f"Job {job.name} was not removed: " in capsys.readouterr().out


def _trigger(job: Workload) -> WorkloadTrigger:
    trigger = WorkloadTrigger(
        kubernetes_conn_id="kubernetes_default", workload=job.to_dict(), startup_timeout_seconds=60
    )
    trigger.task_instance = SimpleNamespace(dag_id="nightly", run_id="r", task_id="train", map_index=-1)
    return trigger


def _not_asked(**_: Any) -> dict[str, Any]:
    raise AssertionError("Airflow answers with the state of the loop's latest iteration")


async def test_in_a_loop_the_workload_of_the_triggers_own_iteration_goes(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one runs already: Airflow's state of the task would be that one's."""
    monkeypatch.setattr(SUPERVISOR, staticmethod(_not_asked))
    code = ["python", "-S", "-c", "import time; time.sleep(60)"]
    spec = WorkloadSpec(image="py", cmds=code, termination_grace_period=1)
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        marked, lives = [
            await submit(client, check_workload(spec), _iteration(index), epoch="1", namespace="default")
            for index in (1, 2)
        ]
        await _killed(marked, index=1)
        assert await _jobs(client) == {lives.name}


async def test_in_a_loop_a_workload_that_has_ended_is_left_to_the_resumed_task(
    cluster: EmbeddedCluster,
) -> None:
    """A triggerer that was stalled learns only that its task waits no more: it may have got its result."""
    spec = WorkloadSpec(image="py", cmds=["python", "-S", "-c", "pass"])
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        job = await submit(client, check_workload(spec), _iteration(1), epoch="1", namespace="default")
        async with asyncio.timeout(60):
            await wait(client, job, timeouts=Timeouts(60))
        await _killed(job, index=1)
        assert await _jobs(client) == {job.name}


def _iteration(index: int) -> WorkloadIdentity:
    return WorkloadIdentity(
        orchestrator="airflow", dag_id="nightly", run_id="r", task_id="train", region=f"{REGION}:{index}"
    )


async def _killed(job: Workload, *, index: int) -> None:
    trigger = WorkloadTrigger(
        kubernetes_conn_id="kubernetes_default", workload=job.to_dict(), startup_timeout_seconds=60
    )
    trigger.task_instance = SimpleNamespace(
        dag_id="nightly", run_id="r", task_id="train", map_index=-1, region_id=REGION, region_index=index
    )
    await trigger.on_kill()


async def _jobs(client: ClusterClient) -> set[str]:
    return {job["metadata"]["name"] for job in (await client.list(JOBS, "default"))["items"]}


@pytest.mark.parametrize(
    ("state", "left"), [("failed", set()), ("success", set()), (None, set()), ("deferred", {"delay-v1"})]
)
async def test_a_candidate_goes_with_its_task_and_stays_while_the_task_waits(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, state: str | None, left: set[str]
) -> None:
    """The task was marked or cleared; or another triggerer took the trigger over, and this one is told."""
    monkeypatch.setattr(SUPERVISOR, staticmethod(lambda **_: {"r": {"rollout": state}}))
    spec = ServingSpec(
        endpoint="delay",
        namespace="default",
        image="no-such-image",
        model_name="airline-delay",
        version="1",
        artifact_digest="0" * 64,
        tracking_uri="http://mlflow:5000",
    )
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        await Rollout(KubernetesDeployments(client)).start(spec)
        trigger = EndpointTrigger(
            kubernetes_conn_id="kubernetes_default",
            namespace=None,
            endpoint="delay",
            version="1",
            timeout_seconds=60,
        )
        trigger.task_instance = SimpleNamespace(dag_id="deploy", run_id="r", task_id="rollout", map_index=-1)
        await trigger.on_kill()
        found = (await client.list(DEPLOYMENTS, "default"))["items"]
        assert {item["metadata"]["name"] for item in found} == left
