from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.gates import (
    AtLeast,
    AtMost,
    BetterThanChampion,
    MinimumSamples,
    NotWorseThanChampion,
    Rule,
    judge,
    parse_rule,
    parse_rules,
)
from nighttrain.providers.registry.gates.verdicts import Verdict, VerdictKind

ACCEPTED, REJECTED, INCONCLUSIVE = VerdictKind.ACCEPTED, VerdictKind.REJECTED, VerdictKind.INCONCLUSIVE

quickly = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
"""A loaded machine is no finding, and no folder is left behind."""

METRICS = ("mae", "accuracy", "rows")
finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)
shares = st.integers(0, 99).map(lambda percent: percent / 100)
rules = st.one_of(
    st.builds(AtMost, st.sampled_from(METRICS), finite),
    st.builds(AtLeast, st.sampled_from(METRICS[:2]), finite),
    st.builds(NotWorseThanChampion, st.sampled_from(METRICS), st.booleans(), shares),
    st.builds(BetterThanChampion, st.sampled_from(METRICS), st.booleans(), shares),
    st.builds(MinimumSamples, st.sampled_from(METRICS), st.integers(1, 10_000)),
)
anything = st.one_of(st.floats(), st.none(), st.text(max_size=3), st.integers(-100, 100))
measurements = st.dictionaries(st.sampled_from(METRICS), anything, max_size=3)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mae <= 25", AtMost("mae", 25.0)),
        ("candidate.mae<=25.5", AtMost("mae", 25.5)),
        ("val/accuracy >= 0.9", AtLeast("val/accuracy", 0.9)),
        ("rows >= 500", MinimumSamples("rows", 500)),
        ("test.samples >= 1e3", MinimumSamples("test.samples", 1000)),
        ("samples(seen) >= 7", MinimumSamples("seen", 7)),
        ("mae <= champion.mae * 1.02", NotWorseThanChampion("mae", False, 0.02)),
        ("mae <= champion", NotWorseThanChampion("mae", False)),
        ("accuracy >= champion.accuracy * 0.99", NotWorseThanChampion("accuracy", True, 0.01)),
        ("mae < champion.mae", BetterThanChampion("mae", False)),
        ("mae < champion.mae * 0.95", BetterThanChampion("mae", False, 0.05)),
        ("mae <= champion.mae * 0.95", BetterThanChampion("mae", False, 0.05)),
        ("accuracy > champion * 1.01", BetterThanChampion("accuracy", True, 0.01)),
    ],
)
def test_one_line_forms(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(rule.text()) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mae",
        "mae = 25",
        "mae <= ",
        "mae <= many",
        "mae <= nan",
        "mae <= inf",
        "mae < 25",
        "mae <= champion.rmse",
        "mae <= champion.mae * x",
        "mae <= champion.mae * 0",
        "mae <= champion.mae * 9",
        "mae < champion.mae * 1.02",
        "mae <= 25 and rows >= 5",
        7,
        {"rule": "at_least_ish", "metric": "mae"},
        {"rule": "at_most", "metric": "mae", "limit": 1, "extra": 2},
        {"rule": "at_most", "metric": "mae", "limit": float("nan")},
        {"rule": "minimum_samples", "metric": "rows", "count": 0},
        {"rule": "better_than_champion", "metric": "mae", "higher_is_better": False, "by": 1.5},
    ],
)
def test_unreadable_rules_name_the_fix(text: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_rule(text)  # type: ignore[arg-type]
    assert caught.value.fix


def test_a_gate_without_rules_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="accept anything"):
        judge([], {"mae": 1}, None)


@quickly
@given(rules)
def test_rules_survive_plain_values_and_text(rule: Rule) -> None:
    assert parse_rule(json.loads(json.dumps(rule.to_dict()))) == rule
    assert parse_rule(rule.text()) == rule


@quickly
@given(st.lists(rules, min_size=1, max_size=5), measurements, st.none() | measurements)
def test_judge_is_total_deterministic_and_ranked(
    some: list[Rule], candidate: dict[str, object], champion: dict[str, object] | None
) -> None:
    verdict = judge(some, candidate, champion)
    assert verdict == judge(list(some), dict(candidate), champion)
    kinds = [item.verdict for item in verdict.evidence]
    assert len(kinds) == len(some)
    expected = next((kind for kind in (REJECTED, INCONCLUSIVE) if kind in kinds), ACCEPTED)
    assert verdict.kind is expected
    assert all(item.sentence for item in verdict.evidence)
    stored = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert Verdict.from_dict(stored) == verdict
    assert len(verdict.table().splitlines()) == len(some) + 2


@quickly
@given(rules, st.sampled_from([math.nan, math.inf, -math.inf, None, "", "much"]), finite)
def test_no_data_is_never_accepted(rule: Rule, nothing: object, number: float) -> None:
    assert judge([rule], {rule.metric: nothing}, {rule.metric: number}).kind is INCONCLUSIVE
    assert judge([rule], {}, {rule.metric: number}).kind is INCONCLUSIVE
    if rule.needs_champion:
        assert judge([rule], {rule.metric: number}, {rule.metric: nothing}).kind is INCONCLUSIVE


