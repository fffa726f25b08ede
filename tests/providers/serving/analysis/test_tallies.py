"""Samples, added up: by share, by what they count, and what is no data."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nighttrain.providers.serving.analysis.judging import add
from nighttrain.providers.serving.analysis.values import KEPT_VALUES, Counts, Sample, Tally

SAMPLE = Sample(
    metric="errors",
    at=30,
    seconds=30,
    candidate=Counts(requests=100, bad=2),
    stable=Counts(requests=900, bad=9),
)


def test_samples_of_one_share_are_added_and_another_share_begins_another() -> None:
    tallies = add(add((), SAMPLE, share=0.1), SAMPLE, share=0.1)
    tallies = add(tallies, SAMPLE, share=0.25)
    assert [(tally.share, tally.candidate.requests) for tally in tallies] == [(0.1, 200), (0.25, 100)]
    assert tallies[0].stable == Counts(requests=1800, bad=18)


def test_errors_count_in_a_row_and_change_nothing_else() -> None:
    failed = replace(SAMPLE, candidate=None, stable=None, error="no answer")
    tallies = add(add(add((), SAMPLE, share=0.1), failed, share=0.1), failed, share=0.1)
    assert (tallies[-1].errors, tallies[-1].last_error) == (2, "no answer")
    assert tallies[-1].candidate == SAMPLE.candidate
    tallies = add(tallies, SAMPLE, share=0.1)
    assert (tallies[-1].errors, tallies[-1].last_error) == (0, "")
    assert add((), failed, share=0.1)[-1].errors == 1


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (replace(SAMPLE, candidate=Counts(requests=1, bad=2)), "2 of 1 requests to the candidate"),
        (replace(SAMPLE, stable=Counts(requests=1, bad=-1)), "-1 of 1 requests to the stable version"),
        (replace(SAMPLE, candidate=Counts(requests=math.nan, bad=0)), "nan"),  # type: ignore[arg-type]
        (replace(SAMPLE, candidate=Counts(requests=3, bad=math.inf)), "inf"),  # type: ignore[arg-type]
        (replace(SAMPLE, paired=True), "the same requests"),
        (
            replace(
                SAMPLE,
                candidate=Counts(requests=9, bad=2),
                stable=Counts(requests=9, bad=2),
                paired=True,
                both=3,
            ),
            "3 of them at both",
        ),
        (replace(SAMPLE, candidate_bins=(1, 2), stable_bins=(1, 2, 3)), "bins"),
        (replace(SAMPLE, candidate_bins=(1, -2), stable_bins=(1, 2)), "fewer than no"),
    ],
)
def test_numbers_that_contradict_one_another_are_an_error(sample: Sample, says: str) -> None:
    (tally,) = add((), sample, share=0.1)
    assert tally.errors == 1
    assert says in tally.last_error
    assert tally.candidate == Counts()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_number_that_is_none_is_no_data(value: float | None) -> None:
    number = Sample(metric="rows", at=30, seconds=30, value=value)
    assert add((), number, share=0.1)[-1].values == (None,)


def test_the_newest_values_are_kept() -> None:
    tallies: tuple[Tally, ...] = ()
    for value in range(KEPT_VALUES + 5):
        tallies = add(tallies, Sample(metric="rows", at=0, seconds=30, value=value), share=0.1)
    assert tallies[-1].values == tuple(float(value) for value in range(5, KEPT_VALUES + 5))


def test_what_counts_other_things_begins_another_tally() -> None:
    pairs = replace(SAMPLE, stable=SAMPLE.candidate, paired=True, both=1)
    tallies = add(add((), SAMPLE, share=0.1), pairs, share=0.1)
    assert [tally.paired for tally in tallies] == [False, True]
    bins = replace(SAMPLE, candidate_bins=(1, 2), stable_bins=(3, 4))
    tallies = add(add((), bins, share=0.1), replace(bins, candidate_bins=(1,), stable_bins=(2,)), share=0.1)
    assert [tally.candidate_bins for tally in tallies] == [(1, 2), (1,)]
    assert tallies[0].candidate.requests == 3


def test_a_tally_comes_back_from_json() -> None:
    bins = replace(SAMPLE, candidate_bins=(1, 2), stable_bins=(3, 4))
    for tally in (
        *add((), SAMPLE, share=0.1),
        *add((), bins, share=0.1),
        Tally(share=0.5, values=(1.0, None)),
    ):
        assert Tally.from_dict(json.loads(json.dumps(asdict(tally)))) == tally
    assert Tally.from_dict({"share": 0.1, "candidate": {"requests": 3, "bad": 1}}).stable is None


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1)), max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_order_of_a_shares_samples_does_not_matter(
    drawn: list[tuple[int, int, float, float]], random: object
) -> None:
    samples = [
        replace(
            SAMPLE,
            candidate=Counts(requests=requests, bad=round(requests * bad)),
            stable=Counts(requests=others, bad=round(others * other_bad)),
        )
        for requests, others, bad, other_bad in drawn
    ]
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one: tuple[Tally, ...] = ()
    other: tuple[Tally, ...] = ()
    for first, second in zip(samples, shuffled, strict=True):
        one, other = add(one, first, share=0.1), add(other, second, share=0.1)
    for left, right in zip(one, other, strict=True):
        assert (left.candidate, left.stable) == (right.candidate, right.stable)
        assert left.ratios == pytest.approx(right.ratios)
        assert left.stakes == pytest.approx(right.stakes)
