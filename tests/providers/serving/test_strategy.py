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
        ({"analysis": {"metrics": [{"name": "e", "kind": "number", "failures": 51}]}}, "at most 50"),
        ({"analysis": 5}, "strategy.analysis"),
        ({"golden": 5}, "strategy.golden"),
    ],
)
def test_a_mistake_names_its_field(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Strategy.from_dict(given)


ODD = (
    None,
    True,
    -1,
    0,
    10,
    3.5,
    10**400,
    float("nan"),
    float("inf"),
    "x",
    "",
    b"x",
    object(),
    {"a": 1},
    [1],
    (),
)


def _with(part: str, name: str, value: Any) -> Strategy:
    metric = {"name": "e", "kind": Kind.ERRORS}
    analysis = {"metrics": (Metric(**metric),)}  # type: ignore[arg-type]
    match part:
        case "strategy":
            return Strategy(**{name: value})
        case "step":
            return Strategy(steps=(value,))
        case "weight":
            return Strategy(steps=(Weight(**{"percent": 10, name: value}),))
        case "shadow":
            return Strategy(steps=(Shadow(**{"percent": 10, name: value}),))
        case "approval":
            return Strategy(steps=(Approval(**{name: value}),))
        case "analysis":
            return Strategy(analysis=Analysis(**(analysis | {name: value})))
        case "metric":
            return Strategy(analysis=Analysis(metrics=(Metric(**(metric | {name: value})),)))
        case _:
            return Strategy(golden=Golden(**{"requests": (1,), name: value}))


PARTS = {
    "strategy": Strategy,
    "weight": Weight,
    "shadow": Shadow,
    "approval": Approval,
    "analysis": Analysis,
    "metric": Metric,
    "golden": Golden,
}
FIELDS = [(part, name) for part, kind in PARTS.items() for name in kind.__dataclass_fields__]


@pytest.mark.parametrize(("part", "name"), [*FIELDS, ("step", "")])
def test_every_field_takes_what_it_can_keep_and_refuses_the_rest(part: str, name: str) -> None:
    refused = 0
    for value in ODD:
        strategy = _with(part, name, value)
        try:
            strategy.validate()
        except ConfigurationError:
            refused += 1
        else:
            kept = json.loads(json.dumps(strategy.to_dict()))
            assert json.loads(json.dumps(Strategy.from_dict(kept).to_dict())) == kept, value
    assert refused
    assert (refused == len(ODD)) == ((part, name) in NOTHING_ODD_IS_RIGHT)


NOTHING_ODD_IS_RIGHT = {
    ("step", ""),
    ("metric", "kind"),
    ("metric", "source"),
    ("metric", "worse"),
    ("metric", "quantile"),
    ("analysis", "metrics"),
    ("analysis", "when_inconclusive"),
    ("analysis", "false_alarms"),
    ("analysis", "let_through"),
    ("strategy", "deadline_seconds"),
    ("golden", "path"),
}


@pytest.mark.parametrize("value", ODD)
def test_what_is_no_strategy_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="strategy"):
        Strategy.from_dict(value)
    for step in ("weight", "shadow", "approval"):
        try:
            Strategy.from_dict({"steps": [{"step": value}, {"step": step, "hold_seconds": value}]})
        except ConfigurationError:
            continue
        raise AssertionError(value)
