"""A training that says by its exit code that there was nothing to do skips its task."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.dag_runs import dag_run
from helpers.mlflow_server import MLflowServer, unique
from nighttrain.operators.training import TrainingJobOperator
from nighttrain.providers.attempts.history import history_of
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.errors import ApplicationError
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient, ClusterConfig

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]
NOTHING_TO_DO = 99


@pytest.fixture
def context(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    connect_kubernetes(monkeypatch, cluster)
    connect_mlflow(monkeypatch, mlflow_server.uri)
    ti = SimpleNamespace(
        dag_id=unique("nightly"), run_id="r", task_id="train", map_index=-1, try_number=1, max_tries=0
    )
    ti.xcom_push = lambda key, value: json.dumps(value)
    return {"ti": ti, "dag_run": dag_run()}


def train(context: dict[str, Any], code: int, skip: Any) -> None:
    TrainingJobOperator(
        task_id="train",
        image="py",
        cmds=["python", "-S", "-c", f"raise SystemExit({code})"],
        skip_on_exit_code=skip,
        deferrable=False,
    ).execute(context)  # type: ignore[arg-type]


async def consumed(cluster: EmbeddedCluster, dag_id: str) -> list[str | None]:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        jobs = (await client.list(JOBS, "default"))["items"]
    ours = [job for job in jobs if dag_id in job["metadata"]["annotations"].values()]
    return [history_of(job).consumed for job in ours]


def test_the_exit_code_skips_the_task_and_the_attempt_is_over(
    cluster: EmbeddedCluster, context: dict[str, Any]
) -> None:
    with pytest.raises(AirflowSkipException, match="99"):
        train(context, NOTHING_TO_DO, skip=NOTHING_TO_DO)
    assert run_sync(consumed(cluster, context["ti"].dag_id)) == ["application_error"]


def test_any_other_exit_code_fails_it(context: dict[str, Any]) -> None:
    with pytest.raises(ApplicationError, match="exit code 99"):
        train(context, NOTHING_TO_DO, skip=range(3, 90))
