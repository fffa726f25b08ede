"""MLflow as platforms run it: workspaces, and a proxy that lets service accounts in."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from helpers.mlflow_proxy import Answer, Asked, Proxy, proxy, refused
from helpers.mlflow_server import MLflowServer, running_mlflow, unique
from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingMisconfiguredError,
    TrackingUnauthorizedError,
)
from nighttrain.providers.pod_access import pod_access
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.config import AUTH_MODES
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import RunKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = RunKey(orchestrator="airflow", dag_id="nightly", run_id="r", task_id="train")
TEAM = "team-a"


@pytest.mark.parametrize("workspace", ["", "Team", "a", "a" * 64, "team a", "team\n", "-team"])
def test_names_that_no_workspace_has(workspace: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^workspace"):
        TrackingConfig("http://mlflow", workspace=workspace)


def test_an_auth_that_mlflow_does_not_know() -> None:
    with pytest.raises(ConfigurationError, match=r"^auth = 'basic'.*'kubernetes-namespaced'"):
        TrackingConfig("http://mlflow", auth="basic")


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with running_mlflow(tmp_path_factory.mktemp("workspaces"), "--enable-workspaces") as server:
        found = server.http.get("/api/3.0/mlflow/workspaces").json()["workspaces"]
        if TEAM not in [each["name"] for each in found]:
            assert server.http.post("/api/3.0/mlflow/workspaces", json={"name": TEAM}).is_success
        yield server


class Account:
    """A service account as the kubelet mounts it, and a proxy that knows its token of the moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "namespace").write_text(TEAM)
        self.rotate("token-1")

    def rotate(self, token: str) -> None:
        self.token = token
        (self.folder / "token").write_text(f"{token}\n")

    @contextmanager
    def before(self, server: MLflowServer) -> Iterator[Proxy]:
        def judge(asked: Asked) -> Answer | None:
            known = asked.headers.get("authorization") == f"Bearer {self.token}"
            return None if known else refused(401, "UNAUTHENTICATED")

        with proxy(server.uri, judge) as made:
            yield made

    def config(self, uri: str, **options: Any) -> TrackingConfig:
        return TrackingConfig(uri, service_account_folder=str(self.folder), retry_seconds=0, **options)


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)


@pytest.mark.slow
@pytest.mark.mlflow
async def test_everything_happens_in_the_workspace(workspaces: MLflowServer) -> None:
    name, model = unique("experiment"), unique("model")
    config = TrackingConfig(workspaces.uri, workspace=TEAM)
    workspaces.http.headers["X-MLFLOW-WORKSPACE"] = TEAM
    async with MLflowClient(config) as client, MLflowClient(TrackingConfig(workspaces.uri)) as outside:
        tree = RunTree(client)
        experiment = await tree.ensure_experiment(name)
        parent = await tree.open_parent(experiment, KEY, name="night")
        run = await tree.open_attempt(experiment, KEY, name="train", parent_run_id=parent.run_id)
        workspaces.logged_model(experiment, run.run_id)
        version = await ModelRegistry(client).register(model, run_id=run.run_id)
        # Downloads too: the digest was computed from them.
        assert version.digest
        assert await ModelRegistry(outside).versions(model) == []
        assert await RunTree(outside).ensure_experiment(name) != experiment


@pytest.mark.slow
@pytest.mark.mlflow
async def test_a_workspace_that_does_not_exist_is_a_mistake(
    workspaces: MLflowServer, mlflow_server: MLflowServer
) -> None:
    async with MLflowClient(TrackingConfig(workspaces.uri, workspace="nobodys")) as client:
        with pytest.raises(TrackingMisconfiguredError, match="make the workspace"):
            await RunTree(client).ensure_experiment("a")
    async with MLflowClient(TrackingConfig(mlflow_server.uri, workspace=TEAM)) as client:
        with pytest.raises(TrackingMisconfiguredError, match="this server has no workspaces"):
            await RunTree(client).ensure_experiment("a")


@pytest.mark.slow
@pytest.mark.mlflow
@pytest.mark.parametrize("auth", AUTH_MODES)
async def test_a_service_accounts_token_is_read_for_every_call(
    workspaces: MLflowServer, account: Account, auth: str
) -> None:
    with account.before(workspaces) as server:
        async with MLflowClient(account.config(server.uri, auth=auth)) as client:
            await client.ping()
            account.rotate("token-2")
            await client.ping()
            server.judge, judge = (lambda _: refused(401, "UNAUTHENTICATED")), server.judge
            with pytest.raises(TrackingUnauthorizedError, match="service account's token"):
                await client.ping()
            server.judge = judge
    workspace = {asked.headers.get("x-mlflow-workspace") for asked in server.asked}
    assert workspace == ({TEAM} if auth == "kubernetes-namespaced" else {None})


async def test_credentials_and_a_workspace_that_are_given_win(
    workspaces: MLflowServer, account: Account
) -> None:
    with proxy(workspaces.uri, lambda _: (200, {}, b"{}")) as server:
        options = {"auth": "kubernetes-namespaced", "token": "mine", "workspace": "other"}
        async with MLflowClient(account.config(server.uri, **options)) as client:
            await client.ping()
    (asked,) = server.asked
    assert asked.headers["authorization"] == "Bearer mine"
    assert asked.headers["x-mlflow-workspace"] == "other"


@pytest.mark.parametrize("auth", AUTH_MODES)
async def test_without_a_service_account_it_is_told_what_to_give(tmp_path: Path, auth: str) -> None:
    config = TrackingConfig("http://127.0.0.1:1", auth=auth, service_account_folder=str(tmp_path))
    async with MLflowClient(config) as client:
        with pytest.raises(TrackingMisconfiguredError, match="Give it a token"):
            await client.ping()


@pytest.mark.slow
@pytest.mark.mlflow
async def test_mlflows_own_client_in_a_pod_writes_to_the_same_run(
    workspaces: MLflowServer, account: Account, tmp_path: Path
) -> None:
    """The pod's account is in another namespace than the worker's; its kubeconfig stands for the mount."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        f"""
        {{"apiVersion": "v1", "kind": "Config", "current-context": "c",
          "contexts": [{{"name": "c", "context": {{"cluster": "k", "user": "u", "namespace": "elsewhere"}}}}],
          "clusters": [{{"name": "k", "cluster": {{"server": "http://127.0.0.1:1"}}}}],
          "users": [{{"name": "u", "user": {{"token": "{account.token}"}}}}]}}
        """
    )
    with account.before(workspaces) as server:
        config = account.config(server.uri, auth="kubernetes-namespaced")
        async with MLflowClient(config) as client:
            tree = RunTree(client)
            experiment = await tree.ensure_experiment(unique("experiment"))
            run = await tree.open_attempt(experiment, KEY, name="train")
            environment = pod_access(config, uri=server.uri).environment()
            assert environment == {
                "MLFLOW_TRACKING_AUTH": "kubernetes-namespaced",
                "MLFLOW_WORKSPACE": TEAM,
            }
            environment |= {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_RUN_ID": run.run_id}
            code = "import mlflow; mlflow.log_metric('rmse', 1.5)"
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", code],
                env={**os.environ, **environment, "KUBECONFIG": str(kubeconfig)},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            assert (await tree.get(run.run_id)).metrics == {"rmse": 1.5}
