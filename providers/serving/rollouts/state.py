"""The state of a rollout: plain values, written before they are acted on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ServingError, clip
from nighttrain.providers.serving.analysis.metrics import Analysis, Kind
from nighttrain.providers.serving.analysis.values import Judgement, Tally, Verdict
from nighttrain.providers.serving.backends.traffic import Target
from nighttrain.providers.serving.strategy import Shadow, Strategy, Weight, blue_green

if TYPE_CHECKING:
    from collections.abc import Mapping

# As many as a person reads, each with a pod's last lines; small beside the megabyte that the object may have.
_EVENTS, _TEXT = 60, 3000

# Two numbers a minute for two hours at full detail; then every second one is dropped, and so on. Where many
# metrics are measured, fewer: a hundred characters for each keep a quarter of that megabyte.
_POINTS, _POINT_VALUES = 240, 2400


# What goes back has served before: everything at once, as soon as it is up.
STRAIGHT_BACK = blue_green(watch_seconds=0.0)


class Phase(StrEnum):
    """Where a rollout is."""

    STARTING = "starting"
    """The candidate comes up, without requests."""
    WARMING = "warming up"
    """It answers golden requests that no client sent."""
    SHIFTING = "shifting"
    """A share was asked for, and is not seen to be routed yet."""
    HOLDING = "holding"
    """The share is routed; the analysis looks."""
    WAITING = "waiting"
    """For a person, as the strategy says."""
    STALLED = "stalled"
    """The analysis could not say for too long: a person, or a newer version, has to."""
    SWITCHING = "switching"
    """Everything was asked for, and is not seen to be routed yet."""
    WATCHING = "watching"
    """Everything goes to the candidate; the analysis looks, and the stable version is kept warm."""
    PROMOTING = "promoting"
    """The candidate becomes the stable version."""
    DRAINING = "draining"
    """Nothing was asked for, and something is routed still."""
    UNDOING = "undoing"
    """What was made for the candidate is taken down."""
    PROMOTED = "promoted"
    UNDONE = "undone"
    STOPPED = "stopped"
    """Another hand changes what the rollout writes: it ends where it is."""


ENDED = frozenset({Phase.PROMOTED, Phase.UNDONE, Phase.STOPPED})

UNDER_WAY_BACK = frozenset({Phase.DRAINING, Phase.UNDOING})

HELD = frozenset({Phase.WAITING, Phase.STALLED})
"""Phases that a person or a newer version ends."""

_NOTED = frozenset(
    {Phase.STARTING, Phase.HOLDING, Phase.WAITING, Phase.STALLED, Phase.WATCHING, Phase.DRAINING}
    | {Phase.PROMOTED, Phase.UNDONE, Phase.STOPPED}
)
"""Each step is an entry of the model's history; what lies between two of them is not."""

_OF_TWO_VERSIONS = frozenset({Kind.DISAGREEMENT, Kind.DISTANCE})
"""What has no meaning for one version alone."""

MEASURED = frozenset({Phase.HOLDING, Phase.WAITING, Phase.STALLED, Phase.WATCHING})


class Order(StrEnum):
    """What a person asked for."""

    PROMOTE = "promote"
    """Go on: past an approval, a stall, or the rest of a hold."""
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An order, and whose.

    :param number: grows with each order of this rollout, so that none is obeyed twice
    """

    number: int
    order: Order
    by: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a rollout moves in the registry, together with the traffic.

    :param alias: goes to the candidate with everything, and back with an abort; ``None`` for none
    :param stage: the same; ``None`` for none
    """

    alias: str | None = None
    stage: str | None = None

    def __bool__(self) -> bool:
        return self.alias is not None or self.stage is not None


