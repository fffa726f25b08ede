"""A workload and its run, tracked through an MLflow that can be away."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from helpers.polling import until_async
from helpers.tcp import pass_on
from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
from nighttrain.providers.kubernetes.api.client import ClusterConfig
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import Lineage, Run, RunKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.attempts.attempt import StartedWorkload
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Outcome,
    )
    from nighttrain.providers.local.cluster.server import EmbeddedCluster


_numbers = count(1)

# A training that opens its own run, without the seconds that importing mlflow takes. MLflow's own client
# reads the same two variables: see mlflow.tracking.context.system_environment_context and
# mlflow.environment_variables.
TRAINING = """
import json, os, time, urllib.request
def call(path, **body):
    address = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/" + path
    data = json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=10))
deadline = time.monotonic() + 60
while True:
    try:
        address = os.environ["MLFLOW_TRACKING_URI"] + "/health"
        urllib.request.urlopen(address, timeout=10).close()
        break
    except OSError:
        if time.monotonic() > deadline: raise
        time.sleep(0.1)
run_id = os.environ.get("MLFLOW_RUN_ID")
if run_id is None:
    name = os.environ["MLFLOW_EXPERIMENT_NAME"]
    try:
        experiment = call("experiments/create", name=name)["experiment_id"]
    except OSError:
        path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name="
        found = os.environ["MLFLOW_TRACKING_URI"] + path + name
        experiment = json.load(urllib.request.urlopen(found, timeout=10))["experiment"]["experiment_id"]
    tags = [{"key": k, "value": v} for k, v in json.loads(os.environ["MLFLOW_RUN_CONTEXT"]).items()]
    now = int(time.time() * 1000)
    run = call("runs/create", experiment_id=experiment, start_time=now, tags=tags)
    run_id = run["run"]["info"]["run_id"]
call("runs/log-metric", run_id=run_id, key="rmse", value=1.5, timestamp=int(time.time() * 1000))
"""

# What trainings log that differs from pod to pod; the first attempt fails.
FAILS_ONCE = (
    TRAINING
    + """
call("runs/log-parameter", run_id=run_id, key="host", value=os.environ["HOSTNAME"])
previous = os.environ.get("NIGHTTRAIN_PREVIOUS_RUN_ID")
call("runs/log-parameter", run_id=run_id, key="resumed", value=str(previous))
raise SystemExit(0 if previous else 3)
"""
)
GOES_ON = "\nimport time; time.sleep(60)"


class Outage:
    """MLflow behind an address that answers only while it is up."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._server: asyncio.Server | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    async def end(self) -> None:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", self._port)

    async def begin(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        await pass_on(reader, writer, far_reader, far_writer)


@asynccontextmanager
async def outage(server: MLflowServer, *, begun: bool = True) -> AsyncIterator[Outage]:
    outage = Outage(server.uri)
    try:
        if not begun:
            await outage.end()
        yield outage
    finally:
        await outage.begin()


def tracked(cluster: EmbeddedCluster, mlflow: Outage, code: str) -> TrackedWorkload:
    """A training of a DAG run of its own."""
    number = next(_numbers)
    key = RunKey(orchestrator="airflow", dag_id="nightly", run_id=f"outage-{number}", task_id="train")
    return TrackedWorkload(
        cluster=ClusterConfig(kubeconfig=str(cluster.kubeconfig)),
        tracking=TrackingConfig(uri=mlflow.uri, retry_seconds=0.2),
        tracking_uri_for_pods=mlflow.uri,
        spec=WorkloadSpec(image="py", cmds=["python", "-c", code], termination_grace_period=1),
        identity=WorkloadIdentity(
            orchestrator="airflow", dag_id=key.dag_id, run_id=key.run_id, task_id="train"
        ),
        epoch="0",
        experiment_name=f"outage-{number}",
        run_name="train",
        lineage=lambda **known: Lineage(
            orchestrator="airflow", dag_id=key.dag_id, run_id=key.run_id, task_id="train", **known
        ),
    )


async def finish(work: TrackedWorkload, started: StartedWorkload) -> Outcome:
    async with asyncio.timeout(60):
        return await work.attempt(started).follow(timeouts=Timeouts(30))


async def runs_of(server: MLflowServer, work: TrackedWorkload) -> list[Run]:
    async with MLflowClient(TrackingConfig(uri=server.uri)) as client:
        tree = RunTree(client)
        experiment = await tree.ensure_experiment(work.experiment_name)
        found = await client.post("runs/search", {"experiment_ids": [experiment], "max_results": 100})
        return [Run.from_api(run) for run in found.get("runs", ())]


async def to_the_end(work: TrackedWorkload) -> StartedWorkload:
    """One attempt, as an operator makes it."""
    started = await work.start()
    outcome = await finish(work, started)
    closed = (await work.attempt(started).settle(outcome)).started
    await work.attempt(closed).mark_consumed(outcome)
    return closed


async def child_and_parent(server: MLflowServer, work: TrackedWorkload) -> tuple[Run, Run]:
    runs = await runs_of(server, work)
    (child,) = (run for run in runs if run.tags["nighttrain.run_key"] == work.run_key.value)
    (parent,) = (run for run in runs if run is not child)
    assert child.tags["mlflow.parentRunId"] == parent.run_id
    return child, parent


async def until_logged(server: MLflowServer, work: TrackedWorkload) -> None:
    async def some_metrics() -> bool:
        return any(run.metrics for run in await runs_of(server, work))

    await until_async(some_metrics, 60)
