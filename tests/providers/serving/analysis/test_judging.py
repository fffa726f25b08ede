"""Verdicts: what each kind of metric needs to fail and to succeed, and what never decides anything."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.judging import add, judge, judge_all, overall
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric
from nighttrain.providers.serving.analysis.values import Counts, Judgement, Sample, Tally, Verdict

FAILED, SUCCESSFUL, INCONCLUSIVE, ERROR = (
    Verdict.FAILED,
    Verdict.SUCCESSFUL,
    Verdict.INCONCLUSIVE,
    Verdict.ERROR,
)
ERRORS = Metric(name="errors", kind=Kind.ERRORS)
DISAGREEMENT = Metric(name="disagreement", kind=Kind.DISAGREEMENT, limit=0.02)
DISTANCE = Metric(name="distance", kind=Kind.DISTANCE, limit=0.2)
NUMBER = Metric(name="rows", kind=Kind.NUMBER, limit=5.0, worse="above", failures=3)

Pair = tuple[int, int]


def tally(candidate: Pair, stable: Pair | None = None, share: float = 0.1) -> Tally:
    return Tally(
        share=share,
        candidate=Counts(requests=candidate[0], bad=candidate[1]),
        stable=None if stable is None else Counts(requests=stable[0], bad=stable[1]),
    )


def said(metric: Metric, *tallies: Tally) -> Judgement:
    found = judge(metric, tallies, false_alarms=0.01)
    assert found.metric == metric.name
    assert json.loads(json.dumps(found.evidence, allow_nan=False)) == found.evidence
    return found


@pytest.mark.parametrize("kind", [Kind.ERRORS, Kind.LATENCY, Kind.WRONG])
@pytest.mark.parametrize(
    ("candidate", "stable", "verdict"),
    [
        ((1_000, 0), (9_000, 0), SUCCESSFUL),
        ((5_000, 50), (45_000, 450), SUCCESSFUL),
        ((5_000, 600), (45_000, 7_000), SUCCESSFUL),
        ((200, 0), (1_800, 0), INCONCLUSIVE),
        ((1_000, 20), (9_000, 90), INCONCLUSIVE),
        ((1_000, 40), (9_000, 90), FAILED),
        ((60, 60), (540, 0), FAILED),
        ((60, 60), (540, 540), INCONCLUSIVE),
        ((49, 49), (441, 0), INCONCLUSIVE),
        ((500, 500), (49, 0), INCONCLUSIVE),
        ((5_000, 0), (49, 0), INCONCLUSIVE),
    ],
)
def test_compared_over_the_same_time(kind: Kind, candidate: Pair, stable: Pair, verdict: Verdict) -> None:
    assert said(replace(ERRORS, kind=kind), tally(candidate, stable)).verdict is verdict


def test_the_sentence_has_the_numbers_and_the_evidence_is_plain() -> None:
    found = said(ERRORS, tally((1_000, 40), (9_000, 90)))
    assert found.sentence == (
        "errors: 40 of 1,000 requests to the candidate failed (4 %), and 90 of 9,000 to the stable version "
        "(1 %). That is 3 percentage points more, and more than chance makes, however often one looks."
    )
    assert found.evidence["excess"] == pytest.approx(0.03)
    assert 0 < found.evidence["lower"] < 0.03 < found.evidence["upper"]
    found = said(ERRORS, tally((200, 0), (1_800, 0)))
    assert "between" in found.sentence
    assert "so more requests have to tell" in found.sentence


def test_much_traffic_does_not_make_a_trifle_a_failure() -> None:
    """0.1 and 0.14 percent: different for certain, and by less than a twentieth of the limit."""
    found = said(ERRORS, tally((1_000_000, 1_400), (1_000_000, 1_000)))
    assert found.evidence["log10_evidence"] > 3
    assert found.verdict is SUCCESSFUL
    assert said(ERRORS, tally((1_000_000, 1_600), (1_000_000, 1_000))).verdict is FAILED
    assert said(ERRORS, tally((50_000_000, 2_520_000), (50_000_000, 2_500_000))).verdict is SUCCESSFUL


def test_a_version_that_fails_from_a_later_share_on_has_failed_by_that_share() -> None:
    fine, broken = tally((10_000, 100), (90_000, 900)), tally((500, 40), (500, 5), 0.5)
    found = said(ERRORS, fine, broken)
    assert found.verdict is FAILED
    assert "40 of 500 requests to the candidate failed (8 %)" in found.sentence


def test_what_two_shares_show_is_added_up() -> None:
    first, second = tally((1_000, 22), (9_000, 90)), tally((1_000, 22), (3_000, 30), 0.25)
    assert said(ERRORS, first).verdict is INCONCLUSIVE
    assert said(ERRORS, second).verdict is INCONCLUSIVE
    assert said(ERRORS, first, second).verdict is FAILED


def test_good_shares_before_do_not_make_the_present_one_successful() -> None:
    fine = tally((10_000, 100), (90_000, 900))
    assert said(ERRORS, fine).verdict is SUCCESSFUL
    assert said(ERRORS, fine, tally((49, 0), (49, 0), 0.5)).verdict is INCONCLUSIVE
    assert said(ERRORS, fine, tally((60, 0), (60, 0), 0.5)).verdict is SUCCESSFUL
    found = said(ERRORS, fine, tally((100, 3), (100, 1), 0.5))
    assert found.verdict is INCONCLUSIVE
    assert "but not at the share that is routed now" in found.sentence


def test_rates_of_each_share_are_compared_within_it() -> None:
    """Errors of both go up together with the candidate's share: added up, it would look worse."""
    tallies = tally((5_000, 50), (45_000, 450)), tally((450_000, 45_000), (50_000, 5_000), 0.9)
    found = said(ERRORS, *tallies)
    assert found.evidence["excess"] == pytest.approx(0)
    assert found.evidence["log10_evidence"] < 0
    assert found.verdict is SUCCESSFUL
    assert "Share by share at most" in found.sentence


