"""``./run demo``: some nights of retraining on this machine, from the training to the predictions."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml
from rich.console import Console
from rich.markup import escape

from nighttrain.providers.local.demo_tables import Night, gate_table, nights_table, rollouts_table
from nighttrain.providers.local.stack import (
    RUNNING,
    Say,
    Stack,
    StackError,
    base_environment,
    stop_left_running,
    tail,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".nighttrain" / "demo"
MODEL = "airline-delay"
# A folder with this file is a demo's: it may be emptied.
MARK = ".nighttrain-demo"
NIGHTLY = "nightly_retraining"
DEPLOYMENT = "deploy_on_stage_transition"
# Three nights in a row whose outcome differs for a reason in the data: see docs/tutorial.md.
FIRST_NIGHT, SECOND_NIGHT, LAST_NIGHT = date(2013, 9, 4), date(2013, 9, 5), date(2013, 9, 6)
# One more, on shuffled labels: what the gate was told when it was asked to let that through.
SHUFFLED_NIGHT = date(2013, 9, 7)
REASON = "to see the rollout undo it"
# A night takes about a minute on two cores; five is a stuck one.
NIGHT_SECONDS = 300.0

# A writer waits for SQLite's lock for seconds; a minute of it is a machine that has other things to do.
BUSY_SECONDS = 60.0
# Where the engine of rollouts puts it.
PICTURE_FILE = "nighttrain/rollout.svg"
ENDED = {"success", "failed", "skipped", "upstream_failed", "removed"}


class Progress:
    """Lines with the seconds since the start: readable in a terminal and in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        self._console.print(
            f"[dim]{time.monotonic() - self._start:6.1f} s[/dim]  {text}", highlight=False, soft_wrap=True
        )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


