"""docs/how-to/rollouts.md: what it shows runs, is a strategy or a command; its numbers are the code's."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from nighttrain.providers.commands import rollout as command
from nighttrain.providers.serving.analysis.sources.choice import check_source
from nighttrain.providers.serving.backends.choice import _BACKENDS
from nighttrain.providers.serving.strategy import _STEPS, Strategy, Weight

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "rollouts.md"
TEXT = PAGE.read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def rows(head: str) -> list[list[str]]:
    """The cells of the table whose first column has this head."""
    lines = TEXT.split(f"| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_python_runs_inside_a_dag(tmp_path: Path) -> None:
    from airflow.sdk import DAG

    names: dict[str, Any] = {}
    with DAG("shown") as dag:
        for block in blocks("python"):
            exec(block, names)  # noqa: S102
    named = "`begin`, `step_1_weight_5`, `step_2_weight_25`, `step_3_weight_50` and `promote`"
    assert named in TEXT
    of_group = {f"canary.{each}" for each in re.findall(r"`(\w+)`", named)}
    assert {task.task_id for task in dag.tasks} == {"rollout", "promoted", *of_group}
    file = tmp_path / "strategy.yaml"
    file.write_text(blocks("yaml")[0], "utf-8")
    assert names["strategy_of"](file).shares == (5, 25, 50)


def test_the_yaml_is_a_strategy_whose_sources_exist() -> None:
    (shown,) = blocks("yaml")
    strategy = Strategy.from_dict(yaml.safe_load(shown))
    assert {type(step) for step in strategy.steps} == set(_STEPS.values())
    assert strategy.analysis is not None
    for metric in strategy.analysis.metrics:
        check_source("metric", metric, strategy.golden)


def test_the_fields_and_their_defaults_are_the_strategys() -> None:
    shown = {name.strip("`"): default for name, default, _ in rows("field")}
    expected = {}
    for field in fields(Strategy):
        assert field.default is not MISSING
        expected[field.name] = f"{field.default:g}" if isinstance(field.default, int | float) else "none"
    assert shown == {name: "86400" if value == "86400" else value for name, value in expected.items()}
    steps = rows("step")
    assert [re.findall(r"\w+", name)[0] for name, *_ in steps] == list(_STEPS)
    assert f"`hold_seconds` ({Weight(percent=1).hold_seconds:g})" in steps[0][2]


def test_each_serving_system_is_in_the_table() -> None:
    named = [re.findall(r'"(\w+)"', cell) for cell, *_ in rows("`backend=`")]
    assert [names[1] if names[0] == "type" else names[0] for names in named] == list(_BACKENDS)


def test_the_commands_are_commands() -> None:
    parser = argparse.ArgumentParser()
    command.add_to(parser.add_subparsers())
    shown = [shlex.split(line) for line in blocks("sh")[0].splitlines()]
    assert {words[2] for words in shown} == {"status", "promote", "pause", "resume", "abort", "back"}
    for words in shown:
        assert words[:2] == ["nighttrain", "rollout"]
        parser.parse_args(words[1:])
