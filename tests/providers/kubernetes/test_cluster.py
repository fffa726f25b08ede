"""Workloads on the embedded cluster, over HTTP: submit, adopt, wait, cancel, settle, follow the log."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import pytest
import yaml

from helpers.container_code import lasts_until
from helpers.tcp import pass_on
from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.kubernetes.api.client import (
    CONFIGMAPS,
    EVENTS,
    JOBS,
    PODS,
    ClusterClient,
    ClusterConfig,
)
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.job_manifest import build_job
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
)
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_numbers = count()
NAMESPACE = "default"


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}, forbidden_namespaces={"vault"}) as running:
        yield running


@pytest.fixture
def identity() -> WorkloadIdentity:
    run = f"run-{next(_numbers)}"
    return WorkloadIdentity(orchestrator="airflow", dag_id="nightly", run_id=run, task_id="train")


def spec(code: str, **fields: Any) -> WorkloadSpec:
    grace = fields.pop("termination_grace_period", 1)
    return WorkloadSpec(
        image="py", cmds=["python", "-u", "-c", code], termination_grace_period=grace, **fields
    )


SLEEP = "import time; print('asleep', flush=True); time.sleep(60)"


async def submit(
    client: ClusterClient, given: WorkloadSpec, who: WorkloadIdentity, epoch: str = "0"
) -> Workload:
    return await lifecycle.submit(client, check_workload(given), who, epoch=epoch, namespace=NAMESPACE)


async def wait(client: ClusterClient, job: Workload, timeout: float = 30) -> Any:  # noqa: ASYNC109
    async with asyncio.timeout(60):
        return await lifecycle.wait(client, job, timeouts=Timeouts(timeout))


async def jobs_of(client: ClusterClient, who: WorkloadIdentity) -> list[str]:
    listed = await client.list(JOBS, NAMESPACE, label_selector=f"nighttrain.dev/attempt-key={who.key}")
    return sorted(item["metadata"]["name"] for item in listed["items"])


async def running_pods(client: ClusterClient, job: Workload) -> list[str]:
    listed = await client.list(PODS, NAMESPACE, label_selector=f"batch.kubernetes.io/job-name={job.name}")
    return [
        pod["metadata"]["name"]
        for pod in listed["items"]
        if pod["status"]["phase"] not in ("Succeeded", "Failed")
    ]


async def test_a_training_runs_to_success_and_tells_each_step(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec("print('trained')"), identity)
    assert (job.name, job.attempt, job.adopted) == (identity.name(1), 1, False)
    assert Workload.from_dict(job.to_dict()) == job
    seen: list[Observation] = []
    outcome = await lifecycle.wait(client, job, timeouts=Timeouts(30), on_observation=seen.append)
    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert outcome.exit_code == 0
    assert outcome.pod_name
    assert outcome.pod_uid
    assert outcome.node
    assert outcome.image_id
    assert seen[-1].phase is Phase.FINISHED
    assert len(seen) == len({(step.phase, step.detail, step.pod_name) for step in seen})
    assert (await lifecycle.observe(client, job)).outcome == outcome


async def test_a_program_that_exits_3_fails_with_its_last_lines(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    code = "import sys; print('no data for that night'); sys.exit(3)"
    outcome = await wait(client, await submit(client, spec(code), identity))
    assert (outcome.kind, outcome.exit_code) == (OutcomeKind.APPLICATION_ERROR, 3)
    assert outcome.last_lines == ("no data for that night",)
    with pytest.raises(errors.ApplicationError, match="exit code 3"):
        outcome.raise_for_failure()


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


async def test_memory_grows_to_its_ceiling_after_running_out(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    growing = replace(
        spec("pass"),
        container_resources={"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}},
        oom_memory_factor=1.5,
        oom_memory_max="100Mi",
    )
    given = []
    for _ in range(3):
        job = await submit(client, growing, identity)
        sent = await client.get(JOBS, NAMESPACE, job.name)
        resources = sent["spec"]["template"]["spec"]["containers"][0]["resources"]
        assert resources["limits"] == resources["requests"]
        given.append(resources["limits"]["memory"])
        await lifecycle.mark_consumed(client, job, "", outcome=Outcome(OutcomeKind.OUT_OF_MEMORY))
    assert given == ["64Mi", "96Mi", "100Mi"]


@pytest.mark.parametrize(
    ("factor", "ceiling", "limits", "field"),
    [
        (0.5, "1Gi", {"memory": "64Mi"}, "oom_memory_factor"),
        (2, None, {"memory": "64Mi"}, "oom_memory_max"),
        (2, "1Gi", {"cpu": "1"}, "oom_memory_factor"),
        (2, "32Mi", {"memory": "64Mi"}, "oom_memory_max"),
    ],
)
def test_a_growth_that_cannot_work_is_refused(
    factor: float, ceiling: str | None, limits: dict[str, str], field: str
) -> None:
    asked = replace(
        spec("pass"),
        container_resources={"limits": limits},
        oom_memory_factor=factor,
        oom_memory_max=ceiling,
    )
    with pytest.raises(errors.ConfigurationError) as refused:
        check_workload(asked)
    assert refused.value.field == field


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
    await lifecycle.cancel(client, second, grace_period_seconds=0)


async def until_line(client: ClusterClient, job: Workload, wanted: str) -> None:
    """Return when the program has said ``wanted``."""
    found = asyncio.Event()
    task = asyncio.create_task(logs.follow(client, job, lambda line: found.set() if line == wanted else None))
    async with asyncio.timeout(30):
        await found.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_cancel_leaves_nothing_running_and_ends_the_wait(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec(SLEEP), identity)
    waiting = asyncio.create_task(wait(client, job))
    await until_line(client, job, "asleep")
    await lifecycle.cancel(client, job)
    assert (await waiting).kind is OutcomeKind.CANCELLED
    assert await running_pods(client, job) == []
    assert await jobs_of(client, identity) == []
    await lifecycle.cancel(client, job)  # once more is fine


async def test_a_conflict_ends_no_cancelling_of_what_is_still_there(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec(SLEEP), identity)
    refused = Fault.answer(409, verb="delete", resource="jobs", name=job.name, count=2)
    cluster.faults.add(refused)
    await asyncio.wait_for(lifecycle.cancel(client, job), 60)
    assert cluster.faults.struck(refused) == 2
    assert await jobs_of(client, identity) == []
    second = await submit(client, spec(SLEEP), identity)
    often = Fault.answer(
        409, verb="delete", resource="jobs", name=second.name, count=lifecycle.CONFLICT_ROUNDS
    )
    cluster.faults.add(often)
    with pytest.raises(errors.ObjectConflictError):
        await asyncio.wait_for(lifecycle.cancel(client, second), 60)
    await lifecycle.cancel(client, second)


async def test_cancel_spares_a_later_job_of_the_same_name(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    first = await submit(client, spec(SLEEP), identity)
    await lifecycle.cancel(client, first)
    second = await submit(client, spec(SLEEP), identity)
    assert second.name == first.name
    await lifecycle.cancel(client, first)
    assert await jobs_of(client, identity) == [second.name]
    await lifecycle.mark_consumed(client, first, "0")  # about a Job that is gone: nothing to note
    assert (await submit(client, spec(SLEEP), identity)).uid == second.uid
    await lifecycle.cancel(client, second)


async def test_an_unknown_image_ends_after_the_start_up_time_out(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, replace(spec("pass"), image="absent:1"), identity)
    started = time.monotonic()
    outcome = await wait(client, job, timeout=1.5)
    assert 1.5 <= time.monotonic() - started < 15
    assert (outcome.kind, outcome.reason) == (OutcomeKind.IMAGE_PULL, "StartupTimeout")
    assert "start-up time-out of 1.5 s" in outcome.explain()
    await lifecycle.cancel_if_live(client, job)
    assert await jobs_of(client, identity) == [job.name]  # only its pod was removed
    assert (await lifecycle.observe(client, job)).outcome == outcome
    await lifecycle.cancel(client, job)


async def test_a_deadline_ends_the_job(client: ClusterClient, identity: WorkloadIdentity) -> None:
    job = await submit(client, spec(SLEEP, active_deadline_seconds=1), identity)
    outcome = await wait(client, job)
    assert outcome.kind is OutcomeKind.DEADLINE_EXCEEDED
    assert await running_pods(client, job) == []


async def test_every_line_of_the_log_arrives_once_and_in_order(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    code = "import time\nfor i in range(300):\n    print('line', i)\n    if i % 100 == 99: time.sleep(0.005)"
    job = await submit(client, spec(code), identity)
    lines: list[str] = []
    async with asyncio.timeout(60):
        await logs.follow(client, job, lines.append)
    assert lines == [f"line {number}" for number in range(300)]


async def test_the_log_of_a_workload_that_is_gone_is_empty_and_no_error(client: ClusterClient) -> None:
    lines: list[str] = []
    async with asyncio.timeout(30):
        await logs.follow(client, Workload(NAMESPACE, "absent", "no-uid", 1), lines.append)
    assert lines == []


async def test_a_wait_for_a_job_that_is_gone_is_cancelled(client: ClusterClient) -> None:
    outcome = await wait(client, Workload(NAMESPACE, "absent", "no-uid", 1))
    assert (outcome.kind, outcome.reason) == (OutcomeKind.CANCELLED, "JobDeleted")


async def test_bad_input_creates_nothing(client: ClusterClient, identity: WorkloadIdentity) -> None:
    with pytest.raises(errors.ConfigurationError, match="did you mean 'limits'"):
        await submit(client, spec("pass", container_resources={"limit": {"cpu": "1"}}), identity)
    assert await jobs_of(client, identity) == []


async def test_an_unknown_field_is_refused_by_the_server(client: ClusterClient) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dta": {}}
    with pytest.raises(errors.ClusterRequestError, match="unknown field"):
        await client.create(CONFIGMAPS, NAMESPACE, body)


async def test_a_forbidden_namespace_names_the_right_that_is_missing(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    with pytest.raises(errors.ClusterForbiddenError, match="Grant list on jobs in namespace vault: "):
        await lifecycle.submit(client, check_workload(spec("pass")), identity, namespace="vault")
    with pytest.raises(errors.ClusterForbiddenError, match="Grant list on"):
        await lifecycle.wait(client, Workload("vault", "a", "b", 1), timeouts=Timeouts(5))
    lines: list[str] = []
    await logs.follow(client, Workload("vault", "a", "b", 1), lines.append)  # logs never fail
    assert lines == []


async def test_a_wrong_token_is_unauthorized_and_never_shown(cluster: EmbeddedCluster) -> None:
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = "not-the-token"
    async with await ClusterClient.open(ClusterConfig(kubeconfig_content=config)) as client:
        with pytest.raises(errors.ClusterUnauthorizedError) as raised:
            await client.list(JOBS, NAMESPACE)
    assert cluster.url in str(raised.value)
    assert "not-the-token" not in str(raised.value)


async def test_events_can_be_selected_by_the_object_they_are_about(
    client: ClusterClient, identity: WorkloadIdentity
) -> None:
    job = await submit(client, spec("pass"), identity)
    await wait(client, job)
    listed = await client.list(EVENTS, NAMESPACE, field_selector=f"involvedObject.uid={job.uid}")
    assert "SuccessfulCreate" in {event["reason"] for event in listed["items"]}


class CutProxy:
    """Stands between client and cluster, and drops every connection when told to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, far_writer]
        await pass_on(reader, writer, far_reader, far_writer)


async def test_a_wait_and_a_log_survive_a_network_that_drops_every_connection(
    cluster: EmbeddedCluster, client: ClusterClient, identity: WorkloadIdentity
) -> None:
    code = "import time\nfor i in range(40):\n    print('line', i)\n    time.sleep(0.05)"
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    got: list[str] = []
    async with CutProxy(cluster.port) as proxy:
        config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{proxy.port}"
        async with await ClusterClient.open(ClusterConfig(kubeconfig_content=config)) as far:
            job = await submit(far, spec(code), identity)
            ten = asyncio.Event()

            def sink(line: str) -> None:
                got.append(line)
                if len(got) >= 10:
                    ten.set()

            following = asyncio.create_task(logs.follow(far, job, sink))
            waiting = asyncio.create_task(wait(far, job))
            await ten.wait()
            before = proxy.connections
            proxy.cut()
            assert (await waiting).succeeded
            await following
            assert proxy.connections > before
    assert got == [f"line {number}" for number in range(40)]


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
