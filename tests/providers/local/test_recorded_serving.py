"""Recordings of a real gateway and of KServe's coming release, replayed against their stand-ins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers.serving_replay import ROUTE_LAG, History, Replay, history_of, recorded, replay_all

pytestmark = pytest.mark.slow

GATEWAY = (
    "gateway-drained",
    "gateway-header",
    "gateway-mirror",
    "gateway-mirror-percent",
    "gateway-no-endpoints",
    "gateway-no-service",
    "gateway-refused",
    "gateway-undrained",
    "gateway-weights",
    "gateway-zero-weight",
)
KSERVE = (
    "kserve-canary-never-ready-next",
    "kserve-canary-next",
    "kserve-canary-promoted-in-two-next",
    "kserve-canary-undone-in-two-next",
    "kserve-canary-undone-next",
    "kserve-canary-unready-later-next",
)
# What the recorded clients were answered: note -> (version, status) -> share, as the weights declare it.
SHARES: dict[str, dict[tuple[str, int], float]] = {
    "90/10": {("v1", 200): 0.9, ("v2", 200): 0.1},
    "50/50": {("v1", 200): 0.5, ("v2", 200): 0.5},
    "1/99": {("v1", 200): 0.01, ("v2", 200): 0.99},
    "0/100": {("v2", 200): 1.0},
    "without the header": {("v1", 200): 1.0},
    "with the header": {("v2", 200): 1.0},
    "answers while mirrored": {("-", 500): 1.0},
    "75 to a, 25 to b that is not ready": {("v1", 200): 0.75, ("-", 503): 0.25},
    "75 to a, 25 to nothing": {("v1", 200): 0.75, ("-", 500): 0.25},
    "100 to a, 0 to nothing": {("v1", 200): 1.0},
    "canary 25": {("v1", 200): 0.75, ("v2", 200): 0.25},
    "canary 60": {("v1", 200): 0.4, ("v2", 200): 0.6},
    "canary 50, not ready": {("v1", 200): 1.0},
    "promoted": {("v2", 200): 1.0},
    "after": {("v1", 200): 1.0},
}
# What the steady load lost, whatever else it was answered.
LOST = {
    "gateway-drained": set[int](),
    "gateway-undrained": set[int](),
    "gateway-weights": set[int](),
    "kserve-canary-never-ready-next": set[int](),
    "kserve-canary-next": {500},
    "kserve-canary-promoted-in-two-next": set[int](),
    "kserve-canary-undone-in-two-next": set[int](),
    "kserve-canary-undone-next": {500},
    "kserve-canary-unready-later-next": {503},
}


@pytest.fixture(scope="module")
def replays() -> dict[str, Replay]:
    return asyncio.run(replay_all([*GATEWAY, *KSERVE], at_once=4))


@pytest.mark.parametrize("name", [*GATEWAY, *KSERVE])
def test_each_object_goes_through_the_recorded_states(replays: dict[str, Replay], name: str) -> None:
    replay = replays[name]
    assert replay.own.orders() == history_of(recorded(name)).orders()
    assert [path for path, there, here in replay.calls if there != here] == []


@pytest.mark.parametrize("name", [*GATEWAY, *KSERVE])
def test_answers_are_shared_out_as_recorded(replays: dict[str, Replay], name: str) -> None:
    for note, counted in replays[name].counted.items():
        total, shares = counted.total(), SHARES[note]
        assert counted.keys() <= shares.keys(), note
        for answer, share in shares.items():
            # Four standard deviations: one run in 16,000 would be outside, and the seed is fixed.
            slack = 4 * (total * share * (1 - share)) ** 0.5
            assert abs(counted[answer] - total * share) <= slack, (note, answer, counted)


@pytest.mark.parametrize("name", LOST)
def test_the_steady_load_loses_what_it_was_recorded_to_lose(replays: dict[str, Replay], name: str) -> None:
    answers = replays[name].answers
    assert len(answers) > 20
    assert {status for _time, _version, status in answers} - {200} == LOST[name]


@pytest.mark.parametrize("name", KSERVE)
def test_events_come_in_the_recorded_order(replays: dict[str, Replay], name: str) -> None:
    """But for what may turn: within an eighth of a second, as watches are separate connections, and what some
    other recording has in the opposite order."""
    recordings = {each: _moments(history_of(recorded(each))) for each in KSERVE}
    there, here = recordings[name], _moments(replays[name].own)
    assert there.keys() == here.keys()

    def may_turn(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
        both = [each for each in recordings.values() if first in each and second in each]
        return any(each[first] > each[second] for each in both)

    for first, begun in there.items():
        for second, followed in there.items():
            if followed - begun > 0.125 and not may_turn(first, second):
                assert here[second] > here[first], (first, second)


def _moments(history: History) -> dict[tuple[Any, ...], float]:
    """(object, which of its states) -> when; without the statuses of routes, which are nobody's step."""
    return {
        (*key, number, state): time
        for key, known in history.states.items()
        if not key[1].endswith(" status")
        for number, (time, state) in enumerate(known)
    }


