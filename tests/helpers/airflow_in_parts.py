"""A stack whose Airflow is in parts that can be killed one by one, and whose trainings wait at a gate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

from helpers import TESTS
from helpers.tcp import pass_on
from nighttrain.providers.local.stack import Stack, bin_path, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DAG_ID = "mapped_trainings"
PARTS = ("scheduler", "dag-processor", "triggerer", "api-server")
PAGE = 100


class StackInParts(Stack):
    """Each of Airflow's components is a process group of its own."""

    def start_airflow(self) -> None:
        """Make the database, then start every component; returns at once after that."""
        environment = self.airflow_environment()
        self._start("migration", [bin_path("airflow"), "db", "migrate"], environment)
        migration = self._server("migration")
        assert migration.process.wait(120) == 0, migration.log.read_text()[-2000:]
        self.servers.remove(migration)
        for part in PARTS:
            self.start_part(part)

    def start_part(self, part: str) -> None:
        """One component."""
        self._start(f"airflow-{part}", [bin_path("airflow"), part], self.airflow_environment())

    def kill_part(self, part: str) -> None:
        """SIGKILL to the component and whatever it has started."""
        server = self._server(f"airflow-{part}")
        self.servers.remove(server)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()

    def wait_airflow(self, dag_ids: Any) -> None:
        """As the base's, for components that are servers of their own."""
        deadline = time.monotonic() + 150
        while not self._airflow_healthy() or any(
            self.api("GET", f"/dags/{dag_id}").status_code != 200 for dag_id in dag_ids
        ):
            self.check_alive()
            assert time.monotonic() < deadline, "Airflow was not ready within 150 s"
            time.sleep(0.5)


class Trainings:
    """The mapped trainings of one DAG run, and what the test asks about them."""

    def __init__(self, stack: StackInParts, folder: Path, number: int) -> None:
        self.stack = stack
        self.folder = folder
        self.number = number
        self.run_id = ""

    def start(self) -> None:
        """Trigger the DAG run."""
        self.stack.unpause(DAG_ID)
        answer = self.stack.api("POST", f"/dags/{DAG_ID}/dagRuns", json={"logical_date": None})
        assert answer.status_code == 200, answer.text
        self.run_id = answer.json()["dag_run_id"]

    def open_gate(self) -> None:
        """Let every container end, those that wait and those that come."""
        (self.folder / "open").touch()
        with contextlib.suppress(OSError):  # nobody reads
            os.close(os.open(self.folder / "gate", os.O_WRONLY | os.O_NONBLOCK))

    def tasks(self) -> list[dict[str, Any]]:
        """Every task instance, by its map index."""
        found: list[dict[str, Any]] = []
        path = f"/dags/{DAG_ID}/dagRuns/{self.run_id}/taskInstances"
        while True:
            query = {"limit": PAGE, "offset": len(found), "order_by": "map_index"}
            answer = self.stack.api("GET", path, params=query).json()
            found += answer["task_instances"]
            if len(found) >= answer["total_entries"]:
                return found

    def count(self, state: str) -> int:
        """How many task instances are in a state."""
        path = f"/dags/{DAG_ID}/dagRuns/{self.run_id}/taskInstances"
        return int(self.stack.api("GET", path, params={"state": state, "limit": 1}).json()["total_entries"])

    def state(self) -> str:
        return str(self.stack.api("GET", f"/dags/{DAG_ID}/dagRuns/{self.run_id}").json()["state"])

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Poll a condition; the seconds that it took."""
        began = time.monotonic()
        while not condition():
            self.stack.check_alive()
            states = time.monotonic() - began > seconds and [task["state"] for task in self.tasks()]
            assert not states, f"waited {seconds:.0f} s for {what}: {sorted(map(str, states))}"
            time.sleep(1)
        return time.monotonic() - began

    def lines(self, name: str) -> list[tuple[int, float]]:
        """What the containers wrote: number and time."""
        file = self.folder / name
        if not file.exists():
            return []
        rows = [line.split() for line in file.read_text().splitlines()]
        return [(int(number), float(moment)) for number, moment in rows]

    def jobs(self) -> list[dict[str, Any]]:
        """The cluster's Jobs of the DAG."""
        config = yaml.safe_load(self.stack.kubeconfig.read_text())
        server, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        answer = httpx.get(
            f"{server}/apis/batch/v1/namespaces/default/jobs",
            params={"labelSelector": f"nighttrain.dev/dag-id={DAG_ID}"},
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )
        return list(answer.json()["items"])

    def runs(self) -> list[dict[str, Any]]:
        """Every run of the DAG's experiment in MLflow, the DAG run's own too."""
        api = f"{self.stack.mlflow_uri}/api/2.0/mlflow"
        answer = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": DAG_ID}, timeout=60)
        body: dict[str, Any] = {"experiment_ids": [answer.json()["experiment"]["experiment_id"]]}
        found: list[dict[str, Any]] = []
        while True:
            page = httpx.post(f"{api}/runs/search", json={**body, "max_results": 500}, timeout=60).json()
            found += page.get("runs", [])
            if not page.get("next_page_token"):
                return found
            body["page_token"] = page["next_page_token"]

    def check_each_once(self, *, tries: bool = True) -> None:
        """Every training succeeded, with one Job, one attempt, one container and one run.

        :param tries: and with one try
        """
        tasks, jobs = self.tasks(), self.jobs()
        assert [task["state"] for task in tasks] == ["success"] * self.number
        if tries:
            assert {task["try_number"] for task in tasks} == {1}
        assert len(jobs) == self.number
        assert {job["metadata"]["labels"]["nighttrain.dev/attempt"] for job in jobs} == {"1"}
        assert all(job["status"].get("succeeded") == 1 and not job["status"].get("failed") for job in jobs)
        for name in ("began", "ended"):
            assert sorted(number for number, _ in self.lines(name)) == list(range(self.number)), name
        # A worker that was killed before it had created its Job leaves a run that another one followed.
        superseded = "nighttrain.superseded_by"
        runs = [run for run in self.runs() if superseded not in {tag["key"] for tag in run["data"]["tags"]}]
        assert len(runs) == self.number + 1, "one run for each training, and the DAG run's"
        assert {run["info"]["status"] for run in runs} == {"FINISHED"}

    def log_lines(self, index: int, *, trigger: bool) -> list[tuple[float, str]]:
        """A task's log, or its trigger's, in order of time."""
        folder = self.stack.directory / "airflow" / "logs" / f"dag_id={DAG_ID}" / f"run_id={self.run_id}"
        found = []
        for file in (folder / "task_id=train" / f"map_index={index}").iterdir():
            if (".trigger." in file.name) is not trigger:
                continue
            for line in file.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    found.append((seconds_of(entry["timestamp"]), str(entry["event"])))
        return sorted(found)