class Demo:
    """The story, told by real servers."""

    def __init__(self, stack: Stack, say: Say, console: Console, *, short: bool = False) -> None:
        self.stack = stack
        self.say = say
        self.console = console
        self.short = short
        self._seen: dict[tuple[str, str, str], str] = {}
        self._rollouts: dict[str, dict[str, Any]] = {}

    def run(self) -> list[Night]:
        """From nothing to predictions."""
        self._start_servers()
        self._unpause()
        self._retrain(FIRST_NIGHT)
        # A model that is promoted in the middle of another one's rollout ends that: nights are a day apart.
        self._follow_deployments(1)
        if not self.short:
            self._retrain(SECOND_NIGHT)
            # This one is rejected, and so in nobody's way.
            self._retrain(LAST_NIGHT)
            self._follow_deployments(2)
        self._retrain(SHUFFLED_NIGHT, shuffle_labels=True, let_through=REASON)
        # What is undone gives the stage back, and that is a transition, too: the deployment that it starts
        # finds that the version serves already.
        self._follow_deployments(3 if self.short else 4, undone=1)
        nights = self._table()
        self._rollout_table()
        self._predict()
        return nights

    def _start_servers(self) -> None:
        self.say("starting MLflow, Airflow and the embedded cluster")
        self.stack.start_mlflow()
        self.stack.start_airflow()
        self.stack.start_cluster()
        self.say(f"cluster ready      KUBECONFIG={self.stack.kubeconfig}")
        self.stack.wait_mlflow()
        self.say(f"MLflow ready       {self.stack.mlflow_uri}")
        self.stack.wait_airflow([NIGHTLY, DEPLOYMENT])
        self.say(f"Airflow ready      {self.stack.airflow_uri}")

    def _unpause(self) -> None:
        for dag_id in (DEPLOYMENT, NIGHTLY):
            self.stack.unpause(dag_id)

    def _retrain(self, night: date, **params: Any) -> None:
        """Start the run of a night, and follow it to its end."""
        # A night's run is dated by its end, at four in the morning of the next day.
        body = {"logical_date": f"{night + timedelta(days=1)}T04:00:00-04:00", "conf": params}
        self._ask("POST", f"/dags/{NIGHTLY}/dagRuns", body)
        told = ", ".join(f"{name}={value}" for name, value in params.items())
        self.say(f"night {night} starts{f' with {told}' if told else ''}")
        with _deadline(NIGHT_SECONDS, f"the night {night} was not over", self.stack) as check:
            while (run := self._runs(NIGHTLY)[-1])["state"] not in ENDED:
                self._say_tasks(NIGHTLY, run)
                self._say_deployments()
                check()
        self._say_tasks(NIGHTLY, run)
        if run["state"] != "success":
            run_id = run["dag_run_id"]
            raise StackError(f"the night {night} failed\n{self._failures(NIGHTLY, [run_id])}")
        if params:
            self._gate_table(run["dag_run_id"])

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> None:
        """Write to Airflow. On SQLite it answers 5xx, and has done nothing, while its scheduler writes."""
        with _deadline(BUSY_SECONDS, "Airflow's database was locked", self.stack) as check:
            while (answer := self.stack.api(method, path, json=body)).is_server_error:
                if "locked" not in answer.text:
                    break
                check()
        _checked(answer)

    def _follow_deployments(self, expected: int, *, undone: int = 0) -> None:
        """Until so many deployments are over, and the version in Production serves; so many may be undone."""
        with _deadline(NIGHT_SECONDS, "the deployment was not over", self.stack) as check:
            while True:
                runs = self._runs(DEPLOYMENT)
                self._say_deployments()
                failed = [run["dag_run_id"] for run in runs if run["state"] == "failed"]
                ends = [rollout["phase"] for rollout in self._rollouts.values()]
                if len(failed) > ends.count("undone") or len(failed) > undone:
                    raise StackError(f"the deployment failed\n{self._failures(DEPLOYMENT, failed)}")
                if len(runs) >= expected and all(run["state"] in ENDED for run in runs):
                    break
                check()
        if self._serving() != self._production_version():
            raise StackError(f"{MODEL} serves another version than the one in Production")

    def _predict(self) -> None:
        service = _get_service(self.stack.kubeconfig)
        if service is None:
            raise StackError(f"no endpoint {MODEL} came up")
        address = _address(service)
        day = LAST_NIGHT + timedelta(days=1)
        self.say(f"predictions for flights of {day} from {address}/invocations")
        command = [sys.executable, "-m", "airline_delay.predict", "--url", address, "--day", str(day)]
        environment = {**base_environment(), "PYTHONPATH": str(ROOT / "dags")}
        subprocess.run(command, env=environment, check=True)

    # What Airflow says.

    def _runs(self, dag_id: str) -> list[dict[str, Any]]:
        answer = _checked(self.stack.api("GET", f"/dags/{dag_id}/dagRuns", params={"order_by": "run_after"}))
        runs: list[dict[str, Any]] = answer["dag_runs"]
        return sorted(runs, key=lambda run: run.get("logical_date") or run["run_after"])

    def _tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        answer = _checked(self.stack.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"))
        tasks: list[dict[str, Any]] = answer["task_instances"]
        return sorted(tasks, key=lambda task: task.get("start_date") or "9999")

    def _say_tasks(self, dag_id: str, run: dict[str, Any]) -> None:
        run_id = run["dag_run_id"]
        if self._seen.get((dag_id, run_id, "")) in ENDED:
            return
        for task in self._tasks(dag_id, run_id):
            key, state = (dag_id, run_id, task["task_id"]), task["state"]
            if state in {"running", "deferred", *ENDED} and self._seen.get(key) != state:
                if not (state == "running" and self._seen.get(key) == "deferred"):
                    self.say(f"{_label(dag_id, run)}  {task['task_id']:<9} {_coloured(state)}")
                self._seen[key] = state
        self._seen[(dag_id, run_id, "")] = run["state"]

    def _say_deployments(self) -> None:
        for run in self._runs(DEPLOYMENT):
            self._say_tasks(DEPLOYMENT, run)
        self._say_rollout()

    def _say_rollout(self) -> None:
        """What happened in the rollout since the last look, as ``nighttrain rollout status`` says it."""
        state = _get_rollout(self.stack.kubeconfig)
        if state is None:
            return
        before = self._rollouts.get(state["rollout_id"], {"events": []})
        told = max((event["number"] for event in before["events"]), default=0)
        for event in state["events"]:
            if event["number"] > told:
                self.say(f"rollout v{state['target']['candidate']}        {escape(event['text'])}")
        self._rollouts[state["rollout_id"]] = state

    def _failures(self, dag_id: str, run_ids: list[str]) -> str:
        texts = []
        for run_id in run_ids:
            for task in self._tasks(dag_id, run_id):
                if task["state"] == "failed":
                    folder = self.stack.directory / "airflow" / "logs" / f"dag_id={dag_id}"
                    logs = sorted(folder.glob(f"run_id={run_id}/task_id={task['task_id']}/*.log"))
                    texts += [f"{task['task_id']}:\n{_task_log(logs[-1])}"] if logs else []
        return "\n".join(texts)

    # What MLflow and the cluster say.

    def _mlflow(self, path: str, **params: str) -> dict[str, Any]:
        return _checked(
            httpx.get(f"{self.stack.mlflow_uri}/api/2.0/mlflow/{path}", params=params, timeout=30)
        )

    def _versions(self) -> list[dict[str, Any]]:
        found = self._mlflow("model-versions/search", filter=f"name='{MODEL}'").get("model_versions", [])
        return sorted(found, key=lambda version: int(version["version"]))

    def _production_version(self) -> str | None:
        held = [v["version"] for v in self._versions() if v["current_stage"] == "Production"]
        return str(held[-1]) if held else None

    def _serving(self) -> str | None:
        service = _get_service(self.stack.kubeconfig)
        if service is None:
            return None
        version: str | None = service["spec"]["selector"].get("nighttrain.dev/version")
        return version

    def _table(self) -> list[Night]:
        serving = self._serving()
        rows = [Night.of(version, self._evaluation(version), serving) for version in self._versions()]
        self._show(nights_table(rows))
        return rows

    def _evaluation(self, version: dict[str, Any]) -> dict[str, float | str]:
        """The metrics that the version was judged by."""
        tags = {tag["key"]: tag["value"] for tag in version.get("tags", [])}
        evaluation = tags.get("nighttrain.gate.evaluation_run")
        if not evaluation:
            return {}
        run = self._mlflow("runs/get", run_id=evaluation)["run"]
        return {metric["key"]: metric["value"] for metric in run["data"].get("metrics", [])}

    def _gate_table(self, run_id: str) -> None:
        path = f"/dags/{NIGHTLY}/dagRuns/{run_id}/taskInstances/gate/xcomEntries/verdict"
        self._show(gate_table(_checked(self.stack.api("GET", path, params={"deserialize": "true"}))["value"]))

    def _rollout_table(self) -> None:
        """How each rollout ended, and where its picture is."""
        self._show(rollouts_table(self._rollouts.values()))
        for state in self._rollouts.values():
            if not state["run_id"]:
                continue
            run = self._mlflow("runs/get", run_id=state["run_id"])["run"]["info"]
            page = f"experiments/{run['experiment_id']}/runs/{run['run_id']}/artifacts/{PICTURE_FILE}"
            self.say(f"picture of version {state['target']['candidate']}  {self.stack.mlflow_uri}/#/{page}")

    def _show(self, table: Table) -> None:
        self.console.print()
        self.console.print(table)
        self.console.print()


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if the story was told to its end."""
    options = _parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        # A log file has no width of its own; this is the table's.
        console = Console(width=110)
    if options.stop:
        stopped = stop_left_running(options.home)
        if stopped:
            _remove(options.home)
        console.print("stopped" if stopped else "nothing was left running")
        return 0
    if options.status:
        return _say_status(console, options.home)
    refusal = _refusal(options.home)
    if refusal:
        console.print(f"[red]error:[/red] {refusal}", highlight=False, soft_wrap=True)
        return 2
    _remove(options.home)
    return _tell(console, options.home, keep=options.keep, short=options.short)


def _tell(console: Console, home: Path, *, keep: bool, short: bool) -> int:
    progress = Progress(console)
    signal.signal(signal.SIGTERM, _interrupt)
    home.mkdir(parents=True, exist_ok=True)
    (home / MARK).touch()
    stack = Stack(home, [ROOT / "dags"], [ROOT / "dags"], airflow_settings=_commit())
    try:
        Demo(stack, progress, console, short=short).run()
    except (StackError, httpx.HTTPError, subprocess.CalledProcessError) as error:
        console.print(f"[red]the demo did not get to its end:[/red] {error}", highlight=False, soft_wrap=True)
        stack.stop()
        console.print(f"what the servers wrote is in {stack.directory / 'logs'}")
        return 1
    except BaseException:
        stack.stop()
        _remove(home)
        raise
    if keep:
        stack.leave_running()
        _say_addresses(console, stack.airflow_uri, stack.mlflow_uri, stack.kubeconfig)
        return 0
    stack.stop()
    _remove(home)
    progress("all servers stopped; ./run demo --keep leaves them running to look at")
    return 0


def _refusal(home: Path) -> str:
    """The reason why no demo may start in this folder; empty if one may."""
    if (home / RUNNING).exists():
        return f"a demo is left running in {home}: end it with ./run stop, or name another folder with --home"
    if home.exists() and any(home.iterdir()) and not (home / MARK).exists():
        return f"{home} holds files that are not a demo's: name an empty folder with --home"
    return ""


def _say_status(console: Console, home: Path) -> int:
    """The addresses of what ``--keep`` left running."""
    if not (home / RUNNING).exists():
        console.print("nothing was left running")
        return 1
    state = json.loads((home / RUNNING).read_text())
    _say_addresses(console, state["airflow_uri"], state["mlflow_uri"], home / "kubeconfig")
    return 0


def _commit() -> dict[str, str]:
    """The commit of the DAGs, for the lineage of what they make; nothing outside a git clone."""
    git = shutil.which("git")
    if git is None:
        return {}
    asked = subprocess.run(
        [git, "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return {"NIGHTTRAIN_COMMIT": asked.stdout.strip()} if asked.returncode == 0 else {}


def _remove(home: Path) -> None:
    """The demo's folder, and the one around it where that is empty then."""
    shutil.rmtree(home, ignore_errors=True)
    with contextlib.suppress(OSError):
        home.parent.rmdir()


def _say_addresses(console: Console, airflow: str, mlflow: str, kubeconfig: Path) -> None:
    service = _get_service(kubeconfig)
    endpoint = _address(service) if service else "none yet"
    console.print(
        f"Left running:\n"
        f"  Airflow   {airflow}   (no login)\n"
        f"  MLflow    {mlflow}/#/models/{MODEL}\n"
        f"  endpoint  {endpoint}/invocations\n"
        f"  kubectl   --kubeconfig {kubeconfig} get jobs,pods,deployments,services\n"
        f"See this again with ./run status, stop it all with ./run stop",
        highlight=False,
        soft_wrap=True,
    )


def _get_rollout(kubeconfig: Path) -> dict[str, Any] | None:
    """The state of the endpoint's newest rollout in steps, as the engine keeps it in the cluster."""
    found = _get(kubeconfig, f"configmaps/{MODEL}-rollout")
    state: dict[str, Any] | None = json.loads(found["data"]["state"]) if found else None
    return state


def _get_service(kubeconfig: Path) -> dict[str, Any] | None:
    return _get(kubeconfig, f"services/{MODEL}")


def _get(kubeconfig: Path, path: str) -> dict[str, Any] | None:
    """An object of the namespace; ``None`` if there is none."""
    config = yaml.safe_load(kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]["server"]
    token = config["users"][0]["user"]["token"]
    answer = httpx.get(
        f"{server}/api/v1/namespaces/default/{path}",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
    )
    return None if answer.status_code == 404 else _checked(answer)


def _address(service: dict[str, Any]) -> str:
    return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    parser.add_argument("--short", action="store_true", help="two nights: one is promoted, one undone")
    parser.add_argument("--stop", action="store_true", help="end what an earlier --keep left running")
    parser.add_argument("--status", action="store_true", help="the addresses of what is left running")
    parser.add_argument(
        "--home",
        type=Path,
        default=HOME,
        metavar="DIR",
        help="where the servers write (default: .nighttrain/demo); emptied first, removed at the end",
    )
    return parser


@contextlib.contextmanager
def _deadline(seconds: float, complaint: str, stack: Stack) -> Iterator[Any]:
    """Gives a function that waits a moment and raises when a server died or the time is up."""
    end = time.monotonic() + seconds

    def check() -> None:
        stack.check_alive()
        if time.monotonic() > end:
            raise StackError(f"{complaint} after {seconds:.0f} s")
        time.sleep(1)

    yield check


def _task_log(path: Path) -> str:
    """The last errors of a task's log, which is JSON lines."""
    texts = []
    for line in tail(path, 200).splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            entry = json.loads(line)
            details = [detail.get("exc_value", "") for detail in entry.get("error_detail") or []]
            if entry.get("level") in {"error", "critical"}:
                texts += [str(entry.get("event")), *details]
    return "\n".join(texts[-8:]) or tail(path, 5)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        raise StackError(f"{answer.request.url.path} answered {answer.status_code}: {answer.text[:500]}")
    body: dict[str, Any] = answer.json()
    return body


def _label(dag_id: str, run: dict[str, Any]) -> str:
    if dag_id == NIGHTLY:
        return f"night {_night(run['logical_date'])}"
    return "deployment      "


def _night(end: str | None) -> str:
    """The night that ends at this moment."""
    return str(datetime.fromisoformat(end).date() - timedelta(days=1)) if end else "?"


def _coloured(state: str) -> str:
    colour = {"success": "green", "failed": "red", "skipped": "yellow", "deferred": "magenta"}.get(state)
    return f"[{colour}]{state}[/{colour}]" if colour else state


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
