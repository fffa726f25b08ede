"""Another kind of workload is its manifests and a reader of its status; all else works for it as for Jobs."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import replace
from itertools import count, cycle
from typing import TYPE_CHECKING, Any

import pytest

from helpers.server_proxy import ServerProxy
from helpers.subresources import status_of
from nighttrain.providers.attempts import lifecycle, reaper
from nighttrain.providers.errors import ConfigurationError, ObjectExistsError, ObjectNotFoundError
from nighttrain.providers.kubernetes.api.client import PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.api.resources import Resource
from nighttrain.providers.kubernetes.job.checked import CheckedWorkload, check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.kinds import JOB, KINDS, WorkloadKind
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
)
from nighttrain.providers.kubernetes.values.identity import SPEC_HASH_ANNOTATION, WorkloadIdentity
from nighttrain.providers.kubernetes.values.objects import (
    items,
    main_container,
    mapping,
    metadata,
    status,
    uid_of,
)
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.faults.faults import Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

Json = dict[str, Any]

NAMESPACE = "default"
TRAININGS = Resource("example.com", "v1", "trainings", "Training")
DEFINITIONS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
LABEL = "example.com/training"
DEFINITION: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "trainings.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "trainings", "singular": "training", "kind": "Training"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
                },
            }
        ],
    },
}
_numbers = count()


# What a new kind brings: a manifest, and a reader of its status.


def build(workload: CheckedWorkload, identity: WorkloadIdentity, attempt: int) -> Json:
    job = build_job(workload, identity, attempt)
    assert SPEC_HASH_ANNOTATION in job["metadata"]["annotations"]
    return {
        "apiVersion": "example.com/v1",
        "kind": "Training",
        "metadata": job["metadata"],
        "spec": {"worker": job["spec"]["template"]},
    }


def read(
    obj: object, pods: Sequence[object], events: Iterable[object] = (), /, *, queue: object = None
) -> Observation:
    if not isinstance(obj, dict):
        outcome = Outcome(OutcomeKind.CANCELLED, "TrainingDeleted")
        return Observation(Phase.FINISHED, "it is gone", outcome=outcome)
    state = status(obj).get("state")
    if state == "Succeeded":
        return Observation(Phase.FINISHED, "done", outcome=Outcome(OutcomeKind.SUCCEEDED, exit_code=0))
    if state == "Failed":
        code = next((c.exit_code for pod in pods if (c := main_container(pod)) is not None), None)
        outcome = Outcome(OutcomeKind.APPLICATION_ERROR, "Failed", exit_code=code)
        return Observation(Phase.FINISHED, "failed", outcome=outcome)
    return Observation(Phase.RUNNING, "it runs")


def owner_of(pod: Json) -> str:
    owners = items(metadata(pod).get("ownerReferences"))
    return next((str(owner["uid"]) for owner in owners if owner.get("kind") == "Training"), "")


def training(*, pods_know_it: bool) -> WorkloadKind:
    return WorkloadKind(
        resource=TRAININGS,
        build=build,
        read=read,
        has_ended=lambda obj: status(obj).get("state") in ("Succeeded", "Failed"),
        is_suspended=lambda obj: False,
        pod_template=lambda obj: mapping(mapping(obj.get("spec")).get("worker")),
        pod_label=LABEL,
        owner_of=owner_of if pods_know_it else lambda pod: "",
        spec_kept=(),
    )


class Operator:
    """The kind's controller, as its authors would run it: one pod for each training, and its state."""

    def __init__(self, client: ClusterClient) -> None:
        self._client = client

    async def run(self) -> None:
        await asyncio.gather(self._trainings(), self._pods())

    async def _trainings(self) -> None:
        version = str((await self._client.list(TRAININGS, NAMESPACE))["metadata"]["resourceVersion"])
        async for event in self._client.watch(TRAININGS, NAMESPACE, resource_version=version):
            if event.type == "ADDED":
                await self._start(event.object)

    async def _start(self, obj: Json) -> None:
        template, name = obj["spec"]["worker"], obj["metadata"]["name"]
        labels = {**template["metadata"].get("labels", {}), LABEL: name}
        owner = {"apiVersion": "example.com/v1", "kind": "Training", "name": name, "uid": uid_of(obj)}
        meta = {"name": f"{name}-0", "labels": labels, "ownerReferences": [owner | {"controller": True}]}
        with contextlib.suppress(ObjectExistsError):
            await self._client.create(PODS, NAMESPACE, {"metadata": meta, "spec": template["spec"]})

    async def _pods(self) -> None:
        version = str((await self._client.list(PODS, NAMESPACE))["metadata"]["resourceVersion"])
        async for event in self._client.watch(
            PODS, NAMESPACE, resource_version=version, label_selector=LABEL
        ):
            phase = status(event.object).get("phase")
            if event.type == "MODIFIED" and phase in ("Succeeded", "Failed"):
                name = event.object["metadata"]["labels"][LABEL]
                with contextlib.suppress(ObjectNotFoundError):
                    body = {"status": {"state": phase}}
                    await self._client.patch(status_of(TRAININGS), NAMESPACE, name, body)


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as opened:
        with contextlib.suppress(ObjectExistsError):
            await opened.create(DEFINITIONS, None, DEFINITION)
        operator = asyncio.create_task(Operator(opened).run())
        yield opened
        operator.cancel()
        await asyncio.gather(operator, return_exceptions=True)


