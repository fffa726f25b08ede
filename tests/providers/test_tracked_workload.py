"""A workload and its run together: what an outage of MLflow may and may not do, and what reaping does."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from helpers.container_code import lasts_until
from helpers.mlflow_server import unique
from helpers.polling import until_async
from helpers.server_proxy import ServerProxy
from helpers.tcp import pass_on
from nighttrain.providers.attempts.attempt import StartedWorkload
from nighttrain.providers.attempts.attempt_run import open_parent
from nighttrain.providers.attempts.lifecycle import find_live
from nighttrain.providers.attempts.reaper import TaskState, TaskStates, Verdict, find
from nighttrain.providers.attempts.reaper_visit import (
    ForgottenRun,
    Runs,
    Visit,
    close_forgotten,
    find_forgotten,
    reap_all,
    settle_parents,
    visit,
)
from nighttrain.providers.attempts.tracked_workload import TrackedWorkload
from nighttrain.providers.errors import TrackingUnreachableError
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.api.resources import SECRETS
from nighttrain.providers.kubernetes.job import checked
from nighttrain.providers.kubernetes.job.pod_template import build_pod_template
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import ATTEMPT_KEY_LABEL, WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.store.resources import NAMESPACES
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig
from nighttrain.providers.tracking.run_tree import RunTree
from nighttrain.providers.tracking.runs import Lineage, Run, RunKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from helpers.mlflow_server import MLflowServer
    from nighttrain.providers.kubernetes.outcome.outcome import (
        Outcome,
    )
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

Json = dict[str, Any]
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


def tracked(cluster: EmbeddedCluster, mlflow: Outage, code: str, number: int) -> TrackedWorkload:
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


async def test_a_training_starts_while_mlflow_is_down_and_its_own_run_is_taken_over(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, TRAINING, next(_numbers))
        started = await work.start()
        assert started.run_id == ""
        await mlflow.end()
        outcome = await finish(work, started)
        assert outcome.succeeded, outcome.explain()
        closed = (await work.attempt(started).settle(outcome)).started
        child, parent = sorted(await runs_of(mlflow_server, work), key=lambda run: "rmse" not in run.metrics)
    assert (child.run_id, child.status, child.metrics) == (closed.run_id, "FINISHED", {"rmse": 1.5})
    assert child.tags["mlflow.parentRunId"] == parent.run_id == closed.parent_run_id
    assert child.tags["nighttrain.job_uid"] == started.workload.uid
    assert parent.status == "FINISHED"


async def test_what_needs_the_runs_id_does_not_start_without_a_run(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    code = """if True:
        import os, sys
        assert os.environ["OUT"] == "/out/" + os.environ["MLFLOW_RUN_ID"]
        assert os.environ["DB"].endswith(":pw@db")
    """
    secret = {"metadata": {"name": "db", "namespace": "default"}, "stringData": {"password": "pw"}}
    first = {
        "name": "first",
        "image": "py",
        "command": ["python", "-c", "import os; os.environ['MLFLOW_RUN_ID']"],
    }
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, code, next(_numbers))
        async with await ClusterClient.open(work.cluster) as client:
            await client.create(SECRETS, "default", {"apiVersion": "v1", "kind": "Secret", **secret})
        spec = replace(
            work.spec,
            env_vars={"OUT": "/out/$(MLFLOW_RUN_ID)", "DB": "postgresql://me:$(DB_PASS)@db"},
            secrets=[
                SimpleNamespace(deploy_type="env", deploy_target="DB_PASS", secret="db", key="password")
            ],
            init_containers=[first],
        )
        work = replace(work, spec=spec)
        with pytest.raises(TrackingUnreachableError, match=r"\$\(MLFLOW_RUN_ID\), which nobody knows"):
            await work.start()
        async with await ClusterClient.open(work.cluster) as client:
            jobs = (await client.list(JOBS, "default"))["items"]
        labels = work.identity.labels(1)
        assert not [job for job in jobs if labels.items() <= job["metadata"]["labels"].items()]
        await mlflow.end()
        started = await work.start()
        outcome = await finish(work, started)
        assert outcome.succeeded, outcome.explain()


@pytest.mark.parametrize("retry", ["during the outage", "after the outage"])
async def test_a_retry_of_what_started_during_the_outage_opens_no_second_run(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, tmp_path: Path, retry: str
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, TRAINING + lasts_until(tmp_path / "go"), next(_numbers))
        first = await work.start()
        if retry == "after the outage":
            await mlflow.end()
        second = await work.start()
        assert (second.workload.uid, second.run_id) == (first.workload.uid, "")
        if retry == "during the outage":
            await mlflow.end()
        (tmp_path / "go").touch()
        outcome = await finish(work, second)
        await work.attempt(second).settle(outcome)
        await work.attempt(second).settle(outcome)
        assert outcome.succeeded
        assert len(await runs_of(mlflow_server, work)) == 2  # one parent, one child


async def test_a_new_attempts_pod_is_built_once(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(spec: WorkloadSpec) -> Any:
        built.append(spec)
        return build_pod_template(spec)

    monkeypatch.setattr(checked, "build_pod_template", build)
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING, next(_numbers))
        started = await work.start()
        outcome = await finish(work, started)
        await work.attempt(started).settle(outcome)
        await work.attempt(started).mark_consumed(outcome)
    assert (len(built), outcome.succeeded) == (1, True)


async def test_a_run_whose_making_was_never_confirmed_gives_way_to_the_containers_own(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, TRAINING, next(_numbers))
        started = await work.start()
        # The outage began between the making of the run and its answer.
        async with MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as client:
            tree = RunTree(client)
            experiment = await tree.ensure_experiment(work.experiment_name)
            parent = await tree.open_parent(experiment, work.run_key.parent, name="night")
            opening = work.attempt(started).run.opening
            empty = await tree.open_attempt(experiment, work.run_key, name="train", opening=opening)
        await mlflow.end()
        outcome = await finish(work, started)
        closed = (await work.attempt(started).settle(outcome)).started
        runs = await runs_of(mlflow_server, work)
    assert closed.run_id != empty.run_id
    assert {run.run_id for run in runs} == {closed.run_id, parent.run_id}
    assert {run.status for run in runs} == {"FINISHED"}


async def test_two_who_take_over_a_training_that_opened_no_run_agree_on_one(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, "pass", next(_numbers))
        started = await work.start()
        outcome = await finish(work, started)
        await mlflow.end()
        closed = await asyncio.gather(*(work.attempt(started).settle(outcome) for _ in range(3)))
        assert len({each.run.run_id for each in closed}) == 1
        assert len(await runs_of(mlflow_server, work)) == 2


async def test_a_retry_has_a_run_of_its_own_and_is_told_the_one_before(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, FAILS_ONCE, next(_numbers))
        first, second = [await to_the_end(work) for _ in range(2)]
        runs = {run.run_id: run for run in await runs_of(mlflow_server, work)}
    assert len(runs) == 3
    assert (runs[first.run_id].status, runs[second.run_id].status) == ("FAILED", "FINISHED")
    assert runs[first.run_id].tags["nighttrain.superseded_by"] == second.run_id
    assert runs[first.run_id].params["resumed"] == "None"
    assert runs[second.run_id].params["resumed"] == first.run_id
    assert runs[first.run_id].params["host"] != runs[second.run_id].params["host"]
    assert runs[second.parent_run_id].status == "FINISHED"
    assert second.parent_run_id == first.parent_run_id


async def test_a_training_that_is_asked_for_anew_is_not_told_what_was_before(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, FAILS_ONCE, next(_numbers))
        first = await to_the_end(work)
        cleared = await to_the_end(replace(work, epoch="1"))
        runs = {run.run_id: run for run in await runs_of(mlflow_server, work)}
    assert runs[cleared.run_id].params["resumed"] == "None"
    assert runs[cleared.run_id].tags["nighttrain.previous_run"] == first.run_id


async def test_processes_that_start_at_once_have_one_job_and_one_run(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING, next(_numbers))
        started = await asyncio.gather(*(work.start() for _ in range(4)))
        assert len({each.workload.uid for each in started}) == 1
        (run_id,) = {each.run_id for each in started}
        outcome = await finish(work, started[0])
        await work.attempt(started[0]).settle(outcome)
        runs = await runs_of(mlflow_server, work)
    assert {run.run_id for run in runs} == {run_id, started[0].parent_run_id}
    assert {run.status for run in runs} == {"FINISHED"}


async def test_a_success_is_not_taken_for_another_spec(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING, next(_numbers))
        first = await to_the_end(work)
        again = await work.start()
        assert (again.workload.uid, again.run_id) == (first.workload.uid, first.run_id)
        other = replace(work, spec=replace(work.spec, arguments=["--rate", "0.2"]))
        second = await to_the_end(other)
    assert second.workload.uid != first.workload.uid
    assert second.run_id != first.run_id


@pytest.mark.parametrize("deleted", ["run", "parent", "experiment", "experiment of an unknown run"])
async def test_a_finished_training_is_not_failed_for_what_lies_in_the_trash(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, deleted: str, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = deleted.endswith("unknown run")
    async with outage(mlflow_server, begun=unknown) as mlflow:
        work = tracked(cluster, mlflow, "pass" if unknown else TRAINING, next(_numbers))
        experiment = mlflow_server.experiment(work.experiment_name)
        started = await work.start()
        if unknown:
            await mlflow.end()
        outcome = await finish(work, started)
        if deleted.startswith("experiment"):
            mlflow_server.call("POST", "experiments/delete", experiment_id=experiment)
        else:
            gone = started.run_id if deleted == "run" else started.parent_run_id
            mlflow_server.call("POST", "runs/delete", run_id=gone)
        closed = (await work.attempt(started).settle(outcome)).started
        assert await work.attempt(closed).logged_models() == []
        await work.attempt(closed).mark_consumed(outcome)
    if deleted != "parent":
        assert "restore --" in caplog.text
        return
    (child,) = await runs_of(mlflow_server, work)
    assert child.status == "FINISHED"


async def test_a_parent_in_the_trash_is_followed_by_another(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING, next(_numbers))
        first = await work.start()
        mlflow_server.call("POST", "runs/delete", run_id=first.parent_run_id)
        second = await work.start()
        assert second.run_id == first.run_id
        assert second.parent_run_id != first.parent_run_id
        outcome = await finish(work, second)
        await work.attempt(second).settle(outcome)
        child, parent = sorted(await runs_of(mlflow_server, work), key=lambda run: "rmse" not in run.metrics)
    assert (child.tags["mlflow.parentRunId"], child.status, parent.status) == (
        parent.run_id,
        "FINISHED",
        "FINISHED",
    )


async def to_the_end(work: TrackedWorkload) -> StartedWorkload:
    """One attempt, as an operator makes it."""
    started = await work.start()
    outcome = await finish(work, started)
    closed = (await work.attempt(started).settle(outcome)).started
    await work.attempt(closed).mark_consumed(outcome)
    return closed


def inject_a_proxy_first(created: Json) -> None:
    """As the webhook of a service mesh or a policy may do with a Job's template."""
    if created.get("kind") == "Job":
        proxy = {"name": "proxy", "image": "py", "command": ["python", "-S", "-c", "pass"]}
        created["spec"]["template"]["spec"]["containers"].insert(0, proxy)


