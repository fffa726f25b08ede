"""Golden requests to servers that fail in every way: probe and comparison, from here."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from helpers.measured_metric import Measured, a_metric, numbers
from helpers.odd_model_server import ModelServer, model_server
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import Kind
from nighttrain.providers.serving.analysis.sources import choice
from nighttrain.providers.serving.analysis.sources.asker import Asker, here
from nighttrain.providers.serving.analysis.sources.asking import golden_requests, predictions
from nighttrain.providers.serving.analysis.sources.base import Window
from nighttrain.providers.serving.analysis.sources.comparison import Comparison
from nighttrain.providers.serving.analysis.sources.probe import Probe

Make = Callable[..., Window]
TEN = Golden(requests=tuple(range(10)), expected=tuple(range(10)), timeout_seconds=0.5)


@pytest.fixture
def servers() -> Iterator[Callable[..., ModelServer]]:
    with ExitStack() as stack:
        yield lambda **given: stack.enter_context(model_server(**given))


def measured(
    window: Make, kind: Kind, candidate: ModelServer, stable: ModelServer | None, **given: Any
) -> Measured:
    golden = given.pop("golden", TEN)
    source = Comparison(Asker(here)) if kind in (Kind.DISAGREEMENT, Kind.DISTANCE) else Probe(Asker(here))
    made = window(
        candidate_url=candidate.url,
        stable_url=stable.url if stable else None,
        golden=golden,
        **({} if stable else {"stable": None}),
    )
    given.setdefault("requests_per_interval", 10)
    metric = a_metric(kind, "comparison" if isinstance(source, Comparison) else "probe", **given)
    choice.check_source("m", metric, golden)
    return Measured(source, metric, made)


@pytest.mark.parametrize("way", ["500", "503", "400", "302", "cut", "half", "hang", "drip", "endless"])
async def test_whatever_is_no_answer_is_an_error(window: Make, servers: Any, way: str) -> None:
    candidate, stable = servers(ways=("answer", way)), servers()
    probe = measured(window, Kind.ERRORS, candidate, stable, requests_per_interval=4)
    sample = await probe.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((4, 2), (4, 0))
    assert (sample.paired, sample.both, sample.error) == (True, 0, None)
    assert sorted(candidate.asked) == sorted(stable.asked)  # nothing was sent anywhere else either


async def test_nobody_listens(window: Make, servers: Any) -> None:
    candidate, stable = ModelServer(url="http://127.0.0.1:1"), servers(ways=("500",))
    sample = await measured(window, Kind.ERRORS, candidate, stable).after()
    assert (numbers(sample.candidate), numbers(sample.stable), sample.both) == ((10, 10), (10, 10), 10)


async def test_a_version_that_hangs_is_found_out_within_the_time_that_it_has(
    window: Make, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_requests, "PATIENCE_SECONDS", 0.05)
    candidate, stable = servers(ways=("hang",)), servers()
    began = time.monotonic()
    sample = await measured(window, Kind.ERRORS, candidate, stable, requests_per_interval=20).after()
    assert time.monotonic() - began < 20 * 0.5
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((20, 20), (20, 0))
    assert candidate.most_at_once > 1


async def test_a_version_that_hangs_is_not_sent_requests_without_end(
    window: Make, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_requests, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(golden_requests, "SENDING_SECONDS", 0.3)
    sample = await measured(
        window, Kind.ERRORS, servers(ways=("hang",)), servers(), requests_per_interval=1000
    ).after()
    assert sample.candidate is not None
    assert 0 < sample.candidate.requests < 20
    assert sample.candidate.requests == sample.candidate.bad


async def test_the_loop_goes_on_while_requests_hang(window: Make, servers: Any) -> None:
    probe = measured(window, Kind.ERRORS, servers(ways=("hang",)), servers(), requests_per_interval=2)
    task = asyncio.create_task(probe.after())
    longest, last = 0.0, time.monotonic()
    while not task.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert (await task).error is None
    assert longest < 0.2


async def test_one_after_the_other_and_neither_always_first(window: Make, servers: Any) -> None:
    order: list[str] = []
    candidate = servers(predict=lambda asked: order.append("c") or asked)
    stable = servers(predict=lambda asked: order.append("s") or asked)
    await measured(window, Kind.ERRORS, candidate, stable).after()
    assert "".join(order) == "sccs" * 5
    assert candidate.most_at_once == stable.most_at_once == 1


async def test_golden_requests_take_turns_from_interval_to_interval(window: Make, servers: Any) -> None:
    candidate = servers()
    probe = measured(window, Kind.ERRORS, candidate, servers(), requests_per_interval=7)
    for _ in range(3):
        await probe.after()
    assert candidate.asked == [*range(10), *range(10), 0]
    assert json.loads(json.dumps(probe.memory)) == probe.memory


async def test_what_several_metrics_want_is_asked_once(window: Make, servers: Any) -> None:
    candidate, stable = servers(ways=("answer", "500"), predict=lambda asked: asked + 1), servers()
    ask = Asker(here)
    kinds = (Kind.ERRORS, Kind.WRONG, Kind.DISAGREEMENT)
    made = window(candidate_url=candidate.url, stable_url=stable.url, golden=TEN)
    samples = await asyncio.gather(
        *(
            (Comparison(ask) if kind is Kind.DISAGREEMENT else Probe(ask)).measure(
                a_metric(kind, "any", requests_per_interval=10), made, {}
            )
            for kind in kinds
        )
    )
    assert len(candidate.asked) == len(stable.asked) == 10
    assert [numbers(sample.candidate) for sample, _ in samples] == [(10, 5), (10, 10), (5, 5)]


async def test_wrong_answers_within_the_tolerance_are_right(window: Make, servers: Any) -> None:
    golden = Golden(requests=(0, 1, 2), expected=([0.0], None, [2.0]), tolerance=0.1)
    candidate = servers(predict=lambda asked: [asked + (0.09 if asked == 0 else 0.11)])
    stable = servers(predict=lambda asked: [asked], ways=("answer", "answer", "500"))
    sample = await measured(
        window, Kind.WRONG, candidate, stable, golden=golden, requests_per_interval=3
    ).after()
    # The one of which nobody knows the answer does not count.
    assert (numbers(sample.candidate), numbers(sample.stable), sample.both) == ((2, 1), (2, 1), 1)


async def test_nothing_serves_beside_the_candidate(window: Make, servers: Any) -> None:
    candidate = servers(ways=("answer", "500"))
    sample = await measured(window, Kind.ERRORS, candidate, None).after()
    assert (numbers(sample.candidate), sample.stable, sample.paired) == ((10, 5), None, False)
    for kind in (Kind.DISAGREEMENT, Kind.DISTANCE):
        sample = await measured(window, kind, candidate, None).after()
        assert (sample.error, numbers(sample.candidate) or (0, 0)) == (None, (0, 0))


async def test_time_is_compared_with_the_stable_versions_earlier_quantile(window: Make, servers: Any) -> None:
    stable, candidate = servers(ways=(0.05, 0.05, 0.05, 0.1)), servers(ways=(0.11,))
    probe = measured(window, Kind.LATENCY, candidate, stable, quantile=0.75, increase=0.5)
    sample = await probe.after()
    assert (sample.candidate, sample.stable, sample.error) == (None, None, None)
    tau = probe.memory["tau"]
    assert 0.05 < tau < 0.1
    candidate.ways = (tau * 1.5 + 0.02,)
    sample = await probe.after()
    assert numbers(sample.candidate) == (10, 10)
    assert sample.stable is not None
    assert sample.stable.bad >= 2  # each fourth, and what this machine was slow with
    candidate.ways = ("answer",)
    sample = await probe.after()
    assert numbers(sample.candidate) == (10, 0)
    assert probe.memory["tau"] == tau


async def test_what_fails_at_once_is_not_fast_and_what_hangs_is_slow(window: Make, servers: Any) -> None:
    candidate, stable = servers(), servers()
    probe = measured(window, Kind.LATENCY, candidate, stable, quantile=0.5, requests_per_interval=4)
    await probe.after()
    probe.memory = {**probe.memory, "tau": 0.4}
    candidate.ways, candidate.asked = ("500", "hang", "answer", "answer"), []
    sample = await probe.after()
    assert (numbers(sample.candidate), numbers(sample.stable)) == ((3, 1), (3, 0))


async def test_too_few_answers_give_no_limit(window: Make, servers: Any) -> None:
    stable = servers(ways=("answer", "500"))
    probe = measured(window, Kind.LATENCY, servers(), stable, quantile=0.9, requests_per_interval=18)
    assert (await probe.after()).error is None
    assert probe.memory["tau"] is None
    stable.ways = ("answer",)
    await probe.after()
    assert probe.memory["tau"] > 0


async def test_disagreement_is_of_requests_that_both_answered(window: Make, servers: Any) -> None:
    candidate = servers(predict=lambda asked: [asked, "late" if asked < 3 else "on time"])
    stable = servers(predict=lambda asked: [asked, "on time"], ways=("500", *["answer"] * 9))
    sample = await measured(window, Kind.DISAGREEMENT, candidate, stable).after()
    assert (numbers(sample.candidate), sample.stable) == ((9, 2), None)
    stable.ways = ("hang",)
    sample = await measured(window, Kind.DISAGREEMENT, candidate, stable, requests_per_interval=2).after()
    assert (numbers(sample.candidate), sample.error) == ((0, 0), None)


async def test_the_bins_of_a_distance_are_fixed_by_the_stable_versions_first_answers(
    window: Make, servers: Any
) -> None:
    candidate, stable = servers(predict=lambda asked: [asked + 100.0]), servers(predict=lambda asked: [asked])
    comparison = measured(window, Kind.DISTANCE, candidate, stable)
    sample = await comparison.after()
    assert (sample.candidate_bins, sample.stable_bins, sample.error) == ((), (), None)
    bins = comparison.memory["bins"]
    sample = await comparison.after()
    assert sample.stable_bins == (1,) * 10 + (0,)
    assert sample.candidate_bins == (0,) * 10 + (10,)
    stable.predict = lambda asked: [asked / 2]
    await comparison.after()
    assert comparison.memory["bins"] == bins


async def test_classes_are_bins_too(window: Make, servers: Any) -> None:
    candidate = servers(predict=lambda asked: ["late", "cancelled", True][asked % 3])
    stable = servers(predict=lambda asked: "late" if asked < 4 else "on time")
    comparison = measured(window, Kind.DISTANCE, candidate, stable)
    await comparison.after()
    assert comparison.memory["bins"] == ["late", "on time"]
    sample = await comparison.after()
    assert (sample.candidate_bins, sample.stable_bins) == ((4, 0, 6), (4, 6, 0))


HOSTILE = [
    b"not JSON",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"1" * 5_000,
    b'{"predictions": [NaN, Infinity, 1e999, 1' + b"0" * 400 + b"]}",
    b'{"predictions": null}',
    b'{"outputs": [1, null, {"data": [1]}]}',
    b'{"outputs": {}}',
    b"",
]


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
async def test_answers_of_any_form_are_compared_and_never_raise(
    window: Make, servers: Any, answer: bytes
) -> None:
    odd = servers(predict=lambda _: answer)
    for candidate, stable in ((odd, servers()), (servers(), odd), (odd, odd)):
        for kind in (Kind.ERRORS, Kind.WRONG, Kind.DISAGREEMENT, Kind.DISTANCE):
            pair = measured(window, kind, candidate, stable)
            assert (await pair.baseline()).error is None
            assert (await pair.after()).error is None
    assert numbers((await measured(window, Kind.DISAGREEMENT, odd, odd).after()).candidate) == (10, 0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (1, 1.05, True),
        (1, 1.2, False),
        (True, 1, False),
        (math.nan, math.nan, True),
        (math.nan, 1, False),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, False),
        ([1, 2], [1], False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"b": 1}, False),
        ("1", 1, False),
        (None, None, True),
        (None, 0, False),
        (10**200, 10**200 + 1, False),
    ],
)
def test_alike(one: Any, other: Any, same: bool) -> None:
    assert predictions.alike(one, other, 0.1) is predictions.alike(other, one, 0.1) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"predictions": [1], "model_version": "1"}, {"predictions": [1], "model_version": "2"}),
        ({"outputs": [{"name": "o", "data": [1]}], "id": "a"}, {"outputs": [{"name": "o", "data": [1]}]}),
        ({"choices": [{"text": "x", "index": 0}], "created": 1}, {"choices": [{"text": "x"}], "created": 2}),
    ],
)
def test_what_names_server_version_and_time_is_no_prediction(one: Any, other: Any) -> None:
    first, second = (predictions.prediction_of(json.dumps(each).encode()) for each in (one, other))
    assert first == second


def test_no_more_than_so_many_bins() -> None:
    bins = predictions.bins_of([float(n % 1000) for n in range(5000)])
    assert bins is not None
    assert len(bins) == 19
    counts = predictions.into_bins([float(n) for n in range(1000)], bins)
    assert sum(counts) == 1000
    assert max(counts) <= 51


async def test_there_is_nobody_to_ask(window: Make) -> None:
    for source in (Probe(Asker(here)), Comparison(Asker(here))):
        kind = Kind.ERRORS if isinstance(source, Probe) else Kind.DISAGREEMENT
        for made in (window(golden=TEN), window(candidate_url="http://127.0.0.1:1")):
            sample, memory = await source.measure(a_metric(kind, "any"), made, {"next": 3})
            assert sample.error
            assert memory == {"next": 3}


async def test_no_thread_is_left(window: Make, servers: Any) -> None:
    await measured(window, Kind.ERRORS, servers(), servers()).after()
    for _ in range(100):
        if not any(thread.name == "nighttrain asks" for thread in threading.enumerate()):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(threading.enumerate())


MISTAKES: list[tuple[Any, str]] = [
    ((Kind.ERRORS, "prob", {}, TEN), r"m\.source\.type = 'prob': choose one of .*probe"),
    (
        (Kind.ERRORS, "probe", {"requests": 5}, TEN),
        r"m\.source\.requests = 5: probe takes",
    ),
    ((Kind.ERRORS, "probe", {"requests_per_interval": 0}, TEN), r"requests_per_interval = 0: use a whole"),
    ((Kind.ERRORS, "probe", {"requests_per_interval": True}, TEN), r"requests_per_interval = True: use a"),
    ((Kind.ERRORS, "probe", {}, None), r"m\.source\.type = 'probe': .*give strategy\.golden"),
    ((Kind.DISTANCE, "probe", {}, TEN), r"probe measures errors, latency, wrong"),
    ((Kind.ERRORS, "comparison", {}, TEN), r"comparison measures disagreement, distance"),
    (
        (Kind.WRONG, "probe", {}, replace(TEN, expected=())),
        r"golden\.expected.*disagreement instead",
    ),
    (
        (Kind.LATENCY, "probe", {"quantile": 0.99}, TEN),
        r"requests_per_interval = 50: send at least 100: one has to be beyond the quantile 0\.99",
    ),
    ((Kind.NUMBER, "counters", {}, TEN), r"counters measures errors, latency"),
    ((Kind.LATENCY, "counters", {"server": "triton"}, TEN), r"m\.source\.server = 'triton': .*use a probe"),
    ((Kind.ERRORS, "counters", {"server": "nginx"}, TEN), r"m\.source\.server = 'nginx': use one of"),
    ((Kind.ERRORS, "counters", {"server": "own"}, TEN), r"m\.source\.server = 'own': it tells nothing"),
    ((Kind.ERRORS, "counters", {"hangs_after_seconds": 0}, TEN), r"m\.source\.hangs_after_seconds = 0"),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_named_before_anything_starts(given: Any, said: str) -> None:
    kind, source, parameters, golden = given
    with pytest.raises(ConfigurationError, match=said):
        choice.check_source("m", a_metric(kind, source, **parameters), golden)
