"""``nighttrain reap`` as a person or cron runs it, against a cluster and an Airflow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from helpers.certificates import Authority
from helpers.http_server import QuietHandler, serving
from helpers.mlflow_proxy import proxy
from helpers.mlflow_server import free_port
from helpers.server_proxy import ServerProxy
from nighttrain.providers.attempts.lifecycle import submit
from nighttrain.providers.bridge import run_sync
from nighttrain.providers.commands import main
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.local.cluster.store.resources import JOBS as JOBS_OF_THE_STORE
from nighttrain.providers.tracking import config as tracking

if TYPE_CHECKING:
    from pathlib import Path

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

SPEC = WorkloadSpec(
    image="py", cmds=["python", "-S", "-c", "import time; time.sleep(60)"], termination_grace_period=1
)


class Airflow:
    """Airflow's API as version 3.3 writes it: the states of tasks, for whoever has the token."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        airflow = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802
                if self.path == "/api/v2/version":
                    return self.answer(200, {"version": "3.3.2", "git_version": None})
                if self.headers.get("Authorization") != "Bearer right":
                    return self.answer(401, {"detail": "Not authenticated"})
                run = self.path.split("/dagRuns/")[1].split("/")[0]
                if run in airflow.states:
                    return self.answer(200, {"state": airflow.states[run]})
                return self.answer(404, {"detail": f"The Task Instance of `{run}` was not found"})

            def answer(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.handler, self.url = Handler, ""


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    running = Airflow()
    monkeypatch.setenv("NIGHTTRAIN_AIRFLOW_TOKEN", "right")
    with serving(running.handler) as running.url:
        yield running


async def start(cluster: EmbeddedCluster, *runs: str) -> None:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
        for run in runs:
            identity = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")
            await submit(client, check_workload(SPEC), identity, namespace="default")


def jobs(cluster: EmbeddedCluster) -> set[str]:
    """The DAG runs whose Jobs are there."""
    found = cluster.call(lambda store: store.list(JOBS_OF_THE_STORE)[0])
    return {job["metadata"]["annotations"]["nighttrain.dev/run-id"] for job in found}


Reap = Callable[..., int]


@pytest.fixture
def reap(cluster: EmbeddedCluster, airflow: Airflow) -> Iterator[Reap]:
    """Three Jobs: their tasks run, are over, and are gone. Runs the command with more arguments."""
    airflow.states.update(runs="running", over="failed")
    run_sync(start(cluster, "runs", "over", "gone"))
    yield lambda *more: main(
        [
            "reap",
            "--airflow-url",
            airflow.url,
            "--kubeconfig",
            str(cluster.kubeconfig),
            "--minimum-age",
            "0",
            *more,
        ]
    )

    async def clean() -> None:
        async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as client:
            for job in (await client.list(JOBS, "default"))["items"]:
                await client.delete(JOBS, "default", job["metadata"]["name"], propagation="Background")

    run_sync(clean())


def test_a_dry_run_shows_what_would_go_and_deletes_nothing(
    reap: Reap, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reap() == 0
    said = capsys.readouterr()
    rows = {line.split()[4]: line.split()[:2] for line in said.out.splitlines() if "nightly" in line}
    assert rows == {"runs": ["keep", "alive"], "over": ["reap", "over"], "gone": ["reap", "gone"]}
    assert "Dry run: nothing was deleted. 2 to reap: run it again with --yes." in said.out
    assert said.err == ""
    assert jobs(cluster) == {"runs", "over", "gone"}


def test_with_yes_what_nobody_waits_for_goes(
    reap: Reap, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reap("--yes", "--output", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["run_id"]: each["verdict"] for each in found} == {
        "runs": "keep",
        "over": "reaped",
        "gone": "reaped",
    }
    assert all(each["dag_id"] == "nightly" and each["job"].startswith("default/") for each in found)
    assert jobs(cluster) == {"runs"}


def test_young_ones_are_kept(
    reap: Reap, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reap("--yes", "--minimum-age", "3600") == 0
    assert jobs(cluster) == {"runs", "over", "gone"}
    assert "reaped" not in capsys.readouterr().out


def test_where_nothing_runs_it_says_so_and_json_is_an_empty_list(
    airflow: Airflow, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reap", "--airflow-url", airflow.url, "--kubeconfig", str(cluster.kubeconfig), "-n", "default"]
    assert main(command) == 0
    assert capsys.readouterr().out == "No workload is running.\n"
    assert main([*command, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_airflow_that_cannot_be_reached_is_a_failure_in_one_line(
    reap: Reap, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    assert reap("--yes", "--airflow-url", address) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"nighttrain: no answer from {address}")
    assert said.err.count("\n") == 1
    assert jobs(cluster) == {"runs", "over", "gone"}


def test_a_cluster_that_cannot_be_reached_is_one_too(
    reap: Reap, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    address = f"127.0.0.1:{free_port()}"
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig.read_text().replace(f"127.0.0.1:{cluster.port}", address))
    assert reap("--yes", "--kubeconfig", str(kubeconfig)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("nighttrain: ")
    assert address in said.err
    assert "Traceback" not in said.err
    assert jobs(cluster) == {"runs", "over", "gone"}


def test_credentials_that_are_refused_delete_nothing(
    reap: Reap, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTTRAIN_AIRFLOW_TOKEN", "wrong")
    assert reap("--yes") == 1
    said = capsys.readouterr().err
    assert "refuses the credentials (401)" in said
    assert "wrong" not in said
    assert jobs(cluster) == {"runs", "over", "gone"}


def test_an_mlflow_that_is_away_keeps_no_workload_and_is_told_by_the_exit_code(
    reap: Reap, cluster: EmbeddedCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = tracking.TrackingConfig.__init__.__defaults__ or ()
    once = tuple(0.0 if value == tracking.RETRY_SECONDS else value for value in defaults)
    monkeypatch.setattr(tracking.TrackingConfig.__init__, "__defaults__", once)
    address = f"http://127.0.0.1:{free_port()}"
    assert reap("--yes", "--mlflow-uri", address) == 1
    said = capsys.readouterr()
    assert [line.split()[4] for line in said.out.splitlines() if line.startswith("reaped")] == [
        "over",
        "gone",
    ]
    assert address in said.err
    assert jobs(cluster) == {"runs"}


def test_mlflow_is_reached_with_the_variables_of_its_own_client(
    reap: Reap, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "cron")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-password")
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    with proxy("http://127.0.0.1:1", lambda _: (200, {"content-type": "application/json"}, b"{}")) as mlflow:
        assert reap("--mlflow-uri", mlflow.uri) == 0
    basic = "Basic Y3JvbjphLXBhc3N3b3Jk"
    assert mlflow.asked
    assert {asked.headers.get("authorization") for asked in mlflow.asked} == {basic}
    assert {asked.headers.get("x-mlflow-workspace") for asked in mlflow.asked} == {"team-a"}
    assert "a-password" not in "".join(capsys.readouterr())


async def test_a_token_and_a_certificate_come_from_there_too(
    reap: Reap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    company, trusted = Authority("company"), tmp_path / "ca.pem"
    trusted.write_bytes(company.pem)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    issued = company.issue("mlflow")
    async with ServerProxy(
        "http://127.0.0.1:1", "", server=issued, judge=lambda _: web.json_response({})
    ) as mlflow:
        assert await asyncio.to_thread(reap, "--mlflow-uri", mlflow.url) == 1  # signed by nobody it knows
        assert not mlflow.seen
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(trusted))
        assert await asyncio.to_thread(reap, "--mlflow-uri", mlflow.url) == 0
        assert {seen.token for seen in mlflow.seen} == {"a-token"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", "/no/such/file"),
        ("MLFLOW_WORKSPACE", "Team A"),
        ("MLFLOW_TRACKING_AUTH", "magic"),
        ("MLFLOW_TRACKING_TOKEN", "a-secret\n"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    reap: Reap,
    cluster: EmbeddedCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    assert reap("--yes", "--mlflow-uri", "http://mlflow") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"nighttrain: {name}")
    assert "a-secret" not in said
    assert jobs(cluster) == {"runs", "over", "gone"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "COMMAND"),
        (["reap"], "--airflow-url"),
        (["reap", "--airflow-url", "http://a", "--minimum-age", "soon"], "--minimum-age"),
        (["reap", "--airflow-url", "http://a", "-o", "yaml"], "--output"),
    ],
)
def test_misuse_ends_with_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("url", ["airflow.example.com", "ftp://airflow", "http://"])
def test_an_address_that_is_none_says_how_to_write_it(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reap", "--airflow-url", url]) == 1
    assert "write it as https://airflow.example.com" in capsys.readouterr().err