async def test_what_a_webhook_puts_first_into_a_job_is_not_the_training(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with (
        outage(mlflow_server, begun=False) as mlflow,
        ServerProxy(cluster.url, cluster.token, webhook=inject_a_proxy_first) as proxy,
    ):
        through = ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="any"))
        work = replace(tracked(cluster, mlflow, TRAINING, next(_numbers)), cluster=through)
        closed = await to_the_end(work)
        child, parent = sorted(await runs_of(mlflow_server, work), key=lambda run: "rmse" not in run.metrics)
    assert (child.run_id, child.status, child.metrics) == (closed.run_id, "FINISHED", {"rmse": 1.5})
    assert (closed.parent_run_id, parent.status) == (parent.run_id, "FINISHED")


async def test_a_run_without_a_job_beside_one_that_succeeded_is_no_attempt(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    """Its process found that the attempt was another one's, and died before it put the run into the trash."""
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING, next(_numbers))
        closed = await to_the_end(work)
        async with (
            MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as client,
            await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as kube,
        ):
            tree = RunTree(client)
            parent = await tree.get(closed.parent_run_id)
            left = await tree.open_attempt(
                parent.experiment_id,
                work.run_key,
                name="train",
                parent_run_id=parent.run_id,
                tags=work._new_tags(cluster=kube.server, namespace="default"),
            )
            assert left.number == 2
            forgotten = await find_forgotten(
                kube, client, "default", OnlyThisTaskIsOver(work), minimum_age_seconds=0, now=time.time() + 60
            )
            assert left.run_id in [each.run.run_id for each in forgotten]
            await close_forgotten(Runs(client, pytest.fail), forgotten)
            left, parent = await tree.get(left.run_id), await tree.get(parent.run_id)
    assert (left.status, left.tags["nighttrain.superseded_by"]) == ("KILLED", closed.run_id)
    assert parent.status == "FINISHED"


