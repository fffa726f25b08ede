"""Runs plans on servers that run already, several at once, and says what they broke."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoResult
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import httpx

from helpers.faulty_flows.airflow_tasks import DEADLINE_SECONDS
from helpers.faulty_flows.checks import violations
from helpers.faulty_flows.flow import Flow, Place, Plan
from helpers.faulty_flows.job_history import JobHistory
from helpers.faulty_flows.plain_client import DEPLOYMENTS, JOBS, SERVICES, Cluster
from nighttrain.providers.kubernetes.api.client import ClusterConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from helpers.faulty_flows.call_faults import Fault
    from helpers.mlflow_server import MLflowServer

# Containers are processes of this machine: with more at once, two cores only queue them.
AT_ONCE = 6
# A watch that begins a moment later is met in the next run. What is never met is no boundary.
RUNS_TO_STRIKE = 3


@dataclass
class Verdict:
    """What came of a plan."""

    name: str
    plan: Plan
    broken: list[str]
    struck: list[tuple[Fault, str]] = field(default_factory=list)
    missed: list[Fault] = field(default_factory=list)
    trail: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        struck = [f"struck: {fault} ({label})" for fault, label in self.struck]
        missed = [f"met nothing: {fault}" for fault in self.missed]
        return f"{self.name}: " + "\n  ".join([*self.broken, repr(self.plan), *struck, *missed, *self.trail])


class PlanRunner:
    """Two servers and a history."""

    def __init__(self, place: Place, history: JobHistory) -> None:
        self.place = place
        self._history = history

    def record(self, plans: Sequence[Plan]) -> list[Flow]:
        """Flows that have to go well: their calls are the boundaries."""

        def run(plan: Plan) -> Flow:
            flow = Flow(plan, self.place).run()
            broken = self.broken(flow)
            assert not broken, "\n".join([*broken, repr(plan), *flow.trail])
            assert flow.cancelled == bool(plan.cancel), flow.trail
            return flow

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(run, plans))

    def broken(self, flow: Flow) -> list[str]:
        """What a flow that has ended broke; afterwards nothing of it is left."""
        try:
            return violations(flow, self._history)
        finally:
            self._clean(flow)

    def run(self, name: str, plan: Plan) -> Verdict:
        """One plan to its end; again, if none of its faults was met."""
        for _ in range(RUNS_TO_STRIKE):
            flow = Flow(plan, self.place)
            try:
                flow.run()
            except Exception as error:
                broken = [f"the model of Airflow met {type(error).__name__}: {error}"]
                self._clean(flow)
            else:
                broken = self.broken(flow)
            if broken or flow.struck or not plan.faults:
                break
        return Verdict(name, plan, broken, flow.struck, flow.missed, [*flow.trail, str(flow.lines())])

    def all(self, plans: Sequence[tuple[str, Plan]]) -> list[Verdict]:
        """Run all, ``AT_ONCE`` at a time."""
        verdicts: list[Verdict] = []
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            futures = [(name, plan, pool.submit(self.run, name, plan)) for name, plan in plans]
            for number, (name, plan, future) in enumerate(futures, 1):
                try:
                    verdict = future.result(timeout=DEADLINE_SECONDS * 2)
                except NoResult:
                    verdict = Verdict(name, plan, ["hang"])
                verdicts.append(verdict)
                if number % 100 == 0:
                    print(f"{number} of {len(plans)}", flush=True)
                if verdict.broken:
                    print(f"BROKEN, {number} of {len(plans)}: {verdict}", flush=True)
        finally:
            # A flow that hangs must not keep the report back.
            pool.shutdown(wait=False, cancel_futures=True)
        return verdicts

    def _clean(self, flow: Flow) -> None:
        """Later flows find nothing of it, nor does the reaper in them, which reads all experiments."""
        cluster, mlflow = self.place.cluster, self.place.mlflow
        for name in flow.experiments:
            with contextlib.suppress(AssertionError):  # nobody came as far as to make it
                found = mlflow.call("GET", "experiments/get-by-name", experiment_name=name)["experiment"]
                mlflow.call("POST", "experiments/delete", experiment_id=found["experiment_id"])
        for job in cluster.jobs(flow.identity.key):
            cluster.remove(JOBS, job["metadata"]["name"])
        if flow.plan.flow == "rollout":
            cluster.remove(SERVICES, flow.endpoint)
            for version in ("1", "2"):
                cluster.remove(DEPLOYMENTS, f"{flow.endpoint}-v{version}")


@contextmanager
def plan_runner(kubeconfig: str, directory: Path, mlflow: MLflowServer) -> Iterator[PlanRunner]:
    """A runner on servers that run already."""
    # Flows take seconds, and the server closes a connection that idles as long: none is kept.
    limits = httpx.Limits(max_keepalive_connections=0)
    cluster = Cluster(kubeconfig)
    try:
        with (
            JobHistory(ClusterConfig(kubeconfig=kubeconfig)) as history,
            httpx.Client(base_url=mlflow.uri, timeout=60, trust_env=False, limits=limits) as http,
        ):
            yield PlanRunner(Place(directory, cluster, replace(mlflow, http=http)), history)
    finally:
        cluster.close()
