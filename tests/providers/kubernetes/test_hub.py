"""One watch for all who wait in a namespace, over HTTP, through everything that a cluster does to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import warnings
from collections import Counter
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stamina

from helpers.polling import until_async
from helpers.server_proxy import ServerProxy
from helpers.subresources import status_of
from nighttrain.providers import errors
from nighttrain.providers.attempts import end_workload, wait_for_end
from nighttrain.providers.errors import ObjectExistsError
from nighttrain.providers.kubernetes.api.client import EVENTS, JOBS, PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.api.resources import KUEUE_WORKLOADS, Resource
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.mirror import feed, hub, wait_reasons
from nighttrain.providers.kubernetes.mirror.hub import Subscription, subscribe
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from nighttrain.providers.kubernetes.mirror.subscription import Subscription

NAMESPACE = "default"
DEFINITIONS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False
)
_numbers = count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    """Objects are stored and nothing runs: the tests are the controllers. It keeps them over a restart."""
    state = tmp_path_factory.mktemp("hub") / "state"
    with EmbeddedCluster(containers=False, state=Path(state)) as running:
        yield running
        running.faults.clear()


@pytest.fixture
async def proxy(cluster: EmbeddedCluster) -> AsyncIterator[ServerProxy]:
    async with ServerProxy(cluster.url, cluster.token) as standing:
        yield standing


@pytest.fixture
async def client(proxy: ServerProxy) -> AsyncIterator[ClusterClient]:
    """Its requests are counted. When it is closed no task of a hub is left."""
    config = ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="t"))
    before = asyncio.all_tasks()
    with stamina.set_testing(True):
        async with await ClusterClient.open(config) as opened:
            yield opened
            left = {task for task in asyncio.all_tasks() - before if not task.done()}
            assert not [task for task in left if NAMESPACE in task.get_name()]
            assert not hub._hubs.get(opened)


@pytest.fixture
async def admin(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    config = ClusterConfig(kubeconfig=str(cluster.kubeconfig))
    async with await ClusterClient.open(config) as opened:
        yield opened


async def new_job(admin: ClusterClient, **fields: Any) -> Workload:
    run = f"run-{next(_numbers)}"
    who = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")
    made = await admin.create(
        JOBS, NAMESPACE, build_job(check_workload(WorkloadSpec(image="i", **fields)), who, 1)
    )
    return Workload(NAMESPACE, made["metadata"]["name"], made["metadata"]["uid"], 1)


async def complete(admin: ClusterClient, job: Workload) -> None:
    conditions = [{"type": kind, "status": "True"} for kind in ("SuccessCriteriaMet", "Complete")]
    now = "2026-11-24T00:00:00Z"
    status = {"conditions": conditions, "succeeded": 1, "startTime": now, "completionTime": now}
    await admin.patch(status_of(JOBS), NAMESPACE, job.name, {"status": status})


async def new_pod(admin: ClusterClient, job: Workload) -> dict[str, Any]:
    found = await admin.get(JOBS, NAMESPACE, job.name)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid, "controller": True}
    meta = {"name": f"{job.name}-p", "ownerReferences": [owner]}
    meta["labels"] = {**found["spec"]["template"]["metadata"]["labels"]}
    spec = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    return await admin.create(PODS, NAMESPACE, body)


def waits(client: ClusterClient, job: Workload, **options: Any) -> asyncio.Task[Any]:
    options.setdefault("timeouts", Timeouts(60))
    return asyncio.create_task(wait_for_end.wait(client, job, **options))


async def until(view: Subscription, holds: Callable[[], Any], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not (view.synced and holds()):
            await view.change()


def requests(proxy: ServerProxy) -> Counter[str]:
    return Counter(
        f"{'watch' if each.query.get('watch') else each.method} {each.path.rsplit('/', 1)[-1]}"
        for each in proxy.seen
    )


async def test_three_hundred_waits_share_one_watch_of_jobs_and_one_of_pods(
    client: ClusterClient, admin: ClusterClient, proxy: ServerProxy
) -> None:
    jobs = [await new_job(admin) for _ in range(300)]
    tasks = [waits(client, job) for job in jobs]
    async with subscribe(client, NAMESPACE, jobs[0].name, jobs[0].uid) as view:
        await until(view, lambda: True)
        for job in jobs:
            await complete(admin, job)
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*tasks)
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.SUCCEEDED}
    asked = requests(proxy)
    assert (asked["watch jobs"], asked["watch pods"]) == (1, 1)
    assert asked["GET jobs"] == 2  # one list in pages
    for job in jobs:
        await admin.delete(JOBS, NAMESPACE, job.name, propagation="Background")


async def test_a_wait_on_a_job_newer_than_the_mirror_never_says_deleted(
    cluster: EmbeddedCluster, client: ClusterClient, admin: ClusterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "CONFIRM_AFTER_SECONDS", 0.0)
    first = await new_job(admin)
    async with subscribe(client, NAMESPACE, first.name, first.uid) as view:
        await until(view, lambda: view.object)
        # The hub's next answers are late: what is created from here on it learns of from a read.
        cluster.faults.add(
            Fault.expire(resource="jobs", count=None), Fault.stall(3600, verb="list", resource="jobs")
        )
        second = await new_job(admin)
        async with subscribe(client, NAMESPACE, second.name, second.uid) as newer:
            await until(newer, lambda: newer.object)
            assert not newer.gone
        cluster.faults.clear()


async def test_a_wait_on_a_job_that_was_never_there_ends_by_one_read(
    client: ClusterClient, admin: ClusterClient, proxy: ServerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "CONFIRM_AFTER_SECONDS", 0.0)
    here = await new_job(admin)
    async with subscribe(client, NAMESPACE, here.name, here.uid) as view:
        await until(view, lambda: view.object)
        async with asyncio.timeout(20):
            outcome = await waits(client, Workload(NAMESPACE, "absent", "no-uid", 1))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.CANCELLED, "JobDeleted")
    assert requests(proxy)["GET absent"] == 1


async def test_a_job_deleted_while_the_watch_was_down_is_missed_by_the_next_list(
    cluster: EmbeddedCluster, client: ClusterClient, admin: ClusterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "WATCH_SECONDS", 1)
    monkeypatch.setattr(feed, "PAUSE_MAXIMUM_SECONDS", 0.1)
    job = await new_job(admin)
    pod = await new_pod(admin, job)
    async with subscribe(client, NAMESPACE, job.name, job.uid) as view:
        await until(view, lambda: view.object and view.live_pods)
        down = [Fault.answer(503, verb="watch", resource=kind, count=None) for kind in ("jobs", "pods")]
        cluster.faults.add(*down)
        for fault in down:
            assert await asyncio.to_thread(cluster.faults.wait_for, fault)
        await admin.delete(PODS, NAMESPACE, pod["metadata"]["name"])
        await admin.delete(JOBS, NAMESPACE, job.name, propagation="Background")
        assert not view.gone
        await asyncio.to_thread(cluster.call, lambda store: store.compact())
        cluster.faults.clear()
        await until(view, lambda: view.gone)
        await until(view, lambda: not view.live_pods)
        assert [each["metadata"]["uid"] for each in view.pods] == [pod["metadata"]["uid"]]


async def test_an_outage_ends_no_wait_and_is_said_once(
    cluster: EmbeddedCluster,
    client: ClusterClient,
    admin: ClusterClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hub, "OUTAGE_NOTED_SECONDS", 0.0)
    monkeypatch.setattr(feed, "WATCH_SECONDS", 1)
    monkeypatch.setattr(feed, "PAUSE_MAXIMUM_SECONDS", 0.1)
    job, seen = await new_job(admin), list[Observation]()
    # The bound of its start passes during the outage, when nobody can say whether it has started.
    task = waits(client, job, timeouts=Timeouts(60), on_observation=seen.append)
    await until_async(lambda: seen)
    down = Fault.answer(503, count=None, resource="jobs"), Fault.answer(503, count=None, resource="pods")
    with caplog.at_level(logging.WARNING, "nighttrain.providers.kubernetes.mirror.hub"):
        cluster.faults.add(*down)
        async with asyncio.timeout(20):
            await until_async(lambda: "does not answer" in seen[-1].detail)
            cluster.faults.clear()
            await until_async(lambda: "does not answer" not in seen[-1].detail)
            await complete(admin, job)
            assert (await task).succeeded
    said = [record.message for record in caplog.records]
    assert len([each for each in said if "does not answer" in each]) == 1
    assert len([each for each in said if "answers again" in each]) == 1


async def test_a_right_that_is_withdrawn_ends_every_wait_with_its_name(
    cluster: EmbeddedCluster, client: ClusterClient, admin: ClusterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAUSE_MAXIMUM_SECONDS", 0.05)
    cluster.faults.add(Fault.answer(403, count=None, verb="list", resource="pods"))
    tasks = [waits(client, await new_job(admin)) for _ in range(3)]
    async with asyncio.timeout(20):
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    cluster.faults.clear()
    assert {type(error) for error in ended} == {errors.ClusterForbiddenError}
    assert "Grant list on pods" in str(ended[0])
    # Whoever comes afterwards gets a hub that asks anew.
    job = await new_job(admin)
    await complete(admin, job)
    assert (await waits(client, job)).succeeded


async def test_a_process_that_ends_while_a_wait_begins_says_nothing_of_it(client: ClusterClient) -> None:
    """All of its tasks are cancelled, also those that have not begun."""

    async def ending() -> None:
        subscription = hub.Hub(client, NAMESPACE).subscription("job", "uid", asyncio.sleep)
        change = asyncio.create_task(subscription.change(within=60))
        await asyncio.sleep(0)
        begun = asyncio.all_tasks() - before - {asyncio.current_task()}
        assert len(begun) == 2
        for task in begun:
            task.cancel()
        await asyncio.wait({change})

    before = asyncio.all_tasks()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        await ending()
        gc.collect()
    assert [str(each.message) for each in told] == []


async def test_events_explain_through_one_shared_feed_that_ends_with_its_readers(
    client: ClusterClient, admin: ClusterClient, proxy: ServerProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_for_end, "EXPLAIN_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(wait_reasons, "LINGER_SECONDS", 0.0)
    jobs, seen = [await new_job(admin) for _ in range(20)], dict[str, Observation]()
    tasks = [
        waits(client, job, on_observation=lambda told, n=job.name: seen.update({n: told})) for job in jobs
    ]
    for job in jobs:
        about = {"kind": "Job", "name": job.name, "namespace": NAMESPACE, "uid": job.uid}
        event = {"metadata": {"name": f"{job.name}.1"}, "involvedObject": about, "reason": "FailedCreate"}
        message = f"no pod for {job.name}: a webhook said no"
        times = {"firstTimestamp": "2026-11-24T00:00:00Z", "lastTimestamp": "2026-11-24T00:00:00Z"}
        body = {"apiVersion": "v1", "kind": "Event", **event, "message": message, "type": "Warning", **times}
        await admin.create(EVENTS, NAMESPACE, body)
    await until_async(
        lambda: all(
            "a webhook said no" in (seen[job.name].detail if job.name in seen else "") for job in jobs
        )
    )
    assert (requests(proxy)["watch events"], requests(proxy)["GET events"]) == (1, 1)
    async with subscribe(client, NAMESPACE, jobs[0].name, jobs[0].uid):
        for job in jobs:
            await complete(admin, job)
        await asyncio.gather(*tasks)
        await until_async(lambda: not any("events" in task.get_name() for task in asyncio.all_tasks()), 10)


async def test_a_role_without_events_leaves_reasons_shorter_and_is_no_error(
    cluster: EmbeddedCluster, client: ClusterClient, admin: ClusterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_for_end, "EXPLAIN_AFTER_SECONDS", 0.0)
    refused = Fault.answer(403, count=None, resource="events")
    cluster.faults.add(refused)
    job = await new_job(admin)
    task = waits(client, job)
    assert await asyncio.to_thread(cluster.faults.wait_for, refused)
    await complete(admin, job)
    assert (await task).succeeded
    cluster.faults.clear()


async def test_a_narrow_subscription_asks_for_its_job_alone(
    client: ClusterClient, admin: ClusterClient, proxy: ServerProxy
) -> None:
    job = await new_job(admin)
    await complete(admin, job)
    assert (await waits(client, job, narrow=True)).succeeded
    selectors = {each.query.get("fieldSelector") for each in proxy.seen if each.path.endswith("/jobs")}
    assert selectors == {f"metadata.name={job.name}"}
    assert all("nighttrain.dev" not in each.query.get("labelSelector", "") for each in proxy.seen)


async def test_a_restart_of_the_api_server_is_waited_out(
    cluster: EmbeddedCluster, client: ClusterClient, admin: ClusterClient
) -> None:
    job = await new_job(admin)
    task = waits(client, job)
    async with subscribe(client, NAMESPACE, job.name, job.uid) as view:
        await until(view, lambda: view.object)
        await asyncio.to_thread(cluster.restart)
        await complete(admin, job)
        async with asyncio.timeout(30):
            assert (await task).succeeded


KUEUE = KUEUE_WORKLOADS[0]
ABOVE_THE_QUOTA = (
    "couldn't assign flavors to pod set main: insufficient quota for cpu in flavor default, previously "
    "considered podsets requests (0) + current podset request (5) > maximum capacity (1)"
)


async def in_kueue(admin: ClusterClient, job: Workload, message: str) -> None:
    """As Kueue 0.19.2 writes it: a Workload that gets no quota, and why."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": KUEUE.version, "served": True, "storage": True, "subresources": {"status": {}}}
    spec = {
        "group": KUEUE.group,
        "scope": "Namespaced",
        "names": {"plural": KUEUE.plural, "singular": "workload", "kind": KUEUE.kind},
        "versions": [{**version, "schema": {"openAPIV3Schema": anything}}],
    }
    meta = {"name": f"{KUEUE.plural}.{KUEUE.group}"}
    with contextlib.suppress(ObjectExistsError):
        await admin.create(DEFINITIONS, None, {"metadata": meta, "spec": spec})
    labels = {wait_reasons.QUEUE_LABEL: job.uid}
    made = {"metadata": {"name": f"job-{job.name}", "labels": labels}, "spec": {"active": True}}
    await admin.create(KUEUE, NAMESPACE, {"apiVersion": KUEUE.api_version, "kind": KUEUE.kind, **made})
    await reserve(admin, job, "False", "Pending", message)


