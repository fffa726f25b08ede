"""Strategies: how a rollout moves requests from the stable version to the candidate, as data.

A strategy is a list of steps and what is analysed on the way. It says nothing about a serving system; one
that cannot carry it out refuses it before anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.serving.analysis.golden import Golden
from nighttrain.providers.serving.analysis.metrics import Analysis
from nighttrain.providers.serving.backends.traffic import Weights
from nighttrain.providers.serving.fields import is_number, require_a

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.traffic import Capabilities

# A minute of requests is the least that says anything about a version.
HOLD_SECONDS = 60.0

# Late effects (a cache that fills, a leak) show within minutes; the stable version is up all that time.
WATCH_SECONDS = 600.0

# A rollout that nobody ended in a day is forgotten rather than watched.
DEADLINE_SECONDS = 86400.0


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Send ``percent`` of the requests to the candidate, for ``hold_seconds`` at least.

    :param percent: 1 to 99; 100 follows the last step by itself
    :param hold_seconds: from when the share is seen to be routed; longer while the analysis is inconclusive
    """

    percent: int
    hold_seconds: float = HOLD_SECONDS


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """Copy ``percent`` of the requests to the candidate; nobody sees its answers.

    :param percent: 1 to 100
    :param hold_seconds: from when it is asked for; longer while the analysis is inconclusive
    """

    percent: int = 100
    hold_seconds: float = HOLD_SECONDS


@dataclass(frozen=True, kw_only=True)
class Approval:
    """Leave the traffic as it is until a person promotes, or aborts.

    :param reason: what the person is to look at, for people
    """

    reason: str = ""


