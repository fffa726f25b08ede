"""Strategies as data: what is refused, by field, value and fix, and that plain values come back the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind, Metric, WhenInconclusive
from nighttrain.providers.serving.backends.traffic import Capabilities, Weights
from nighttrain.providers.serving.strategy import (
    Approval,
    Shadow,
    Strategy,
    Weight,
    blue_green,
    canary,
    require_possible,
)

NONE = Capabilities(weights=Weights.NONE, split_seen_in="nowhere")
EXACT = Capabilities(weights=Weights.EXACT, split_seen_in="the answers")


def test_what_cannot_be_split_or_copied_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"steps\[0\].*cannot split traffic"):
        require_possible(canary(10, 50), "a plain Service", NONE)
    require_possible(blue_green(), "a plain Service", NONE)
    with pytest.raises(ConfigurationError, match=r"steps\[1\].*cannot copy requests"):
        require_possible(Strategy(steps=(Approval(), Shadow())), "a gateway", EXACT)


def test_plain_values_come_back_the_same() -> None:
    whole = Strategy(
        steps=(
            Shadow(percent=20),
            Weight(percent=5, hold_seconds=30),
            Approval(reason="look"),
            Weight(percent=50),
        ),
        analysis=Analysis(
            metrics=(
                Metric(name="errors", kind=Kind.ERRORS),
                Metric(
                    name="p95", kind=Kind.LATENCY, increase=0.5, source={"type": "prometheus", "url": "u"}
                ),
            ),
            when_inconclusive=WhenInconclusive.ABORT,
        ),
        golden=Golden(requests=({"inputs": [[1.5]]},), expected=([2.5],)),
        warm_up=3,
    )
    whole.validate()
    assert Strategy.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


def test_a_percentage_is_a_step() -> None:
    assert Strategy.from_dict({"steps": [5, {"step": "weight", "percent": 50}]}) == canary(5, 50)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": [50, 10]}, "rise"),
        ({"steps": [10, 10]}, "rise"),
        ({"steps": [0]}, r"steps\[0\]\.percent"),
        ({"steps": [100]}, "from 1 to 99"),
        ({"steps": [True]}, r"steps\[0\]"),
        ({"steps": "10"}, "list of steps"),
        ({"steps": [{"step": "weigth", "percent": 5}]}, "weight, shadow, approval"),
        ({"steps": [{"step": "weight"}]}, "needs its percent"),
        ({"steps": [{"step": "weight", "percent": 5, "hold": 3}]}, r"steps\[0\]\.hold.*hold_seconds"),
        ({"steps": [{"step": "shadow", "hold_seconds": float("nan")}]}, r"hold_seconds"),
        ({"step": [5]}, "strategy.step"),
        ({"watch_seconds": -1}, "watch_seconds"),
        ({"warm_up": -1}, "warm_up"),
        ({"warm_up": 3}, "strategy.golden"),
        ({"golden": {"requests": []}}, "golden.requests"),
        ({"golden": {"requests": [1], "expected": [1, 2]}}, "golden.expected.*1 requests"),
        ({"golden": {"requests": [float("nan")]}}, "JSON"),
        ({"golden": {"requests": ["x" * 300_000]}}, "200,000 characters"),
        ({"golden": {"request": [1]}}, "golden.request.*known: requests"),
        ({"steps": [5], "deadline_seconds": 100}, "deadline_seconds.*660"),
        ({"analysis": {"metrics": []}}, "name a metric"),
        ({"analysis": {"metrics": [{"name": "errors"}]}}, r"metrics\[0\]\.kind"),
        ({"analysis": {"metrics": [{"name": "e", "kind": "eror"}]}}, "choose one of errors"),
        ({"analysis": {"metrics": [{"name": "E", "kind": "errors"}]}}, r"metrics\[0\]\.name"),
        ({"analysis": {"metrics": [{"name": "e", "kind": "errors", "limit": 1}]}}, "limit"),
        ({"analysis": {"metrics": [{"name": "e", "kind": "errors"}] * 2}}, "name of its own"),
        ({"analysis": {"metrics": [{"name": "e", "kind": "errors"}], "false_alarms": 1}}, "false_alarms"),
        ({"analysis": {"metrics": [{"name": "e", "kind": "errors", "source": {}}]}}, "source"),
    ],
)
def test_a_mistake_names_its_field(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Strategy.from_dict(given)
