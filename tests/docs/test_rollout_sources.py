"""docs/reference/rollout-sources.md says what the sources take, and its examples are taken."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import Analysis
from nighttrain.providers.serving.analysis.sources import choice, counters, mlflow_runs, prometheus, samples
from nighttrain.providers.serving.analysis.sources.asker import RUNNING_SECONDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "rollout-sources.md"
PARTS = re.split(r"^## (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
SECTIONS = dict(zip(PARTS[1::2], PARTS[2::2], strict=True))
GOLDEN = Golden(requests=(1,), expected=(1,))
DEFAULTS = {
    "server": "mlflow",
    "hangs_after_seconds": f"{counters.HANGS_AFTER_SECONDS:g}",
    "requests_per_interval": str(samples.REQUESTS_PER_INTERVAL),
    "tolerance": f"{mlflow_runs.TOLERANCE:f}",
}


def module(name: str) -> Any:
    return import_module(f"{choice._HERE}.{choice._MAKE[name][0]}")


def rows(text: str) -> list[tuple[str, ...]]:
    return [
        tuple(cell.strip() for cell in line.strip("|\n ").split("|"))
        for line in re.findall(r"^\|.*$", text, re.MULTILINE)
    ]


def test_every_source_is_in_the_table_with_what_it_measures_and_takes() -> None:
    table = {row[0].strip("`"): row[1:] for row in rows(PARTS[0])[2:]}
    assert table.keys() == choice._MAKE.keys() == SECTIONS.keys()
    for name, (measures, parameters) in table.items():
        assert measures.split(", ") == sorted(module(name).KINDS)
        assert set(re.findall(r"`(\w+)`", parameters)) == module(name).PARAMETERS


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_parameter_has_a_row_with_its_default(name: str) -> None:
    told = {row[0].strip("`"): row[1] for row in rows(SECTIONS[name]) if len(row) == 3 and "`" in row[0]}
    assert told.keys() == module(name).PARAMETERS
    for parameter, default in told.items():
        if parameter in DEFAULTS:
            assert default.strip("`") == DEFAULTS[parameter]
    seconds = {"prometheus": f"{prometheus.TIMEOUT_SECONDS:g}", "check": str(RUNNING_SECONDS)}
    assert told.get("timeout_seconds") == seconds.get(name)


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_examples_are_taken(name: str) -> None:
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", SECTIONS[name], re.DOTALL | re.MULTILINE)
    analysis = Analysis.from_dict({"metrics": yaml.safe_load(shown)})
    analysis.validate()
    for number, metric in enumerate(analysis.metrics):
        assert metric.source["type"] == name
        choice.check_source(f"strategy.analysis.metrics[{number}]", metric, GOLDEN)


def test_every_template_is_named() -> None:
    (row,) = [row for row in rows(SECTIONS["prometheus"]) if row[0] == "`template`"]
    assert set(re.findall(r"`([\w-]+)`", row[2])) == prometheus.TEMPLATES.keys()
