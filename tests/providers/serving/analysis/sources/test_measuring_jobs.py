"""Measuring from inside the cluster: real Jobs of the embedded cluster ask real servers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helpers.clusters import connected
from helpers.measured_metric import Measured, a_metric, numbers
from helpers.odd_model_server import model_server
from helpers.polling import until_async
from nighttrain.providers.errors import ClusterUnreachableError, ConfigurationError
from nighttrain.providers.kubernetes.api.resources import CONFIGMAPS, JOBS, PODS
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources import asker
from nighttrain.providers.serving.analysis.sources.asker import (
    Asker,
    Interval,
    here,
    programs,
)
from nighttrain.providers.serving.analysis.sources.asking import performing
from nighttrain.providers.serving.analysis.sources.base import Window
from nighttrain.providers.serving.analysis.sources.choice import Ways, make_sources
from nighttrain.providers.serving.analysis.sources.routes import RouteFromJobs, warm_up
from nighttrain.providers.serving.backends.traffic import Address, Addresses

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

Make = Callable[..., Window]
GOLDEN = Golden(requests=tuple(range(10)), expected=tuple(range(10)), timeout_seconds=2.0)

CHECKS = """
import os

def agreement(interval, *, weight=1.0):
    return {"value": weight * interval["seconds"] / 100 * (interval["candidate"] == "2")}

def counted(interval):
    assert interval["candidate_address"]["url"].startswith("http://")
    return {"candidate": {"requests": 20, "bad": 3}, "stable": {"requests": 180, "bad": 1}}

def nothing(interval):
    return {"value": None}

def nonsense(interval):
    return "good"

def raises(interval):
    raise LookupError("the labels are not there yet")

def talkative(interval):
    return {"value": 1.0, "why": "x" * 5000}

def meddles(interval):
    open("/dev/termination-log", "w").write('[["is"], 5]')
    os._exit(0)

def leaks(interval):
    raise ValueError("cannot reach postgresql://me:hunter2@db/labels")

def leaves(interval):
    os._exit(3)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    folder = tmp_path_factory.mktemp("image")
    (folder / "team_checks.py").write_text(CHECKS)
    with EmbeddedCluster(images={"py": f"{sys.executable}:{folder}"}) as running:
        yield running


@pytest.fixture
async def client(cluster: EmbeddedCluster) -> AsyncIterator[ClusterClient]:
    async with connected(cluster) as opened:
        yield opened


@pytest.fixture
def ways(client: ClusterClient) -> Ways:
    return Ways(client, None, in_cluster=True, image="py")  # type: ignore[arg-type]


async def names(client: ClusterClient) -> list[str]:
    return [each["metadata"]["name"] for each in (await client.list(JOBS, client.namespace))["items"]]


async def test_a_job_measures_what_this_process_measures_and_leaves_nothing(
    ways: Ways, client: ClusterClient, window: Make
) -> None:
    with model_server(predict=lambda asked: asked + (asked > 7)) as candidate, model_server() as stable:
        made = window(candidate_url=candidate.url, stable_url=stable.url, golden=GOLDEN, seconds=30.0)
        metrics = [
            a_metric(Kind.WRONG, "probe", requests_per_interval=10),
            a_metric(Kind.DISAGREEMENT, "comparison", requests_per_interval=10),
        ]
        found = []
        local = Ways(client, None)  # type: ignore[arg-type]
        for sources in (make_sources(ways), make_sources(local)):
            measured = await asyncio.gather(
                *(sources[metric.source["type"]].measure(metric, made, {}) for metric in metrics)
            )
            found.append([sample for sample, _ in measured])
        assert len(candidate.asked) == 20
    assert found[0] == found[1]
    assert [numbers(sample.candidate) for sample in found[0]] == [(10, 2), (10, 2)]

    async def nothing_is_left() -> bool:
        lists = [await client.list(kind, client.namespace) for kind in (JOBS, PODS, CONFIGMAPS)]
        return not any(
            each["metadata"]["name"].startswith("delay") for listed in lists for each in listed["items"]
        )

    await until_async(nothing_is_left)


async def test_the_job_keeps_to_the_restricted_level(ways: Ways, client: ClusterClient) -> None:
    with model_server(ways=(3.0,)) as candidate:
        task = asyncio.create_task(ways.asker()(Interval("delay", "one"), order(candidate.url), ERRORS))

        async def there() -> Any:
            return (await client.list(JOBS, client.namespace))["items"]

        (job,) = await until_async(there)
        task.cancel()
    template = job["spec"]["template"]["spec"]
    (container,) = template["containers"]
    assert template["securityContext"]["runAsNonRoot"] is True
    assert template["automountServiceAccountToken"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["resources"] == asker.RESOURCES
    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 300)
    assert job["spec"]["activeDeadlineSeconds"] == 180
    with pytest.raises(asyncio.CancelledError):
        await task
    await client.delete(JOBS, client.namespace, job["metadata"]["name"])


ERRORS = {"want": "errors"}


def order(url: str) -> dict[str, Any]:
    return {
        "kind": "golden",
        "candidate": {"url": url, "headers": {}},
        "stable": None,
        "path": "/invocations",
        "timeout": 10.0,
        "first": 0,
        "golden": [{"body": 1}],
        "asked": [0],
    }


async def test_another_process_adopts_the_job_of_one_that_died(ways: Ways, client: ClusterClient) -> None:
    interval = Interval("delay", "2 since 1000000.000")
    with model_server(ways=(1.0,)) as candidate:
        dying = asyncio.create_task(Asker(ways.jobs())(interval, order(candidate.url), ERRORS))
        await until_async(lambda: candidate.asked)
        dying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dying
        (name,) = await names(client)
        counted = await Asker(ways.jobs())(interval, order(candidate.url), ERRORS)
        assert (counted["requests"], counted["candidate"]) == (1, 0)
        assert len(candidate.asked) == 1
        assert name.startswith("delay-measure-")