Step = Weight | Shadow | Approval
_STEPS: dict[str, type[Weight] | type[Shadow] | type[Approval]] = {
    "weight": Weight,
    "shadow": Shadow,
    "approval": Approval,
}
_SCALARS = ("watch_seconds", "warm_up", "deadline_seconds")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Steps, what is analysed during them, and how long all of it may take.

    :param steps: before everything goes to the candidate; none is blue/green
    :param analysis: of every step with requests, and of the time after 100 percent; ``None`` moves by time
    :param watch_seconds: how long the analysis goes on after 100 percent, with the stable version kept warm
    :param golden: requests for the warm-up, and for metrics that are measured by asking
    :param warm_up: golden requests that the candidate answers before its first share; 0 for none
    :param deadline_seconds: from the start to promoted; a rollout that is not there by then is undone
    """

    steps: tuple[Step, ...] = ()
    analysis: Analysis | None = None
    golden: Golden | None = None
    watch_seconds: float = WATCH_SECONDS
    warm_up: int = 0
    deadline_seconds: float = DEADLINE_SECONDS

    @property
    def shares(self) -> tuple[int, ...]:
        """The shares below 100 that are asked for, in their order."""
        return tuple(step.percent for step in self.steps if isinstance(step, Weight))

    def validate(self) -> None:
        """Find every mistake that can be found without a serving system.

        :raises ConfigurationError: names the field, the value and the fix
        """
        self._check_types()
        for number, step in enumerate(self.steps):
            _check_step(f"strategy.steps[{number}]", step)
        if list(self.shares) != sorted(set(self.shares)):
            raise ConfigurationError(
                "strategy.steps", list(self.shares), "let the weights rise from step to step"
            )
        for name in ("watch_seconds", "deadline_seconds"):
            _check_seconds(f"strategy.{name}", getattr(self, name))
        if isinstance(self.warm_up, bool) or not isinstance(self.warm_up, int) or self.warm_up < 0:
            raise ConfigurationError(
                "strategy.warm_up", self.warm_up, "give a number of requests, 0 for none"
            )
        if self.warm_up and self.golden is None:
            raise ConfigurationError("strategy.golden", None, "give the requests that the warm-up sends")
        if self.golden is not None:
            self.golden.validate()
        least = self.watch_seconds + sum(getattr(step, "hold_seconds", 0.0) for step in self.steps)
        if self.deadline_seconds <= least:
            raise ConfigurationError(
                "strategy.deadline_seconds",
                self.deadline_seconds,
                f"the holds and the watch alone take {least:g} seconds: give it more",
            )
        if self.analysis is not None:
            self.analysis.validate()

    def _check_types(self) -> None:
        require_a((list, tuple), "strategy.steps", self.steps, "give a list of steps")
        if self.analysis is not None:
            fix = "give an Analysis with its metrics, or leave it out"
            require_a(Analysis, "strategy.analysis", self.analysis, fix)
        if self.golden is not None:
            fix = "give Golden requests, or leave them out"
            require_a(Golden, "strategy.golden", self.golden, fix)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = {kind: name for name, kind in _STEPS.items()}
        steps = [{"step": names[type(step)], **asdict(step)} for step in self.steps]
        analysis = self.analysis.to_dict() if self.analysis else None
        golden = asdict(self.golden) if self.golden else None
        return {**_scalars(self), "steps": steps, "analysis": analysis, "golden": golden}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Strategy:
        """A strategy from plain values, e.g. of a YAML file.

        :raises ConfigurationError: names the field that is unknown or missing
        """
        require_a(Mapping, "strategy", given, "give a Strategy, or its fields")
        known = {"steps", "analysis", "golden", *_SCALARS}
        _check_fields("strategy", given, known)
        scalars = {key: given[key] for key in _SCALARS if key in given}
        golden = given.get("golden")
        steps = given.get("steps") or ()
        require_a((list, tuple), "strategy.steps", steps, "give a list of steps")
        analysis = given.get("analysis")
        found = cls(
            steps=tuple(_step(f"strategy.steps[{number}]", step) for number, step in enumerate(steps)),
            analysis=Analysis.from_dict(analysis) if analysis else None,
            golden=Golden.from_dict(golden) if golden else None,
            **scalars,
        )
        found.validate()
        return found


def blue_green(analysis: Analysis | None = None, *, watch_seconds: float = WATCH_SECONDS) -> Strategy:
    """Everything at once when the candidate is ready; the stable version is kept warm."""
    return Strategy(analysis=analysis, watch_seconds=watch_seconds)


def canary(
    *percents: int,
    hold_seconds: float = HOLD_SECONDS,
    analysis: Analysis | None = None,
    watch_seconds: float = WATCH_SECONDS,
) -> Strategy:
    """Rising shares, each held as long; the analysis decides whether the next follows."""
    steps = tuple(Weight(percent=percent, hold_seconds=hold_seconds) for percent in percents)
    return Strategy(steps=steps, analysis=analysis, watch_seconds=watch_seconds)


def require_possible(strategy: Strategy, name: str, capabilities: Capabilities) -> None:
    """Refuse steps that the serving system cannot carry out.

    :param name: the serving system's, for the message
    :raises ConfigurationError: it cannot split traffic, or not copy it
    """
    for number, step in enumerate(strategy.steps):
        field = f"strategy.steps[{number}]"
        if isinstance(step, Weight) and capabilities.weights is Weights.NONE:
            raise ConfigurationError(
                field,
                step,
                f"{name} cannot split traffic here, so all of it would go to the candidate at once; use "
                "blue_green() or a serving system that splits traffic",
            )
        if isinstance(step, Shadow) and not capabilities.shadow:
            because = f" ({capabilities.no_shadow_because})" if capabilities.no_shadow_because else ""
            raise ConfigurationError(
                field, step, f"{name} cannot copy requests here{because}; leave the shadow step out"
            )
        if isinstance(step, Shadow) and step.percent < 100 and not capabilities.shadow_shares:
            raise ConfigurationError(
                field, step, f"{name} copies all requests here or none; write percent=100, or leave it out"
            )


def _scalars(strategy: Strategy) -> dict[str, Any]:
    return {key: getattr(strategy, key) for key in _SCALARS}


def _step(field: str, given: Any) -> Step:
    if isinstance(given, int) and not isinstance(given, bool):
        return Weight(percent=given)
    if not isinstance(given, dict) or not isinstance(given.get("step"), str) or given["step"] not in _STEPS:
        raise ConfigurationError(field, given, f"give a percentage, or step: one of {', '.join(_STEPS)}")
    kind = _STEPS[given["step"]]
    values = {key: value for key, value in given.items() if key != "step"}
    _check_fields(field, values, set(kind.__dataclass_fields__))
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigurationError(field, given, "a weight step needs its percent") from error


def _check_step(field: str, step: Step) -> None:
    if isinstance(step, Approval):
        require_a(str, f"{field}.reason", step.reason, "say in a sentence what the person is to look at")
        return
    require_a((Weight, Shadow), field, step, "give a Weight, a Shadow or an Approval")
    most = 99 if isinstance(step, Weight) else 100
    if isinstance(step.percent, bool) or not isinstance(step.percent, int) or not 1 <= step.percent <= most:
        raise ConfigurationError(f"{field}.percent", step.percent, f"use a whole number from 1 to {most}")
    _check_seconds(f"{field}.hold_seconds", step.hold_seconds)


def _check_seconds(field: str, value: Any) -> None:
    if not is_number(value) or value < 0:
        raise ConfigurationError(field, value, "give seconds, 0 or more")


def _check_fields(field: str, given: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(map(str, given.keys() - known)):
        raise ConfigurationError(
            f"{field}.{unknown[0]}",
            given[unknown[0]],
            f"there is no such field; known: {', '.join(sorted(known))}",
        )