async def test_an_outage_at_the_end_loses_nothing(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    from nighttrain.providers.errors import TrackingUnreachableError

    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, TRAINING, next(_numbers))
        started = await work.start()
        outcome = await finish(work, started)
        await mlflow.begin()
        with pytest.raises(TrackingUnreachableError):
            await work.attempt(started).settle(outcome)
        await mlflow.end()
        closed = (await work.attempt(started).settle(outcome)).started
        assert closed == started
        assert {run.status for run in await runs_of(mlflow_server, work)} == {"FINISHED"}


async def test_cancelling_during_an_outage_removes_the_workload(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON, next(_numbers))
        started = await work.start()
        await work.attempt(started).cancel()
        outcome = await finish(work, started)
    assert outcome.reason == "JobDeleted"


class Died(BaseException):
    """A process's end in the middle, as by SIGKILL: nothing in it may handle this."""


async def start_and_die(work: TrackedWorkload, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A worker that dies before it creates its Job, or right after."""
    create = ClusterClient.create

    async def creates(self: ClusterClient, *args: Any, dry_run: bool = False, **options: Any) -> Any:
        if not dry_run and moment == "before its Job":
            raise Died
        answer = await create(self, *args, dry_run=dry_run, **options)
        if not dry_run:
            raise Died
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(ClusterClient, "create", creates)
        with pytest.raises(Died):
            await work.start()


async def until_ended(work: TrackedWorkload) -> None:
    async with await ClusterClient.open(work.cluster) as client:
        workload = await find_live(
            client, work.identity, epoch=work.epoch, namespace=work.spec.namespace or "default"
        )
    if workload is not None:
        await finish(work, StartedWorkload(workload, ""))


class EveryTaskIs:
    """An Airflow that says the same of each task."""

    def __init__(self, state: TaskState) -> None:
        self._state = state

    async def state(self, identity: WorkloadIdentity) -> TaskState:
        return self._state


class EveryTaskIsOver(EveryTaskIs):
    """An Airflow in which nobody waits any more."""

    def __init__(self) -> None:
        super().__init__(TaskState.OVER)


class OnlyThisTaskIsOver:
    """An Airflow in which all other tasks go on."""

    def __init__(self, work: TrackedWorkload) -> None:
        self._over = work.identity

    async def state(self, identity: WorkloadIdentity) -> TaskState:
        return TaskState.OVER if identity == self._over else TaskState.ALIVE


async def visited(
    work: TrackedWorkload,
    mlflow_uri: str,
    namespace: str = "default",
    warn: Callable[[str], object] = pytest.fail,
) -> Visit:
    """A whole visit of the reaper's, as the operator and the command make it."""
    config = TrackingConfig(uri=mlflow_uri, retry_seconds=0.2)
    async with await ClusterClient.open(work.cluster) as client, MLflowClient(config) as mlflow:
        return await visit(
            client,
            namespace,
            OnlyThisTaskIsOver(work),
            mlflow=mlflow,
            minimum_age_seconds=0,
            now=time.time() + 60,
            only_show=False,
            warn=warn,
        )


async def reap_everything(
    work: TrackedWorkload, mlflow_uri: str, *, expected: Verdict = Verdict.REAPED
) -> list[str]:
    """Reap as the command does; returns the warnings."""
    warnings: list[str] = []
    config = TrackingConfig(uri=mlflow_uri, retry_seconds=0.2)
    async with await ClusterClient.open(work.cluster) as client, MLflowClient(config) as mlflow:
        tasks = EveryTaskIsOver()
        found = await find(client, "default", tasks, minimum_age_seconds=0)
        (mine,) = (finding for finding in found if finding.identity == work.identity)
        (done,) = await reap_all(client, [mine], tasks, Runs(mlflow, warnings.append))
        assert done.verdict is expected
        if expected is not Verdict.REAPED:
            return warnings
        left = await client.list(JOBS, "default", label_selector=f"{ATTEMPT_KEY_LABEL}={work.identity.key}")
        assert left["items"] == []
    return warnings


async def test_reaping_closes_the_run_that_the_workload_was_given(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON, next(_numbers))
        started = await work.start()
        assert await reap_everything(work, mlflow_server.uri) == []
        runs = await runs_of(mlflow_server, work)
    assert {run.run_id for run in runs} == {started.run_id, started.parent_run_id}
    assert {run.status for run in runs if run.run_id == started.run_id} == {"KILLED"}
    assert "RUNNING" not in {run.status for run in runs}


@pytest.mark.parametrize("opens_a_run", [True, False])
async def test_reaping_closes_the_run_of_a_workload_that_started_during_an_outage(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, opens_a_run: bool
) -> None:
    async with outage(mlflow_server) as mlflow:
        code = (TRAINING if opens_a_run else "") + GOES_ON
        work = tracked(cluster, mlflow, code, next(_numbers))
        await work.start()
        await mlflow.end()
        if opens_a_run:
            await until_logged(mlflow_server, work)
        assert await reap_everything(work, mlflow_server.uri) == []
        runs = await runs_of(mlflow_server, work)
    (child,) = (run for run in runs if run.tags["nighttrain.run_key"] == work.run_key.value)
    (parent,) = (run for run in runs if run is not child)
    assert child.status == "KILLED"
    assert child.metrics == ({"rmse": 1.5} if opens_a_run else {})
    assert child.tags["mlflow.parentRunId"] == parent.run_id
    assert parent.status != "RUNNING"


@pytest.mark.parametrize(("code", "status"), [("pass", "FINISHED"), ("raise SystemExit(3)", "FAILED")])
@pytest.mark.parametrize("knows_its_run", [True, False])
async def test_what_ended_after_its_worker_died_on_the_last_try_is_closed_as_it_ended(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, code: str, status: str, knows_its_run: bool
) -> None:
    async with outage(mlflow_server, begun=not knows_its_run) as mlflow:
        work = tracked(cluster, mlflow, code, next(_numbers))
        await finish(work, await work.start())  # and here the worker dies: nobody closes
    assert await reap_everything(work, mlflow_server.uri, expected=Verdict.CLOSED) == []
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == (status, status)
    async with await ClusterClient.open(work.cluster) as client:
        assert not [
            finding
            for finding in await find(client, "default", EveryTaskIsOver(), minimum_age_seconds=0)
            if finding.identity == work.identity
        ]
        kept = await client.list(JOBS, "default", label_selector=f"{ATTEMPT_KEY_LABEL}={work.identity.key}")
        assert len(kept["items"]) == 1


@pytest.mark.parametrize(("code", "status"), [("pass", "FINISHED"), ("raise SystemExit(3)", "FAILED")])
async def test_what_ended_after_its_worker_died_right_after_its_creation_is_closed_as_it_ended(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    status: str,
) -> None:
    """Nothing on the run says that it ever had a Job."""
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, code, next(_numbers))
        await start_and_die(work, monkeypatch, "after its Job")
        await until_ended(work)
    seen = await visited(work, mlflow_server.uri)
    assert [each.verdict for each in seen.findings if each.identity == work.identity] == [Verdict.CLOSED]
    assert (seen.forgotten, seen.tracking_error) == ([], None)
    for _ in range(2):
        child, parent = await child_and_parent(mlflow_server, work)
        assert (child.status, parent.status) == (status, status)
        assert child.tags["nighttrain.outcome"] == ("succeeded" if code == "pass" else "application_error")
        assert child.tags["nighttrain.job_uid"]
        seen = await visited(work, mlflow_server.uri)
        assert seen.forgotten == []