@quickly
@given(finite, st.booleans(), shares)
def test_a_candidate_equal_to_the_champion_is_not_worse_and_not_better(
    value: float, higher: bool, share: float
) -> None:
    both = {"mae": value}, {"mae": value}
    assert judge([NotWorseThanChampion("mae", higher, share)], *both).kind is ACCEPTED
    assert judge([BetterThanChampion("mae", higher, share)], *both).kind is REJECTED


@pytest.mark.parametrize(
    ("rule", "candidate", "champion", "kind", "sentence"),
    [
        ("mae <= champion.mae", 23.1, 22.4, REJECTED, "mae 23.10 is above the champion's 22.40 × 1.00"),
        (
            "mae <= champion * 1.02",
            23.1,
            22.4,
            REJECTED,
            "mae 23.10 is above the champion's 22.40 × 1.02 = 22.85",
        ),
        (
            "mae <= champion * 1.05",
            23.1,
            22.4,
            ACCEPTED,
            "mae 23.10 is at most the champion's 22.40 × 1.05 = 23.52",
        ),
        ("mae < champion", 22.4, 22.4, REJECTED, "mae 22.40 is no better than the champion's 22.40 × 1.00"),
        (
            "r2 >= champion * 0.98",
            -1.05,
            -1.0,
            REJECTED,
            "r2 -1.05 is below the champion's -1 minus 2 % = -1.02",
        ),
        ("mae <= 25", 25.000001, None, REJECTED, "mae 25.000001 is above the limit 25"),
        ("mae <= 25", 12.5, None, ACCEPTED, "mae 12.50 is at most 25"),
        ("rows >= 500", 40, None, INCONCLUSIVE, "rows 40 is too few to judge, 500 are needed"),
    ],
)
def test_sentences_for_people(
    rule: str, candidate: float, champion: float | None, kind: VerdictKind, sentence: str
) -> None:
    metric = parse_rule(rule).metric
    verdict = judge([rule], {metric: candidate}, None if champion is None else {metric: champion})
    assert (verdict.kind, verdict.evidence[0].sentence) == (kind, sentence)
    assert verdict.summary() == f"{kind.value}: {sentence}"


@pytest.mark.parametrize(
    ("no_champion", "kind"), [("accept", ACCEPTED), ("reject", REJECTED), ("inconclusive", INCONCLUSIVE)]
)
def test_the_first_model_has_no_champion(no_champion: str, kind: VerdictKind) -> None:
    verdict = judge(["mae <= champion"], {"mae": 20}, None, no_champion=no_champion)
    assert verdict.kind is kind
    assert "no champion yet" in verdict.summary()
    with pytest.raises(ConfigurationError, match="no_champion"):
        judge(["mae <= champion"], {"mae": 20}, None, no_champion="maybe")


def test_missing_metrics_are_named() -> None:
    verdict = judge(["mae <= 25"], {"rmse": 3.0}, None)
    assert verdict.summary() == "inconclusive: the candidate has no mae (measured: rmse)"


@pytest.mark.parametrize("side", ["candidate", "champion"])
@pytest.mark.parametrize(
    ("value", "why", "cell"),
    [
        (math.inf, "usable mae: it is infinite", "infinite"),
        (1.7976931348623157e308, "usable mae: it is infinite", "infinite"),
        (-math.inf, "usable mae: it is minus infinity", "-infinite"),
        ("NaN", "usable mae: it is not a number (NaN)", "NaN"),
        (True, "usable mae: True is no number", "no number"),
        ("much" * 50, "usable mae: 'muchmuch", "no number"),
        (None, "usable mae: it is missing", "-"),
        pytest.param(10**5000, "usable mae: it is infinite", "infinite", id="huge"),
    ],
)
def test_what_is_no_number_is_named_with_its_metric_and_its_side(
    side: str, value: object, why: str, cell: str
) -> None:
    measured: dict[str, dict[str, object]] = {"candidate": {"mae": 3.0}, "champion": {"mae": 4.0}}
    measured[side]["mae"] = value
    verdict = judge(["mae <= champion.mae * 1.02"], measured["candidate"], measured["champion"])
    assert verdict.kind is INCONCLUSIVE
    assert verdict.summary().startswith(f"inconclusive: the {side} has no {why}")
    row = re.split(r"\s{2,}", verdict.table().splitlines()[2])
    assert row[1 if side == "candidate" else 2] == cell
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_a_rule_that_does_not_read_the_champion_is_judged_without_it() -> None:
    verdict = judge(["mae <= 25"], {"mae": 3.0}, {"mae": math.nan})
    assert verdict.kind is ACCEPTED
    assert verdict.table().splitlines()[2].split() == ["mae", "<=", "25.0", "3", "NaN", "25", "accepted"]
    json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("rule", "champion", "kind"),
    [
        ("mae <= champion.mae * 1.02", 1.79e308, INCONCLUSIVE),
        ("mae <= champion.mae * 1.02", -1.79e308, REJECTED),
        ("mae > champion.mae * 1.5", 1.79e308, INCONCLUSIVE),
        ("mae > champion.mae * 1.5", -1.79e308, ACCEPTED),
    ],
)
def test_a_limit_that_overflows_is_inconclusive(rule: str, champion: float, kind: VerdictKind) -> None:
    verdict = judge([rule], {"mae": 5.0}, {"mae": champion})
    assert verdict.kind is kind
    assert ("is infinite" in verdict.summary()) is (kind is INCONCLUSIVE)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))) == verdict


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "at_most", "metric": "mae", "limit": 10**400},
        {"rule": "at_least", "metric": "mae", "limit": math.inf},
        {"rule": "minimum_samples", "metric": "rows", "count": 10**5000},
        {
            "rule": "not_worse_than_champion",
            "metric": "mae",
            "higher_is_better": False,
            "tolerance": math.nan,
        },
    ],
)
def test_limits_that_are_no_numbers_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        parse_rule(values)
    for text in ("mae <= 1e400", "rows >= inf", "mae <= champion.mae * nan"):
        with pytest.raises(ConfigurationError, match="finite"):
            parse_rule(text)


