from __future__ import annotations

import json
import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nighttrain.providers.measured import NoNumber, plain, read, to_float, to_json
from nighttrain.providers.registry.gates.evaluation import group_measurements
from nighttrain.providers.tracking.progress import _latest, metrics_line
from nighttrain.providers.tracking.runs import Run

MAX = sys.float_info.max


@pytest.mark.parametrize(
    ("value", "measured"),
    [
        (1, 1.0),
        (-2.5, -2.5),
        ("23.1", 23.1),
        (" 1e3 ", 1000.0),
        ("-.5", -0.5),
        (Decimal("0.1"), 0.1),
        (Fraction(1, 4), 0.25),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7.0),
        (None, NoNumber.MISSING),
        ("", NoNumber.MISSING),
        (math.nan, NoNumber.NAN),
        ("NaN", NoNumber.NAN),
        ("-nan", NoNumber.NAN),
        (Decimal("NaN"), NoNumber.NAN),
        (np.float64("nan"), NoNumber.NAN),
        (math.inf, NoNumber.INFINITE),
        (MAX, NoNumber.INFINITE),  # what SQL stores make of it
        (-MAX, NoNumber.MINUS_INFINITE),
        (10**400, NoNumber.INFINITE),
        pytest.param(-(10**5000), NoNumber.MINUS_INFINITE, id="huge"),
        ("1e400", NoNumber.INFINITE),
        ("1.7976931348623157e308", NoNumber.INFINITE),
        ("Infinity", NoNumber.INFINITE),
        ("+inf", NoNumber.INFINITE),
        ("-Infinity", NoNumber.MINUS_INFINITE),
        (True, NoNumber.UNREADABLE),
        (np.bool_(True), NoNumber.UNREADABLE),
        ("much", NoNumber.UNREADABLE),
        ("1_000", NoNumber.UNREADABLE),
        ("१२", NoNumber.UNREADABLE),
        ("0x10", NoNumber.UNREADABLE),
        ([1.0], NoNumber.UNREADABLE),
        (1j, NoNumber.UNREADABLE),
        (b"1", NoNumber.UNREADABLE),
    ],
)
def test_a_value_is_a_finite_number_or_says_what_it_is(value: object, measured: object) -> None:
    assert read(value) == measured
    assert type(read(value)) is type(measured)
    stored = json.loads(json.dumps(to_json(value), allow_nan=False))
    assert read(stored) == measured


@given(st.floats())
def test_a_float_is_itself_or_no_number(value: float) -> None:
    back = to_float(to_json(value))
    assert back is not None
    if math.isnan(value):
        assert math.isnan(back)
    else:
        assert back == (value if abs(value) < MAX else math.copysign(math.inf, value))


def test_what_mlflow_answers_is_read_without_inventing_a_number() -> None:
    text = """{"info": {"run_id": "r"}, "data": {"metrics": [
        {"key": "candidate.r2", "value": 1.7976931348623157e+308}, {"key": "champion.r2", "value": NaN},
        {"key": "baseline.r2", "value": "Infinity"}, {"key": "candidate.mae", "value": "NaN"},
        {"key": "candidate.rows", "value": 0}, {"key": "candidate.lost"},
        {"key": "candidate.none", "value": null}
    ]}}"""
    run = Run.from_api(json.loads(text))
    assert run.metrics["candidate.r2"] == math.inf == run.metrics["baseline.r2"]
    assert math.isnan(run.metrics["champion.r2"])
    groups = group_measurements(run.metrics)
    assert groups == {
        "candidate": {"r2": "Infinity", "mae": "NaN", "rows": 0.0},
        "champion": {"r2": "NaN"},
        "baseline": {"r2": "Infinity"},
    }
    json.dumps(groups, allow_nan=False)


def test_measurements_of_ones_own_can_be_an_xcom() -> None:
    groups = group_measurements({"candidate.mae": math.nan, "candidate.rows": 10**400, "ours.done": True})
    assert json.loads(json.dumps(groups, allow_nan=False)) == {
        "candidate": {"mae": "NaN", "rows": "Infinity"},
        "ours": {"done": "no number"},
    }


def test_lines_name_what_is_no_number_and_say_it_once() -> None:
    def answered() -> dict[str, object]:
        metrics = (
            '[{"key": "loss", "value": "NaN", "step": 3}, {"key": "r2", "value": -1.7976931348623157e308}]'
        )
        return {"data": {"metrics": [*json.loads(metrics), {"key": "empty"}]}}

    latest = _latest(answered())
    assert metrics_line(latest) == "step 3: loss=NaN, r2=-infinite"
    assert latest == _latest(answered())


def test_plain_values_hold_no_float_that_json_has_no_form_for() -> None:
    value = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "text", "d": None, "e": True, "f": MAX}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "a": [1.5, "NaN", ["Infinity", {"b": "-Infinity"}]],
        "c": "text",
        "d": None,
        "e": True,
        "f": MAX,
    }