OLD, NEW = "m-predictor", "m-next-predictor"
ROUTE = ("httproutes", "m weights")
# From a call to what follows from it: the seconds that were recorded, in four scenarios or in one.
LAGS = [
    # A canary is asked for, and the route says that it has no share yet.
    *(
        (scenario, note, ROUTE, (OLD, 100), (0.15, 0.27))
        for scenario, note in (
            ("kserve-canary-next", "canary 25"),
            ("kserve-canary-undone-next", "canary 50"),
            ("kserve-canary-undone-in-two-next", "canary 50"),
            ("kserve-canary-unready-later-next", "canary 50"),
        )
    ),
    # Its share is changed.
    ("kserve-canary-next", "canary 60", ROUTE, (NEW, 60), (0.07, 0.18)),
    ("kserve-canary-promoted-in-two-next", "canary 100", ROUTE, (NEW, 100), (0.07, 0.18)),
    ("kserve-canary-undone-in-two-next", "canary 0", ROUTE, (NEW, 0), (0.07, 0.18)),
    # What is no longer asked for goes, and only then does the route learn of it.
    ("kserve-canary-next", "promote", ("services", OLD), "gone", (0.03, 0.1)),
    ("kserve-canary-promoted-in-two-next", "promote", ROUTE, (NEW, 1), (0.2, 0.45)),
    ("kserve-canary-undone-next", "the canary removed", ("services", NEW), "gone", (0.03, 0.1)),
    ("kserve-canary-undone-in-two-next", "the canary removed", ROUTE, (OLD, 1), (0.2, 0.45)),
]
# A machine that runs several replays at once is late now and then.
_LATE_SECONDS = 1.0


@pytest.mark.parametrize(("name", "note", "key", "last", "seconds"), LAGS)
def test_what_follows_from_a_call_takes_as_long_as_recorded(
    replays: dict[str, Replay], name: str, note: str, key: tuple[str, str], last: Any, seconds: Any
) -> None:
    least, most = seconds
    call = replays[name].called[note]
    found = [time for time, state in replays[name].own.states[key] if state[-1] == last and time > call]
    assert least - 0.02 <= found[0] - call <= most + _LATE_SECONDS


@pytest.mark.parametrize(
    ("name", "note", "old"),
    [
        ("kserve-canary-promoted-in-two-next", "canary 100", "v1"),
        ("kserve-canary-undone-in-two-next", "canary 0", "v2"),
    ],
)
def test_answers_follow_the_route_after_the_gateways_lag(
    replays: dict[str, Replay], name: str, note: str, old: str
) -> None:
    """Recorded: 2.05 and 2.1 s where the gateway's lag was 2 s. Status and route agree all that time."""
    replay = replays[name]
    share = int(note.split()[1])
    told = next(
        time
        for time, state in replay.own.states[ROUTE]
        if (NEW, share) in state and time > replay.called[note]
    )
    last = max(time for time, version, _status in replay.answers if version == old)
    assert 0.2 * ROUTE_LAG < last - told < ROUTE_LAG + _LATE_SECONDS
