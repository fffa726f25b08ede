"""What the scoring server counts: the launcher as a pod runs it, read by Prometheus itself."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers.launched_server import Server, launched, ready
from helpers.mlflow_server import free_port
from helpers.polling import until_async
from nighttrain.providers.serving import scoring_server
from nighttrain.providers.serving.analysis.sources.asking.golden_requests import GOLDEN_HEADER
from nighttrain.providers.serving.scoring_server import BUCKETS, Counts, Metrics, exposition
from nighttrain.providers.serving.spec import ServingSpec

Make = Callable[..., ServingSpec]
Samples = dict[tuple[str, str], float]

# What tells the series of a family apart.
OF_ITS_OWN = ("code", "reason", "le")


def parsed(text: str, **labels: str) -> Samples:
    """(name, code or reason or bound) -> value, after a look at the labels that all series have."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {key: value for key, value in sample.labels.items() if key in OF_ITS_OWN}
            assert sample.labels == own | labels
            found[sample.name, "".join(own.values())] = sample.value
    return found


async def counted(client: httpx.AsyncClient, server: Server, version: str = "4") -> Samples:
    answer = await client.get(f"{server.url}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.text, model="airline-delay", version=version)


def requests(samples: Samples) -> dict[str, float]:
    return {key: value for (name, key), value in samples.items() if name == "nighttrain_requests_total"}


def errors(samples: Samples) -> dict[str, float]:
    return {key: value for (name, key), value in samples.items() if name == "nighttrain_request_errors_total"}


# The codes that are shown before any request.
EXPECTED = ("200", "400", "500", "504", "none")
NOTHING = {"status_5xx": 0.0, "model_raised": 0.0, "no_answer": 0.0}


async def test_requests_for_predictions_are_counted_by_how_they_ended(store: Any, serving_spec: Make) -> None:
    spec = serving_spec("4", artifact_digest=store.add("4"))
    async with launched(spec) as server, httpx.AsyncClient() as client:
        await ready(client, server)
        before = await counted(client, server)
        assert (requests(before), errors(before)) == (dict.fromkeys(EXPECTED, 0.0), NOTHING)
        bodies = ("0.15", "0", "status 503", "status 404", "model raises", "application raises")
        for body in bodies:
            await client.post(f"{server.url}/invocations", content=body)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(f"{server.url}/invocations", content="half an answer")
        await client.get(f"{server.url}/ping")
        await client.get(f"{server.url}/elsewhere")
        # What a rollout asks both versions alike is none of the clients' requests.
        await client.post(f"{server.url}/invocations", content="0", headers={GOLDEN_HEADER: "1"})
        after = await counted(client, server)
    assert requests(after) == {"200": 2, "400": 1, "404": 1, "500": 1, "503": 1, "504": 0, "none": 1}
    assert errors(after) == {"status_5xx": 2, "model_raised": 1, "no_answer": 1}
    assert after["nighttrain_requests_in_flight", ""] == 0
    assert after["nighttrain_request_duration_seconds_count", ""] == 7
    assert after["nighttrain_request_duration_seconds_bucket", "+Inf"] == 7
    assert after["nighttrain_request_duration_seconds_bucket", "0.15"] == 6
    assert after["nighttrain_request_duration_seconds_sum", ""] >= 0.15


async def test_who_leaves_unanswered_is_an_error_at_once_and_once(store: Any, serving_spec: Make) -> None:
    spec = serving_spec("4", artifact_digest=store.add("4"))
    async with launched(spec) as server, httpx.AsyncClient() as client:
        await ready(client, server)
        waiting = asyncio.create_task(client.post(f"{server.url}/invocations", content="2"))
        await until_async((store.path / "asked").exists)
        under_way = await counted(client, server)
        assert under_way["nighttrain_requests_in_flight", ""] == 1
        assert not any(requests(under_way).values())
        waiting.cancel()

        async def noticed() -> bool:
            return errors(await counted(client, server))["no_answer"] == 1

        await until_async(noticed, seconds=1.5)
        # The model is at work still. Once it is done, its answer, which nobody gets, changes nothing.
        await client.post(f"{server.url}/invocations", content="2.2")
        after = await counted(client, server)
    assert requests(after) == dict.fromkeys(EXPECTED, 0.0) | {"200": 1, "none": 1}
    assert after["nighttrain_requests_in_flight", ""] == 0
    assert after["nighttrain_request_duration_seconds_count", ""] == 2


async def test_any_process_tells_the_pods_counts_those_of_a_dead_one_too(
    store: Any, serving_spec: Make
) -> None:
    spec = serving_spec("4", artifact_digest=store.add("4"), workers=3, drain_seconds=4.0)
    fresh = httpx.AsyncClient(headers={"connection": "close"})
    async with launched(spec) as server, fresh as client:
        await ready(client, server)
        for _ in range(30):
            await client.post(f"{server.url}/invocations")
        assert [requests(await counted(client, server))["200"] for _ in range(10)] == [30.0] * 10
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(f"{server.url}/invocations", content="dies")

        async def noticed() -> bool:
            return requests(await counted(client, server))["none"] == 1

        # While the others drain: a moment after its connections the system lets go of the dead one's lock.
        await until_async(noticed, seconds=2)
        for _ in range(5):
            after = await counted(client, server)
            assert (requests(after)["200"], errors(after)["no_answer"]) == (30, 1)
            assert after["nighttrain_requests_in_flight", ""] == 0


def test_counts_of_processes_are_added_and_what_a_dead_one_had_under_way_is_unanswered(
    tmp_path: Path,
) -> None:
    living, dead = Counts(str(tmp_path)), Counts(str(tmp_path))
    (tmp_path / "just-made.counts").touch()
    living.own[100], dead.own[100] = 2, 3
    living.own[scoring_server._IN_FLIGHT], dead.own[scoring_server._IN_FLIGHT] = 4, 5
    assert living.of_the_pod() == dead.of_the_pod()
    assert living.of_the_pod()[scoring_server._IN_FLIGHT] == 9
    fcntl.flock(dead._file, fcntl.LOCK_UN)  # what the end of a process does
    total = living.of_the_pod()
    assert total[100] == 5
    assert (total[scoring_server._IN_FLIGHT], total[scoring_server._NO_ANSWER]) == (4, 5)


@pytest.mark.parametrize("name", ['a "model"', "C:\\new", "two\nlines", "ä{}=,"])
def test_labels_are_escaped(tmp_path: Path, name: str) -> None:
    layer = Metrics(None, Counts(str(tmp_path)), name, "4")
    assert parsed(exposition(layer._counts.of_the_pod(), layer._labels), model=name, version="4")


def test_a_buckets_bound_belongs_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts(str(tmp_path))
    clock = iter([0, 100_000_000, 0, 100_000_001, 0, 60_000_000_001])
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock))
    for _ in range(3):
        scoring_server._Request(counts.own).end(200)
    found = parsed(exposition(counts.of_the_pod(), 'version="4"'), version="4")
    within = {bound: found["nighttrain_request_duration_seconds_bucket", str(bound)] for bound in BUCKETS}
    assert (within[0.07], within[0.1], within[0.15], within[60.0]) == (0, 1, 2, 2)
    assert found["nighttrain_request_duration_seconds_bucket", "+Inf"] == 3
    assert found["nighttrain_request_duration_seconds_sum", ""] == pytest.approx(60.2, abs=1e-3)


