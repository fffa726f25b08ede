"""What follows: one pure function from a rollout's state and what was seen to the next state and what to do.

``decide(state, seen, now) -> (state, actions)``. The state is written before the actions are carried out;
actions follow from the state and from the look alone, so whoever reads the state can carry them out again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.serving.analysis.judging import add, judge_all, overall
from nighttrain.providers.serving.analysis.metrics import Analysis, WhenInconclusive
from nighttrain.providers.serving.analysis.values import Sample, Verdict
from nighttrain.providers.serving.rollouts.state import (
    ENDED,
    MEASURED,
    UNDER_WAY_BACK,
    Asked,
    Order,
    Phase,
    Point,
    State,
)
from nighttrain.providers.serving.strategy import Approval, Shadow, Weight

if TYPE_CHECKING:
    from nighttrain.providers.serving.backends.traffic import Look

# So few answers say whether a route works at all; one look sends more.
_FEW_ANSWERS = 5


class Do(StrEnum):
    """What is to be done. Each may be done again."""

    BRING_UP = "bring up"
    WARM_UP = "warm up"
    SET_TRAFFIC = "set traffic"
    MOVE = "move alias and stage"
    GIVE_BACK = "give alias and stage back"
    PROMOTE = "promote"
    UNDO = "undo"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came back for requests through the route, in this phase.

    :param failed: without an answer, or with a status of 500 and above
    :param by_version: how many each version answered, as the answers name it
    :param newest: which versions answered the last requests
    """

    total: int
    failed: int
    by_version: Mapping[str, int] = field(default_factory=dict)
    newest: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen since the state was read.

    :param answers: through the route; ``None`` where nobody asked, or the route cannot be reached from here
    :param answers_needed: somebody can ask, so a share counts as routed only once the answers show it
    :param samples: new measurements
    :param memory: what the sources want to remember, by metric
    :param asked: the newest order of a person
    :param holds_names: alias and stage are the candidate's, or on the way back one of them is still; ``None``
        where nobody knows
    :param warmed: the candidate answered its golden requests; a text says why it did not
    """

    look: Look
    answers: Answers | None = None
    answers_needed: bool = False
    samples: tuple[Sample, ...] = ()
    memory: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    asked: Asked | None = None
    holds_names: bool | None = None
    warmed: bool | str | None = None


def decide(state: State, seen: Seen, now: float) -> tuple[State, tuple[Do, ...]]:
    """The next state, and what is to be done to bring the serving system and the registry to it.

    :param now: seconds since 1970
    """
    if state.ended:
        return state, ()
    present = _remembered(_measured(state, seen, now), seen, now)
    following = _next(_obeyed(present, seen.asked, now), seen, now)
    return following, needed(following, seen)


def give_up(state: State, now: float, why: str) -> State:
    """The state of a rollout that cannot go on: it is undone, or ends as it was if nothing was made."""
    return state if state.phase in UNDER_WAY_BACK | ENDED else _back(state, now, why)


def is_measured(state: State, now: float) -> bool:
    """True if a measurement is due."""
    analysis = state.analysis
    if analysis is None or state.phase not in MEASURED:
        return False
    last = state.measured_at
    # A process whose clock is behind that of the one before has no time to wait for.
    return not state.looks or last is None or not last <= now < last + analysis.interval_seconds


def needed(state: State, seen: Seen) -> tuple[Do, ...]:
    """What separates the serving system and the registry from what the state asks for."""
    if state.phase in ENDED:
        return ()
    if state.phase is Phase.STARTING:
        return () if state.brought_up else (Do.BRING_UP,)
    if state.phase is Phase.WARMING:
        return (Do.WARM_UP,)
    found: list[Do] = []
    if state.phase is not Phase.PROMOTING and _traffic_differs(state, seen.look):
        found.append(Do.SET_TRAFFIC)
    if state.phase in UNDER_WAY_BACK and state.moved:
        found.append(Do.GIVE_BACK)
    if state.phase in (Phase.WATCHING, Phase.PROMOTING) and state.names and not state.moved:
        found.append(Do.MOVE)
    if state.phase is Phase.PROMOTING and not seen.look.promoted:
        found.append(Do.PROMOTE)
    if state.phase is Phase.UNDOING and not seen.look.undone and Do.SET_TRAFFIC not in found:
        found.append(Do.UNDO)
    return tuple(found)


def _traffic_differs(state: State, look: Look) -> bool:
    wanted = (state.percent, state.mirror_percent)
    return look.fence < state.fence or wanted != (look.asked_percent, look.mirrored_percent)


def _measured(state: State, seen: Seen, now: float) -> State:
    """The state with the new samples in it, and what they say."""
    analysis = state.analysis
    if analysis is None or not seen.samples:
        return state
    share = (seen.look.routed_percent or 0.0) / 100
    tallies = dict(state.tallies)
    for sample in seen.samples:
        tallies[sample.metric] = add(tallies.get(sample.metric, ()), sample, share=share)
    judgements = judge_all(analysis, tallies)
    verdict = overall(judgements)
    sighted = now if any(sample.error is None for sample in seen.samples) else state.sighted_at
    changed = replace(
        state,
        tallies=tallies,
        memory={**state.memory, **seen.memory},
        judgements=judgements,
        verdict=verdict,
        measured_at=now,
        looks=state.looks + 1,
        sighted_at=sighted,
    )
    values = {sample.metric: _rates(sample) for sample in seen.samples}
    percent = seen.look.routed_percent or 0.0
    return changed.with_point(Point(at=now, percent=percent, verdict=verdict, values=values))


def _rates(sample: Sample) -> tuple[float | None, float | None]:
    if sample.candidate is None and sample.stable is None:
        return sample.value, None
    rates = [
        counts.bad / counts.requests if counts and counts.requests else None
        for counts in (sample.candidate, sample.stable)
    ]
    return rates[0], rates[1]


def _remembered(state: State, seen: Seen, now: float) -> State:
    """The state with what is known by now of the objects and of the registry."""
    if state.fence > state.applied and not _traffic_differs(state, seen.look):
        state = replace(state, applied=state.fence)
    if seen.holds_names is None or seen.holds_names == state.moved:
        return state
    lost = state.moved and state.phase not in UNDER_WAY_BACK
    state = replace(state, moved=seen.holds_names)
    if not lost:
        return state
    what = " and ".join(
        f"{kind} {name}"
        for kind, name in (("alias", state.names.alias), ("stage", state.names.stage))
        if name
    )
    return _back(state, now, f"somebody moved the {what} away from version {state.target.candidate}")


def _obeyed(state: State, asked: Asked | None, now: float) -> State:
    """The state after a person's newest order."""
    if asked is None or asked.number <= state.obeyed:
        return state
    state = replace(state, obeyed=asked.number)
    why = f"{asked.order} by {asked.by}" + (f": {asked.reason}" if asked.reason else "")
    if asked.order is Order.PAUSE:
        return replace(state, paused=True).saying(now, why)
    if asked.order is Order.RESUME:
        return replace(state, paused=False).saying(now, why)
    if state.phase in UNDER_WAY_BACK or state.phase is Phase.PROMOTING:
        return state.saying(now, f"{why}; too late, it is {state.phase}")
    if asked.order is Order.ABORT:
        return _back(state, now, why)
    if state.phase in MEASURED:
        return _forward(replace(state, paused=False), now, why)
    return state.saying(now, f"{why}; not possible while it is {state.phase}: ask again when a share is held")