@pytest.mark.parametrize("moment", ["before its Job", "after its Job"])
@pytest.mark.parametrize("elsewhere", ["namespace", "cluster"])
async def test_a_run_whose_job_nothing_on_it_names_is_left_to_the_reaper_of_its_place(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    moment: str,
    elsewhere: str,
) -> None:
    other = unique("other")
    cluster.call(lambda store: store.create(NAMESPACES, {"metadata": {"name": other}}))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig.read_text().replace("127.0.0.1", "localhost"))
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON, next(_numbers))
        work = replace(work, spec=replace(work.spec, namespace=other))
        await start_and_die(work, monkeypatch, moment)
    there = "default" if elsewhere == "namespace" else other
    config = work.cluster if elsewhere == "namespace" else ClusterConfig(kubeconfig=str(kubeconfig))
    async with (
        await ClusterClient.open(config) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
    ):
        found = await find_forgotten(
            client, opened, there, OnlyThisTaskIsOver(work), minimum_age_seconds=0, now=time.time() + 60
        )
        assert found == []
    seen = await visited(work, mlflow_server.uri, other)
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == ("KILLED", "KILLED")
    assert len(seen.forgotten) == (moment == "before its Job")
    assert [each.verdict for each in seen.findings] == ([Verdict.REAPED] if not seen.forgotten else [])


