"""Strategies that move traffic from the stable version to the candidate: lists of steps, as data.

``BlueGreen`` is one step: everything, once the candidate is ready. A canary is several; it needs a serving
system that can split traffic, and is refused where that cannot be done instead of being sent to everyone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nighttrain.providers.errors import ConfigurationError

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.base import ServingBackend


@dataclass(frozen=True)
class SetWeight:
    """Send ``percent`` of the requests (1 to 100) to the candidate."""

    percent: int


@dataclass(frozen=True)
class Pause:
    """Leave the traffic as it is for so many seconds."""

    seconds: float


Step = SetWeight | Pause


class Strategy(Protocol):
    """Anything that lists its steps; the last one sends everything to the candidate."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in order."""
        ...


@dataclass(frozen=True)
class BlueGreen:
    """Replace at once when ready; the old version stays beside the new one for a rollback."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """One switch."""
        return (SetWeight(100),)


@dataclass(frozen=True)
class Canary:
    """Move traffic in steps. No backend of this release can split traffic, so it is refused everywhere.

    :param weights: percentages, rising, each from 1 to 99; 100 follows by itself
    :param pause_seconds: between two weights
    """

    weights: tuple[int, ...]
    pause_seconds: float = 60.0  # a minute of requests is the least that says anything about a version

    @property
    def steps(self) -> tuple[Step, ...]:
        """Weight, pause, weight, pause, everything."""
        partial = [step for weight in self.weights for step in (SetWeight(weight), Pause(self.pause_seconds))]
        return (*partial, SetWeight(100))


def require_possible(strategy: Strategy, backend: ServingBackend) -> None:
    """Refuse steps that the serving system cannot carry out.

    :raises ConfigurationError: no steps, weights out of order or range, or traffic cannot be split here
    """
    weights = [step.percent for step in strategy.steps if isinstance(step, SetWeight)]
    if not weights or weights != sorted(set(weights)) or weights[0] < 1 or weights[-1] != 100:
        raise ConfigurationError(
            "strategy", strategy, "the weights must rise from at least 1 and end with 100"
        )
    if len(strategy.steps) > 1 and not backend.splits_traffic:
        raise ConfigurationError(
            "strategy",
            strategy,
            f"{backend.name} cannot split traffic, so all of it would go to the candidate at the first step; "
            "use BlueGreen() or a serving system that splits traffic",
        )