def test_intervals_of_one_share_are_compared_each_by_itself() -> None:
    """2 points worse by day and by night; added up it looks better, for it gets fewer requests by night."""
    tallies: tuple[Tally, ...] = ()
    for _ in range(20):
        for candidate, stable in (((900, 27), (100, 1)), ((100, 52), (900, 450))):
            counted = tally(candidate, stable)
            sample = Sample(
                metric="errors", at=0, seconds=30, candidate=counted.candidate, stable=counted.stable
            )
            tallies = add(tallies, sample, share=0.5)
    assert said(ERRORS, tallies[0]).verdict is INCONCLUSIVE
    assert said(ERRORS, tally((20_000, 1_580), (20_000, 9_020))).verdict is SUCCESSFUL


def test_after_everything_is_its_own_the_stable_versions_rate_of_before_counts() -> None:
    before = tally((3_000, 60), (27_000, 540)), tally((9_000, 180), (9_000, 180), 0.5)
    everything = tally((2_000, 42), (0, 0), 1.0)
    found = said(ERRORS, *before, everything)
    assert found.verdict is SUCCESSFUL
    assert "Since it gets all requests, 42 of 2,000 (2.1 %)." in found.sentence
    assert said(ERRORS, *before, tally((40, 0), (0, 0), 1.0)).verdict is INCONCLUSIVE
    assert said(ERRORS, *before, tally((2_000, 62), (0, 0), 1.0)).verdict is INCONCLUSIVE
    found = said(ERRORS, *before, tally((2_000, 120), (0, 0), 1.0))
    assert found.verdict is FAILED
    assert "120 of 2,000" in found.sentence


@pytest.mark.parametrize("stable", [None, (0, 0)])
def test_with_nothing_to_compare_with_the_limit_is_the_rate(stable: Pair | None) -> None:
    assert said(ERRORS, tally((1_000, 0), stable, 1.0)).verdict is SUCCESSFUL
    assert said(ERRORS, tally((300, 3), stable, 1.0)).verdict is INCONCLUSIVE
    assert said(ERRORS, tally((49, 49), stable, 1.0)).verdict is INCONCLUSIVE
    found = said(ERRORS, tally((1_000, 60), stable, 1.0))
    assert found.verdict is FAILED
    assert found.sentence == (
        "errors: 60 of 1,000 requests to the candidate failed (6 %). "
        "That is more than chance makes; 1 % is tolerable."
    )


def test_the_same_requests_are_compared_one_by_one() -> None:
    """60 and 40 of 1,000 could be chance, but not if the 40 are among the 60."""
    candidate, stable = Counts(requests=1_000, bad=60), Counts(requests=1_000, bad=40)
    sample = Sample(
        metric="errors", at=0, seconds=30, candidate=candidate, stable=stable, paired=True, both=40
    )
    assert said(ERRORS, *add((), sample, share=0.1)).verdict is FAILED
    assert said(ERRORS, *add((), replace(sample, both=0), share=0.1)).verdict is INCONCLUSIVE
    same = replace(sample, candidate=stable)
    assert said(ERRORS, *add((), same, share=0.1)).verdict is SUCCESSFUL