async def test_a_run_that_somebody_closed_meanwhile_is_left_as_it_is(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, "pass", next(_numbers))
        await start_and_die(work, monkeypatch, "before its Job")
    async with (
        await ClusterClient.open(work.cluster) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
    ):
        (seen,) = await find_forgotten(
            client, opened, "default", OnlyThisTaskIsOver(work), minimum_age_seconds=0, now=time.time() + 60
        )
        mlflow_server.call("POST", "runs/update", run_id=seen.run.run_id, status="FINISHED", end_time=1)
        assert await close_forgotten(Runs(opened, pytest.fail), [seen]) == []
    child, _ = await child_and_parent(mlflow_server, work)
    assert child.status == "FINISHED"


async def test_what_ends_between_the_reapers_look_and_its_deletion_is_closed_by_the_same_visit(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, tmp_path: Path
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, lasts_until(tmp_path / "go"), next(_numbers))
        started = await work.start()
        tasks, warnings = EveryTaskIsOver(), list[str]()
        async with (
            await ClusterClient.open(work.cluster) as client,
            MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
        ):
            found = await find(client, "default", tasks, minimum_age_seconds=0)
            (seen,) = (finding for finding in found if finding.identity == work.identity)
            assert seen.verdict is Verdict.REAP
            (tmp_path / "go").touch()
            await finish(work, started)
            (done,) = await reap_all(client, [seen], tasks, Runs(opened, warnings.append))
        assert (done.verdict, warnings) == (Verdict.CLOSED, [])
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == ("FINISHED", "FINISHED")