def test_half_as_slow_again_is_another_bucket() -> None:
    assert all(second <= 1.5 * first for first, second in pairwise(BUCKETS))


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A real Prometheus that reads the target every tenth of a second."""
    address = f"127.0.0.1:{free_port()}"
    config = {
        "global": {"scrape_interval": "100ms", "scrape_timeout": "100ms"},
        "scrape_configs": [{"job_name": "pods", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": address,
        "log.level": "error",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    process = subprocess.Popen(command)
    try:
        yield f"http://{address}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus here: apt-get install prometheus")
async def test_a_real_prometheus_reads_it(store: Any, serving_spec: Make, tmp_path: Path) -> None:
    spec = serving_spec("4", artifact_digest=store.add("4"))
    async with launched(spec) as server, httpx.AsyncClient() as client:
        await ready(client, server)
        with prometheus(tmp_path, server.url.removeprefix("http://")) as address:

            async def value(query: str) -> float | None:
                answer = await client.get(f"{address}/api/v1/query", params={"query": query})
                found = answer.json()["data"]["result"]
                return float(found[0]["value"][1]) if found else None

            async def says(query: str, wanted: float) -> bool:
                return await value(query) == wanted

            async def is_up() -> bool:
                try:
                    return (await client.get(f"{address}/-/ready")).is_success
                except httpx.ConnectError:
                    return False

            await until_async(is_up)
            version = 'model="airline-delay",version="4"'
            await until_async(lambda: says(f'nighttrain_requests_total{{{version},code="200"}}', 0))
            for body in ("0.12", "0.12", "0.12", "status 500"):
                await client.post(f"{server.url}/invocations", content=body)
            await until_async(lambda: says(f"sum(nighttrain_requests_total{{{version}}})", 4))
            share = (
                f"sum(increase(nighttrain_request_errors_total{{{version}}}[1m])) "
                f"/ sum(increase(nighttrain_requests_total{{{version}}}[1m]))"
            )
            assert await value(share) == pytest.approx(0.25)
            buckets = f"rate(nighttrain_request_duration_seconds_bucket{{{version}}}[1m])"
            median = await value(f"histogram_quantile(0.5, sum by (le) ({buckets}))")
            assert median is not None
            assert 0.1 < median <= 0.15