@dataclass(frozen=True, kw_only=True)
class Holders:
    """The versions that hold a rollout's names.

    :param alias: who holds the alias, empty for nobody; ``None`` where the rollout moves none
    :param stage: the same of the stage
    """

    alias: str | None = None
    stage: str | None = None

    def hold_all(self, version: str) -> bool:
        """True if the version holds every name that there is, and there is one."""
        return {self.alias, self.stage} - {None} == {version}

    def hold_any(self, version: str) -> bool:
        """True if the version holds one of them."""
        return version in (self.alias, self.stage)

    def of_either(self, names: Names, target: Target) -> tuple[Names, Holders]:
        """The names that one of the target's two versions holds, and by whom: others are not its to move."""
        both = (target.candidate, target.stable)
        alias, stage = self.alias in both, self.stage in both
        return (
            Names(alias=names.alias if alias else None, stage=names.stage if stage else None),
            Holders(alias=self.alias if alias else None, stage=self.stage if stage else None),
        )


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of what happened, for people and for the model's history.

    :param number: 1, 2, 3 ...
    :param to_note: it belongs into the model's history, and is not there yet
    """

    number: int
    at: float
    text: str
    to_note: bool = False


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement, for the picture.

    :param values: by metric: candidate's rate or number, stable's rate
    """

    at: float
    percent: float
    verdict: str
    values: Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that a process needs to go on with a rollout.

    :param rollout_id: the identity of the task that began it
    :param actor: the same, for people
    :param revision: grows with every write
    :param fence: the revision at the last change of phase: what a process that comes too late does not have
    :param applied: the fence that was seen on the objects last: an older one there was put back by somebody
    :param setting: where it happens, and from where it is seen, as ``Setting.to_dict`` gives it
    :param startup_seconds: how long the candidate may take to become ready
    :param brought_up: what the candidate needs was made
    :param step: the index into the strategy's steps; their number is everything
    :param since: when the phase began, seconds since 1970
    :param paused: a person holds it; the analysis goes on, and may still abort
    :param obeyed: the number of the last order that was obeyed
    :param moved: alias and stage are the candidate's
    :param measured_at: when the last measurement was made
    :param sighted_at: when anything could be measured last, or the phase began
    :param reason: why it is undone, stalled or stopped
    :param replaces: who held the alias when the rollout began; empty for nobody, ``None`` where it does not
        matter
    :param looks: measurements in this phase; the first only says where counters stand
    :param run_id: the MLflow run that holds the series and the picture
    :param taken: the end was told to whoever began it
    :param returns_because: why it goes back to the version before; ``None`` where it does not
    :param promoted_before: the last promoted rollout's before this one: what leads back, if this is undone
    """

    rollout_id: str
    actor: str
    target: Target
    strategy: Strategy
    names: Names
    begun_at: float
    since: float
    phase: Phase = Phase.STARTING
    step: int = 0
    revision: int = 0
    fence: int = 0
    applied: int = 0
    setting: Mapping[str, Any] = field(default_factory=dict)
    startup_seconds: float = 600.0  # as ServingSpec's
    brought_up: bool = False
    paused: bool = False
    obeyed: int = 0
    moved: bool = False
    replaces: str | None = None
    looks: int = 0
    measured_at: float | None = None
    sighted_at: float = 0.0
    tallies: Mapping[str, tuple[Tally, ...]] = field(default_factory=dict)
    memory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    judgements: tuple[Judgement, ...] = ()
    verdict: Verdict = Verdict.INCONCLUSIVE
    reason: str = ""
    events: tuple[Event, ...] = ()
    points: tuple[Point, ...] = ()
    run_id: str | None = None
    taken: bool = False
    returns_because: str | None = None
    promoted_before: Target | None = None

    @property
    def ended(self) -> bool:
        """Nothing follows any more."""
        return self.phase in ENDED

    @property
    def analysis(self) -> Analysis | None:
        """What can be analysed: the first version of an endpoint has nobody to disagree with."""
        analysis = self.strategy.analysis
        if analysis is None or self.target.stable is not None:
            return analysis
        metrics = tuple(each for each in analysis.metrics if each.kind not in _OF_TWO_VERSIONS)
        return replace(analysis, metrics=metrics) if metrics else None

    @property
    def mirror_percent(self) -> int:
        """The share of requests whose copies this state asks for."""
        steps = self.strategy.steps
        step = steps[self.step] if self.step < len(steps) else None
        asks = self.phase not in UNDER_WAY_BACK | ENDED | {Phase.STARTING, Phase.WARMING}
        return step.percent if isinstance(step, Shadow) and asks else 0

    @property
    def percent(self) -> int:
        """The candidate's share that this state asks for."""
        if self.phase in UNDER_WAY_BACK or self.phase in (Phase.STARTING, Phase.WARMING, Phase.UNDONE):
            return 0
        if self.step >= len(self.strategy.steps):
            return 100
        done = self.strategy.steps[: self.step + 1]
        return next((step.percent for step in reversed(done) if isinstance(step, Weight)), 0)

    def before_its_names_move(self, holders: Holders) -> State:
        """The state of a rollout that begins, with who holds its names by then."""
        candidate = self.target.candidate
        replaces = None if holders.alias == candidate else holders.alias
        return replace(self, moved=holders.hold_all(candidate), replaces=replaces)

    def returning(self, target: Target, names: Names, *, at: float, because: str) -> State:
        """The first state of the way back from what served when this rollout had ended."""
        return State(
            rollout_id=self.rollout_id,
            actor=self.actor,
            target=target,
            strategy=STRAIGHT_BACK,
            names=names,
            begun_at=at,
            since=at,
            startup_seconds=self.startup_seconds,
            returns_because=because,
            promoted_before=promoted_by(self),
        )

    def entering(self, phase: Phase, now: float, text: str, **changed: Any) -> State:
        """The state at the beginning of a phase, with a line that says so."""
        begun = replace(
            self, phase=phase, since=now, fence=self.revision + 1, sighted_at=now, looks=0, **changed
        )
        return begun.saying(now, text, to_note=phase in _NOTED)

    def saying(self, now: float, text: str, *, to_note: bool = False) -> State:
        """The state with one more line.

        :param to_note: it goes into the model's history
        """
        number = self.events[-1].number + 1 if self.events else 1
        event = Event(number=number, at=now, text=clip(text, _TEXT), to_note=to_note)
        return replace(self, events=(*self.events, event)[-_EVENTS:])

    def with_point(self, point: Point) -> State:
        """The state with one more point of the picture, thinned where there are many."""
        points = (*self.points, point)
        if len(points) > min(_POINTS, _POINT_VALUES // max(len(point.values), 1)):
            points = (*points[:-1:2], point)
        return replace(self, points=points)

    def describe(self) -> str:
        """One line for people."""
        where = f"{self.target.endpoint}: version {self.target.candidate}"
        share = f", {self.percent} percent of the requests" if 0 < self.percent < 100 else ""
        held = ", paused" if self.paused else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{where} is {self.phase}{share}{held}{why}"

    def to_json(self) -> str:
        """The state as text."""
        return json.dumps({**asdict(self), "strategy": self.strategy.to_dict()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> State:
        """The state from its text.

        :raises ServingError: it is not one, or another release's that this one cannot read
        """
        try:
            return _read(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServingError(
                "the rollout's state cannot be read: it was edited, or written by another release of "
                f"nighttrain ({type(error).__name__}: {clip(str(error), 200)})"
            ) from error


def promoted_by(state: State) -> Target | None:
    """The last promoted rollout, once this one has ended: it knows what served before what serves."""
    return state.target if state.phase is Phase.PROMOTED else state.promoted_before


def nothing_before(target: Target) -> str:
    """Why there is no way back, in words."""
    return (
        f"{target.endpoint}: no rollout in steps is on record that was promoted and had a version before it: "
        "roll that version out"
    )


def has_held(state: State, step: int) -> bool:
    """True once the rollout has gone past a step; the number of steps stands for everything, held."""
    if state.phase in (Phase.PROMOTING, Phase.PROMOTED):
        return True
    before = (Phase.STARTING, Phase.WARMING, *UNDER_WAY_BACK, Phase.UNDONE, Phase.STOPPED)
    return state.phase not in before and state.step > step


def _read(given: dict[str, Any]) -> State:
    values = given | {
        "target": _target(given["target"]),
        "promoted_before": _target(before) if (before := given.get("promoted_before")) else None,
        "strategy": Strategy.from_dict(given["strategy"]),
        "names": Names(**given["names"]),
        "phase": Phase(given["phase"]),
        "verdict": Verdict(given["verdict"]),
        "tallies": {
            name: tuple(Tally.from_dict(each) for each in tallies)
            for name, tallies in given["tallies"].items()
        },
        "judgements": tuple(
            Judgement(**(each | {"verdict": Verdict(each["verdict"])})) for each in given["judgements"]
        ),
        "events": tuple(Event(**each) for each in given["events"]),
        "points": tuple(_point(each) for each in given["points"]),
    }
    return State(**values)


def _target(given: dict[str, Any]) -> Target:
    return Target(**given | {"shares": tuple(given.get("shares", ()))})


def _point(given: dict[str, Any]) -> Point:
    return Point(**(given | {"values": {name: tuple(pair) for name, pair in given["values"].items()}}))