@pytest.mark.parametrize("group", [None, [], "mae=3", 3])
def test_measurements_that_are_no_mapping_are_refused(group: object) -> None:
    with pytest.raises(ConfigurationError, match=r"measurements\.candidate"):
        judge(["mae <= 25"], group, None)  # type: ignore[arg-type]


def test_table() -> None:
    verdict = judge(
        parse_rules(["mae <= 25", "mae <= champion.mae * 1.02", "rows >= 500"]),
        {"mae": 23.1, "rows": 18_000},
        {"mae": 22.4, "rows": 18_000},
    )
    assert verdict.table().splitlines() == [
        "rule                        candidate  champion  limit  verdict",
        "--------------------------  ---------  --------  -----  --------",
        "mae <= 25.0                 23.10      22.40     25     accepted",
        "mae <= champion.mae * 1.02  23.10      22.40     22.85  rejected",
        "rows >= 500                 18,000     18,000    500    accepted",
    ]


def test_a_champion_among_the_others_is_one() -> None:
    others = {"champion": {"mae": 10.0}, "baseline": {"mae": 30.0}}
    verdict = judge(["mae <= champion", "mae <= baseline.mae"], {"mae": 20.0}, None, others=others)
    assert verdict.summary() == "rejected: mae 20 is above the champion's 10 × 1.00"
    assert judge(["mae <= champion"], {"mae": 20.0}, {"mae": 25.0}, others=others).kind is ACCEPTED
    none_yet = judge(["mae <= champion"], {"mae": 20.0}, None, others={"champion": None})  # type: ignore[dict-item]
    assert "no champion yet" in none_yet.summary()
    with pytest.raises(ConfigurationError, match="others = 7"):
        judge(["mae <= champion"], {"mae": 20.0}, None, others=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "candidate", "other", "kind"),
    [
        # 0.3 - 0.1 is 0.19999999999999998 in binary fractions.
        ("mae < champion - 0.1", 0.2, 0.3, ACCEPTED),
        ("mae <= champion - 0.1", 0.2, 0.3, ACCEPTED),
        ("mae <= champion + 0.2", 0.30000000000000004, 0.1, ACCEPTED),
        ("mae <= champion * 1.1", 1.21, 1.1, ACCEPTED),
        ("accuracy > champion + 0.1", 0.8, 0.7, ACCEPTED),
        ("accuracy >= champion * 0.9", 0.63, 0.7, ACCEPTED),
        # What is subtracted is large beside what is left.
        ("mae <= champion - 1000000.1", 0.2, 1000000.3, ACCEPTED),
        ("mae <= 0.3", 0.1 + 0.2, None, ACCEPTED),
        ("accuracy >= 0.3", 0.3 - 1e-16, None, ACCEPTED),
        # Rounding is no improvement either.
        ("mae < champion", 0.3, 0.1 + 0.2, REJECTED),
        ("accuracy > champion", 0.1 + 0.2, 0.3, REJECTED),
        # Whatever a person may have measured decides.
        ("mae < champion - 0.1", 0.2000000001, 0.3, REJECTED),
        ("mae <= 25", 25.0000000001, None, REJECTED),
        ("mae < champion", 24.9999999999, 25.0, ACCEPTED),
        ("mae <= champion", 1e-17, 0.0, REJECTED),
    ],
)
def test_the_rounding_of_binary_fractions_decides_nothing(
    rule: str, candidate: float, other: float | None, kind: VerdictKind
) -> None:
    metric = parse_rule(rule).metric
    champion = None if other is None else {metric: other}
    verdict = judge([rule], {metric: candidate}, champion)
    assert verdict.kind is kind
    assert ("0000000000" in verdict.summary()) is False


def test_what_rounding_leaves_is_shown_as_the_same_number() -> None:
    assert judge(["mae <= 0.3"], {"mae": 0.1 + 0.2}, None).summary() == "accepted: mae 0.3 is at most 0.3"
    worse = judge(["mae < champion"], {"mae": 0.3}, {"mae": 0.1 + 0.2}).summary()
    assert worse == "rejected: mae 0.3 is no better than the champion's 0.3 × 1.00"