def _next(state: State, seen: Seen, now: float) -> State:
    if why := _strayed(state, seen.look):
        return state.entering(Phase.STOPPED, now, f"stopped: {why}", reason=why)
    undoing = state.phase in UNDER_WAY_BACK or state.phase is Phase.PROMOTING
    if not undoing:
        if now - state.begun_at > state.strategy.deadline_seconds:
            seconds = state.strategy.deadline_seconds
            return _back(state, now, f"not promoted within its deadline of {seconds:g} seconds")
        if state.brought_up and seen.look.readiness.failure:
            return _back(state, now, seen.look.readiness.failure)
    return _FOLLOWS[state.phase](state, seen, now)


def _strayed(state: State, look: Look) -> str | None:
    """What another hand did to what this rollout wrote."""
    if state.phase in (Phase.STARTING, Phase.WARMING):
        return None
    if look.strayed:
        return look.strayed
    if look.fence < state.applied:
        return (
            "somebody put the traffic back to what it was before (is it kept in Git?): "
            "let the tool that does so leave the weights alone, and roll out again"
        )
    # A change of several objects is half made for a moment: only what was seen whole can be taken back.
    whole = state.applied == state.fence == look.fence
    if whole and state.phase not in (Phase.PROMOTING, Phase.UNDOING) and _traffic_differs(state, look):
        return (
            f"somebody changed the candidate's share from {state.percent} to {look.asked_percent} percent: "
            "roll out again, or go on by hand"
        )
    return None


