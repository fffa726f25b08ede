"""The reaper's task while MLflow is away: what nobody waits for goes all the same, and the task says so."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.mlflow_server import free_port
from nighttrain.operators.maintenance import ReapWorkloadsOperator
from nighttrain.providers.attempts.lifecycle import submit
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import TrackingUnreachableError
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.local.cluster.store.resources import JOBS
from nighttrain.providers.tracking import config as tracking

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow]
SPEC = WorkloadSpec(
    image="py", cmds=["python", "-S", "-c", "import time; time.sleep(60)"], termination_grace_period=1
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedCluster]:
    defaults = tracking.TrackingConfig.__init__.__defaults__ or ()
    once = tuple(0.0 if value == tracking.RETRY_SECONDS else value for value in defaults)
    monkeypatch.setattr(tracking.TrackingConfig.__init__, "__defaults__", once)
    with EmbeddedCluster(images={"py": sys.executable}) as running:
        connect_kubernetes(monkeypatch, running)
        yield running


async def start(cluster: EmbeddedCluster) -> None:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as opened:
        identity = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id="r", task_id="train")
        await submit(opened, check_workload(SPEC), identity, namespace="default")


def test_the_workload_goes_and_the_task_fails_so_that_it_is_tried_again(
    cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    connect_mlflow(monkeypatch, address)
    run_sync(start(cluster))
    reaper = ReapWorkloadsOperator(task_id="reap", minimum_age_seconds=0, mlflow_conn_id="mlflow_default")
    context: Any = {"ti": SimpleNamespace(get_task_states=lambda **_: {"r": {"train": "failed"}})}
    with pytest.raises(TrackingUnreachableError, match=address):
        reaper.execute(context)
    assert cluster.call(lambda store: store.list(JOBS)[0]) == []
    assert "reaped" in capsys.readouterr().out
