from __future__ import annotations

import pytest

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.tracking.tags import clean_tags, quoted


def test_clean_tags() -> None:
    assert clean_tags({"a": 1, "b": None, "db_password": "x", "max_tokens": 9, "long": "y" * 9_000}) == {
        "a": "1",
        "db_password": "***",
        "max_tokens": "9",
        "long": "y" * 7_999 + "…",
    }
    assert clean_tags({"note": "by hunter22", "nul": "a\0b"}, known=["hunter22"]) == {
        "note": "by ***",
        "nul": "a\N{REPLACEMENT CHARACTER}b",
    }


def test_names_that_mlflow_refuses_are_refused_not_renamed() -> None:
    with pytest.raises(ConfigurationError, match=r"tags\['k\?'\] = 'v': MLflow refuses this name"):
        clean_tags({"k?": "v"})


def test_what_runs_are_found_by_stays_as_it_is() -> None:
    key = "airflow/rotate/manual:token=abc"
    assert clean_tags({"nighttrain.run_key": key, "mlflow.parentRunId": "1"})["nighttrain.run_key"] == key


def test_quoted() -> None:
    assert [quoted(text) for text in ("a", "it's", 'a"b', "both'\"")] == ["'a'", '"it\'s"', "'a\"b'", None]
