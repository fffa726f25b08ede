"""Which attempt goes on and which begins, on the embedded cluster: adopt, clear, consume, replace."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from helpers.attempts import NAMESPACE, SLEEP, jobs_of, running_pods, spec, submit, until_line, wait
from helpers.container_code import lasts_until
from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.kubernetes.api.client import (
    JOBS,
    ClusterClient,
)
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.outcome.outcome import (
    Outcome,
    OutcomeKind,
)

if TYPE_CHECKING:
    from pathlib import Path

    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
    from nighttrain.providers.local.cluster.server import EmbeddedCluster


async def test_a_second_worker_adopts_what_runs(client: ClusterClient, identity: WorkloadIdentity) -> None:
    first = await submit(client, spec(SLEEP), identity)
    second = await submit(client, spec(SLEEP), identity)
    assert second == replace(first, adopted=True)
    assert await jobs_of(client, identity) == [first.name]
    await lifecycle.cancel(client, first)


async def test_a_cleared_task_ends_what_runs_and_starts_anew(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    first = await submit(client, spec(SLEEP), identity, epoch="1")
    second = await submit(client, spec(SLEEP), identity, epoch="2")
    assert (second.attempt, second.adopted) == (2, False)
    assert await running_pods(client, first) == []
    await lifecycle.cancel(client, second)


async def test_a_try_from_before_the_clear_touches_nothing(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    cleared = await submit(client, spec(SLEEP), identity, epoch="2")
    with pytest.raises(errors.WorkloadConflictError, match="later clear"):
        await submit(client, spec(SLEEP), identity, epoch="1")
    assert await jobs_of(client, identity) == [cleared.name]
    await lifecycle.cancel(client, cleared)


async def test_an_orchestrator_without_clears_adopts_across_epochs(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    first = await lifecycle.submit(
        client,
        check_workload(spec(SLEEP)),
        identity,
        epoch="b",
        namespace=NAMESPACE,
        adopts_earlier_epochs=True,
    )
    second = await lifecycle.submit(
        client,
        check_workload(spec(SLEEP)),
        identity,
        epoch="a",
        namespace=NAMESPACE,
        adopts_earlier_epochs=True,
    )
    assert second == replace(first, adopted=True)
    await lifecycle.cancel(client, first)


async def test_adoption_fences_off_whoever_saw_the_job_before(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    first = await submit(client, spec(SLEEP), identity)
    seen = await client.get(JOBS, NAMESPACE, first.name)
    await submit(client, spec(SLEEP), identity)
    now = await client.get(JOBS, NAMESPACE, first.name)
    assert now["metadata"]["resourceVersion"] != seen["metadata"]["resourceVersion"]
    assert now["metadata"]["annotations"]["nighttrain.dev/adopted"]
    await lifecycle.cancel(client, first)


async def test_attempts_that_the_cluster_ended_are_counted_until_the_task_is_cleared(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    counts = []
    evicted = Outcome(OutcomeKind.EVICTED, infrastructure=True)
    for _ in range(3):
        job = await submit(client, spec(SLEEP), identity, epoch="1")
        counts.append(job.infrastructure_failures)
        await lifecycle.mark_consumed(client, job, "1", outcome=evicted)
    cleared = await submit(client, spec(SLEEP), identity, epoch="2")
    assert [*counts, cleared.infrastructure_failures] == [0, 1, 2, 0]
    await lifecycle.cancel(client, cleared)


async def test_workers_that_race_share_one_job(client: ClusterClient, identity: WorkloadIdentity) -> None:
    racers = await asyncio.gather(*(submit(client, spec(SLEEP), identity) for _ in range(6)))
    assert len({racer.uid for racer in racers}) == 1
    assert sum(not racer.adopted for racer in racers) == 1
    assert await jobs_of(client, identity) == [identity.name(1)]
    await lifecycle.cancel(client, racers[0])


async def test_an_ended_attempt_is_adopted_until_its_result_is_consumed(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    failing = spec("raise SystemExit(4)")
    first = await submit(client, failing, identity)
    await wait(client, first)
    assert (await submit(client, failing, identity)).uid == first.uid
    assert (await wait(client, first)).exit_code == 4
    await lifecycle.mark_consumed(client, first, "0")
    second = await submit(client, failing, identity)
    assert (second.attempt, second.adopted) == (2, False)
    assert await jobs_of(client, identity) == [identity.name(1), identity.name(2)]


async def test_a_consumed_success_is_adopted_again_unless_the_task_was_cleared(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    good = spec("pass")
    first = await submit(client, good, identity, epoch="1")
    outcome = await wait(client, first)
    await lifecycle.mark_consumed(client, first, "1", outcome=outcome)
    assert (await submit(client, good, identity, epoch="1")).uid == first.uid
    cleared = await submit(client, good, identity, epoch="2")
    assert (cleared.attempt, cleared.adopted) == (2, False)


async def test_the_kind_of_a_consumed_attempt_is_read_from_the_job_if_not_given(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    good = spec("pass")
    first = await submit(client, good, identity)
    await wait(client, first)
    await lifecycle.mark_consumed(client, first, "0")
    assert (await submit(client, good, identity)).adopted


async def test_a_consumed_attempt_that_still_lives_is_ended_before_the_next(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    first = await submit(client, spec(SLEEP), identity)
    await lifecycle.mark_consumed(client, first, "0")
    second = await submit(client, spec(SLEEP), identity)
    assert second.attempt == 2
    assert await running_pods(client, first) == []
    await lifecycle.cancel(client, second)


async def test_a_changed_spec_replaces_a_live_attempt(
    client: ClusterClient, identity: WorkloadIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    first = await submit(client, spec(SLEEP), identity)
    second = await submit(client, spec(SLEEP + " "), identity)
    assert (second.attempt, second.adopted) == (2, False)
    assert await running_pods(client, first) == []
    assert f"Cancelling Job {first.name}: the task asks for something else" in caplog.text
    await lifecycle.cancel(client, second)


async def test_a_changed_spec_follows_an_ended_attempt(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    first = await submit(client, spec("raise SystemExit(1)"), identity)
    await wait(client, first)
    second = await submit(client, spec("pass"), identity)
    assert (second.attempt, second.adopted) == (2, False)
    assert (await wait(client, second)).succeeded


async def test_a_name_taken_by_a_stranger_is_a_conflict(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    stranger = build_job(check_workload(spec("pass")), replace(identity, run_id="another"), 1)
    stranger["metadata"]["name"] = identity.name(1)
    await client.create(JOBS, NAMESPACE, stranger)
    with pytest.raises(errors.WorkloadConflictError, match=r"is not an attempt of nightly\.train"):
        await submit(client, spec("pass"), identity)


async def test_an_attempt_being_deleted_is_waited_for(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    slow = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(60)"
    first = await submit(client, spec(slow), identity)
    await until_line(client, first, "up")
    await client.delete(JOBS, NAMESPACE, first.name)
    second = await submit(client, spec(slow), identity)
    assert second.attempt == 2
    assert await running_pods(client, first) == []
    with pytest.raises(errors.ObjectNotFoundError):
        await client.get(JOBS, NAMESPACE, first.name)
    await lifecycle.cancel(client, second)


WORKER = """
import asyncio, sys
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.kubernetes.api.client import ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.timeouts import Timeouts

async def main(kubeconfig, run_id, code):
    who = WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run_id, task_id="train")
    what = WorkloadSpec(image="py", cmds=["python", "-u", "-c", code], termination_grace_period=1)
    async with await ClusterClient.open(ClusterConfig(kubeconfig=kubeconfig)) as client:
        job = await lifecycle.submit(client, check_workload(what), who, epoch="0", namespace="default")
        print(job.uid, flush=True)
        await lifecycle.wait(client, job, timeouts=Timeouts(30))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_worker_killed_in_mid_training_leaves_its_job_to_the_next(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity, tmp_path: Path
) -> None:
    code = lasts_until(tmp_path / "go") + "print('trained')"
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, str(cluster.kubeconfig), identity.run_id, code),
        stdout=asyncio.subprocess.PIPE,
    )
    assert worker.stdout is not None
    uid = (await worker.stdout.readline()).decode().strip()
    worker.kill()
    await worker.communicate()
    retried = await submit(client, spec(code), identity)
    assert (retried.uid, retried.adopted) == (uid, True)
    (tmp_path / "go").touch()
    assert (await wait(client, retried)).succeeded
    assert await jobs_of(client, identity) == [retried.name]
