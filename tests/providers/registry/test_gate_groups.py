"""Rules against any group, with margins, in slices, and about the version itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.gates import (
    AtLeast,
    AtMost,
    BetterThan,
    CustomCheck,
    DataAge,
    EverySlice,
    NotWorseThan,
    PairedBootstrap,
    Recorded,
    RequiredTag,
    Rule,
    SignatureCompatible,
    judge_recorded,
    parse_rule,
)
from nighttrain.providers.registry.gates.recorded import Source
from nighttrain.providers.registry.gates.recorded_files import CheckResult, read_slices
from nighttrain.providers.registry.gates.verdicts import Verdict, VerdictKind

ACCEPTED, REJECTED, INCONCLUSIVE = VerdictKind.ACCEPTED, VerdictKind.REJECTED, VerdictKind.INCONCLUSIVE

quickly = settings(
    max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)

GROUPS = ("champion", "baseline", "version:12", "alias:last-good", "shadow")
shares = st.integers(0, 99).map(lambda percent: percent / 100)
margins = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
metrics = st.sampled_from(["mae", "val/accuracy", "test.f1", "mae[carrier=AA]", "mae[origin=New York, NY]"])
plain_metrics = st.sampled_from(["mae", "val/accuracy", "test.f1"])
groups = st.sampled_from(GROUPS)
comparisons = st.one_of(
    st.builds(NotWorseThan, metrics, st.booleans(), shares, margins, groups),
    st.builds(BetterThan, metrics, st.booleans(), shares, margins, groups),
)
limits = st.builds(AtMost, metrics, st.floats(-1e9, 1e9))
starred = st.one_of(
    st.builds(NotWorseThan, st.just("mae[carrier=*]"), st.booleans(), shares, margins, groups),
    st.builds(AtLeast, st.just("mae[carrier=*]"), st.floats(-1e9, 1e9)),
)
rules = st.one_of(
    comparisons,
    limits,
    st.builds(EverySlice, starred, st.integers(1, 5_000)),
    st.builds(DataAge, st.one_of(st.integers(1, 900).map(lambda days: days * 86_400.0), st.floats(1, 1e9))),
    st.builds(SignatureCompatible, st.sampled_from(GROUPS[:1] + GROUPS[2:4])),
    st.builds(RequiredTag, st.sampled_from(["owner", "team/owner"]), st.none() | st.just("yes, it is")),
    st.builds(CustomCheck, st.just("my_pkg.checks.no_drift")),
    st.builds(
        PairedBootstrap,
        plain_metrics,
        st.booleans(),
        st.integers(-99, 99).map(lambda percent: percent / 100),
        st.one_of(margins, margins.map(lambda value: -value)).map(lambda value: value + 0.0),
        groups,
        st.integers(50, 99).map(lambda percent: percent / 100),
        st.integers(1, 10_000),
        st.integers(10, 1_000),
    ),
)


@quickly
@given(rules)
def test_each_rule_is_read_back_from_its_line_and_its_plain_values(rule: Rule) -> None:
    assert parse_rule(rule.text()) == rule
    assert parse_rule(json.loads(json.dumps(rule.to_dict()))) == rule


def judged(rule: str | Rule, *, has_champion: bool = True, **values: Any) -> Verdict:
    groups = values.pop("groups", {})
    return judge_recorded([rule], Recorded(groups, has_champion=has_champion, **values))


MEASURED = {
    "candidate": {"mae": 13.0, "accuracy": 0.80},
    "champion": {"mae": 12.0, "accuracy": 0.82},
    "baseline": {"mae": 18.0, "accuracy": 0.5},
    "version:12": {"mae": 13.5},
    "shadow": {"mae": 12.9},
}


@pytest.mark.parametrize(
    ("rule", "kind", "sentence"),
    [
        ("mae <= baseline", ACCEPTED, "mae 13 is at most the baseline's 18 × 1.00"),
        ("mae <= baseline.mae * 0.7", REJECTED, "mae 13 is above the baseline's 18 × 0.7 = 12.60"),
        ("mae < version:12", ACCEPTED, "mae 13 is better than version 12's 13.50 × 1.00"),
        ("mae <= shadow.mae", REJECTED, "mae 13 is above the shadow's 12.90 × 1.00"),
        ("mae <= champion + 0.5", REJECTED, "mae 13 is above the champion's 12 plus 0.5 = 12.50"),
        ("mae <= champion + 1", ACCEPTED, "mae 13 is at most the champion's 12 plus 1 = 13"),
        (
            "mae <= champion * 1.05 + 0.5",
            ACCEPTED,
            "mae 13 is at most the champion's 12 × 1.05 plus 0.5 = 13.10",
        ),
        ("mae < baseline - 6", REJECTED, "mae 13 is above the baseline's 18 minus 6 = 12"),
        (
            "accuracy >= champion - 0.03",
            ACCEPTED,
            "accuracy 0.8 is at least the champion's 0.82 minus 0.03 = 0.79",
        ),
    ],
)
def test_any_group_and_both_sorts_of_margin(rule: str, kind: VerdictKind, sentence: str) -> None:
    verdict = judged(rule, groups=MEASURED)
    assert (verdict.kind, verdict.evidence[0].sentence) == (kind, sentence)


def test_the_table_shows_whom_the_candidate_was_compared_with() -> None:
    verdict = judge_recorded(["mae <= baseline", "mae <= champion * 1.2"], Recorded(MEASURED, True))
    rows = [line.split() for line in verdict.table().splitlines()[2:]]
    assert rows[0][-5:] == ["13", "18", "(baseline)", "18", "accepted"]
    assert rows[1][-4:] == ["13", "12", "14.40", "accepted"]
    assert verdict.evidence[0].champion is None


@pytest.mark.parametrize("group", ["version:7", "alias:gone", "shadow", "baseline"])
def test_a_group_that_was_not_measured_is_named(group: str) -> None:
    measured = {"candidate": {"mae": 1.0}, "other": {"mae": 2.0}}
    verdict = judged(f"mae <= {group}.mae", groups=measured)
    assert verdict.kind is INCONCLUSIVE
    name = group.replace(":", " ") if ":" in group else f"the {group}"
    assert verdict.evidence[0].sentence == f"{name} was not measured (measured: candidate, other)"


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("mae <= champion", {}),
        ("mae <= champion (paired)", {}),
        ("mae[carrier=*] <= champion", {}),
        ("signature compatible", {}),
    ],
)
@pytest.mark.parametrize(
    ("told", "kind"), [("accept", ACCEPTED), ("reject", REJECTED), ("inconclusive", INCONCLUSIVE)]
)
def test_without_a_champion_the_table_says_why(
    rule: str, values: dict[str, Any], told: str, kind: VerdictKind
) -> None:
    recorded = Recorded({"candidate": {"mae": 3.0}, "champion": {"mae": 1.0}}, has_champion=False, **values)
    verdict = judge_recorded([rule], recorded, no_champion=told)
    assert verdict.kind is kind
    assert verdict.table().splitlines()[2].endswith(f"no champion yet: no_champion is {told}")
    assert "there is no champion yet" in verdict.summary()


def test_a_rule_against_the_baseline_holds_for_the_first_model_too() -> None:
    measured = {"candidate": {"mae": 18.87}, "baseline": {"mae": 18.01}}
    verdict = judge_recorded(["mae <= champion", "mae <= baseline"], Recorded(measured, has_champion=False))
    assert verdict.kind is REJECTED
    assert verdict.summary() == "rejected: mae 18.87 is above the baseline's 18.01 × 1.00"


def sliced(**slices: tuple[float, float, float]) -> dict[str, dict[str, float | str]]:
    """Per carrier: the candidate's error, the champion's, and the rows."""
    content = {
        who: {"carrier": {name: {"mae": found[place], "rows": found[2]} for name, found in slices.items()}}
        for place, who in enumerate(("candidate", "champion"))
    }
    return read_slices(json.dumps(content).encode())


CARRIERS = sliced(AA=(12.0, 11.0, 300), UA=(10.0, 11.0, 900), OO=(30.0, 10.0, 7))


@pytest.mark.parametrize(
    ("rule", "kind", "said"),
    [
        ("mae[carrier=AA] <= champion * 1.05", REJECTED, "mae[carrier=AA] 12 is above the champion's 11"),
        ("mae[carrier=UA] <= 10", ACCEPTED, "mae[carrier=UA] 10 is at most 10"),
        (
            "mae[carrier=XX] <= 10",
            INCONCLUSIVE,
            "the candidate has no mae[carrier=XX] (measured: mae, mae[carrier=AA]",
        ),
        ("rows[carrier=OO] >= 200", INCONCLUSIVE, "too few to judge"),
        (
            "mae[carrier=*] <= champion * 1.1 (rows >= 200)",
            ACCEPTED,
            "holds in 2 slices by carrier; 1 with fewer",
        ),
        ("mae[carrier=*] <= champion * 1.05 (rows >= 200)", REJECTED, "mae[carrier=AA] 12 is above"),
        ("mae[carrier=*] <= champion * 1.1", REJECTED, "mae[carrier=OO] 30 is above"),
        (
            "mae[carrier=*] <= 20 (rows >= 1000)",
            INCONCLUSIVE,
            "no slice by carrier has 1,000 rows (found: 3 smaller",
        ),
        ("mae[origin=*] <= 20", INCONCLUSIVE, "no slice by origin has 1 rows (found: none at all)"),
        ("f1[carrier=*] >= 0.5", INCONCLUSIVE, "the candidate has no f1[carrier=AA]"),
    ],
)
def test_slices(rule: str, kind: VerdictKind, said: str) -> None:
    measured = {"candidate": {"mae": 11.0}, "champion": {"mae": 11.0}}
    groups = {name: {**measured[name], **CARRIERS[name]} for name in measured}
    verdict = judged(rule, groups=groups)
    assert verdict.kind is kind
    assert said in verdict.evidence[0].sentence


def test_a_slice_that_only_the_champion_has_is_no_data() -> None:
    groups = {"candidate": {"mae": 1.0}, "champion": {"mae[carrier=AA]": 1.0, "rows[carrier=AA]": 500}}
    verdict = judged("mae[carrier=*] <= champion (rows >= 200)", groups=groups)
    assert verdict.kind is INCONCLUSIVE
    assert "the candidate has no mae[carrier=AA]" in verdict.summary()


@pytest.mark.parametrize(
    ("age", "kind", "sentence"),
    [
        (86_400.0, ACCEPTED, "the data are 1 day old, at most 2 days are allowed"),
        (3 * 86_400.0, REJECTED, "the data are 3 days old, more than the 2 days that are allowed"),
        (-60.0, INCONCLUSIVE, "the data are said to end 1 minute from now: that is no age"),
    ],
)
def test_the_age_of_the_data(age: float, kind: VerdictKind, sentence: str) -> None:
    verdict = judged("data_age <= 2d", groups={"candidate": {"data_age": age}})
    assert (verdict.kind, verdict.evidence[0].sentence) == (kind, sentence)


def test_an_unknown_age_says_why() -> None:
    missing = {Source.DATA_AGE: "its run has no data interval"}
    verdict = judged("data_age <= 2d", groups={"candidate": {"mae": 1.0}}, missing=missing)
    assert verdict.kind is INCONCLUSIVE
    assert verdict.summary().endswith("no data_age (measured: mae): its run has no data interval")


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("tag:owner", ACCEPTED),
        ("tag:reviewed = yes", ACCEPTED),
        ("tag:reviewed = no", REJECTED),
        ("tag:approver", REJECTED),
    ],
)
def test_required_tags(rule: str, kind: VerdictKind) -> None:
    assert judged(rule, tags={"owner": "", "reviewed": "yes"}).kind is kind


def test_a_tag_that_may_be_a_secret_is_not_shown() -> None:
    verdict = judged("tag:api_token = none", tags={"api_token": "hunter2-9f8a7b6c5d4e3f2a1b0c"})
    assert verdict.kind is REJECTED
    assert "hunter2" not in json.dumps(verdict.to_dict())


@pytest.mark.parametrize("kind", list(VerdictKind))
def test_the_word_of_a_check_of_ones_own(kind: VerdictKind) -> None:
    checks = {"my_pkg.checks.no_drift": CheckResult(kind, "index 0.04")}
    verdict = judged("custom:my_pkg.checks.no_drift", checks=checks)
    assert verdict.kind is kind
    assert verdict.evidence[0].sentence == f"my_pkg.checks.no_drift says {kind.value}: index 0.04"


def test_a_check_that_left_nothing_is_inconclusive() -> None:
    verdict = judged("custom:my_pkg.checks.no_drift")
    assert verdict.kind is INCONCLUSIVE
    assert "left no result" in verdict.summary()


@pytest.mark.parametrize(
    "line",
    [
        "mae <= champion.rmse",
        "mae <= champion * 1.02 - 0.5",
        "mae <= candidate.mae",
        "mae <= version:0",
        "mae <= version:x",
        "mae <= alias:a/b",
        "mae <= champion (rows >= 5)",
        "mae <= 25 (paired)",
        "mae <= champion (paired, groups >= 3)",
        "mae <= champion (paired, confidence 1)",
        "mae <= champion (paired, n >= 5, n >= 6)",
        "mae <= champion (confidence 0.9)",
        "mae <= champion (paired, maybe)",
        "mae <= champion.mae * 1.02 (paired, margin 2%)",
        "mae[carrier=*] <= champion (paired)",
        "mae[carrier] <= 5",
        "mae[carrier=[AA]] <= 5",
        "data_age <= -2d",
        "artifact_bytes <= 50 furlongs",
        "signature compatible with baseline",
        "tag:",
        "tag:owner =",
        "custom:os",
        "custom:os.system('x')",
        "custom:../../etc.passwd",
    ],
)
def test_slips_of_the_pen_are_refused(line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_rule(line)
    assert caught.value.fix


def test_records_of_the_version_before_are_read() -> None:
    written = {
        "kind": "accepted",
        "evidence": [
            {
                "rule": "mae <= champion.mae",
                "candidate": 1.0,
                "champion": 2.0,
                "limit": 2.0,
                "verdict": "accepted",
                "sentence": "mae 1 is at most the champion's 2 × 1.00",
                "unknown": "field",
            }
        ],
    }
    read = Verdict.from_dict(written)
    assert read.evidence[0].reference is None
    assert read.table().splitlines()[2].split()[-4:] == ["1", "2", "2", "accepted"]
    assert Verdict.from_dict(json.loads(json.dumps(read.to_dict()))) == read
    earlier = {
        "rule": "not_worse_than_champion",
        "metric": "mae",
        "higher_is_better": False,
        "tolerance": 0.02,
    }
    assert parse_rule(earlier) == parse_rule("mae <= champion.mae * 1.02")
    assert replace(NotWorseThan("mae", False), tolerance=0.02) == parse_rule(earlier)