def test_disagreement_is_a_rate_over_all_shares() -> None:
    assert said(DISAGREEMENT, tally((300, 1)), tally((700, 4), share=0.25)).verdict is SUCCESSFUL
    assert said(DISAGREEMENT, tally((1_000, 60), (9_000, 540))).verdict is FAILED
    assert said(DISAGREEMENT, tally((300, 6)), tally((300, 6), share=0.25)).verdict is INCONCLUSIVE
    assert said(DISAGREEMENT, tally((5_000, 5)), tally((300, 9), share=0.25)).verdict is INCONCLUSIVE
    found = said(DISAGREEMENT, tally((300, 15)), tally((700, 40), share=0.25))
    assert found.verdict is FAILED
    assert "55 of 1,000 requests to both versions were answered differently (5.5 %)" in found.sentence


def bins(candidate: tuple[int, ...], stable: tuple[int, ...]) -> Tally:
    sample = Sample(metric="distance", at=0, seconds=30, candidate_bins=candidate, stable_bins=stable)
    return add((), sample, share=0.1)[0]


def test_distance_of_two_distributions() -> None:
    assert said(DISTANCE, bins((500, 500, 500), (5_000, 5_000, 5_000))).verdict is SUCCESSFUL
    assert said(DISTANCE, bins((50, 50, 50), (500, 500, 500))).verdict is INCONCLUSIVE
    assert said(DISTANCE, bins((90, 30, 30), (500, 500, 500))).verdict is INCONCLUSIVE
    found = said(DISTANCE, bins((1_200, 200, 100), (5_000, 5_000, 5_000)))
    assert found.verdict is FAILED
    assert found.evidence["distance"] == pytest.approx(0.8 - 1 / 3)
    assert said(DISTANCE, bins((40, 0), (0, 4_000))).verdict is INCONCLUSIVE
    assert said(DISTANCE, Tally(share=0.1, values=(0.9, 0.9, 0.9))).verdict is INCONCLUSIVE


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((), INCONCLUSIVE),
        ((4.0,), SUCCESSFUL),
        ((9.0, 9.0), INCONCLUSIVE),
        ((9.0, 9.0, 9.0), FAILED),
        ((9.0, 9.0, None, 9.0), INCONCLUSIVE),
        ((9.0, 9.0, 9.0, None), INCONCLUSIVE),
        ((9.0, 9.0, 9.0, 5.0), SUCCESSFUL),
    ],
)
def test_numbers_in_a_row(values: tuple[float | None, ...], verdict: Verdict) -> None:
    assert said(NUMBER, Tally(share=0.1, values=values)).verdict is verdict
    below = replace(NUMBER, worse="below", limit=-5.0)
    negated = tuple(None if value is None else -value for value in values)
    assert said(below, Tally(share=0.1, values=negated)).verdict is verdict


def test_nothing_is_a_number_too() -> None:
    at_least_one = replace(NUMBER, worse="below", limit=1.0)
    assert said(at_least_one, Tally(share=0.1, values=(0.0, 0.0, 0.0))).verdict is FAILED


def test_numbers_go_on_over_a_change_of_the_share_but_an_old_one_is_no_success() -> None:
    beyond = Tally(share=0.1, values=(9.0, 9.0))
    assert said(NUMBER, beyond, Tally(share=0.25, values=(9.0,))).verdict is FAILED
    assert said(NUMBER, Tally(share=0.1, values=(1.0,)), Tally(share=0.25)).verdict is INCONCLUSIVE


@pytest.mark.parametrize("metric", [ERRORS, DISAGREEMENT, DISTANCE, NUMBER])
def test_no_data_is_inconclusive_and_an_outage_an_error(metric: Metric) -> None:
    nothing = Sample(metric=metric.name, at=0, seconds=30)
    for tallies in ((), add((), nothing, share=0.1), (Tally(share=0.1),)):
        found = said(metric, *tallies)
        assert found.verdict is INCONCLUSIVE
        assert found.sentence.startswith(f"{metric.name}: ")
    found = said(metric, *add((), replace(nothing, error="refused"), share=0.1))
    assert (found.verdict, found.sentence) == (ERROR, f"{metric.name} could not be measured, once: refused")


def test_an_outage_neither_fails_nor_succeeds_and_what_was_known_comes_back() -> None:
    outage = Sample(metric="errors", at=0, seconds=30, error="refused")
    for known, verdict in ((tally((1_000, 0), (9_000, 0)), SUCCESSFUL), (tally((60, 60), (540, 0)), FAILED)):
        assert said(ERRORS, known).verdict is verdict
        blind = add(add([known], outage, share=0.1), outage, share=0.1)
        assert said(ERRORS, *blind).verdict is ERROR
        assert "2 times in a row" in said(ERRORS, *blind).sentence
        seen = add(blind, replace(outage, error=None), share=0.1)
        assert said(ERRORS, *seen).verdict is verdict


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        ((), INCONCLUSIVE),
        ((SUCCESSFUL, SUCCESSFUL), SUCCESSFUL),
        ((SUCCESSFUL, INCONCLUSIVE), INCONCLUSIVE),
        ((ERROR, INCONCLUSIVE, SUCCESSFUL), ERROR),
        ((ERROR, FAILED, INCONCLUSIVE), FAILED),
    ],
)
def test_the_most_severe_verdict_is_that_of_all(verdicts: tuple[Verdict, ...], together: Verdict) -> None:
    assert overall([Judgement(metric="m", verdict=each, sentence="") for each in verdicts]) is together


