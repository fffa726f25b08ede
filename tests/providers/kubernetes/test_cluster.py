"""Workloads on the embedded cluster, over HTTP: their ends, their logs, and what is refused."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import pytest
import yaml

from helpers.attempts import NAMESPACE, SLEEP, jobs_of, running_pods, spec, submit, until_line, wait
from helpers.tcp import pass_on
from nighttrain.providers import errors
from nighttrain.providers.attempts import lifecycle
from nighttrain.providers.kubernetes.api.client import (
    CONFIGMAPS,
    EVENTS,
    JOBS,
    ClusterClient,
    ClusterConfig,
)
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.logs import logs
from nighttrain.providers.kubernetes.outcome.outcome import (
    Observation,
    Outcome,
    OutcomeKind,
    Phase,
)
from nighttrain.providers.kubernetes.values.submitted_workload import Workload
from nighttrain.providers.kubernetes.values.timeouts import Timeouts
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.local.cluster.server import EmbeddedCluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(images={"py": sys.executable}, forbidden_namespaces={"vault"}) as running:
        yield running


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
