"""The servers of a whole pipeline on one machine: embedded cluster, MLflow, Airflow.

Each is the real thing, started as a person would start it, as a process group of its own that listens on
loopback only. They end together: when the stack stops, and also when the process that started it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from nighttrain.providers.local.cluster.machine.janitor import Janitor, kill_marked

MARKER = "NIGHTTRAIN_CLUSTER"
# Where a stack that was left running notes how to reach and end it.
RUNNING = "running.json"
TRAINING_IMAGE = "localhost/airline-delay"
PYTHON_IMAGE = "localhost/python"
# Airflow needs 30 to 45 s on two idle cores; three times that is a broken start, not a slow one.
START_SECONDS = 150.0
# A server that has not ended by then is killed; Airflow's own children take about 5 s.
STOP_SECONDS = 20.0

Say = Callable[[str], None]


class StackError(Exception):
    """A server of the stack did not start, or ended by itself."""


@dataclass
class Server:
    """One server process and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check_alive(self) -> None:
        """Raise where the process has ended by itself."""
        code = self.process.poll()
        if code is not None:
            raise StackError(f"{self.name} ended with {code}; its last lines:\n{tail(self.log)}")

    def stop(self) -> None:
        """SIGTERM to the group, SIGKILL to what remains of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Stack:
    """Embedded cluster, MLflow and Airflow in one directory.

    :param directory: where databases, artifacts, logs and the kubeconfig go
    :param dags: folders of DAG files, each a bundle of its own
    :param pythonpath: folders that the training image's Python finds beside its packages
    :param airflow_settings: further ``AIRFLOW__SECTION__KEY`` variables
    """

    directory: Path
    dags: Sequence[Path]
    pythonpath: Sequence[Path] = ()
    airflow_settings: Mapping[str, str] = field(default_factory=dict)
    identifier: str = field(default_factory=lambda: f"stack-{secrets.token_hex(6)}")

    def __post_init__(self) -> None:
        self.directory = self.directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.servers: list[Server] = []
        self.mlflow_uri = f"http://127.0.0.1:{free_port()}"
        self.airflow_uri = f"http://127.0.0.1:{free_port()}"
        self.kubeconfig = self.directory / "kubeconfig"
        self._janitor = Janitor(self.identifier, None)
        self._token: str | None = None

    # Starting and stopping.

    def start_cluster(self, **options: Any) -> None:
        """The embedded cluster; ready when its kubeconfig is there. ``options`` are those of its command."""
        training = ":".join([sys.executable, *map(str, self.pythonpath)])
        server = self._start(
            "cluster",
            [sys.executable, "-m", "nighttrain.providers.local", "cluster"],
            directory=self.directory / "cluster",
            kubeconfig=self.kubeconfig,
            image=[f"{TRAINING_IMAGE}={training}", f"{PYTHON_IMAGE}={sys.executable}"],
            gateway_port=8080,
            **options,
        )
        wait_until(self.kubeconfig.exists, server, START_SECONDS)

    def start_mlflow(self) -> None:
        """MLflow on SQLite; returns at once, see :meth:`wait_mlflow`."""
        port = self.mlflow_uri.rsplit(":", 1)[1]
        database = self.directory / "mlflow.db"
        self._start(
            "mlflow",
            [bin_path("mlflow"), "server"],
            {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            host="127.0.0.1",
            port=port,
            workers=1,
            backend_store_uri=f"sqlite:///{database}",
            artifacts_destination=self.directory / "artifacts",
        )

    def start_airflow(self) -> None:
        """Airflow's own ``standalone``: scheduler, dag-processor, triggerer, api-server, on SQLite."""
        self._start("airflow", [bin_path("airflow"), "standalone"], self.airflow_environment())

    def wait_mlflow(self) -> None:
        """Until MLflow answers."""
        wait_until(lambda: answers(f"{self.mlflow_uri}/health"), self._server("mlflow"), START_SECONDS)

    def wait_airflow(self, dag_ids: Sequence[str]) -> None:
        """Until Airflow's API answers, its scheduler and triggerer are healthy, and the DAGs are known."""
        server = self._server("airflow")
        wait_until(self._airflow_healthy, server, START_SECONDS)
        for dag_id in dag_ids:
            wait_until(lambda: self.api("GET", f"/dags/{dag_id}").status_code == 200, server, START_SECONDS)  # noqa: B023

    def check_alive(self) -> None:
        """Raise where a server has ended by itself."""
        for server in self.servers:
            server.check_alive()

    def stop_server(self, name: str) -> None:
        """End one of the servers, as an outage would; it can be started again."""
        server = self._server(name)
        self.servers.remove(server)
        server.stop()

    def stop(self) -> None:
        """End every server, the last started first, and whatever of them remains."""
        for server in reversed(self.servers):
            server.stop()
        self.servers.clear()
        kill_marked(self.identifier)
        self._janitor.dismiss()

    def leave_running(self) -> None:
        """The servers live on after this process; :func:`stop_left_running` ends them."""
        state = {
            "identifier": self.identifier,
            "groups": [server.process.pid for server in self.servers],
            "airflow_uri": self.airflow_uri,
            "mlflow_uri": self.mlflow_uri,
        }
        (self.directory / RUNNING).write_text(json.dumps(state))
        self._janitor.dismiss()

    # Airflow.

    def airflow_environment(self) -> dict[str, str]:
        """The environment that makes an ``airflow`` command belong to this stack."""
        port = self.airflow_uri.rsplit(":", 1)[1]
        bundles = [
            {
                "name": f"{folder.name}-{number}",
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(folder), "refresh_interval": 5},
            }
            for number, folder in enumerate(self.dags)
        ]
        return {
            "AIRFLOW_HOME": str(self.directory / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.airflow_uri}/execution/",
            # Two cores: more tasks at once only make each other slower.
            "AIRFLOW__CORE__PARALLELISM": "4",
            # So late a supervisor may notice the end of a task's process; the default is 5 s.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": port,
            "AIRFLOW__API__BASE_URL": self.airflow_uri,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            # Changed files are read at once all the same; reading the others anew takes half a core.
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
            "AIRFLOW__SCHEDULER__CATCHUP_BY_DEFAULT": "False",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(
                {"conn_type": "kubernetes", "extra": {"kube_config_path": str(self.kubeconfig)}}
            ),
            "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps({"conn_type": "mlflow", "host": self.mlflow_uri}),
            **self.airflow_settings,
        }

    def api(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """A call of Airflow's REST API, ``path`` below ``/api/v2``."""
        if self._token is None:
            self._token = httpx.get(f"{self.airflow_uri}/auth/token", timeout=30).json()["access_token"]
        headers = {"Authorization": f"Bearer {self._token}"}
        return httpx.request(
            method, f"{self.airflow_uri}/api/v2{path}", headers=headers, timeout=60, **kwargs
        )

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run, and have its assets watched at once.

        Airflow looks for what is to be watched when it reads a DAG's file, and not when the DAG is unpaused.

        :raises StackError: Airflow refuses
        """
        dag = self._asked("GET", f"/dags/{dag_id}").json()
        if dag["is_paused"]:
            self._asked("PATCH", f"/dags/{dag_id}", json={"is_paused": False})
            self._asked("PUT", f"/parseDagFile/{dag['file_token']}")

    def _asked(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        answer = self.api(method, path, **kwargs)
        if not answer.is_success:
            raise StackError(f"Airflow answers {answer.status_code} to {method} {path}: {answer.text}")
        return answer

    def _airflow_healthy(self) -> bool:
        if not answers(f"{self.airflow_uri}/api/v2/monitor/health"):
            return False
        health = httpx.get(f"{self.airflow_uri}/api/v2/monitor/health", timeout=30).json()
        parts = ("scheduler", "triggerer", "dag_processor")
        return all((health.get(part) or {}).get("status") == "healthy" for part in parts)

    # Processes.

    def _server(self, name: str) -> Server:
        return next(server for server in self.servers if server.name == name)

    def _start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        **options: object,
    ) -> Server:
        """Start ``command --option value ...`` with its output in a log."""
        logs = self.directory / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, *_flags(options)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**base_environment(), MARKER: self.identifier, **(environment or {})},
                cwd=self.directory,
                start_new_session=True,
            )
        server = Server(name, process, log)
        self.servers.append(server)
        return server


def _flags(options: Mapping[str, object]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            flags += [f"--{name.replace('_', '-')}", str(item)]
    return flags


def stop_left_running(directory: Path) -> bool:
    """End what :meth:`Stack.leave_running` left; False where nothing was."""
    record = directory / RUNNING
    if not record.exists():
        return False
    state = json.loads(record.read_text())
    for group in reversed(state["groups"]):
        _end_group(group, state["identifier"])
    kill_marked(state["identifier"])
    record.unlink()
    return True


def _end_group(group: int, identifier: str) -> None:
    """SIGTERM, then SIGKILL, to a group; never to another one that got the same number since."""
    try:
        environment = Path(f"/proc/{group}/environ").read_bytes().split(b"\0")
    except OSError:
        return
    if f"{MARKER}={identifier}".encode() not in environment:
        return
    os.killpg(group, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and Path(f"/proc/{group}/cmdline").exists():
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def base_environment() -> dict[str, str]:
    """This process's environment without settings that would make the servers another project's."""
    dropped = ("AIRFLOW_", "AIRFLOW__", "MLFLOW_", "KUBECONFIG", "KUBERNETES_", "PYTHONPATH", "DAGSTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    kept["PYTHONUNBUFFERED"] = "1"
    # Airflow's processes rename themselves, which otherwise overwrites the environment that the marker is in.
    kept["SPT_NOENV"] = "1"
    return kept


def bin_path(name: str) -> str:
    """A command of the environment that this Python belongs to."""
    path = Path(sys.executable).parent / name
    if path.exists():
        return str(path)
    found = shutil.which(name)
    if found is None:
        raise StackError(f"{name} is not installed here: pip install 'nighttrain[demo]'")
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """True if the URL answers 200."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], server: Server, seconds: float) -> None:
    """Poll until the condition holds.

    :raises StackError: the server has ended, or the time is up; with its last lines
    """
    deadline = time.monotonic() + seconds
    while not condition():
        server.check_alive()
        if time.monotonic() > deadline:
            raise StackError(
                f"{server.name} was not ready within {seconds:.0f} s; its last lines:\n{tail(server.log)}"
            )
        time.sleep(0.2)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
