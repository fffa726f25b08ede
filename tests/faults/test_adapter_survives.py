"""nighttrain's own adapter against a cluster that has a bad day."""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from typing import TYPE_CHECKING

import pytest

from helpers.container_code import lasts_until
from helpers.polling import until
from helpers.random_faults import random_plan
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.errors import ObjectConflictError
from nighttrain.providers.kubernetes.api.client import JOBS, ClusterClient
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.outcome.outcome import (
    OutcomeKind,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMESPACE = "default"
_numbers = count()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}, state=tmp_path / "state") as running:
        yield running


@pytest.fixture
def identity() -> WorkloadIdentity:
    run = f"run-{next(_numbers)}"
    return WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")


def spec(code: str) -> WorkloadSpec:
    return WorkloadSpec(image="py", cmds=["python", "-u", "-c", code], termination_grace_period=1)


async def submit(client: ClusterClient, code: str, who: WorkloadIdentity) -> lifecycle.Workload:
    return await lifecycle.submit(client, check_workload(spec(code)), who, epoch="0", namespace=NAMESPACE)


async def wait(client: ClusterClient, job: lifecycle.Workload) -> OutcomeKind:
    async with asyncio.timeout(60):
        return (await lifecycle.wait(client, job, timeouts=Timeouts(30))).kind


async def names(client: ClusterClient) -> list[str]:
    return [job["metadata"]["name"] for job in (await client.list(JOBS, NAMESPACE))["items"]]


async def test_a_submission_whose_answer_is_lost_leaves_one_job(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity
) -> None:
    lost = Fault.drop_reply(verb="create", resource="jobs")
    cluster.faults.add(lost, Fault.answer(429, retry_after=1, verb="create", resource="jobs"))
    job = await submit(client, "print('trained')", identity)
    assert cluster.faults.struck(lost) == 1
    assert cluster.faults.struck() == 2
    assert await names(client) == [job.name]
    assert job.attempt == 1
    assert await wait(client, job) is OutcomeKind.SUCCEEDED


async def test_a_conflict_at_a_creation_is_no_refusal(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity
) -> None:
    """As an API server answers while many write one ResourceQuota's count."""
    conflicts = Fault.answer(409, verb="create", resource="jobs", count=3)
    cluster.faults.add(conflicts)
    job = await submit(client, "print('trained')", identity)
    assert cluster.faults.struck(conflicts) == 3
    assert (job.attempt, await names(client)) == (1, [job.name])
    cluster.faults.add(Fault.answer(409, verb="create", resource="jobs", count=None))
    other = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id="refused", task_id="train")
    with pytest.raises(ObjectConflictError):
        await submit(client, "print('trained')", other)


@pytest.mark.parametrize(("code", "kind"), [(0, OutcomeKind.SUCCEEDED), (3, OutcomeKind.APPLICATION_ERROR)])
async def test_a_wait_with_cut_watches_and_an_expired_history_ends_right(
    cluster: EmbeddedCluster,
    client: ClusterClient,
    identity: WorkloadIdentity,
    tmp_path: Path,
    code: int,
    kind: OutcomeKind,
) -> None:
    faults = [
        Fault.cut(verb="watch", resource="jobs"),
        Fault.expire(resource="jobs"),
        Fault.cut(verb="watch", resource="pods"),
        Fault.expire(resource="pods"),
    ]
    cluster.faults.add(*faults)
    job = await submit(client, lasts_until(tmp_path / "go") + f"raise SystemExit({code})", identity)
    waiting = asyncio.create_task(wait(client, job))
    for fault in faults:
        assert await asyncio.to_thread(cluster.faults.wait_for, fault, 1, 30)
    (tmp_path / "go").touch()
    assert await waiting is kind
    assert await names(client) == [job.name]


BEGUN = "import pathlib, time; pathlib.Path({path!r}).touch(); time.sleep(600)"


async def test_a_wait_outlives_the_server_and_tells_that_the_node_was_lost(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    job = await submit(client, BEGUN.format(path=str(begun)), identity)
    waiting = asyncio.create_task(wait(client, job))

    def restart_once_it_runs() -> None:
        until(begun.exists, 20, "the pod to start")
        cluster.restart()

    await asyncio.to_thread(restart_once_it_runs)
    assert await waiting is OutcomeKind.NODE_LOST
    assert await names(client) == [job.name]


@pytest.mark.parametrize("seed", range(4))
async def test_random_faults_change_no_outcome(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity, seed: int
) -> None:
    plan = random_plan(seed, 8, within=4)
    cluster.faults.add(*plan.pending)
    job = await submit(client, "print('trained')", identity)
    assert await wait(client, job) is OutcomeKind.SUCCEEDED, cluster.faults.hits
    assert cluster.faults.hits
    cluster.faults.clear()
    assert await names(client) == [job.name]