@pytest.mark.parametrize(
    ("died", "status"), [("before its Job", "KILLED"), ("before its Job went", "FAILED")]
)
async def test_a_run_that_nobody_will_close_is_closed(
    cluster: EmbeddedCluster,
    mlflow_server: MLflowServer,
    monkeypatch: pytest.MonkeyPatch,
    died: str,
    status: str,
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, "pass", next(_numbers))
        if died == "before its Job":
            await start_and_die(work, monkeypatch, "before its Job")
        else:
            started = await work.start()
            await finish(work, started)
    async with (
        await ClusterClient.open(work.cluster) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
    ):
        if died != "before its Job":
            await client.delete(JOBS, "default", started.workload.name, propagation="Background")

        async def forgotten(tasks: TaskStates, server: ClusterClient = client) -> list[ForgottenRun]:
            found = await find_forgotten(
                server, opened, "default", tasks, minimum_age_seconds=0, now=time.time() + 60
            )
            return [each for each in found if each.identity == work.identity]

        assert await forgotten(EveryTaskIs(TaskState.ALIVE)) == []
        assert await forgotten(EveryTaskIs(TaskState.GONE)) == []  # perhaps another Airflow's
        (mine,) = await forgotten(EveryTaskIsOver())
        await close_forgotten(Runs(opened, pytest.fail), [mine])
        assert await forgotten(EveryTaskIsOver()) == []
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == (status, status)
    assert child.tags["nighttrain.outcome"] == "unknown"


