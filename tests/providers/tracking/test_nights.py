"""Names of runs tell nights and map indexes apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nighttrain.providers.tracking.names import MAX_RUN_NAME, check_run_name, night_of, run_name


@pytest.mark.parametrize(
    ("start", "parameters", "night"),
    [
        ("2026-11-25T00:00:00+00:00", {}, "2026-11-25"),
        ("2013-09-04T04:00:00-04:00", {}, "2013-09-04"),
        ("2026-11-25", {}, "2026-11-25"),
        ("2026-11-26T08:00:00+00:00", {"night": "2026-11-25"}, "2026-11-25"),
        ("2026-11-26T08:00:00+00:00", {"night": "stormy"}, "2026-11-26"),
        ("2026-11-26T08:00:00+00:00", {"night": None}, "2026-11-26"),
        ("a partition", {}, None),
        (None, {}, None),
        ("", "no parameters", None),
    ],
)
def test_the_night_is_the_parameters_or_the_intervals_first_day(
    start: str | None, parameters: object, night: str | None
) -> None:
    assert night_of(start, parameters) == night


def test_names() -> None:
    assert run_name("train", night="2026-11-25") == "train 2026-11-25"
    assert run_name("train", night="2026-11-25", map_index=3) == "train[3] 2026-11-25"
    assert run_name("train", map_index=0, region="6f1a:2") == "train[0] loop 2"
    assert run_name("train") == "train"


@given(st.text(min_size=1, max_size=400), st.integers(-1, 5_000))
def test_a_name_fits_and_ends_with_the_night(task_id: str, map_index: int) -> None:
    name = check_run_name(run_name(task_id, night="2026-11-25", map_index=map_index))
    assert len(name) <= MAX_RUN_NAME
    assert name.endswith(" 2026-11-25")
