"""Rollouts under constant load, through a real route, from another process: what clients see."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from helpers.fake_serving import IMAGE, FakeStore
from helpers.loaded_rollouts import GOOD, Clients
from helpers.steady_load import Sent, steady_load
from nighttrain.providers.local.cluster.controllers.gateway_controller import Serving
from nighttrain.providers.local.cluster.server import EmbeddedCluster
from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import MIN_REQUESTS, Analysis, Kind, Metric
from nighttrain.providers.serving.rollouts.state import Phase, Point, State
from nighttrain.providers.serving.strategy import Strategy, Weight

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

pytestmark = pytest.mark.slow

RATE = 100.0
SHARES = (20, 50)
INTERVAL = 2.0

BAD = {
    "answers 500": "behaves: status 500",
    "hangs": "behaves: hangs",
    "leaks memory until it is killed": "behaves: leaks",
    "is killed again and again": "behaves: dies",
    "answers slowly": "behaves: slow 0.4",
    "answers wrongly": '{"predictions": [2.0]}',
    "never becomes ready": "slow to load",
}

SAMPLE = ("answers 500", "answers wrongly")

ANALYSIS = Analysis(
    metrics=(
        Metric(name="errors", kind=Kind.ERRORS, limit=0.05),
        Metric(name="p95", kind=Kind.LATENCY, limit=0.1, increase=1.0),
        Metric(
            name="golden_errors",
            kind=Kind.ERRORS,
            limit=0.1,
            source={"type": "probe", "requests_per_interval": 25},
        ),
        Metric(
            name="disagreement",
            kind=Kind.DISAGREEMENT,
            limit=0.1,
            source={"type": "comparison", "requests_per_interval": 25},
        ),
    ),
    interval_seconds=INTERVAL,
)
STRATEGY = Strategy(
    steps=tuple(Weight(percent=share, hold_seconds=3 * INTERVAL) for share in SHARES),
    analysis=ANALYSIS,
    golden=Golden(requests=(0.001,), timeout_seconds=0.3),
    watch_seconds=3 * INTERVAL,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster({"model-server": IMAGE}, serving=Serving(status_lag=0.05, route_lag=0.5)) as cluster:
        yield cluster


@pytest.fixture
async def clients(client: ClusterClient, store: FakeStore) -> Clients:
    return Clients(client, store)


async def loaded(clients: Clients, version: str, text: str) -> tuple[State, Sent]:
    """Roll a version out under load; the first one of the endpoint before it without."""
    with steady_load(await clients.url(), clients.host, RATE) as sent:
        await asyncio.sleep(1)
        end = await clients.run(version, text, STRATEGY)
        await asyncio.sleep(1)
    return end, sent


def began(state: State, text: str) -> float:
    return next(event.at for event in state.events if text in event.text)


def likely(requests: int, share: float) -> tuple[int, int]:
    """What a binomial gives in 99.99 % of all cases (normal approximation, and one for the corner)."""
    width = 3.89 * math.sqrt(requests * share * (1 - share)) + 1
    return math.floor(requests * share - width), math.ceil(requests * share + width)


def is_something(point: Point) -> bool:
    return any(value is not None for pair in point.values.values() for value in pair)


def failed(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in requests if each["status"] != 200]


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_version_is_undone_by_itself(
    clients: Clients, bad: str, request: pytest.FixtureRequest
) -> None:
    if bad not in SAMPLE and not request.config.getoption("--thorough"):
        pytest.skip("one of a sample: --thorough runs all")
    end, sent = await loaded(clients, str(2 + list(BAD).index(bad)), BAD[bad])
    assert end.phase is Phase.UNDONE, clients.told
    assert clients.world.holders["champion"] == "1"
    stable = [each for each in sent.requests if each["version"] == "1"]
    assert {(each["status"], each["body"]) for each in stable} == {(200, GOOD)}
    affected = [each for each in sent.requests if each["version"] != "1"]
    undone = began(end, "undone: ")
    assert {each["version"] for each in sent.between(undone, math.inf)} == {"1"}
    if bad == "never becomes ready":
        assert affected == []
        return
    # One that breaks its route, or crashes, may be undone before its share is held.
    asked, back = began(end, f"{SHARES[0]} percent of the requests to"), began(end, "undoing: ")
    exposed = sent.between(asked, back)
    _, most = likely(len(exposed), SHARES[0] / 100)
    meant = sorted(each["at"] for each in exposed if each["version"] != "1")
    assert len(meant) <= most
    enough = meant[min(MIN_REQUESTS, len(meant)) - 1]
    # The first measurement of a share only says where counters stand.
    measured = [point for point in end.points if point.at > enough and is_something(point)]
    assert len(measured) <= 2, "not within two measurements of the first sample that suffices"
    told = f"{len(affected)} of {len(sent.requests)} affected"
    print(f"{bad}: undone after {back - asked:.1f} s, {told}: {end.reason}")


async def test_a_good_version_reaches_everything_and_nobody_notices(clients: Clients) -> None:
    end, sent = await loaded(clients, "9", GOOD)
    assert end.phase is Phase.PROMOTED, clients.told
    assert failed(sent.requests) == []
    assert clients.world.holders["champion"] == "9"
    times = [began(end, f"{share} percent of the requests go") for share in SHARES]
    ends = [began(end, "50 percent of the requests to"), began(end, "all requests to")]
    for share, start, stop in zip(SHARES, times, ends, strict=True):
        counted = sent.between(start, stop)
        lowest, highest = likely(len(counted), share / 100)
        assert lowest <= sum(each["version"] == "9" for each in counted) <= highest
    sure = sent.between(began(end, "all requests go"), math.inf)
    assert {each["version"] for each in sure} == {"9"}
    rate = len(sent.requests) / (sent.requests[-1]["at"] - sent.requests[0]["at"])
    print(f"{len(sent.requests)} requests, {rate:.0f} a second, none failed")
