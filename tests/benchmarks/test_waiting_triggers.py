"""What waiting for many workloads costs a triggerer: nighttrain's trigger beside the cncf provider's.

Real Jobs whose containers sleep until a moment that was set beforehand, then print the time and end. For each
number of them and each side in turn, the triggers (``WorkloadTrigger``; ``KubernetesPodTrigger`` with its
deferrable defaults, polling every 2 s) wait in one event loop of a process of their own, without the rest of
Airflow: ``waiting_process.py``. First all start; then nothing happens for a while, in which requests per
minute, the process's share of a core and the longest gap of a 10 ms heartbeat are measured; then the
containers end, evenly over a while. From the time that a container printed to the trigger's event: p50, p99.
Memory is the peak above what the process had after its imports. The row "nobody" is the heartbeat alone.

Requests are counted in the process, where both sides hand them to aiohttp, so that it works with any API
server. The containers' clock must be the triggers': on a cluster of several machines the delays are as
exact as their clocks.

The second table: the same for 100, with live logs. Each container prints a line every two seconds.
``KubernetesPodTrigger`` reads logs while it waits only with a ``logging_interval``; here it is 2 s.

The third: many that end within ten seconds, from the moment that the pod's own end is in the API (a watch of
this process) to the trigger's event. The embedded cluster's Job controller has a real one's pace
(``--real-pace``): it marks five such Jobs a second Complete.

Commands: ``./run bench -k waiting_triggers``: 20 and 100, and 500 that end together; with ``--full``: 100,
500, 1,000 and longer phases; with ``--waiting N`` (may be repeated) others;
with ``--side nighttrain`` one side alone. ``--kubeconfig FILE --image IMAGE`` uses a cluster that runs,
with an image that has ``sh``, ``sleep`` and a ``date`` that knows ``%N``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import pytest

from nighttrain.providers.attempts.lifecycle import submit
from nighttrain.providers.errors import ObjectNotFoundError
from nighttrain.providers.kubernetes.api.client import JOBS, PODS, ClusterClient, ClusterConfig
from nighttrain.providers.kubernetes.job.checked import check_workload
from nighttrain.providers.kubernetes.job.kinds import JOB_NAME_LABEL
from nighttrain.providers.kubernetes.job.spec import WorkloadSpec
from nighttrain.providers.kubernetes.values.identity import WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nighttrain.providers.kubernetes.values.submitted_workload import Workload

pytestmark = [pytest.mark.bench, pytest.mark.slow, pytest.mark.timeout(3600)]

SIDES = ("nighttrain", "stock")
NAMES = {
    "nighttrain": "nighttrain",
    "stock": "cncf",
    "nobody": "nobody",
}
# Sleeps until $1 (nanoseconds since the epoch), then prints the time and is gone.
SLEEPS = """
left=$(( $1 - $(date +%s%N) ))
[ $left -gt 0 ] && sleep $(( left / 1000000000 )).$(printf %09d $(( left % 1000000000 )))
date +%s.%N
"""
TALKS = (
    """