def test_false_alarms_are_shared_out_among_the_tests() -> None:
    """Evidence of 1 in 130 suffices one test with 1 in 100, one of two with a number, but not one of two."""
    found = tally((1_000, 25), (9_000, 90))
    assert 2.1 < said(ERRORS, found).evidence["log10_evidence"] < 2.2
    alone = Analysis(metrics=(ERRORS,))
    with_a_number = Analysis(metrics=(ERRORS, NUMBER))
    with_a_test = Analysis(metrics=(ERRORS, DISAGREEMENT))
    assert judge_all(alone, {"errors": [found]})[0].verdict is FAILED
    assert judge_all(with_a_number, {"errors": [found]})[0].verdict is FAILED
    first, second = judge_all(with_a_test, {"errors": [found]})
    assert (first.verdict, second.verdict) == (INCONCLUSIVE, INCONCLUSIVE)


def test_let_through_is_a_parameter_and_checked() -> None:
    found = {"errors": [tally((700, 0), (6_300, 0))]}
    assert judge_all(Analysis(metrics=(ERRORS,)), found)[0].verdict is SUCCESSFUL
    assert judge_all(Analysis(metrics=(ERRORS,), let_through=0.001), found)[0].verdict is INCONCLUSIVE
    with pytest.raises(ConfigurationError, match=r"strategy\.analysis\.let_through"):
        Analysis(metrics=(ERRORS,), let_through=math.nan).validate()


requests = st.integers(0, 3_000)
shares = st.floats(0, 1)
kinds = st.sampled_from([Kind.ERRORS, Kind.LATENCY, Kind.WRONG, Kind.DISAGREEMENT])


@st.composite
def tallied(draw: st.DrawFn) -> Tally:
    candidate, others = draw(requests), draw(st.none() | requests)
    bad = round(candidate * draw(shares) ** 3)
    other_bad = None if others is None else (others, round(others * draw(shares) ** 3))
    return tally((candidate, bad), other_bad, draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])))


@settings(deadline=None)
@given(kinds, st.lists(tallied(), max_size=4), st.integers(1, 200))
def test_below_the_least_requests_nothing_is_said(
    kind: Kind, tallies: list[Tally], min_requests: int
) -> None:
    metric = Metric(name="m", kind=kind, min_requests=min_requests)
    found = said(metric, *tallies)
    newest = tallies[-1].candidate.requests if tallies else 0
    if sum(each.candidate.requests for each in tallies) < min_requests:
        assert found.verdict is INCONCLUSIVE
    if newest < min_requests:
        assert found.verdict is not SUCCESSFUL


@settings(deadline=None)
@given(kinds, tallied(), st.integers(1, 50))
def test_more_bad_requests_never_make_a_better_verdict(kind: Kind, given_tally: Tally, more: int) -> None:
    metric = Metric(name="m", kind=kind)
    counts = given_tally.candidate
    worse = replace(given_tally, candidate=replace(counts, bad=min(counts.bad + more, counts.requests)))
    order = (SUCCESSFUL, INCONCLUSIVE, FAILED)
    before, after = said(metric, given_tally).verdict, said(metric, worse).verdict
    assert order.index(after) >= order.index(before)


@settings(deadline=None)
@given(st.lists(tallied(), min_size=1, max_size=4), st.floats(0, 0.5), st.floats(0.001, 0.05))
def test_verdicts_follow_bounds_and_are_the_same_for_the_same(
    tallies: list[Tally], limit: float, false_alarms: float
) -> None:
    metric = Metric(name="m", kind=Kind.ERRORS, limit=limit)
    found = judge(metric, tallies, false_alarms=false_alarms)
    assert found == judge(metric, list(tallies), false_alarms=false_alarms)
    if "lower" in found.evidence:
        point = found.evidence.get("excess", found.evidence.get("rate"))
        assert found.evidence["lower"] <= point + 1e-9
        assert point <= found.evidence["upper"] + 1e-9
    if found.verdict is FAILED:
        assert found.evidence.get("excess", found.evidence.get("rate")) > 0
