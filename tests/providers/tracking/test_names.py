from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_param

from nighttrain.providers.errors import ConfigurationError, clip
from nighttrain.providers.tracking.names import (
    MAX_RUN_NAME,
    check_description,
    check_experiment_name,
    check_key,
    check_run_name,
    fit,
    fit_key,
    fit_run_name,
    read_params,
    read_tags,
)
from nighttrain.providers.tracking.runs import RunKey

letters = st.characters(exclude_characters="\n")
texts = st.text(letters, max_size=12) | st.text(st.sampled_from("ab./ :-_木é²"), max_size=8)


@given(texts)
def test_exactly_what_mlflow_takes_is_taken_and_as_it_is(name: str) -> None:
    try:
        _validate_param(name, "1")
        taken = bool(name)  # the server refuses an empty one before this
    except MlflowException:
        taken = False
    if taken:
        assert check_key(name) == name
        assert read_params({name: 1}) == {name: "1"}
    else:
        with pytest.raises(ConfigurationError):
            check_key(name)


def test_no_two_names_become_one_and_no_value_is_lost() -> None:
    given_names = {
        "学習率": 0.1,
        "木の数": 300,
        "n_pass": 7,
        "use_secretary_features": True,
        "C": 1,
        "c": 2,
        "n": None,
    }
    assert read_params(given_names) == {name: str(value) for name, value in given_names.items()}


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        *(
            ("x[0]", "x_0"),
            ("x(0)", "x_0"),
            ("n@home", "n_home"),
            ("a\0b", "a_b"),
            ("é\u0301", "é"),
            ("a\n", "a"),
        ),
        *(("a//b", "a/b"), ("/a", "a"), ("a/", "a"), ("a/../b", "a/b")),
        *(("..", "value"), (".", "value"), ("😀", "value")),
    ],
)
def test_a_refused_name_is_told_with_its_value_and_one_to_write(name: str, suggested: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_params({"ok": 1, name: 4711})
    assert caught.value.field == f"parameters[{clip(name, 60)!r}]"
    assert "4711" in str(caught.value)
    assert f"write, for example, {suggested!r}" in str(caught.value)
    assert check_key(suggested) == suggested


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"": 1}, "give it a name"),
        ({"k" * 251: 1}, "251: shorten it"),
        ({1: "a", "1": "b"}, "two names are one as text"),
        ({"long": "y" * 6_001}, "6,001 characters"),
        ({"nul": "a\0b"}, "NUL"),
        ({"half": "\ud800"}, "surrogate"),
        ({"huge": 10**5000}, "it has no text"),
        ({"huge": ["y" * 6_000]}, "6,004 characters"),
        ([("a", 1)], "mapping"),
        ("{{ params }}", "mapping"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(parameters: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_params(parameters)
    assert caught.value.field.startswith("parameters")
    assert len(str(caught.value)) < 500


def test_a_refusal_shows_no_secret() -> None:
    for parameters in (
        {"password!": "hunter2"},
        {"password": "hunter2" * 1_000},
        {"a!": "https://u:hunter2@x"},
    ):
        with pytest.raises(ConfigurationError) as caught:
            read_params(parameters)
        assert "hunter2" not in str(caught.value)


def test_tags_without_a_value_are_left_out() -> None:
    assert read_tags({"a": None, "b": ""}) == {"b": ""}
    assert read_tags(None) == {}
    with pytest.raises(ConfigurationError, match=r"tags\['long'\].*5,001 characters"):
        read_tags({"long": "v" * 5_001})


@pytest.mark.parametrize(
    ("check", "limit"), [(check_run_name, 250), (check_experiment_name, 256), (check_description, 5_000)]
)
def test_names_and_descriptions_at_their_limits(check: object, limit: int) -> None:
    assert callable(check)
    assert check("木" * limit) == "木" * limit
    for bad in ("木" * (limit + 1), "a\0", "\udfff", 7):
        with pytest.raises(ConfigurationError):
            check(bad)


def test_what_is_derived_is_shortened_where_it_shows_and_stays_unique() -> None:
    dag, night = "d" * 230, "scheduled__2013-06-01T00:00:00+00:00"
    name = fit_run_name(f"{dag} {night}")
    assert len(name) == MAX_RUN_NAME
    assert name.startswith("d" * 100)
    assert name.endswith(f" {night}")
    assert "…" in name
    assert name != fit_run_name(f"{dag}d {night}")
    assert fit_run_name("short") == "short"
    assert fit("a\0b", 10) == "a\N{REPLACEMENT CHARACTER}b"


@given(st.text(max_size=400), st.integers(40, 300))
def test_a_fitted_text_fits(text: str, limit: int) -> None:
    fitted = fit(text, limit)
    assert len(fitted) <= limit
    fitted.encode()
    assert fit(fitted, limit) == fitted


def test_keys_of_long_ids_are_never_cut_and_differ() -> None:
    def key(run_id: str) -> str:
        return RunKey(orchestrator="airflow", dag_id="木" * 250, run_id=run_id, task_id="訓" * 250).value

    one, two = key("夜" * 250), key("夜" * 249 + "朝")
    assert one != two
    assert len(one) <= 1_000
    assert fit_key("airflow/nightly/run") == "airflow/nightly/run"