while [ $(( $1 - $(date +%s%N) )) -gt 2000000000 ]; do echo "epoch $(date +%s.%N)"; sleep 2; done
"""
    + SLEEPS
)
CLIENTS = 8
# A Job controller needs five writes for the start of a Job, and makes twenty a second.
STARTS_PER_SECOND = 3
TOGETHER, TOGETHER_SECONDS = 500, 10.0
# What a thousand Jobs take that are marked Complete five a second, and some more.
ENDING_SECONDS = 300.0
# Longer than a nighttrain trigger keeps silent after its start, and than either side needs to look once.
START_SECONDS = 20.0


@dataclass(frozen=True)
class Setting:
    """Where and how long is measured."""

    kubeconfig: str
    image: str
    steady_seconds: float
    ending_seconds: float
    directory: Path


@dataclass
class Measured:
    side: str
    waiting: int
    requests: dict[str, int]
    seconds: float
    all_requests: int
    all_seconds: float
    share: float
    ending_share: float
    peak: float
    gap: float
    ending_gap: float
    lines: int
    delays: list[float]


@pytest.fixture
def setting(request: pytest.FixtureRequest, start_cluster: Any, tmp_path: Path) -> Iterator[Setting]:
    seconds = request.config.getoption("--phase", default=None) or (
        60.0 if request.config.getoption("--full", default=False) else 20.0
    )
    given = request.config.getoption("--kubeconfig", default=None)
    if given:
        image = request.config.getoption("--image") or pytest.fail("--kubeconfig needs --image")
        yield Setting(str(Path(given).resolve()), image, seconds, seconds, tmp_path)
        return
    with start_cluster(tmp_path / "cluster", "--real-pace") as cluster:
        yield Setting(str(cluster.kubeconfig), "localhost/python:3.11", seconds, seconds, tmp_path)


def test_waiting_triggers(show: Any, setting: Setting, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--full", default=False)
    numbers = request.config.getoption("--waiting", default=[]) or ([100, 500, 1000] if full else [20, 100])
    sides = request.config.getoption("--side", default=[]) or SIDES
    found = [asyncio.run(measure(setting, "nobody", 0, False))]
    for number in numbers:
        for side in sides:
            found.append(asyncio.run(measure(setting, side, number, False)))
            # At once: a large number that fails does not take the others' results with it.
            report(show, f"{number:,} waiting triggers, logs off", found)
    for measured in found:
        assert len(measured.delays) == measured.waiting
    ours = {measured.waiting: measured for measured in found if measured.side == "nighttrain"}
    theirs = {measured.waiting: measured for measured in found if measured.side == "stock"}
    for number in ours.keys() & theirs.keys():
        assert ours[number].all_requests < theirs[number].all_requests


def test_live_logs(show: Any, setting: Setting, request: pytest.FixtureRequest) -> None:
    (number,) = request.config.getoption("--waiting", default=[])[:1] or [100]
    found = [asyncio.run(measure(setting, side, number, logs)) for side in SIDES for logs in (False, True)]
    report(show, f"{number} waiting triggers; each container prints a line every 2 s", found)
    assert all(len(measured.delays) == number for measured in found)


def test_waiting_triggers_that_end_together(
    show: Any, setting: Setting, request: pytest.FixtureRequest
) -> None:
    (number,) = request.config.getoption("--waiting", default=[])[:1] or [TOGETHER]
    sides = request.config.getoption("--side", default=[]) or SIDES
    found: list[Measured] = []
    for side in sides:
        found.append(
            asyncio.run(measure(replace(setting, ending_seconds=TOGETHER_SECONDS), side, number, False, True))
        )
        show(
            f"{number:,} triggers whose pods end within {TOGETHER_SECONDS:.0f} s, logs off",
            ("triggers", "ends", "req/min", "all/min", "p50 s", "p99 s", "max s"),
            map(row_together, found),
            "from the pod's own end, as the API has it, to the trigger's event; the Job controller makes 20 "
            "requests a second",
        )
    assert all(len(measured.delays) == number for measured in found)
    late = {measured.side: (p99(measured), max(measured.delays)) for measured in found}
    if late.keys() == set(SIDES):
        assert all(ours < theirs for ours, theirs in zip(*(late[side] for side in SIDES), strict=True)), late


def row_together(measured: Measured) -> tuple[str, ...]:
    whole = row(measured)
    return (whole[0], *whole[1:4], *whole[9:11], f"{max(measured.delays):.2f}")


def p99(measured: Measured) -> float:
    return quantiles(measured.delays, n=100, method="inclusive")[98]


def report(show: Any, title: str, found: list[Measured]) -> None:
    show(
        title,
        (
            "triggers",
            "waiting",
            "req/min",
            "all/min",
            "CPU",
            "CPU ending",
            "MiB",
            "gap ms",
            "ending",
            "p50 s",
            "p99 s",
            "lines",
        ),
        map(row, found),
        "nighttrain: WorkloadTrigger; cncf: KubernetesPodTrigger, both with logs as the title says\n"
        "requests and CPU in the steady phase; `all`: from the first trigger's start to the last event; "
        "gap: the event loop's longest blocking",
    )


def row(measured: Measured) -> tuple[str, ...]:
    cuts = quantiles(measured.delays, n=100, method="inclusive") if len(measured.delays) > 1 else []
    return (
        NAMES[measured.side],
        f"{measured.waiting:,}",
        f"{60 * sum(measured.requests.values()) / measured.seconds:,.0f}",
        f"{60 * measured.all_requests / measured.all_seconds:,.0f}",
        f"{100 * measured.share:.1f} %",
        f"{100 * measured.ending_share:.1f} %",
        f"{measured.peak:.0f}",
        f"{1000 * measured.gap:.0f}",
        f"{1000 * measured.ending_gap:.0f}",
        f"{cuts[49]:.2f}" if cuts else "",
        f"{cuts[98]:.2f}" if cuts else "",
        f"{measured.lines:,}",
    )


async def measure(
    setting: Setting, side: str, number: int, logs: bool, from_the_api: bool = False
) -> Measured:
    """Let ``number`` triggers of a side wait for Jobs of their own.

    :param from_the_api: delays count from the pod's end in the API, not from the container's last line
    """
    async with await ClusterClient.open(ClusterConfig(kubeconfig=setting.kubeconfig)) as client:
        # Created before anything is measured.
        steady_from = time.time() + number / STARTS_PER_SECOND + START_SECONDS
        steady_until = steady_from + setting.steady_seconds
        # The order of ends is not the order of starts.
        ends = [steady_until + 1 + setting.ending_seconds * n / max(1, number) for n in range(number)]
        random.Random(number).shuffle(ends)
        async with running_jobs(client, setting, ends, logs) as items:
            file = setting.directory / "wait.json"
            file.write_text(
                json.dumps({"side": side, "kubeconfig": setting.kubeconfig, "get_logs": logs, "items": items})
            )
            latest = steady_from - START_SECONDS / 2
            assert time.time() < latest, "the Jobs took longer to start than was allowed for"
            with Process(file, setting.directory) as process:
                async with pod_ends(client) as ended:
                    began = await process.sample()
                    await asyncio.sleep(max(0.0, steady_from - time.time()))
                    first = await process.sample()
                    await asyncio.sleep(max(0.0, steady_until - time.time()))
                    second = await process.sample()
                    events = await process.events(number, setting.ending_seconds + ENDING_SECONDS)
                    third = await process.sample()
            for _, payload in events.values():
                succeeded = (
                    payload.get("status") == "success"
                    or (payload.get("outcome") or {}).get("kind", "").lower() == "succeeded"
                )
                assert succeeded, payload
            if from_the_api:
                until = [ended[item["pod"]] for item in items]
            else:
                until = await asyncio.gather(*(end_of(client, item) for item in items))
    seconds = second["at"] - first["at"]
    return Measured(
        side=side,
        waiting=number,
        requests={verb: count - first["requests"].get(verb, 0) for verb, count in second["requests"].items()},
        seconds=seconds,
        all_requests=sum(third["requests"].values()),
        all_seconds=third["at"] - began["at"],
        share=(second["cpu"] - first["cpu"]) / seconds,
        ending_share=(third["cpu"] - second["cpu"]) / (third["at"] - second["at"]),
        peak=third["peak"],
        gap=second["gap"],
        ending_gap=third["gap"],
        lines=third["lines"],
        delays=[events[n][0] - until[n] for n in range(number)],
    )


@contextlib.asynccontextmanager
async def running_jobs(
    client: ClusterClient, setting: Setting, ends: list[float], logs: bool
) -> AsyncIterator[list[dict[str, Any]]]:
    """Jobs that end at these times, each with its pod; all run. They are deleted at the end."""
    namespace, run = client.namespace, secrets.token_hex(4)
    limit = asyncio.Semaphore(CLIENTS)

    async def create(number: int, end: float) -> Workload:
        spec = WorkloadSpec(
            image=setting.image,
            cmds=["sh", "-c", TALKS if logs else SLEEPS, "sh"],
            arguments=[str(int(end * 1e9))],
        )
        identity = WorkloadIdentity(
            orchestrator="airflow", dag_id="bench", run_id=run, task_id="wait", map_index=number
        )
        async with limit:
            return await submit(client, check_workload(spec), identity, namespace=namespace, epoch="1")

    async def delete(workload: Workload) -> None:
        async with limit:
            with contextlib.suppress(ObjectNotFoundError):
                await client.delete(JOBS, namespace, workload.name, propagation="Background")

    workloads = await asyncio.gather(*(create(number, end) for number, end in enumerate(ends)))
    try:
        pods = await all_run(client, namespace, workloads) if workloads else {}
        yield [
            {
                "workload": workload.to_dict(),
                "pod": pods[workload.name]["metadata"]["name"],
                "container": pods[workload.name]["spec"]["containers"][0]["name"],
            }
            for workload in workloads
        ]
    finally:
        await asyncio.gather(*map(delete, workloads))
        names = {workload.name for workload in workloads}
        while names & {each["metadata"]["labels"].get(JOB_NAME_LABEL) for each in await pods_of(client)}:  # noqa: ASYNC110
            await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def pod_ends(client: ClusterClient) -> AsyncIterator[dict[str, float]]:
    """When each pod's end was first seen in the API, by the pod's name."""
    ends: dict[str, float] = {}
    listed = await client.list(PODS, client.namespace, label_selector=JOB_NAME_LABEL)

    async def follow(version: str) -> None:
        while True:
            async for event in client.watch(
                PODS, client.namespace, resource_version=version, label_selector=JOB_NAME_LABEL
            ):
                version = event.object["metadata"]["resourceVersion"]
                if (event.object.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                    ends.setdefault(event.object["metadata"]["name"], time.time())

    following = asyncio.create_task(follow(listed["metadata"]["resourceVersion"]))
    try:
        yield ends
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def pods_of(client: ClusterClient) -> list[dict[str, Any]]:
    listed = await client.list(PODS, client.namespace, label_selector=JOB_NAME_LABEL)
    return list(listed["items"])


async def all_run(client: ClusterClient, namespace: str, workloads: list[Workload]) -> dict[str, Any]:
    """The pods by their Jobs' names, once every one of them runs."""
    wanted = {workload.name for workload in workloads}
    while True:
        pods = {each["metadata"]["labels"][JOB_NAME_LABEL]: each for each in await pods_of(client)}
        if wanted <= {name for name, each in pods.items() if each["status"].get("phase") == "Running"}:
            return {name: pods[name] for name in wanted}
        await asyncio.sleep(1)