async def test_two_orders_of_one_interval_are_two_jobs(ways: Ways, client: ClusterClient) -> None:
    interval = Interval("delay", "2 since 2000000.000")
    with model_server(ways=(0.5,)) as candidate, model_server(ways=(0.5,)) as other:
        counted = await asyncio.gather(
            *(Asker(ways.jobs())(interval, order(each.url), ERRORS) for each in (candidate, other))
        )
    assert [each["candidate"] for each in counted] == [0, 0]


async def test_why_a_job_could_not_measure_is_told_and_is_no_bad_version(
    client: ClusterClient, window: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker, "STARTUP_SECONDS", 1.0)
    ways = Ways(client, None, in_cluster=True, image="no-such-image:1")  # type: ignore[arg-type]
    made = window(candidate_url="http://127.0.0.1:1", golden=GOLDEN, seconds=30.0)
    metric = a_metric(Kind.ERRORS, "probe")
    sample, memory = await make_sources(ways)["probe"].measure(metric, made, {"next": 4})
    assert sample.error is not None
    assert "no-such-image" in sample.error
    assert memory == {"next": 4}
    assert await names(client) == []
    with pytest.raises(ClusterUnreachableError, match="no-such-image"):
        await RouteFromJobs(ways.jobs())(
            Addresses(route=Address(url="http://x"), stable=None, candidate=None), 3
        )


def test_without_an_image_nothing_starts(client: ClusterClient) -> None:
    with pytest.raises(ConfigurationError, match="image: name an image with Python"):
        make_sources(Ways(client, None, in_cluster=True))  # type: ignore[arg-type]


async def test_a_route_is_asked_from_the_cluster(ways: Ways) -> None:
    with model_server(page=b"pong") as route:
        addresses = Addresses(route=Address(url=route.url), stable=None, candidate=None, health_path="/ping")
        assert await RouteFromJobs(ways.jobs())(addresses, 7) == [""] * 7
        assert route.paths == ["/ping"] * 7
    nobody = Addresses(route=Address(url="http://127.0.0.1:1"), stable=None, candidate=None)
    assert await RouteFromJobs(here)(nobody, 4) == [None] * 4


async def warmed(server: Any, count: int) -> bool | str:
    addresses = Addresses(route=Address(url="http://x"), stable=None, candidate=Address(url=server.url))
    return await warm_up(Asker(here), "delay", addresses, replace(GOLDEN, timeout_seconds=0.3), count)


async def test_warming_up_takes_so_many_good_answers() -> None:
    with model_server(ways=("hang", "500", *["answer"] * 20)) as candidate:
        assert await warmed(candidate, 15) is True
        assert candidate.asked[:12] == [*range(10), 0, 1]
        assert len(candidate.asked) == 17
    with model_server(ways=("500",)) as candidate:
        said = await warmed(candidate, 5)
        assert said == "10 of 10 failed, one with: HTTP 500"
    addresses = Addresses(route=Address(url="http://x"), stable=None, candidate=None)
    assert await warm_up(Asker(here), "delay", addresses, GOLDEN, 3) == (
        "it cannot be reached alone here, beside the route"
    )


CASES: list[tuple[Kind, str, dict[str, Any], Any]] = [
    (Kind.NUMBER, "agreement", {"arguments": {"weight": 2.0}}, 0.6),
    (Kind.ERRORS, "counted", {}, ((20, 3), (180, 1))),
    (Kind.NUMBER, "nothing", {}, None),
    (Kind.NUMBER, "nonsense", {}, 'team_checks:nonsense returned good, and not {"value": number}'),
    (Kind.ERRORS, "agreement", {}, "and not"),
    (Kind.NUMBER, "raises", {}, "the labels are not there yet"),
    (Kind.NUMBER, "talkative", {}, "4096 fit into a Job's message"),
    (Kind.NUMBER, "leaves", {}, "exit code 3"),
    (Kind.NUMBER, "meddles", {}, "ended well and left no result"),
    (Kind.NUMBER, "leaks", {}, "cannot reach postgresql://"),
    (Kind.NUMBER, "no_such", {}, "no attribute 'no_such'"),
]


@pytest.mark.parametrize(("kind", "name", "more", "expected"), CASES, ids=[case[1] for case in CASES])
async def test_a_check_of_the_users_own_runs_in_a_job(
    ways: Ways, window: Make, kind: Kind, name: str, more: dict[str, Any], expected: Any
) -> None:
    source = make_sources(ways)["check"]
    metric = a_metric(kind, "check", path=f"team_checks:{name}", **more)
    check = Measured(source, metric, window(candidate_url="http://127.0.0.1:1"))
    sample = await check.after()
    if isinstance(expected, str):
        assert expected in (sample.error or "")
        assert "hunter2" not in (sample.error or "")
    else:
        assert sample.error is None
        said = sample.value if kind is Kind.NUMBER else (numbers(sample.candidate), numbers(sample.stable))
        assert said == expected
    assert "team_checks" not in sys.modules


def test_the_shipped_program_is_plain_python(tmp_path: Path) -> None:
    for name, text in programs().items():
        imported = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        outside = [line for line in imported if "nighttrain" in line and asker._PACKAGE not in line]
        assert outside == [], name
    assert set(programs()) == {
        path.name for path in Path(performing.__file__).parent.iterdir() if path.suffix == ".py"
    }
