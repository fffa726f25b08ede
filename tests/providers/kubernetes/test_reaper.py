"""Workloads whose task is over go; everything else stays, whatever happens in between."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

import pytest

from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.attempts.reaper import Finding, TaskState, Verdict, find, reap, table
from nighttrain.providers.kubernetes.api.client import JOBS, PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nighttrain.providers.local.cluster.server import EmbeddedCluster

NAMESPACE = "default"
SPEC = WorkloadSpec(image="py", cmds=["python", "-S", "-c", "import time; time.sleep(60)"])
SPEC = WorkloadSpec(image="py", cmds=SPEC.cmds, termination_grace_period=1)
_numbers = count(1)


class Tasks:
    """An orchestrator's answers; unknown tasks are alive."""

    def __init__(self) -> None:
        self.states: dict[WorkloadIdentity, TaskState] = {}
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def state(self, identity: WorkloadIdentity) -> TaskState:
        if self.meanwhile is not None:
            await self.meanwhile()
        return self.states.get(identity, TaskState.ALIVE)


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with await ClusterClient.open(ClusterConfig(kubeconfig=str(cluster.kubeconfig))) as opened:
        yield opened
        for job in (await opened.list(JOBS, NAMESPACE))["items"]:
            await opened.delete(JOBS, NAMESPACE, job["metadata"]["name"], propagation="Background")


def who(orchestrator: str = "airflow", map_index: int = -1, region: str = "") -> WorkloadIdentity:
    return WorkloadIdentity(
        orchestrator=orchestrator,
        dag_id="nightly",
        run_id=f"reap-{next(_numbers)}",
        task_id="train",
        map_index=map_index,
        region=region,
    )


async def submit(client: ClusterClient, identity: WorkloadIdentity) -> lifecycle.Workload:
    return await lifecycle.submit(client, check_workload(SPEC), identity, epoch="1", namespace=NAMESPACE)


async def found(client: ClusterClient, tasks: Tasks, age: float = 0) -> dict[str, Finding]:
    findings = await find(client, NAMESPACE, tasks, minimum_age_seconds=age)
    return {finding.workload.name: finding for finding in findings}


async def jobs(client: ClusterClient) -> set[str]:
    return {job["metadata"]["name"] for job in (await client.list(JOBS, NAMESPACE))["items"]}


@pytest.mark.parametrize("state", list(TaskState))
async def test_only_workloads_of_tasks_that_are_over_or_gone_are_reaped(
    client: ClusterClient, state: TaskState
) -> None:
    tasks, identity = Tasks(), who(map_index=3)
    job = await submit(client, identity)
    tasks.states[identity] = state
    finding = (await found(client, tasks))[job.name]
    over = state in (TaskState.OVER, TaskState.GONE)
    assert (finding.verdict, finding.identity) == (Verdict.REAP if over else Verdict.KEEP, identity)
    assert job.name in await jobs(client), "finding deletes nothing"
    done = await reap(client, finding, tasks)
    assert done.verdict is (Verdict.REAPED if over else Verdict.KEEP)
    assert (job.name in await jobs(client)) == (not over)
    pods = await client.list(PODS, NAMESPACE, label_selector=f"batch.kubernetes.io/job-name={job.name}")
    assert over == all(pod["status"]["phase"] in ("Failed", "Succeeded") for pod in pods["items"])


async def test_of_a_loops_iterations_only_the_one_that_is_over_is_reaped(client: ClusterClient) -> None:
    tasks, lives = Tasks(), who(region="019b:1")
    over = replace(lives, region="019b:0")
    names = {identity: (await submit(client, identity)).name for identity in (over, lives)}
    tasks.states[over] = TaskState.OVER
    findings = await found(client, tasks)
    assert {name: findings[name].identity for name in findings} == {
        name: identity for identity, name in names.items()
    }
    assert "train in 019b:0" in table(list(findings.values()))
    for finding in findings.values():
        await reap(client, finding, tasks)
    assert await jobs(client) == {names[lives]}


async def test_a_task_that_comes_back_between_the_look_and_the_deletion_keeps_its_workload(
    client: ClusterClient,
) -> None:
    tasks, identity = Tasks(), who()
    job = await submit(client, identity)
    tasks.states[identity] = TaskState.OVER
    finding = (await found(client, tasks))[job.name]

    async def retry_begins() -> None:
        tasks.meanwhile = None
        assert (await submit(client, identity)).adopted

    tasks.meanwhile = retry_begins
    assert (await reap(client, finding, tasks)).verdict is Verdict.TAKEN_OVER
    assert job.name in await jobs(client)


async def test_a_task_that_came_back_before_is_left_alone(client: ClusterClient) -> None:
    tasks, identity = Tasks(), who()
    job = await submit(client, identity)
    tasks.states[identity] = TaskState.OVER
    finding = (await found(client, tasks))[job.name]
    tasks.states[identity] = TaskState.ALIVE
    assert (await reap(client, finding, tasks)).verdict is Verdict.KEEP
    assert job.name in await jobs(client)


async def test_a_later_job_of_the_same_name_is_left_alone(client: ClusterClient) -> None:
    tasks, identity = Tasks(), who()
    job = await submit(client, identity)
    tasks.states[identity] = TaskState.OVER
    finding = (await found(client, tasks))[job.name]
    await lifecycle.cancel(client, job)
    later = await submit(client, identity)
    assert later.name == job.name
    assert (await reap(client, finding, tasks)).verdict is Verdict.KEEP
    assert later.name in await jobs(client)


async def test_young_ended_and_foreign_workloads_are_no_findings_to_reap(client: ClusterClient) -> None:
    tasks = Tasks()
    young, ended, foreign = who(), who(), who("dagster")
    job = await submit(client, young)
    for identity in (young, ended, foreign):
        tasks.states[identity] = TaskState.GONE
    await submit(client, foreign)
    over = await lifecycle.submit(
        client,
        check_workload(WorkloadSpec(image="py", cmds=["python", "-S", "-c", ""])),
        ended,
        namespace=NAMESPACE,
    )
    await lifecycle.wait(client, over, timeouts=Timeouts(30))
    findings = await found(client, tasks, age=300)
    assert {name: finding.verdict for name, finding in findings.items()} == {job.name: Verdict.KEEP}


async def test_a_job_whose_annotations_were_changed_is_nobodys(client: ClusterClient) -> None:
    identity = who()
    job = await submit(client, identity)
    await client.patch(
        JOBS, NAMESPACE, job.name, {"metadata": {"annotations": {"nighttrain.dev/run-id": "another"}}}
    )
    assert await found(client, Tasks()) == {}


async def test_the_table_names_the_task_and_a_negative_age_is_refused(client: ClusterClient) -> None:
    identity = who(map_index=2)
    job = await submit(client, identity)
    tasks = Tasks()
    tasks.states[identity] = TaskState.GONE
    shown = table(list((await found(client, tasks)).values()))
    assert shown.splitlines()[0].split() == ["VERDICT", "TASK", "IS", "JOB", "DAG", "RUN", "TASK", "AGE"]
    for words in ("reap", "gone", f"default/{job.name}", identity.run_id, "train[2]"):
        assert words in shown
    with pytest.raises(errors.ConfigurationError, match="minimum_age_seconds"):
        await find(client, NAMESPACE, tasks, minimum_age_seconds=-1)


async def test_the_age_is_measured_by_the_clusters_clock(client: ClusterClient) -> None:
    job = await submit(client, who())
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    findings = await find(client, NAMESPACE, Tasks(), now=lambda: tomorrow)
    assert {f.workload.name: f.age_seconds < 60 for f in findings} == {job.name: True}