async def end_of(client: ClusterClient, item: dict[str, Any]) -> float:
    """What the container printed as its last act."""
    lines = [line async for line in client.logs(item["workload"]["namespace"], item["pod"])]
    return float(lines[-1])


class Process:
    """The process in which the triggers wait."""

    def __init__(self, file: Path, directory: Path) -> None:
        self._command = [sys.executable, str(Path(__file__).parent / "waiting_process.py"), str(file)]
        self._home = directory / "airflow"
        self._errors = directory / "waiting.log"
        self._events: dict[int, tuple[float, Any]] = {}
        self._samples: list[dict[str, Any]] = []

    def __enter__(self) -> Process:
        self._home.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        environment |= {"AIRFLOW_HOME": str(self._home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._process.stdin is not None
        if kind is not None:
            self._process.kill()
        self._process.stdin.close()
        self._process.wait(60)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("{"):
                continue
            message = json.loads(line)
            if "event" in message:
                self._events[message["event"]] = (message["at"], message["payload"])
            else:
                self._samples.append(message)

    async def sample(self) -> dict[str, Any]:
        """What the process has used by now."""
        assert self._process.stdin is not None
        known = len(self._samples)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        await self._until(lambda: len(self._samples) > known, 60)
        return self._samples[known]

    async def events(self, number: int, seconds: float) -> dict[int, tuple[float, Any]]:
        """Each trigger's event and its time, once all have come."""
        await self._until(lambda: len(self._events) >= number, seconds)
        return self._events

    async def _until(self, condition: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, self._errors.read_text()[-2000:]
            assert time.monotonic() < deadline, f"{len(self._events)} events within {seconds:.0f} s"
            await asyncio.sleep(0.05)