def _starting(state: State, seen: Seen, now: float) -> State:
    if seen.look.readiness.ready and state.brought_up:
        if state.strategy.warm_up:
            return state.entering(Phase.WARMING, now, "ready; golden requests warm it up")
        return _first_step(state, now, "ready")
    if state.brought_up and now - state.since > state.startup_seconds:
        doubt = seen.look.readiness.doubt or seen.look.readiness.detail
        return _back(state, now, f"not ready within {state.startup_seconds:g} seconds. {doubt}")
    return state


def _warming(state: State, seen: Seen, now: float) -> State:
    if seen.warmed is True:
        return _first_step(state, now, f"answered {state.strategy.warm_up} golden requests")
    if isinstance(seen.warmed, str):
        return _back(state, now, f"it did not answer its golden requests: {seen.warmed}")
    return state


def _first_step(state: State, now: float, why: str) -> State:
    # With nothing to share the requests with there is one step.
    first = len(state.strategy.steps) if state.target.stable is None else 0
    return _enter_step(state, first, now, why)


def _enter_step(state: State, number: int, now: float, why: str) -> State:
    if number >= len(state.strategy.steps):
        return state.entering(
            Phase.SWITCHING, now, f"{why}; all requests to version {state.target.candidate}", step=number
        )
    step = state.strategy.steps[number]
    if isinstance(step, Approval):
        asked = f": {step.reason}" if step.reason else ""
        return state.entering(Phase.WAITING, now, f"{why}; a person is asked{asked}", step=number)
    what = f"{step.percent} percent of the requests"
    copies = f"copies of {what}" if isinstance(step, Shadow) else what
    return state.entering(Phase.SHIFTING, now, f"{why}; {copies} to the candidate", step=number)


def _shifting(state: State, seen: Seen, now: float) -> State:
    if why := _broken(state, seen.answers):
        return _back(state, now, why)
    if not _is_routed(state, seen):
        if now - state.since > state.startup_seconds:
            return _back(state, now, _not_routed(state, seen))
        return state
    routed = seen.look.routed_percent or 0.0
    if state.phase is Phase.SWITCHING:
        return state.entering(Phase.WATCHING, now, "all requests go to the candidate", reason="")
    copies = f", {state.mirror_percent} percent copied" if state.mirror_percent else ""
    return state.entering(
        Phase.HOLDING, now, f"{routed:g} percent of the requests go to the candidate{copies}"
    )


def _not_routed(state: State, seen: Seen) -> str:
    routed = seen.look.routed_percent
    shown = seen.look.unseen or "cannot be seen" if routed is None else f"is {routed:g} percent"
    answers = seen.answers.by_version if seen.answers else {}
    counted = ", ".join(f"{number} from version {name}" for name, number in sorted(answers.items()))
    return (
        f"{state.percent} percent were asked for, and within {state.startup_seconds:g} seconds they were not "
        f"seen to be routed: the share {shown}, answers came {counted or 'from no version'}"
    )


def _broken(state: State, answers: Answers | None) -> str | None:
    """Why the route does not work, however good the candidate is."""
    if answers is None or answers.total < _FEW_ANSWERS or state.target.stable is None:
        return None
    share = state.percent / 100
    if answers.failed / answers.total <= share + (1 - share) / 2:
        return None
    return (
        f"after the change of the route {answers.failed} of {answers.total} requests through it failed: "
        "it is put back"
    )


def _is_routed(state: State, seen: Seen) -> bool:
    """True once the split that was asked for is seen: where it is read back, and in the answers."""
    look, share = seen.look, state.percent
    if _traffic_differs(state, look) or look.routed_percent is None:
        return False
    if share in (0, 100) and look.routed_percent != share:
        return False
    if not seen.answers_needed or (share == 0 and state.target.stable is None):
        return True
    answers = seen.answers
    if answers is None or answers.total < _FEW_ANSWERS:
        return False
    if not answers.by_version and not answers.failed:
        return True  # Its model server does not name the version in its answers.
    if share == 0:
        return state.target.candidate not in answers.newest
    if share == 100:
        return answers.newest == {state.target.candidate}
    return state.target.candidate in answers.by_version


