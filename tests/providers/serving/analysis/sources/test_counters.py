"""Counters of pods that come, go, start anew, hang and tell nonsense."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING

import pytest

from helpers.clusters import connected
from helpers.measured_metric import Measured, a_metric, numbers
from helpers.odd_model_server import ModelServer, model_server
from helpers.subresources import status_of
from nighttrain.providers.kubernetes.api.resources import PODS
from nighttrain.providers.local.cluster.faults.faults import Fault
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources import choice, counters
from nighttrain.providers.serving.analysis.sources.asker import Asker, here
from nighttrain.providers.serving.analysis.sources.asking import pages
from nighttrain.providers.serving.analysis.sources.asking.sending import Answer, CannotTell
from nighttrain.providers.serving.analysis.sources.base import Window
from nighttrain.providers.serving.analysis.sources.counters import Counters
from nighttrain.providers.serving.backends.manifests import version_labels

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient
    from nighttrain.providers.local.cluster.server import EmbeddedCluster

Make = Callable[..., Window]
BOUNDS = (0.1, 0.15, 0.2, 0.3, 60.0)
_endpoints = count()


def page(
    requests: float = 0, errors: float = 0, in_flight: float = 0, times: tuple[int, ...] = (0,) * 6
) -> bytes:
    """What MLflow's server here would tell.

    :param times: requests within each of the bounds, and above all
    """
    labels = 'model="a \\"model\\"",version="2"'
    within = [sum(times[: place + 1]) for place in range(len(times))]
    lines = [
        "# TYPE nighttrain_requests_total counter",
        f'nighttrain_requests_total{{{labels},code="200"}} {requests - errors}',
        f'nighttrain_requests_total{{{labels},code="500"}} {errors}',
        f'nighttrain_request_errors_total{{{labels},reason="status_5xx"}} {errors}',
        f'nighttrain_request_errors_total{{{labels},reason="no_answer"}} 0',
        f"nighttrain_requests_in_flight{{{labels}}} {in_flight}",
        *(
            f'nighttrain_request_duration_seconds_bucket{{{labels},le="{bound}"}} {number}'
            for bound, number in zip((*BOUNDS, "+Inf"), within, strict=True)
        ),
        f"nighttrain_request_duration_seconds_count{{{labels}}} {within[-1]}",
        "",
    ]
    return "\n".join(lines).encode()


class Pods:
    """Pods of one endpoint, whose servers the test plays."""

    def __init__(self, client: ClusterClient, stack: ExitStack) -> None:
        self.client = client
        self.stack = stack
        self.endpoint = f"delay-{next(_endpoints)}"

    async def add(self, version: str, name: str, text: bytes = b"", *, restarts: int = 0) -> ModelServer:
        server = self.stack.enter_context(model_server(page=text))
        port = int(server.url.rpartition(":")[2])
        container = {
            "name": "main",
            "image": "model-server:1",
            "ports": [{"name": "http", "containerPort": port}],
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{self.endpoint}-{name}",
                "labels": version_labels(self.endpoint, version),
            },
            "spec": {"containers": [container]},
        }
        await self.client.create(PODS, "default", body)
        await self.restarted(name, restarts)
        return server

    async def restarted(self, name: str, restarts: int, phase: str = "Running") -> None:
        state = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        container = {"name": "main", "ready": True, "restartCount": restarts, "state": state}
        container |= {"image": "model-server:1", "imageID": "model-server:1"}
        status = {"phase": phase, "podIP": "127.0.0.1", "containerStatuses": [container]}
        await self.client.patch(status_of(PODS), "default", f"{self.endpoint}-{name}", {"status": status})

    async def remove(self, name: str) -> None:
        await self.client.delete(PODS, "default", f"{self.endpoint}-{name}")


@pytest.fixture
async def client(idle_cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with connected(idle_cluster) as opened:
        yield opened


@pytest.fixture
def pods(client: ClusterClient) -> Iterator[Pods]:
    with ExitStack() as stack:
        yield Pods(client, stack)


@pytest.fixture
def errors(pods: Pods, window: Make) -> Measured:
    source = Counters(Asker(here), pods.client)
    return Measured(source, a_metric(Kind.ERRORS, "counters"), window(endpoint=pods.endpoint))


async def test_what_was_counted_since_the_last_look(pods: Pods, errors: Measured) -> None:
    candidate = await pods.add("2", "c", page(1000, 900))
    stable = [await pods.add("1", f"s{n}", page(5000, 5)) for n in range(2)]
    sample = await errors.baseline()
    assert (sample.candidate, sample.stable, sample.error) == (None, None, None)
    candidate.page = page(1010, 903)
    stable[0].page, stable[1].page = page(5100, 6), page(5050, 5)
    sample = await errors.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((10, 3), (150, 1))
    assert not sample.paired
    sample = await errors.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((0, 0), (0, 0))
    assert set(candidate.paths) == {"/metrics"}


async def test_a_change_of_the_share_begins_anew(pods: Pods, errors: Measured) -> None:
    candidate = await pods.add("2", "c", page(1))
    await pods.add("1", "s", page(1))
    await errors.baseline()
    candidate.page = page(100, 50)
    await errors.baseline()
    candidate.page = page(103, 51)
    assert numbers((await errors.after()).candidate) == (3, 1)


async def test_servers_that_start_anew_count_from_zero(pods: Pods, errors: Measured) -> None:
    candidate = await pods.add("2", "c", page(1000, 10, in_flight=3))
    await pods.add("1", "s", page(1))
    await errors.baseline()
    # Killed: what it had under way counts as failed, and what it had not told is lost.
    candidate.page = page(5000, 2)
    await pods.restarted("c", 1)
    assert numbers((await errors.after()).candidate) == (5003, 5)
    # Its counters fell although nobody says that it was started again.
    candidate.page = page(7, 1)
    assert numbers((await errors.after()).candidate) == (7, 1)


async def test_pods_come_and_go(pods: Pods, errors: Measured) -> None:
    await pods.add("2", "c1", page(10))
    await pods.add("1", "s", page(1))
    await errors.baseline()
    await pods.add("2", "c2", page(6, 2))
    assert numbers((await errors.after()).candidate) == (6, 2)
    await pods.remove("c1")
    assert numbers((await errors.after()).candidate) == (0, 0)
    await pods.remove("c2")
    sample = await errors.after()
    assert (numbers(sample.candidate), sample.error) == ((0, 0), None)
    await pods.restarted("s", 0, phase="Pending")
    sample = await errors.after()
    assert (sample.candidate, sample.error) == (None, None)


async def test_a_pod_that_cannot_be_read_is_counted_later(pods: Pods, errors: Measured) -> None:
    await pods.add("2", "c1", page(0))
    silent = await pods.add("2", "c2", page(10))
    await pods.add("1", "s", page(1))
    await errors.baseline()
    silent.page = b"<html>"
    sample = await errors.after()
    assert (numbers(sample.candidate), sample.error) == ((0, 0), None)
    silent.page = page(30, 5)
    assert numbers((await errors.after()).candidate) == (20, 5)


async def test_one_that_could_not_be_read_at_the_beginning_is_not_counted_from_zero(
    pods: Pods, errors: Measured
) -> None:
    await pods.add("2", "c1", page(0))
    silent = await pods.add("2", "c2", b"")
    await pods.add("1", "s", page(1))
    await errors.baseline()
    silent.page = page(1000, 999)
    assert numbers((await errors.after()).candidate) == (0, 0)
    silent.page = page(1001, 1000)
    assert numbers((await errors.after()).candidate) == (1, 1)


async def test_a_version_of_which_nothing_can_be_read_is_an_error_and_no_bad_version(
    pods: Pods, errors: Measured
) -> None:
    candidate = await pods.add("2", "c", page(10))
    stable = await pods.add("1", "s", page(10))
    await errors.baseline()
    candidate.page = b"nothing"
    sample = await errors.after()
    assert sample.error == "no pod of the candidate can be read: there is no nighttrain_requests_total"
    assert (sample.candidate, sample.stable) == (None, None)
    stable.page, candidate.page = page(20), page(15, 1)
    sample = await errors.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((5, 1), (10, 0))
    stable.page = b""
    sample = await errors.after()
    assert "stable version" in (sample.error or "")


async def test_where_the_beginning_was_not_seen_the_next_look_is_it(
    pods: Pods, errors: Measured, idle_cluster: EmbeddedCluster
) -> None:
    candidate = await pods.add("2", "c", page(10))
    await pods.add("1", "s", page(10))
    await errors.baseline()
    candidate.page = page(500, 500)  # requests of the share before
    outage = Fault.answer(500, verb="list", resource="pods", count=50)
    idle_cluster.faults.add(outage)
    sample = await errors.baseline()
    idle_cluster.faults.clear()
    assert "500" in (sample.error or "")
    sample = await errors.after()
    assert (sample.candidate, sample.error) == (None, None)
    candidate.page = page(502, 501)
    assert numbers((await errors.after()).candidate) == (2, 1)


async def test_requests_that_hang_count_once_and_not_again_when_they_end(
    pods: Pods, errors: Measured
) -> None:
    candidate = await pods.add("2", "c", page(100, 0, in_flight=1))
    await pods.add("1", "s", page(1))
    await errors.baseline()
    candidate.page = page(100, 0, in_flight=8)
    # The one that was under way at the beginning has not ended for half a minute.
    assert numbers((await errors.after(30)).candidate) == (1, 1)
    assert numbers((await errors.after(5)).candidate) == (0, 0)
    assert numbers((await errors.after(5)).candidate) == (7, 7)
    # They end as errors, together with one that went well.
    candidate.page = page(109, 8, in_flight=0)
    assert numbers((await errors.after(30)).candidate) == (1, 0)


async def test_a_busy_server_is_not_taken_for_one_that_hangs(pods: Pods, errors: Measured) -> None:
    candidate = await pods.add("2", "c", page(0, 0, in_flight=40))
    await pods.add("1", "s", page(1))
    await errors.baseline()
    for look in range(1, 6):
        candidate.page = page(3000 * look, 0, in_flight=40)
        assert numbers((await errors.after()).candidate) == (3000, 0)


@pytest.fixture
def slow(pods: Pods, window: Make) -> Measured:
    source = Counters(Asker(here), pods.client)
    metric = a_metric(Kind.LATENCY, "counters", quantile=0.9, increase=0.4)
    return Measured(source, metric, window(endpoint=pods.endpoint))


async def test_time_is_compared_with_the_buckets_that_hold_the_stable_versions_quantile(
    pods: Pods, slow: Measured
) -> None:
    candidate = await pods.add("2", "c", page(times=(0, 0, 0, 0, 0, 0)))
    stable = [await pods.add("1", f"s{n}", page(times=(40, 5, 5, 0, 0, 0))) for n in range(2)]
    sample = await slow.baseline()
    assert (sample.candidate, sample.error) == (None, None)
    # 90 of 100 are within 0.15; the first bucket's bound from 0.21 is 0.3.
    assert (slow.memory["tau"], slow.memory["bound"]) == (0.15, 0.3)
    candidate.page = page(times=(1, 1, 1, 1, 2, 1))
    stable[0].page = page(times=(50, 5, 7, 2, 1, 0))
    sample = await slow.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((7, 3), (15, 5))
    stable[1].page = page(times=(40, 5, 5, 100, 0, 0))
    sample = await slow.after()
    assert (slow.memory["tau"], numbers(sample.stable)) == (0.15, (100, 100))


async def test_without_earlier_requests_the_first_interval_gives_the_limit(
    pods: Pods, slow: Measured
) -> None:
    candidate, stable = await pods.add("2", "c", page()), await pods.add("1", "s", page())
    await slow.baseline()
    candidate.page, stable.page = page(times=(0, 0, 0, 0, 9, 0)), page(times=(9, 1, 0, 0, 0, 0))
    sample = await slow.after()
    assert (sample.candidate, sample.error, slow.memory["tau"]) == (None, None, 0.1)
    candidate.page, stable.page = page(times=(0, 0, 0, 0, 11, 0)), page(times=(10, 1, 0, 0, 0, 0))
    sample = await slow.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((2, 2), (1, 0))


async def test_slower_than_all_buckets_is_said(pods: Pods, slow: Measured) -> None:
    await pods.add("2", "c", page())
    await pods.add("1", "s", page(times=(0, 0, 0, 0, 100, 0)))
    assert "slower than the largest bucket" in ((await slow.baseline()).error or "")


async def test_metrics_of_one_moment_share_a_look(pods: Pods, window: Make) -> None:
    candidate = await pods.add("2", "c", page())
    source = Counters(Asker(here), pods.client)
    await asyncio.gather(
        *(
            source.measure(a_metric(kind, "counters"), window(endpoint=pods.endpoint, stable=None), {})
            for kind in (Kind.ERRORS, Kind.LATENCY)
        )
    )
    assert candidate.paths == ["/metrics"]


def test_other_servers_series_are_known() -> None:
    metric = a_metric(Kind.ERRORS, "counters", server="mlserver")
    choice.check_source("m", metric, None)
    metrics = counters.named("mlserver").metrics
    assert metrics is not None
    pod = {
        "spec": {"containers": [{"name": "m", "ports": [{"name": "http", "containerPort": 1}]}]},
        "status": {"phase": "Running", "podIP": "fd00::1"},
    }
    assert counters._page_of(pod, metrics) == "http://[fd00::1]:8082/metrics"
    text = (
        b'rest_server_requests_total{method="POST",path="/v2/models/m/infer",status_code="200"} 10\n'
        b'rest_server_requests_total{method="POST",path="/v2/models/m/infer",status_code="503"} 2\n'
        b'rest_server_requests_total{method="GET",path="/metrics",status_code="500"} 99\n'
    )
    want = counters._want(metric, {}, metrics, [], own=False)
    # Its series come with their first value.
    found = pages.count_requests([answer(text), answer(b"")], want)
    assert found["pods"] == [[12, 2, 0], [0, 0, 0]]


def answer(body: bytes) -> Answer:
    return Answer(200, body, 0.0, "", False, "")


WANT = {
    "requests": [{"name": "nighttrain_requests_total", "matchers": []}],
    "errors": [{"name": "nighttrain_requests_total", "matchers": [["code", "=~", "5.."]]}],
    "in_flight": [],
    "required": True,
}
NONSENSE = [
    b"nighttrain_requests_total NaN",
    b"nighttrain_requests_total -5",
    b"nighttrain_requests_total +Inf",
    b"nighttrain_requests_total 1e999",
    b"nighttrain_requests_total five",
    b'nighttrain_requests_total{code="200" 5',
    b'nighttrain_requests_total{code="200} 5',
    b"nighttrain_requests_total_of_others 5",
    b"<html>nighttrain_requests_total 5</html>",
    b"\xff\x00",
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_no_number(text: bytes) -> None:
    found = pages.count_requests([answer(text), answer(page(4, 1))], WANT)
    assert found["pods"] == [None, [4, 1, 0]]
    assert found["why"]


def test_labels_cannot_be_smuggled_in() -> None:
    text = (
        b'nighttrain_requests_total{model="a\\",code=\\"500",code="200"} 3\n'
        b'nighttrain_requests_total{model="} 99 #",code="200"} 4\n'
        b'nighttrain_requests_total{model="b\\\\",code="503"} 5 1700000000000\r\n'
    )
    assert pages.count_requests([answer(text)], WANT)["pods"] == [[12, 5, 0]]


def test_ten_megabytes_are_read_in_a_moment() -> None:
    rest = b'python_gc_objects{generation="0",path="' + b"x" * 60 + b'"} 1\n'
    long = b'nighttrain_requests_total{path="' + b'x"' * 500_000 + b"\n"
    text = rest * (10_000_000 // len(rest)) + long + page(4, 1)
    began = time.perf_counter()
    assert pages.count_requests([answer(text)], WANT)["pods"] == [[4, 1, 0]]
    assert time.perf_counter() - began < 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no whole histogram"),
        (b'h_bucket{le="0.1"} 1\n', "no whole histogram"),
        (b'h_bucket{le="x"} 1\n', "no bound"),
        (b"h_bucket 1\n", "no bound"),
        (b'h_bucket{le="0.1"} 5\nh_bucket{le="+Inf"} 4\n', "contradict"),
    ],
)
def test_a_histogram_that_is_none(text: bytes, why: str) -> None:
    want = {"series": {"name": "h", "matchers": [], "unit": 1.0}, "required": True}
    with pytest.raises(CannotTell, match=why):
        pages.histogram(answer(text), want)


def test_a_histogram_in_another_unit() -> None:
    want = {"series": {"name": "h", "matchers": [], "unit": 1e-6}, "required": True}
    found = pages.histogram(answer(b'h_bucket{le="100000"} 5\nh_bucket{le="+Inf"} 6\n'), want)
    assert (list(found.values()), sorted(found)) == ([5, 6], [pytest.approx(0.1), math.inf])


def test_every_matcher_of_the_known_servers_is_understood() -> None:
    for server in ("mlflow", "triton", "torchserve", "mlserver", "vllm", "tensorflow-serving"):
        metrics = counters.named(server).metrics
        assert metrics is not None
        for series in (*metrics.requests, *metrics.errors, metrics.latency):
            plain = counters._series(series)
            assert len(plain["matchers"]) == len(series.matchers)
            for _, operator, wanted in plain["matchers"]:
                assert operator in ("=", "!=", "=~", "!~")
                re.compile(wanted)