@pytest.mark.parametrize(("children", "status"), [(0, "KILLED"), (1, "FAILED")])
async def test_a_parent_that_nobody_will_settle_is_settled(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, children: int, status: str
) -> None:
    work = tracked(cluster, mlflow_server, "pass", next(_numbers))
    async with MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as client:
        tree = RunTree(client)
        experiment = await tree.ensure_experiment(work.experiment_name)
        parent = await open_parent(tree, experiment, work.run_key.parent)
        if children:  # whoever closed it did not come as far as to its parent
            run = await tree.open_attempt(experiment, work.run_key, name="train", parent_run_id=parent)
            await tree.close(run.run_id, "FAILED")
        for age, expected in ((3600.0, "RUNNING"), (0.0, status)):
            await settle_parents(Runs(client, pytest.fail), minimum_age_seconds=age, now=time.time() + 1)
            assert (await tree.get(parent)).status == expected


@pytest.mark.parametrize(("code", "status"), [("pass", "FINISHED"), ("raise SystemExit(3)", "FAILED")])
async def test_a_run_that_was_opened_again_after_its_result_was_stored_is_closed_as_it_ended(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, code: str, status: str
) -> None:
    """By a process that took the ended attempt over and died: its Job is settled, and no workload to reap."""
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, code, next(_numbers))
        ended = await to_the_end(work)
    mlflow_server.call("POST", "runs/update", run_id=ended.run_id, status="RUNNING", end_time=0)
    async with (
        await ClusterClient.open(work.cluster) as client,
        MLflowClient(TrackingConfig(uri=mlflow_server.uri)) as opened,
    ):
        found = await find_forgotten(
            client, opened, "default", EveryTaskIsOver(), minimum_age_seconds=0, now=time.time() + 60
        )
        mine = [each for each in found if each.identity == work.identity]
        await close_forgotten(Runs(opened, pytest.fail), mine)
    child, parent = await child_and_parent(mlflow_server, work)
    assert (child.status, parent.status) == (status, status)
    assert child.tags["nighttrain.outcome"] != "unknown"


async def child_and_parent(server: MLflowServer, work: TrackedWorkload) -> tuple[Run, Run]:
    runs = await runs_of(server, work)
    (child,) = (run for run in runs if run.tags["nighttrain.run_key"] == work.run_key.value)
    (parent,) = (run for run in runs if run is not child)
    assert child.tags["mlflow.parentRunId"] == parent.run_id
    return child, parent


async def test_reaping_while_mlflow_is_away_removes_the_workload_and_says_so(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON, next(_numbers))
        started = await work.start()
        await mlflow.begin()
        (warning,) = await reap_everything(work, mlflow.uri)
    assert started.workload.name in warning
    assert "could not be closed" in warning


async def test_a_visit_while_mlflow_is_away_removes_what_nobody_waits_for_and_tells(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer
) -> None:
    warnings: list[str] = []
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, GOES_ON, next(_numbers))
        await work.start()
        await mlflow.begin()
        seen = await visited(work, mlflow.uri, warn=warnings.append)
    assert [each.verdict for each in seen.findings if each.identity == work.identity] == [Verdict.REAPED]
    assert isinstance(seen.tracking_error, TrackingUnreachableError)
    assert len(warnings) == 1  # asked once, and not for each run
    assert seen.forgotten == []


async def test_a_run_that_was_removed_for_good_does_not_fail_its_training(
    cluster: EmbeddedCluster, mlflow_server: MLflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with outage(mlflow_server, begun=False) as mlflow:
        work = tracked(cluster, mlflow, "pass", next(_numbers))
        started = await work.start()
        outcome = await finish(work, started)
        mlflow_server.call("POST", "runs/delete", run_id=started.run_id)
        mlflow_server.remove_for_good(started.run_id)
        closed = (await work.attempt(started).settle(outcome)).started
        assert await work.attempt(closed).logged_models() == []
    assert f"its run {started.run_id} was removed from MLflow for good" in caplog.text
    assert "Train again to have a model" in caplog.text


async def until_logged(server: MLflowServer, work: TrackedWorkload) -> None:
    async def some_metrics() -> bool:
        return any(run.metrics for run in await runs_of(server, work))

    await until_async(some_metrics, 60)
