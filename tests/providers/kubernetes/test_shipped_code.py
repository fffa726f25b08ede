"""What of a function goes to a pod, and what is refused."""

from __future__ import annotations

import ast
import enum
import json
import subprocess
import sys
from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from helpers import shipped_functions as written
from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.kubernetes.job.shipped_code import bind, ship, source_of

if TYPE_CHECKING:
    from pathlib import Path


def run(files: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """By hand: the files in one folder, with nothing installed."""
    for name, content in files.items():
        (folder / name).write_text(content, "utf-8")
    return subprocess.run(
        [sys.executable, "-I", "-S", str(folder / "train.py")],
        env={"RESULT": str(folder / "result.json"), "PYTHONUTF8": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_the_shipped_files_run_by_hand_with_their_arguments(tmp_path: Path) -> None:
    files = ship(written.train, [0.25], {"names": ["ä", 'quote"', "b"], "extra": {"deep": [None, True]}})
    assert sorted(files) == ["arguments.json", "nighttrain_returned.py", "train.py"]
    assert files["train.py"].splitlines()[0] == "from __future__ import annotations"
    done = run(files, tmp_path)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first == "trained"
    assert last.endswith("what the function returned is a str, not a dict of numbers: no metrics")
    assert json.loads((tmp_path / "result.json").read_text("utf-8")) == {
        "rate": 0.25,
        "names": ["ä", 'quote"', "b"],
        "depth": 4,
        "more": {"extra": {"deep": [None, True]}},
        "rows": None,
        "size": 4,
        "again": 2,
        "text": "\n  two before 0.25\nnone before☃",
    }


def test_an_indented_function_keeps_its_strings_and_comments_and_loses_its_decorator() -> None:
    source = source_of(written.indented)
    assert "# A comment of its own" in source
    assert "@" not in source
    names: dict[str, Any] = {"__name__": "shipped"}
    exec(compile(source, "train.py", "exec"), names)  # noqa: S102
    assert names["indented"](2.5) == written.indented(2.5) == "\n    2.5\n        "


def test_the_source_is_the_same_each_time_and_plain_python() -> None:
    assert source_of(written.train) == source_of(written.train)
    assert isinstance(ast.parse(source_of(written.counts)), ast.Module)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (written.nameless, "a lambda cannot be shipped"),
        (written.asynchronous, "an async function cannot be shipped"),
        (written.generator, "a generator cannot be shipped"),
        (written.asynchronous_generator, "an async generator cannot be shipped"),
        (written.Trainer.fit, "a method cannot be shipped"),
        (written.Trainer().fit, "a method cannot be shipped"),
        (written.Trainer.static, "a method cannot be shipped"),
        (written.around(1.0), "'rate': comes from the function around it"),
        (written.uses_module, "'math': is defined outside the function"),
        (written.uses_constant_deep_inside, "'LIMIT': is defined outside the function"),
        (written.uses_default, "'LIMIT': is defined outside the function"),
        (written.uses_neighbour, "'uses_module': is defined outside the function"),
        (written.uses_shadowed_builtin, "'sum': is defined outside the function"),
        (written.positional, "arguments are shipped by name"),
        (written.variadic, "arguments are shipped by name"),
        (written.wrapped, "another decorator wraps it"),
        (written.shortened, "write a function with def"),
        (written.Trainer, "write a function with def"),
        (len, "write a function with def"),
    ],
)
def test_what_needs_more_than_its_own_source_is_refused(function: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        source_of(function)
    assert said in str(caught.value)


def test_a_function_without_a_file_is_refused() -> None:
    names: dict[str, Any] = {}
    exec("def typed(): pass", names)  # noqa: S102
    with pytest.raises(ConfigurationError, match="its source cannot be found"):
        source_of(names["typed"])


class Text(str):
    """Not quite text."""


class Colour(enum.IntEnum):
    RED = 1


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (date(2013, 9, 4), "argument names is of type date"),
        ([1, {"a": (1, 2)}], "argument names[1]['a']: is of type tuple"),
        ({1: "a"}, "has a key of type int"),
        ({1, 2}, "is of type set"),
        (b"x", "is of type bytes"),
        (Colour.RED, "is of type Colour"),
        (Text("x"), "is of type Text"),
        (float("nan"), "JSON has no such number"),
        ([float("inf")], "argument names[0] = inf: JSON has no such number"),
        (CIRCLE, "is nested too deeply"),
        ("\ud800", "are not JSON"),
        (object, "is of type type"),
    ],
)
def test_an_argument_that_json_would_change_is_refused_by_name(value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ship(written.train, [1.0], {"names": value})
    assert said.replace("names is", "names: is") in str(caught.value)


@pytest.mark.parametrize("kwargs", [{}, {"rate": 1.0, "names": []}])
def test_a_call_that_does_not_fit_the_function_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="function train: cannot be called so"):
        ship(written.train, [1.0], kwargs)


def test_arguments_have_their_parameters_names() -> None:
    assert bind(written.train, [1], {"names": [], "x": 2}) == {"rate": 1, "names": [], "x": 2}
    filled = bind(written.train, [1], {"names": []}, defaults=True)
    assert filled == {"rate": 1, "rows": None, "names": [], "depth": 4}
