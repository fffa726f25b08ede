"""What users of other operators report, each with its thread: here it does not happen.

The names are those of the threads: ``airflow`` is apache/airflow, ``dagster`` is dagster-io/dagster.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from helpers.container_code import lasts_until
from nighttrain.providers.attempts import lifecycle, reaper
from nighttrain.providers.kubernetes.api.client import JOBS, PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.store.resources import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nighttrain.providers.kubernetes.values.submitted_workload import Workload
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

NAMESPACE = "default"
_numbers = count()

SLEEP = "import time; print('asleep', flush=True); time.sleep(60)"
# Ends with 0 when it is told to go, as careful training code does.
POLITE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print('asleep', flush=True)
time.sleep(60)
"""


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    cluster.faults.clear()
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as opened:
        yield opened
        cluster.faults.clear()
        for job in (await opened.list(JOBS, NAMESPACE))["items"]:
            await opened.delete(JOBS, NAMESPACE, job["metadata"]["name"], propagation="Background")


@pytest.fixture
def identity() -> WorkloadIdentity:
    run = f"symptom-{next(_numbers)}"
    return WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")


def spec(code: str, **fields: Any) -> WorkloadSpec:
    given: dict[str, Any] = {"image": "py", "termination_grace_period": 1} | fields
    return WorkloadSpec(cmds=["python", "-S", "-u", "-c", code], **given)


async def submit(
    client: ClusterClient, given: WorkloadSpec, who: WorkloadIdentity, epoch: str = "1"
) -> Workload:
    return await lifecycle.submit(client, check_workload(given), who, epoch=epoch, namespace=NAMESPACE)


async def wait(client: ClusterClient, job: Workload, seconds: float = 30, **options: Any) -> Outcome:
    async with asyncio.timeout(60):
        return await lifecycle.wait(client, job, timeouts=Timeouts(seconds), **options)


async def pods_of(client: ClusterClient, job: Workload) -> list[dict[str, Any]]:
    selector = f"batch.kubernetes.io/job-name={job.name}"
    return list((await client.list(PODS, job.namespace, label_selector=selector))["items"])


async def asleep(client: ClusterClient, job: Workload) -> None:
    """Return once the training code runs."""
    said = asyncio.Event()
    following = asyncio.create_task(logs.follow(client, job, lambda _line: said.set()))
    async with asyncio.timeout(30):
        await said.wait()
    following.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await following


@contextlib.asynccontextmanager
async def held(client: ClusterClient, job: Workload) -> AsyncIterator[None]:
    """The Job's pod stays to be seen, however late somebody looks."""
    (pod,) = await pods_of(client, job)
    before = pod["metadata"].get("finalizers") or []
    name, finalizer = pod["metadata"]["name"], "nighttrain.test/held"
    await client.patch(PODS, job.namespace, name, {"metadata": {"finalizers": [*before, finalizer]}})
    yield
    await client.patch(PODS, job.namespace, name, {"metadata": {"finalizers": None}})


async def evict(cluster: EmbeddedCluster, client: ClusterClient, job: Workload) -> None:
    cluster.faults.add(Fault.evict(f"{job.name}-*", verb="get", resource="jobs"))
    await client.get(JOBS, job.namespace, job.name)


async def kill_pod(cluster: EmbeddedCluster, client: ClusterClient, job: Workload, how: str) -> None:
    if how == "deleted":
        (pod,) = await pods_of(client, job)
        await client.delete(PODS, NAMESPACE, pod["metadata"]["name"])
    else:
        await evict(cluster, client, job)


async def completed(client: ClusterClient, job: Workload) -> bool:
    """Whether the Job has counted its end."""
    found = await client.get(JOBS, NAMESPACE, job.name)
    return "completionTime" in found["status"]


KILLS = pytest.mark.parametrize(
    ("how", "kind"), [("deleted", OutcomeKind.CANCELLED), ("evicted", OutcomeKind.EVICTED)]
)


@KILLS
async def test_pod_was_killed_but_the_task_says_success__airflow_73006_41867(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity, how: str, kind: OutcomeKind
) -> None:
    job = await submit(client, spec(SLEEP), identity)
    await asleep(client, job)
    await kill_pod(cluster, client, job, how)
    assert (await wait(client, job)).kind is kind


@KILLS
async def test_pod_was_killed_and_its_code_ended_with_0__airflow_73006_41867(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity, how: str, kind: OutcomeKind
) -> None:
    job = await submit(client, spec(POLITE), identity)
    await asleep(client, job)
    async with held(client, job):
        await kill_pod(cluster, client, job, how)
        assert (await wait(client, job)).kind is kind


