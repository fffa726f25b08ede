"""The best of several trainings: ties and missing values are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nighttrain.providers.errors import ConfigurationError, NothingToSelectError
from nighttrain.providers.registry.selection import select_best


def trained(run_id: str, **metrics: Any) -> dict[str, Any]:
    return {"run_id": run_id, "metrics": metrics}


def test_the_least_or_the_greatest_by_the_mode() -> None:
    results = [trained("a", mae=2.0), trained("b", mae=1.0), trained("c", mae=3)]
    assert select_best(results, "mae").to_dict() == {
        "run_id": "b",
        "metric": "mae",
        "value": 1.0,
        "index": 1,
        "candidates": [
            {"index": 0, "run_id": "a", "value": 2.0},
            {"index": 1, "run_id": "b", "value": 1.0},
            {"index": 2, "run_id": "c", "value": 3.0},
        ],
        "missing": [],
        "ties": [],
    }
    assert select_best(results, "mae", "MAX").best.run_id == "c"


def test_of_equals_the_first_by_map_index_counts_and_all_are_named() -> None:
    results = [
        {**trained("late", mae=1.0), "map_index": 7},
        {**trained("early", mae=1.0), "map_index": 2},
        {**trained("other", mae=9.0), "map_index": 0},
    ]
    selection = select_best(results, "mae")
    assert selection.best.run_id == "early"
    assert [each["run_id"] for each in selection.to_dict()["ties"]] == ["early", "late"]
    assert "late (index 7); the first counts" in selection.explain()


def test_what_cannot_be_compared_is_named_with_the_reason() -> None:
    results = [
        None,
        trained("nan", mae="NaN"),
        trained("inf", mae="Infinity"),
        trained("other", rmse=1.0),
        {"job": "default/x"},
        "skipped",
        trained("text", mae="much"),
        trained("flag", mae=True),
        trained("good", mae="4.5"),
    ]
    selection = select_best(results, "mae")
    assert (selection.best.run_id, selection.best.value) == ("good", 4.5)
    assert [(each.index, each.run_id, each.why) for each in selection.missing] == [
        (0, None, "it was skipped, or returned nothing"),
        (1, "nan", "it is not a number (NaN)"),
        (2, "inf", "it is infinite"),
        (3, "other", "it did not log it; its metrics: rmse"),
        (4, None, "it is no result of a training: it names no run_id"),
        (5, None, "it is no result of a training: it names no run_id"),
        (6, "text", "it is no number"),
        (7, "flag", "it is no number"),
    ]
    assert "nan (index 1): it is not a number (NaN)" in selection.explain()


def test_nothing_to_select_is_told_with_every_reason() -> None:
    with pytest.raises(
        NothingToSelectError, match=r"none of 2 trainings has a number for 'mae': a .*NaN.*; no run"
    ):
        select_best([trained("a", mae="NaN"), None], "mae")
    with pytest.raises(NothingToSelectError, match="and 15 more"):
        select_best([None] * 25, "mae")


@pytest.mark.parametrize(
    ("results", "metric", "mode", "field"),
    [([], "mae", "min", "results"), ([None], " ", "min", "metric"), ([None], "mae", "best", "mode")],
)
def test_mistakes_are_named(results: list[Any], metric: str, mode: str, field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        select_best(results, metric, mode)


VALUES = st.one_of(st.none(), st.floats(), st.sampled_from(["NaN", "Infinity", "no"]))


@given(st.lists(VALUES, min_size=1, max_size=20), st.sampled_from(["min", "max"]))
def test_whatever_was_measured_the_best_is_a_number_and_everybody_is_named_once(
    values: list[Any], mode: str
) -> None:
    results = [trained(str(place), mae=value) for place, value in enumerate(values)]
    try:
        selection = select_best(results, "mae", mode)
    except NothingToSelectError:
        return
    said = json.loads(json.dumps(selection.to_dict(), allow_nan=False))
    compared = [each["value"] for each in said["candidates"]]
    assert said["value"] == (min if mode == "min" else max)(compared)
    named = [each["index"] for each in said["candidates"] + said["missing"]]
    assert sorted(named) == list(range(len(values)))


@pytest.mark.parametrize("results", [None, 7, "run-a", b"x", trained("a", mae=1.0)])
def test_what_is_no_list_of_results_is_refused_with_the_fix(results: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^results.*outputs of the trainings") as caught:
        select_best(results, "mae")
    assert caught.value.field == "results"


def test_a_name_with_other_plans_stays_on_its_line() -> None:
    evil = "a\n2026-11-27 INFO forged\x1b[31m" + "x" * 1_000
    results = [trained(evil, mae=1.0), trained(evil + "b", mae=1.0), trained(evil + "c", **{evil: 1.0})]
    selection = select_best(results, "mae")
    shown = selection.explain()
    assert len(shown.splitlines()) == 3
    assert all(line.isprintable() and len(line) < 1_000 for line in shown.splitlines())
    # What is passed on is the run's own name.
    assert selection.to_dict()["run_id"] == evil
    with pytest.raises(NothingToSelectError) as caught:
        select_best(results, "rmse")
    assert str(caught.value).isprintable()