def seconds_of(text: str) -> float:
    """An ISO time as seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


@contextlib.contextmanager
def trainings(
    directory: Path,
    number: int,
    proxy: RestartableProxy | None = None,
    settings: dict[str, str] | None = None,
) -> Iterator[Trainings]:
    """A running stack with the DAG of ``number`` mapped trainings.

    :param proxy: what Airflow speaks to in the place of the cluster
    :param settings: further environment of Airflow's processes
    """
    folder = directory / "gate"
    folder.mkdir()
    os.mkfifo(folder / "gate")
    # Airflow's processes leave their compiled files in the DAG folder: give them a copy.
    dags = directory / "dags"
    shutil.copytree(TESTS / "scale" / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    key = secrets.token_hex(32)
    stack = StackInParts(
        directory / "stack",
        [dags],
        airflow_settings={
            "NIGHTTRAIN_SCALE_MAPPED": str(number),
            "NIGHTTRAIN_SCALE_FOLDER": str(folder),
            "AIRFLOW__API_AUTH__JWT_SECRET": key,
            "AIRFLOW__API__SECRET_KEY": key,
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(max(16, number)),
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": str(max(128, number)),
            "AIRFLOW__TRIGGERER__CAPACITY": str(max(1000, number)),
            # Half of the default: a killed triggerer's triggers move after this.
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
            **(settings or {}),
        },
    )
    if proxy is not None:
        stack.airflow_settings = {
            **stack.airflow_settings,
            "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps(
                {"conn_type": "kubernetes", "extra": {"kube_config_path": str(directory / "proxy")}}
            ),
        }
    try:
        stack.start_mlflow()
        stack.start_cluster()
        if proxy is not None:
            proxy.stand_before(stack.kubeconfig, directory / "proxy")
        stack.start_airflow()
        stack.wait_mlflow()
        stack.wait_airflow([DAG_ID])
        yield Trainings(stack, folder, number)
    finally:
        if proxy is not None:
            proxy.close()
        stack.stop()


class RestartableProxy:
    """A TCP proxy before the API server. Restarting it is what an API server's restart is to its clients.

    Connections are reset and refused for a while; the cluster's state and its pods' processes go on. (The
    embedded cluster's own restart takes its node with it: that is another fault.)
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._port = free_port()
        self._server: Any = None
        self._writers: set[Any] = set()
        self._target = 0

    def stand_before(self, kubeconfig: Path, written: Path) -> None:
        """Forward to a kubeconfig's server, under a kubeconfig of our own."""
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._target = int(cluster["server"].rsplit(":", 1)[1])
        cluster["server"] = f"http://127.0.0.1:{self._port}"
        written.write_text(yaml.safe_dump(config))
        self.start()

    def start(self) -> None:
        self._run(self._listen())

    def stop(self) -> None:
        """Refuse new connections, reset those there are."""
        self._run(self._reset())

    def close(self) -> None:
        """End for good."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self._port)

    async def _reset(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for writer in self._writers:
            writer.transport.abort()
        while self._writers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _forward(self, reader: Any, writer: Any) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, other_writer}
        self._writers |= both
        await pass_on(reader, writer, other_reader, other_writer)
        self._writers -= both