@pytest.mark.parametrize(
    ("code", "kind"), [(POLITE, OutcomeKind.CANCELLED), ("print('asleep')", OutcomeKind.SUCCEEDED)]
)
async def test_pod_was_gone_before_anybody_looked__airflow_73006_41867(
    client: ClusterClient, identity: WorkloadIdentity, code: str, kind: OutcomeKind
) -> None:
    """Stopped while it ran, or removed after it had ended: the Job says Complete of both."""
    job = await submit(client, spec(code), identity)
    await asleep(client, job)
    (pod,) = await pods_of(client, job)
    async with asyncio.timeout(30):
        if kind is OutcomeKind.SUCCEEDED:
            await wait(client, job)
        await client.delete(PODS, NAMESPACE, pod["metadata"]["name"])
        while await pods_of(client, job) or not await completed(client, job):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await wait(client, job)).kind is kind
    observed = await lifecycle.observe(client, job)
    assert observed.outcome is not None
    assert observed.outcome.kind is kind


async def test_the_worker_died_and_took_its_training_with_it__airflow_39791_21900(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec(SLEEP), identity)
    worker = asyncio.create_task(wait(client, job))
    await asleep(client, job)
    worker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker
    again = await submit(client, spec(SLEEP), identity)
    assert (again.uid, again.adopted) == (job.uid, True)
    assert [pod["status"]["phase"] for pod in await pods_of(client, job)] == ["Running"]