@pytest.fixture(params=[True, False], ids=["pods name it as owner", "pods have its name only"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> WorkloadKind:
    new = training(pods_know_it=request.param)
    monkeypatch.setitem(KINDS, new.name, new)
    return new


@pytest.fixture
def identity() -> WorkloadIdentity:
    run = f"kinds-{next(_numbers)}"
    return WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")


def spec(code: str) -> WorkloadSpec:
    return WorkloadSpec(image="py", cmds=["python", "-S", "-u", "-c", code], termination_grace_period=1)


async def test_it_is_submitted_adopted_followed_and_settled(
    client: ClusterClient, kind: WorkloadKind, identity: WorkloadIdentity
) -> None:
    what = spec("for n in range(3): print('line', n)")
    first = await lifecycle.submit(
        client, check_workload(what), identity, epoch="1", namespace=NAMESPACE, kind=kind
    )
    again = await lifecycle.submit(
        client, check_workload(what), identity, epoch="1", namespace=NAMESPACE, kind=kind
    )
    assert (again.uid, again.adopted, again.kind) == (first.uid, True, "Training")
    lines: list[str] = []
    async with asyncio.timeout(60):
        _, outcome = await asyncio.gather(
            logs.follow(client, first, lines.append), lifecycle.wait(client, first, timeouts=Timeouts(30))
        )
    assert outcome.succeeded
    assert lines == ["line 0", "line 1", "line 2"]
    await lifecycle.mark_consumed(client, first, "1", outcome=outcome)
    cleared = await lifecycle.submit(
        client, check_workload(what), identity, epoch="2", namespace=NAMESPACE, kind=kind
    )
    assert (cleared.attempt, cleared.adopted) == (2, False)
    assert (await lifecycle.wait(client, cleared, timeouts=Timeouts(30))).succeeded


async def test_its_failure_is_read_from_its_pods(
    client: ClusterClient, kind: WorkloadKind, identity: WorkloadIdentity
) -> None:
    job = await lifecycle.submit(
        client, check_workload(spec("raise SystemExit(3)")), identity, namespace=NAMESPACE, kind=kind
    )
    async with asyncio.timeout(60):
        outcome = await lifecycle.wait(client, job, timeouts=Timeouts(30))
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.APPLICATION_ERROR, 3)


async def test_cancel_leaves_nothing_of_it(
    client: ClusterClient, kind: WorkloadKind, identity: WorkloadIdentity
) -> None:
    sleeping = spec("import time; print('asleep'); time.sleep(60)")
    job = await lifecycle.submit(client, check_workload(sleeping), identity, namespace=NAMESPACE, kind=kind)
    began = asyncio.Event()
    following = asyncio.create_task(logs.follow(client, job, lambda _: began.set()))
    async with asyncio.timeout(60):
        await began.wait()
        waiting = asyncio.create_task(lifecycle.wait(client, job, timeouts=Timeouts(30)))
        await lifecycle.cancel(client, job)
        assert (await waiting).kind is OutcomeKind.CANCELLED
        await following
    listed = await client.list(PODS, NAMESPACE, label_selector=f"{LABEL}={job.name}")
    assert [pod for pod in listed["items"] if pod["status"]["phase"] == "Running"] == []


async def test_all_of_a_kind_share_one_watch_beside_that_of_jobs(
    cluster: EmbeddedCluster, client: ClusterClient, kind: WorkloadKind, identity: WorkloadIdentity
) -> None:
    sleeping = spec("import time; time.sleep(60)")
    identities = [replace(identity, task_id=f"task{number}") for number in range(6)]
    async with (
        ServerProxy(cluster.url, cluster.token) as proxy,
        await ClusterClient.open(ClusterConfig(kubeconfig_content=proxy.kubeconfig(token="t"))) as watched,
    ):
        found = [
            await lifecycle.submit(watched, check_workload(sleeping), who, namespace=NAMESPACE, kind=each)
            for who, each in zip(identities, cycle((JOB, kind)), strict=False)
        ]
        seen: asyncio.Queue[Observation] = asyncio.Queue()
        waits = [
            asyncio.create_task(
                lifecycle.wait(watched, each, timeouts=Timeouts(30), on_observation=seen.put_nowait)
            )
            for each in found
        ]
        async with asyncio.timeout(60):
            for _ in waits:
                await seen.get()
            for each in found:
                await lifecycle.cancel(client, each)
            assert {outcome.kind for outcome in await asyncio.gather(*waits)} == {OutcomeKind.CANCELLED}
    lists = Counter(request.path.rpartition("/")[2] for request in proxy.seen if request.query.get("limit"))
    # The pods are listed for each kind: a hub sees its own kind's.
    assert lists == {"jobs": 1, "trainings": 1, "pods": 2}


class Over:
    """An orchestrator whose tasks are all over."""

    async def state(self, _: WorkloadIdentity) -> reaper.TaskState:
        return reaper.TaskState.OVER


async def test_the_reaper_finds_it(
    client: ClusterClient, kind: WorkloadKind, identity: WorkloadIdentity
) -> None:
    sleeping = spec("import time; time.sleep(60)")
    job = await lifecycle.submit(client, check_workload(sleeping), identity, namespace=NAMESPACE, kind=kind)
    findings = await reaper.find(client, NAMESPACE, Over(), minimum_age_seconds=0)
    (finding,) = (each for each in findings if each.workload.uid == job.uid)
    assert (await reaper.reap(client, finding, Over())).verdict is reaper.Verdict.REAPED
    with pytest.raises(ObjectNotFoundError):
        await client.get(TRAININGS, NAMESPACE, job.name)


async def test_a_kind_that_may_not_be_listed_does_not_keep_the_reaper_from_jobs(
    client: ClusterClient,
    cluster: EmbeddedCluster,
    kind: WorkloadKind,
    identity: WorkloadIdentity,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sleeping = check_workload(spec("import time; time.sleep(60)"))
    job = await lifecycle.submit(client, sleeping, identity, namespace=NAMESPACE)
    cluster.faults.add(Fault.answer(403, verb="list", resource="trainings"))
    findings = await reaper.find(client, NAMESPACE, Over(), minimum_age_seconds=0)
    assert job.uid in {each.workload.uid for each in findings}
    assert "Training workloads are not looked at" in caplog.text
    await lifecycle.cancel(client, job)


def test_a_stored_workload_names_its_kind_and_older_ones_are_jobs() -> None:
    stored = lifecycle.Workload(NAMESPACE, "w", "u", 1, kind="Training").to_dict()
    assert lifecycle.Workload.from_dict(stored).kind == "Training"
    del stored["kind"]
    assert lifecycle.Workload.from_dict(stored).kind == "Job"


async def test_a_kind_that_is_not_there_is_named(client: ClusterClient) -> None:
    strange = lifecycle.Workload(NAMESPACE, "w", "u", 1, kind="Trainning")
    with pytest.raises(ConfigurationError, match="workload kind = 'Trainning': there are: Job"):
        await lifecycle.observe(client, strange)
