"""A whole stack for the session: embedded cluster, MLflow server, Airflow with scheduler and triggerer."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from helpers.http_server import QuietHandler, serving
from helpers.kubeconfigs import kubeconfig
from helpers.pipeline import NamedUsers, Pipeline, named_users
from nighttrain.providers.local.stack import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DAG_IDS = (
    "asking",
    "asking_briefly",
    "backfilled",
    "bad_input",
    "cancelled",
    "cannot_start",
    "cleared",
    "deploy_on_stage_transition",
    "evicted",
    "exit_3",
    "mlflow_away",
    "nightly_retraining",
    "reaping",
    "rolling_back",
    "sensing",
    "stock_operators",
    "timed_out",
    "told_apart",
    "train_function",
    "worker_killed",
    "worker_told_to_end",
)


RUNNING = ExitStack()


class _Unauthorised(QuietHandler):
    """A server that accepts nobody."""

    def _refuse(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = _refuse  # noqa: N815


@pytest.fixture(scope="session")
def unauthorised() -> Iterator[str]:
    """The address of a server that answers 401 to everything."""
    with serving(_Unauthorised) as address:
        yield address


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, unauthorised: str) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("stack")
    dead = free_port()
    (directory / "dead-kubeconfig").write_text(
        yaml.safe_dump(kubeconfig(f"http://127.0.0.1:{dead}", token="very-secret-token"))
    )
    stack = NamedUsers(
        directory,
        [ROOT / "dags", Path(__file__).parent / "dags"],
        [ROOT / "dags"],
        airflow_settings={
            **named_users(directory),
            "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "2",
            "AIRFLOW_CONN_MLFLOW_DOWN": json.dumps(
                {"conn_type": "mlflow", "host": f"http://127.0.0.1:{dead}"}
            ),
            "AIRFLOW_CONN_MLFLOW_401": json.dumps({"conn_type": "mlflow", "host": unauthorised}),
            "AIRFLOW_CONN_CLUSTER_DOWN": json.dumps(
                {
                    "conn_type": "kubernetes",
                    "extra": {"kube_config_path": str(directory / "dead-kubeconfig")},
                }
            ),
        },
    )
    RUNNING.callback(stack.stop)
    try:
        stack.start_mlflow()
        stack.start_airflow()
        stack.start_cluster(forbidden_namespace="forbidden")
        stack.wait_mlflow()
        stack.wait_airflow(DAG_IDS)
        yield Pipeline(stack)
    finally:
        RUNNING.close()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """The stack ends with the last test of this folder: an idle Airflow would keep a fifth of a core busy."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        RUNNING.close()