async def reserve(admin: ClusterClient, job: Workload, status: str, reason: str, message: str) -> None:
    now = "2026-11-26T02:00:00Z"
    condition = {"type": "QuotaReserved", "status": status, "reason": reason, "message": message}
    body = {"status": {"conditions": [{**condition, "lastTransitionTime": now}]}}
    await admin.patch(status_of(KUEUE), NAMESPACE, f"job-{job.name}", body)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_request_above_the_whole_quota_is_told_at_once_and_ends_or_waits_for_a_larger_one(
    client: ClusterClient, admin: ClusterClient, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(wait_for_end, "EXPLAIN_AFTER_SECONDS", 0.0)
    job = await new_job(admin, queue_name="lq")
    await in_kueue(admin, job, ABOVE_THE_QUOTA)
    told = asyncio.Event()

    def say(observation: Observation) -> None:
        if "maximum capacity (1)" in observation.detail or observation.outcome is not None:
            told.set()

    # It began long ago: a bound of the start would have passed.
    task = waits(client, job, timeouts=Timeouts(1, fail_if_over_quota=fails), on_observation=say)
    async with asyncio.timeout(20):
        await told.wait()
        if not fails:
            await reserve(admin, job, "True", "QuotaReserved", "Quota reserved in ClusterQueue cq")
            await admin.patch(JOBS, NAMESPACE, job.name, {"spec": {"suspend": False}})
            await complete(admin, job)
        outcome = await task
    assert outcome.kind is (OutcomeKind.QUOTA_WAIT if fails else OutcomeKind.SUCCEEDED)
    await admin.delete(JOBS, NAMESPACE, job.name, propagation="Background")


async def test_a_wait_for_a_larger_quota_has_the_bound_of_the_queue(
    client: ClusterClient, admin: ClusterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_for_end, "EXPLAIN_AFTER_SECONDS", 0.0)
    # No controller runs here that would let the Job go.
    monkeypatch.setattr(end_workload, "LAST_WORDS_SECONDS", 0.0)
    job = await new_job(admin, queue_name="lq")
    await in_kueue(admin, job, ABOVE_THE_QUOTA)
    async with asyncio.timeout(20):
        outcome = await waits(client, job, timeouts=Timeouts(60, queue=1, fail_if_over_quota=False))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.QUOTA_WAIT, "QueueTimeout")
    assert "waits for a larger one" in outcome.message
    await admin.delete(JOBS, NAMESPACE, job.name, propagation="Background")
