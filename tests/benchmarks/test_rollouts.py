"""Rollouts in steps under load: how long each turn takes beyond the holds, and what clients notice.

Command: ``./run bench -k rollouts_under_load`` (five of each kind), with ``--full`` thirty.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.clusters import connected
from helpers.fake_serving import IMAGE, FakeStore
from helpers.loaded_rollouts import GOOD, Clients
from helpers.steady_load import Sent, steady_load
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric
from nighttrain.providers.serving.rollouts.state import Phase, State
from nighttrain.providers.serving.strategy import Strategy, Weight

if TYPE_CHECKING:
    from .conftest import Show

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

RATE, HOLD, WATCH = 50.0, 1.0, 1.0
SHARES = (20, 50)
GOES = Strategy(steps=tuple(Weight(percent=each, hold_seconds=HOLD) for each in SHARES), watch_seconds=WATCH)
IS_UNDONE = Strategy(
    steps=(Weight(percent=20, hold_seconds=5.0),),
    analysis=Analysis(metrics=(Metric(name="errors", kind=Kind.ERRORS),), interval_seconds=2.0),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": IMAGE}, serving=Serving(status_lag=0.05, route_lag=0.5)) as running:
        yield running


def at(state: State, text: str) -> float:
    return next(event.at for event in state.events if text in event.text)


def shown(values: list[float]) -> str:
    values = sorted(values)
    return (
        f"{statistics.median(values):.2f} / {values[min(len(values) - 1, round(0.99 * len(values)))]:.2f} s"
    )


async def rolled_out(clients: Clients, version: str, text: str, strategy: Strategy) -> tuple[State, Sent]:
    with steady_load(await clients.url(), clients.host, RATE) as sent:
        await asyncio.sleep(0.5)
        end = await clients.run(version, text, strategy, replicas=1)
        await asyncio.sleep(0.5)
    return end, sent


@pytest.mark.parametrize("gateway", [True, False], ids=["by route", "by replicas"])
def test_rollouts_under_load(
    cluster: EmbeddedCluster, show: Show, tmp_path: Path, request: pytest.FixtureRequest, gateway: bool
) -> None:
    count = 30 if request.config.getoption("--full") else 5
    rows = asyncio.run(measured(cluster, FakeStore(tmp_path), count, gateway))
    kind = "a Gateway API route" if gateway else "shares by replicas"
    note = (
        f"{count} versions promoted over {SHARES} percent and {count} that answer 500 undone, at {RATE:g} "
        "requests a second from another process. The router follows its route with a lag of 0.5 s here; "
        "a real gateway was seen to need 2 s."
    )
    show(f"Rollouts in steps, {kind}", ("", "p50 / p99"), rows, note)


async def measured(
    cluster: EmbeddedCluster, store: FakeStore, count: int, gateway: bool
) -> list[tuple[str, str]]:
    first, everything, overhead, wrong_answer = [], [], [], []
    lost = affected = total = 0
    async with connected(cluster) as client:
        clients = Clients(client, store, gateway=gateway, endpoint="by-route" if gateway else "by-replicas")
        for number in range(count):
            version = str(10 + number)
            clients.world.holders["champion"] = ""
            end, sent = await rolled_out(clients, version, GOOD, GOES)
            assert end.phase is Phase.PROMOTED, clients.told
            ready = at(end, "ready; ")
            first.append(min(each["at"] for each in sent.requests if each["version"] == version) - ready)
            everything.append(at(end, "all requests go") - ready - HOLD * len(SHARES))
            asked = [event.at for event in end.events if "percent of the requests to" in event.text]
            held = [event.at for event in end.events if "percent of the requests go" in event.text]
            overhead += [later - earlier for earlier, later in zip(asked, held, strict=True)]
            lost += sum(each["status"] != 200 for each in sent.requests)
            total += len(sent.requests)
        for number in range(count):
            version = str(1000 + number)
            clients.world.holders["champion"] = ""
            end, sent = await rolled_out(clients, version, "behaves: status 500", IS_UNDONE)
            assert end.phase is Phase.UNDONE, clients.told
            bad = [each["at"] for each in sent.requests if each["version"] == version]
            wrong_answer.append(max(bad) - at(end, "undoing: "))
            affected += len(bad)
    return [
        ("ready to the new version's first answer", shown(first)),
        ("ready to every request, without the holds", shown(everything)),
        ("a step: share asked for to share seen in the answers", shown(overhead)),
        ("decided to undo until the rejected version's last answer", shown(wrong_answer)),
        (f"requests lost of {total} while versions were promoted", str(lost)),
        ("requests that met a rejected version, in all", str(affected)),
    ]


def test_rollouts_under_load_latency_of_the_route(
    cluster: EmbeddedCluster, show: Show, tmp_path: Path
) -> None:
    rows = asyncio.run(latencies(cluster, FakeStore(tmp_path)))
    show("Latency that the embedded cluster's router adds", ("", "p50 / p99"), rows)


async def latencies(cluster: EmbeddedCluster, store: FakeStore) -> list[tuple[str, str]]:
    async with connected(cluster) as client:
        clients = Clients(client, store, endpoint="latency")
        route = await clients.url()
        direct = await clients.service_url()
    rows = []
    for name, url in (("through the route", route), ("to the Service", direct)):
        with steady_load(url, clients.host, RATE) as sent:
            await asyncio.sleep(5)
        rows.append((name, shown([each["seconds"] for each in sent.requests])))
    return rows