def _holding(state: State, seen: Seen, now: float) -> State:
    if state.verdict is Verdict.FAILED:
        return _back(state, now, _failed_because(state))
    if state.phase is Phase.WATCHING and state.names and not state.moved:
        return state
    over = now - state.since >= _hold_seconds(state)
    if state.paused or not over:
        return state
    if state.analysis is None or (state.verdict is Verdict.SUCCESSFUL and state.looks > 1):
        if state.phase is Phase.STALLED and state.step >= len(state.strategy.steps):
            return state.entering(Phase.WATCHING, now, "the analysis says successful again", reason="")
        why = "held" if state.analysis is None else "the analysis is successful"
        return _forward(state, now, why)
    return state if state.phase is Phase.STALLED else _undecided(state, state.analysis, now)


def _undecided(state: State, analysis: Analysis, now: float) -> State:
    """What follows when the analysis cannot say for too long."""
    if now - state.sighted_at > analysis.outage_seconds:
        why = f"nothing could be measured for {analysis.outage_seconds:g} seconds"
    elif now - state.since > _hold_seconds(state) + analysis.inconclusive_seconds:
        why = f"inconclusive for {analysis.inconclusive_seconds:g} seconds"
    else:
        return state
    why = f"{why}: {_inconclusive_because(state)}"
    if analysis.when_inconclusive is WhenInconclusive.ABORT:
        return _back(state, now, why)
    return state.entering(Phase.STALLED, now, f"stalled: {why}", reason=why)


def _waiting(state: State, seen: Seen, now: float) -> State:
    if state.verdict is Verdict.FAILED:
        return _back(state, now, _failed_because(state))
    return state


def _hold_seconds(state: State) -> float:
    if state.phase is Phase.STALLED:
        return 0.0
    if state.phase is Phase.WATCHING:
        return state.strategy.watch_seconds
    step = state.strategy.steps[state.step]
    return step.hold_seconds if isinstance(step, (Weight, Shadow)) else 0.0


def _forward(state: State, now: float, why: str) -> State:
    """The next step, or the end."""
    if state.step >= len(state.strategy.steps):
        if state.phase is Phase.STALLED or state.phase is Phase.WATCHING:
            return state.entering(Phase.PROMOTING, now, f"{why}; it becomes the stable version", reason="")
        return state
    return _enter_step(replace(state, reason=""), state.step + 1, now, why)


def _promoting(state: State, seen: Seen, now: float) -> State:
    if seen.look.promoted and (state.moved or not state.names):
        return state.entering(Phase.PROMOTED, now, f"promoted: version {state.target.candidate} serves")
    return state


def _draining(state: State, seen: Seen, now: float) -> State:
    if not _is_routed(state, seen):
        return state
    return state.entering(Phase.UNDOING, now, "no request goes to the candidate any more")


def _undoing(state: State, seen: Seen, now: float) -> State:
    if not seen.look.undone or state.moved:
        return state
    stable = state.target.stable
    serves = f"version {stable} serves" if stable else "nothing serves"
    return state.entering(Phase.UNDONE, now, f"undone: {serves}")


def _back(state: State, now: float, why: str) -> State:
    """Undo: the requests first."""
    return state.entering(Phase.DRAINING, now, f"undoing: {why}", reason=why, paused=False)


def _failed_because(state: State) -> str:
    return " ".join(each.sentence for each in state.judgements if each.verdict is Verdict.FAILED)


def _inconclusive_because(state: State) -> str:
    undecided = (Verdict.INCONCLUSIVE, Verdict.ERROR)
    said = " ".join(each.sentence for each in state.judgements if each.verdict in undecided)
    return said or "nothing was measured"


def _ended(state: State, seen: Seen, now: float) -> State:
    return state


_FOLLOWS: dict[Phase, Callable[[State, Seen, float], State]] = {
    Phase.STARTING: _starting,
    Phase.WARMING: _warming,
    Phase.SHIFTING: _shifting,
    Phase.SWITCHING: _shifting,
    Phase.HOLDING: _holding,
    Phase.STALLED: _holding,
    Phase.WATCHING: _holding,
    Phase.WAITING: _waiting,
    Phase.PROMOTING: _promoting,
    Phase.DRAINING: _draining,
    Phase.UNDOING: _undoing,
    **dict.fromkeys(ENDED, _ended),
}
