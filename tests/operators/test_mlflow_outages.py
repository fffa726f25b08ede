"""MLflow on the way of a training: a mistake ends the task before anything starts; what has ended waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from helpers.airflow_connections import connect_kubernetes
from helpers.certificates import Authority
from helpers.mlflow_server import MLflowServer, free_port
from helpers.polling import until_async
from helpers.server_proxy import ServerProxy
from helpers.training_task import Task
from nighttrain.providers.errors import ApplicationError, TrackingUnreachableError
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.tracking import config as tracking
from nighttrain.sensors.triggers import MLflowAnswersTrigger, mlflow_answers, settling

if TYPE_CHECKING:
    from helpers.scripted_http import Scripted
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

pytestmark = [pytest.mark.slow]
SUCCEEDS, FAILS = "print(1)", "print('no such column'); raise SystemExit(3)"


@pytest.fixture(autouse=True)
def quick(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_kubernetes(monkeypatch, cluster)
    # How long one call is tried again, and what a trigger waits beside: neither is what is looked at here.
    monkeypatch.setattr(tracking.TrackingConfig.__init__, "__defaults__", _asking_once())
    monkeypatch.setattr(settling, "REPORT_SECONDS", 0.0)
    monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "0")


def _asking_once() -> tuple[Any, ...]:
    defaults = tracking.TrackingConfig.__init__.__defaults__
    assert defaults is not None
    return tuple(0.0 if value == tracking.RETRY_SECONDS else value for value in defaults)


# Before anything starts


@pytest.mark.parametrize(
    ("status", "body"), [(401, ""), (403, "<html>"), (404, "<html>"), (200, "<html>"), (302, "")]
)
def test_what_is_no_mlflow_ends_the_task_before_anything_starts(
    cluster: EmbeddedCluster, scripted: Scripted, monkeypatch: pytest.MonkeyPatch, status: int, body: str
) -> None:
    scripted.says(status, body)
    task = Task(monkeypatch, SUCCEEDS)
    task.mlflow_is(scripted.uri)
    with pytest.raises(AirflowFailException, match=scripted.uri):
        task.execute()
    assert task.jobs(cluster) == []


@pytest.mark.parametrize("host", ["http://no-such-host.invalid:5000", "mlflow.invalid", "ftp://mlflow"])
def test_an_address_that_can_never_be_right_ends_the_task_before_anything_starts(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    task = Task(monkeypatch, SUCCEEDS)
    task.mlflow_is(host)
    with pytest.raises(AirflowFailException):
        task.execute()
    assert task.jobs(cluster) == []


async def test_an_untrusted_certificate_ends_the_task_before_anything_starts(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    async with ServerProxy(
        "http://127.0.0.1:1", "none", server=Authority("company").issue("mlflow")
    ) as proxy:
        task = Task(monkeypatch, SUCCEEDS)
        task.mlflow_is(proxy.url)
        with pytest.raises(AirflowFailException, match="ca_certificate"):
            await asyncio.to_thread(task.execute)
    assert task.jobs(cluster) == []


# After the end


def test_a_wrong_port_starts_untracked_and_gives_up_in_time(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task(monkeypatch, FAILS, deferrable=False, mlflow_outage_timeout_seconds=0.3)
    task.mlflow_is(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TrackingUnreachableError, match="mlflow_outage_timeout_seconds") as caught:
        task.execute()
    assert "exit code 3" in str(caught.value)
    told = capsys.readouterr().out
    assert told.count("starts without it") == 1
    assert told.index("starts without it") < told.index("exit code 3") < told.index("trying to write it down")
    assert len(task.jobs(cluster)) == 1


@pytest.mark.mlflow
@pytest.mark.parametrize(("code", "error"), [(SUCCEEDS, None), (FAILS, ApplicationError)])
async def test_a_mistake_made_while_it_runs_loses_nothing_and_is_noticed_when_mended(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    scripted: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    error: type[Exception] | None,
) -> None:
    import asyncio

    task = Task(monkeypatch, code)
    task.mlflow_is(mlflow_server.uri)
    with pytest.raises(TaskDeferred) as training:
        await asyncio.to_thread(task.execute)
    (event,) = [each.payload async for each in training.value.trigger.run()]
    scripted.says(401)
    task.mlflow_is(scripted.uri)
    with pytest.raises(TaskDeferred) as waiting:
        await asyncio.to_thread(task.operator.execute_complete, task.context, event)
    trigger = waiting.value.trigger
    assert isinstance(trigger, MLflowAnswersTrigger)
    monkeypatch.setattr(mlflow_answers, "REREAD_SECONDS", 0.05)
    trigger.poll_seconds = 0.02
    answered = asyncio.create_task(_first(trigger))
    await until_async(lambda: len(scripted.requests) >= 4)
    assert not answered.done()
    task.mlflow_is(mlflow_server.uri)
    event = await answered
    if error is None:
        result = await asyncio.to_thread(task.operator.execute_complete, task.context, event)
        assert result is not None
        assert result["attempt"] == 1
    else:
        with pytest.raises(error):
            await asyncio.to_thread(task.operator.execute_complete, task.context, event)
    assert len(task.jobs(cluster)) == 1
    status = "FINISHED" if error is None else "FAILED"
    assert _statuses(mlflow_server, task) == [status, status]


def _statuses(mlflow_server: MLflowServer, task: Task) -> list[str]:
    """How the task's run and its DAG run's stand."""
    found = mlflow_server.call("GET", "experiments/get-by-name", experiment_name=task.ti.dag_id)
    experiments = [found["experiment"]["experiment_id"]]
    runs = mlflow_server.call("POST", "runs/search", experiment_ids=experiments)["runs"]
    return [run["info"]["status"] for run in runs]


async def _first(trigger: MLflowAnswersTrigger) -> Any:
    (payload,) = [event.payload async for event in trigger.run()]
    return payload


@pytest.mark.mlflow
async def test_a_server_that_answers_looks_and_refuses_writes_is_not_waited_for_without_end(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    scripted: Scripted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import asyncio

    task = Task(monkeypatch, FAILS, mlflow_outage_timeout_seconds=3600)
    task.mlflow_is(mlflow_server.uri)
    with pytest.raises(TaskDeferred) as training:
        await asyncio.to_thread(task.execute)
    (event,) = [each.payload async for each in training.value.trigger.run()]
    scripted.says(503)
    task.mlflow_is(scripted.uri)
    with pytest.raises(TaskDeferred) as waiting:
        await asyncio.to_thread(task.operator.execute_complete, task.context, event)
    trigger = waiting.value.trigger
    assert isinstance(trigger, MLflowAnswersTrigger)
    began = trigger.event["mlflow_away_since"]
    with pytest.raises(TaskDeferred) as again:
        await asyncio.to_thread(task.operator.execute_complete, task.context, trigger.event)
    assert isinstance(again.value.trigger, MLflowAnswersTrigger)
    assert again.value.trigger.event["mlflow_away_since"] == began
    late = {**trigger.event, "mlflow_away_since": began - 3600}
    with pytest.raises(TrackingUnreachableError, match="exit code 3"):
        await asyncio.to_thread(task.operator.execute_complete, task.context, late)
    expired = MLflowAnswersTrigger(mlflow_conn_id="mlflow_default", event=late, timeout_seconds=3600)
    given_up = await _first(expired)
    with pytest.raises(TrackingUnreachableError, match="503") as caught:
        await asyncio.to_thread(task.operator.execute_complete, task.context, given_up)
    assert "exit code 3" in str(caught.value)