async def test_more_than_one_pod_was_found_with_the_labels__airflow_10544_12111(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    first = await submit(client, spec(SLEEP), identity)
    await asleep(client, first)
    (pod,) = await pods_of(client, first)
    labels = pod["metadata"]["labels"].items()
    stranger = {
        "metadata": {
            "name": "stranger",
            "labels": {key: value for key, value in labels if key.startswith("nighttrain.dev/")},
        },
        "spec": {"containers": [{"name": "main", "image": "py", "command": ["python", "-c", "pass"]}]},
    }
    await client.create(PODS, NAMESPACE, stranger)
    racers = await asyncio.gather(*(submit(client, spec(SLEEP), identity) for _ in range(4)))
    assert {racer.uid for racer in racers} == {first.uid}
    await lifecycle.cancel(client, first)
    assert (await wait(client, first)).kind is OutcomeKind.CANCELLED
    await client.delete(PODS, NAMESPACE, "stranger")


async def test_clearing_a_deferred_task_orphans_its_pod__airflow_62398_72100(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    old = await submit(client, spec(SLEEP), identity, epoch="1")
    old_trigger = asyncio.create_task(wait(client, old))
    await asleep(client, old)
    new = await submit(client, spec(SLEEP), identity, epoch="2")
    assert (await old_trigger).kind is OutcomeKind.CANCELLED
    assert not [pod for pod in await pods_of(client, old) if pod["status"]["phase"] == "Running"]
    await lifecycle.cancel(client, old)
    assert (await client.get(JOBS, NAMESPACE, new.name))["metadata"]["uid"] == new.uid


class DagRunsAreGone:
    async def state(self, identity: WorkloadIdentity) -> reaper.TaskState:
        return reaper.TaskState.GONE


async def test_zombie_pods_never_end__airflow_58968_49466(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec(SLEEP), identity)
    findings = await reaper.find(client, NAMESPACE, DagRunsAreGone(), minimum_age_seconds=0)
    (zombie,) = [finding for finding in findings if finding.workload.name == job.name]
    done = await reaper.reap(client, zombie, DagRunsAreGone())
    assert done.verdict is reaper.Verdict.REAPED
    assert not [pod for pod in await pods_of(client, job) if pod["status"]["phase"] == "Running"]


async def test_a_pod_refused_before_any_container_hangs_to_the_time_out__airflow_65202_68328(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec("pass", configmaps=["absent"]), identity)
    outcome = await wait(client, job, seconds=1)
    assert outcome.kind is OutcomeKind.REJECTED
    assert "absent" in outcome.explain()


async def test_evictions_burn_the_users_retries__airflow_73238_66405(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec(SLEEP), identity)
    await asleep(client, job)
    await evict(cluster, client, job)
    outcome = await wait(client, job)
    assert outcome.infrastructure
    await lifecycle.mark_consumed(client, job, "1", outcome=outcome)
    following = await submit(client, spec(SLEEP), identity)
    assert (following.attempt, following.infrastructure_failures) == (2, 1)


async def test_a_wrong_image_is_waited_out_without_a_word__airflow_49867_61775(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec("pass", image="absent:1"), identity)
    outcome = await wait(client, job, seconds=1)
    assert outcome.kind is OutcomeKind.IMAGE_PULL
    assert "absent:1" in outcome.explain()


async def test_the_xcom_sidecar_keeps_the_pod_alive__airflow_22318_36218_60319(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec("print('trained')"), identity)
    assert (await wait(client, job)).kind is OutcomeKind.SUCCEEDED
    (pod,) = await pods_of(client, job)
    assert [container["name"] for container in pod["spec"]["containers"]] == ["main"]


# The embedded server leaves the file of a cut log to the garbage collection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_broken_log_fails_the_task_or_repeats_its_lines__airflow_12136_15990_30245(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity
) -> None:
    cut = Fault.cut(resource="pods/log", after=3)
    cluster.faults.add(cut)
    job = await submit(client, spec("for number in range(20): print('line', number)"), identity)
    lines: list[str] = []
    outcome, _ = await asyncio.gather(wait(client, job), logs.follow(client, job, lines.append))
    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert cluster.faults.struck(cut) == 1
    assert lines == [f"line {number}" for number in range(20)]


async def test_too_many_requests_fail_the_task__airflow_58033_58397(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity, tmp_path: Path
) -> None:
    faults = [
        Fault.answer(429, retry_after=1, verb=verb, resource="jobs") for verb in ("create", "list", "watch")
    ]
    cluster.faults.add(*faults)
    job = await submit(client, spec(lasts_until(tmp_path / "go")), identity)
    waiting = asyncio.create_task(wait(client, job))
    for fault in faults:
        assert await asyncio.to_thread(cluster.faults.wait_for, fault, 1, 30)
    (tmp_path / "go").touch()
    assert (await waiting).kind is OutcomeKind.SUCCEEDED
    assert [cluster.faults.struck(fault) for fault in faults] == [1, 1, 1]


async def test_410_gone_ends_the_watch__airflow_21087_37369_44127(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity, tmp_path: Path
) -> None:
    gone = Fault.expire(resource="jobs")
    cluster.faults.add(Fault.cut(verb="watch", resource="jobs"), gone)
    job = await submit(client, spec(lasts_until(tmp_path / "go")), identity)
    waiting = asyncio.create_task(wait(client, job))
    assert await asyncio.to_thread(cluster.faults.wait_for, gone, 1, 30)
    (tmp_path / "go").touch()
    assert (await waiting).kind is OutcomeKind.SUCCEEDED


async def test_each_wait_polls_by_itself__airflow_71349_69661(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity
) -> None:
    watches = [Fault.stall(0, verb="watch", resource=resource, count=None) for resource in ("jobs", "pods")]
    polls = Fault.stall(0, verb="get", resource="*", count=None)
    jobs = [await submit(client, spec(SLEEP), replace(identity, task_id=f"t{n}")) for n in range(4)]
    cluster.faults.add(*watches, polls)
    seen: asyncio.Queue[Observation] = asyncio.Queue()
    waits = [
        asyncio.create_task(wait(client, job, on_observation=seen.put_nowait))
        for job in jobs
        for _ in range(5)
    ]
    for _ in waits:
        await seen.get()
    for fault in watches:
        assert await asyncio.to_thread(cluster.faults.wait_for, fault, 1, 30)
    assert cluster.faults.struck(polls) == 0
    for job in jobs:
        await client.delete(JOBS, NAMESPACE, job.name, propagation="Background")
    assert {outcome.kind for outcome in await asyncio.gather(*waits)} == {OutcomeKind.CANCELLED}
    assert [cluster.faults.struck(fault) for fault in watches] == [1, 1]


async def test_out_of_quota_is_a_failure__airflow_16316_35792(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity
) -> None:
    cluster.call(lambda store: store.create(NAMESPACES, {"metadata": {"name": "crowded"}}))
    cluster.quota(pods=1, namespace="crowded")
    other = replace(identity, task_id="other")
    first = await lifecycle.submit(client, check_workload(spec(SLEEP)), other, epoch="1", namespace="crowded")
    await asleep(client, first)
    job = await lifecycle.submit(
        client, check_workload(spec("pass")), identity, epoch="1", namespace="crowded"
    )
    told = asyncio.Event()

    def says_quota(observation: Observation) -> None:
        if "quota" in observation.detail:
            told.set()

    waiting = asyncio.create_task(wait(client, job, seconds=1, on_observation=says_quota))
    async with asyncio.timeout(30):
        await told.wait()
    await asyncio.sleep(1.5)  # longer than the workload may take to start: a queue's wait is not counted
    assert not waiting.done()
    await lifecycle.cancel(client, first)
    assert (await waiting).kind is OutcomeKind.SUCCEEDED


@pytest.mark.parametrize("how", ["deleted", "init container failed", "replaced"])
async def test_the_pod_is_gone_and_the_wait_hangs__dagster_22453_32428_33755(
    client: ClusterClient, identity: WorkloadIdentity, how: str
) -> None:
    command = ["python", "-S", "-c", "raise SystemExit(3)"]
    before = [{"name": "fetch", "image": "py", "command": command}] if how.startswith("init") else None
    job = await submit(client, spec(SLEEP, init_containers=before), identity)
    if before is None:
        await asleep(client, job)
        (pod,) = await pods_of(client, job)
        await client.delete(PODS, NAMESPACE, pod["metadata"]["name"])
    if how == "replaced":
        await submit(client, spec(SLEEP), identity, epoch="2")
    outcome = await wait(client, job)
    if before is None:
        assert outcome.kind is OutcomeKind.CANCELLED
    else:
        assert (outcome.kind, outcome.exit_code) == (OutcomeKind.APPLICATION_ERROR, 3)
        assert "init container 'fetch'" in outcome.explain()


async def test_the_pods_reason_is_not_shown__dagster_13593(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec("print('no flights that night'); raise SystemExit(4)"), identity)
    explained = (await wait(client, job)).explain()
    for part in ("exit code 4", "no flights that night", "read the last lines of the log"):
        assert part in explained
