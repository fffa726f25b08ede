"""Kill at every step: each call from ``execute`` to the stored result, and each fault that it can meet.

The short form runs in CI. The long form, which takes hours, and single plans again:

    pytest tests/faults/test_kill_every_step.py -s -n 0 --kill-every --kill-seeds 600
    pytest tests/faults/test_kill_every_step.py -s -n 0 -k every --kill-every --kill-part 1/2 --kill-skip 900
    pytest tests/faults/test_kill_every_step.py -s -n 0 -k random --kill-seed 123
    pytest tests/faults/test_kill_every_step.py -s -n 0 -k found --kill-plan "Plan(faults=(Fault(...),), ...)"
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import stamina

from helpers import importable_helpers
from helpers.airflow_connections import connect_kubernetes, connect_mlflow
from helpers.faulty_flows.airflow_tasks import over
from helpers.faulty_flows.call_faults import Fault, injecting
from helpers.faulty_flows.flow import Flow, Plan
from helpers.faulty_flows.plans import (
    SHAPES,
    Call,
    all_goals,
    calls_of,
    every_boundary,
    goals_of,
    random_plan,
    sample,
)
from helpers.faulty_flows.regressions import FOUND
from helpers.faulty_flows.runner import PlanRunner, Verdict, plan_runner
from nighttrain.operators.common import cluster_outages
from nighttrain.providers.attempts import wait_for_end
from nighttrain.providers.kubernetes.mirror import feed
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving import rollout
from nighttrain.sensors.triggers import removal

if TYPE_CHECKING:
    from helpers.mlflow_server import MLflowServer

pytestmark = [pytest.mark.slow, pytest.mark.mlflow, pytest.mark.timeout(6 * 3600)]

# What was recorded by chance, a pod seen waiting say, may not come again: other boundaries show the same.
# Rounds after the first run only what is missing, so more of them cost nothing where nothing is.
SAMPLES = 12
# Of many, such may be left over.
TIMING = 0.02

# The last of them are made by a worker that adopts a training which has ended, and registers its version.
FEWEST_CALLS = 20

SERVING_IMAGE = Path(__file__).parents[1] / "providers" / "serving" / "fake_image"
Recorded = Mapping[str, Mapping[Call, int]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, mlflow_server: MLflowServer) -> Iterator[PlanRunner]:
    directory = tmp_path_factory.mktemp("kill")
    images = {"py": sys.executable, "model-server": f"{sys.executable}:{SERVING_IMAGE}"}
    with pytest.MonkeyPatch.context() as patched, EmbeddedCluster(images=images) as cluster:
        connect_kubernetes(patched, cluster)
        connect_mlflow(patched, mlflow_server.uri)
        # Triggers hold their event back for a scheduler; there is none here. Two seconds are added to it.
        patched.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", "-2")
        patched.setattr(cluster_outages, "PAUSE_SECONDS", 0.05)
        patched.setattr(rollout, "POLL_SECONDS", 0.1)
        for module, names in (
            (removal, ("FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS")),
            (feed, ("PAUSE_SECONDS", "PAUSE_MAXIMUM_SECONDS")),
        ):
            for name in names:
                patched.setattr(module, name, 0.05)
        # Every wait is explained, not only one that happens to take long: the same calls in every run.
        patched.setattr(wait_for_end, "EXPLAIN_AFTER_SECONDS", 0.0)
        with (
            stamina.set_testing(True, attempts=10, cap=True),
            injecting(),
            over.answering(),
            plan_runner(str(cluster.kubeconfig), directory, mlflow_server) as ready,
        ):
            yield ready


@pytest.fixture(scope="module")
def recorded(place: PlanRunner, request: pytest.FixtureRequest) -> Recorded:
    """The calls of each shape of flow while nothing goes wrong."""
    times = 2 if request.config.getoption("--kill-every", default=False) else 1
    flows = place.record([plan for plan in SHAPES.values() for _ in range(times)])
    return {
        name: calls_of(flows[number * times : (number + 1) * times]) for number, name in enumerate(SHAPES)
    }


def no_promise_is_broken(verdicts: list[Verdict]) -> None:
    """Nothing broke. Schedules that met nothing are named: they show nothing, and do not count."""
    met = sum(bool(verdict.struck) for verdict in verdicts)
    in_full = sum(not verdict.missed for verdict in verdicts)
    broken = [str(verdict) for verdict in verdicts if verdict.broken]
    print(f"{met} schedules met a fault, {in_full} all of theirs, {len(broken)} broke a promise")
    for verdict in verdicts:
        if not verdict.struck:
            print(f"met nothing: {verdict}")
    assert not broken, "\n".join(broken)


@pytest.mark.thorough
def test_every_fault_at_every_boundary_breaks_no_promise(
    place: PlanRunner, recorded: Recorded, request: pytest.FixtureRequest
) -> None:
    every = every_boundary(recorded)
    if request.config.getoption("--kill-every", default=False):
        begin = request.config.getoption("--kill-flow", default=None) or ""
        every = [(name, plan) for name, plan in every if name.startswith(begin)]
        part, parts = map(int, request.config.getoption("--kill-part", default="1/1").split("/"))
        chosen = every[part - 1 :: parts][request.config.getoption("--kill-skip", default=0) :]
        print(f"{len(every)} boundaries of {len(recorded)} flows, of which {len(chosen)} run")
        verdicts = place.all(chosen)
        no_promise_is_broken(verdicts)
        idle = [verdict for verdict in verdicts if not verdict.struck]
        assert len(idle) <= len(verdicts) * TIMING
        return
    print(f"{len(every)} boundaries of {len(recorded)} flows")
    missing, verdicts = all_goals(recorded), []
    assert missing
    for _ in range(SAMPLES):
        if not missing:
            break
        tried = [verdict.plan for verdict in verdicts]
        verdicts += place.all(sample(recorded, missing, tried))
        for verdict in verdicts:
            missing -= goals_of(verdict.name, verdict.struck)
    no_promise_is_broken(verdicts)
    assert not missing, f"no schedule has shown {sorted(missing)}"


def test_what_once_found_something_breaks_no_promise(
    place: PlanRunner, request: pytest.FixtureRequest
) -> None:
    given = request.config.getoption("--kill-plan", default=None)
    plans = FOUND
    if given is not None:
        plans = {"--kill-plan": eval(given, {"Plan": Plan, "Fault": Fault})}  # noqa: S307
    verdicts = place.all(list(plans.items()))
    no_promise_is_broken(verdicts)
    missed = [str(verdict) for verdict in verdicts if verdict.missed]
    assert not missed, "\n".join(missed)


@pytest.mark.thorough
def test_random_schedules_break_no_promise(
    place: PlanRunner, recorded: Recorded, request: pytest.FixtureRequest
) -> None:
    one = request.config.getoption("--kill-seed", default=None)
    many = request.config.getoption("--kill-seeds", default=None) or 8
    seeds = range(many) if one is None else [one]
    verdicts = place.all([(f"--kill-seed {seed}", random_plan(seed, recorded)) for seed in seeds])
    no_promise_is_broken(verdicts)
    assert sum(not verdict.struck for verdict in verdicts) <= len(verdicts) * TIMING


class Worker:
    """A process that runs flows in processes of its own; see ``helpers.faulty_flows.worker``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helpers.faulty_flows.worker"],
            env=importable_helpers(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._read_until("ready")

    def run(self, order: dict[str, object], kill_at: int | None) -> int:
        """Run one flow and kill its process at the call of this number; the exit code."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**order, "kill_at": kill_at}) + "\n")
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
    place: PlanRunner, request: pytest.FixtureRequest
) -> None:
    rounds = request.config.getoption("--kill-rounds", default=None) or 1
    worker = Worker()
    try:
        for seed in range(rounds):
            dice = random.Random(seed)
            plan = Plan(deferrable=seed % 2 == 0)
            flow = Flow(plan, place.place)
            order = {
                "directory": str(flow.place.directory),
                "kubeconfig": flow.place.cluster.kubeconfig,
                "mlflow": flow.place.mlflow.uri,
                "run_id": flow.run_id,
                "deferrable": plan.deferrable,
            }
            moments = [dice.randint(1, FEWEST_CALLS) for _ in range(2)]
            codes = [worker.run(order, moment) for moment in [*moments, None]]
            assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0], moments
            end = (flow.place.directory / f"{flow.run_id}.end").read_text()
            flow.states, flow.results = json.loads(end)
            assert flow.states["train"] == "success"
            assert not place.broken(flow), (seed, codes, flow.lines())
    finally:
        worker.close()
