"""Kill at every step: each call from ``execute`` to the stored result, and each fault that it can meet.

The short form runs in CI. The long form, which takes about half an hour, and a failing seed again:

    pytest tests/faults/test_kill_every_step.py -s --kill-every --kill-seeds 500
    pytest tests/faults/test_kill_every_step.py -s -k random --kill-seed 123
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kill_worker
import pytest
import stamina
from kill_calls import injecting
from kill_checks import CALLS, Arena, arena, every_boundary, random_plan
from kill_flow import Flow, Plan
from mlflow_server import MLflowServer, unique

from nighttrain.operators import outages
from nighttrain.providers.local.server import EmbeddedCluster

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(7200)]

# Of some 400 pairs of boundary and fault; a prime, so that every sort of fault is in the sample.
SAMPLE = 37
# Random schedules that once broke a promise, or seemed to, are run each time.
FOUND = (87, 103, 366)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MLflowServer) -> Iterator[Arena]:
    directory = tmp_path_factory.mktemp("kill")
    with pytest.MonkeyPatch.context() as patched, EmbeddedCluster(images={"py": sys.executable}) as cluster:
        extra = {"kube_config_path": str(cluster.kubeconfig)}
        kubernetes = {"conn_type": "kubernetes", "extra": extra}
        patched.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(kubernetes))
        tracking = {"conn_type": "mlflow", "host": mlflow_server.uri}
        patched.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(tracking))
        # Triggers hold their event back for a scheduler; there is none here. Two seconds are added to it.
        patched.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-2")
        patched.setattr(outages, "PAUSE_SECONDS", 0.05)
        experiment = unique("kill")
        with (
            stamina.set_testing(True, attempts=10, cap=True),
            injecting(),
            arena(str(cluster.kubeconfig), directory, mlflow_server, experiment) as ready,
        ):
            yield ready


@pytest.fixture(scope="module")
def recorded(place: Arena) -> Flow:
    return place.record(Plan())


def test_every_fault_at_every_boundary_breaks_no_promise(
    place: Arena, recorded: Flow, request: pytest.FixtureRequest
) -> None:
    plans = every_boundary(recorded)
    if request.config.getoption("--kill-every", default=False):
        plans += every_boundary(place.record(Plan(deferrable=False)))
        plans += every_boundary(place.record(Plan(codes=(3, 0))))
    else:
        plans = plans[::SAMPLE]
    reports = place.all([(f"boundary {number}", plan) for number, plan in enumerate(plans)])
    assert not reports, "\n".join(reports)


def test_the_catalogue_of_calls_is_complete(recorded: Flow) -> None:
    once = {"mlflow POST experiments/create"}  # the first flow of all makes the experiment
    assert set(recorded.schedule.calls) - once <= set(CALLS)


def test_random_schedules_break_no_promise(place: Arena, request: pytest.FixtureRequest) -> None:
    one = request.config.getoption("--kill-seed", default=None)
    many = request.config.getoption("--kill-seeds", default=None) or 8
    seeds = [one] if one is not None else sorted({*range(many), *FOUND})
    reports = place.all([(f"--kill-seed {seed}", random_plan(seed)) for seed in seeds])
    assert not reports, "\n".join(reports)


class Worker:
    """A process that runs flows in processes of its own; see ``kill_worker``."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(kill_worker.__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._read_until("ready")

    def run(self, order: dict[str, object], kill_after: float | None) -> int:
        """Run one flow and kill its process after so many seconds; the exit code."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**order, "kill_after": kill_after}) + "\n")
        self._process.stdin.flush()
        return int(self._read_until("exit ").removeprefix("exit "))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _read_until(self, wanted: str) -> str:
        while not (line := self._line()).startswith(wanted):
            pass
        return line

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the worker ended"
        return line.strip()


def test_a_worker_killed_at_random_moments_leaves_one_of_everything(
    place: Arena, recorded: Flow, request: pytest.FixtureRequest
) -> None:
    rounds = request.config.getoption("--kill-rounds", default=None) or 1
    worker = Worker()
    try:
        for seed in range(rounds):
            dice = random.Random(seed)
            plan = Plan(deferrable=seed % 2 == 0)
            flow = Flow(plan, recorded.directory, recorded.experiment)
            order = {
                "directory": str(flow.directory),
                "experiment": flow.experiment,
                "run_id": flow.run_id,
                "deferrable": plan.deferrable,
            }
            moments = [dice.uniform(0, 3) for _ in range(2)]
            codes = [worker.run(order, moment) for moment in [*moments, None]]
            assert codes[-1] == 0, codes
            flow.state, flow.registered = json.loads((flow.directory / f"{flow.run_id}.end").read_text())
            assert flow.state == "success"
            assert not place.broken(flow), (seed, codes, flow.lines())
    finally:
        worker.close()
