"""The engine: look, decide, write, act, again. It knows no orchestrator and keeps nothing to itself.

Several processes may drive one rollout: each write of the state is bound to the one before, each change of
the serving system to the look that decided it, and each action may be repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import (
    ClusterRequestError,
    ClusterUnreachableError,
    ConfigurationError,
    NothingToRollBackToError,
    ObjectConflictError,
    RegistryError,
    RolloutFailedError,
    RolloutUnderWayError,
    TrackingError,
    TrackingUnreachableError,
    WorkloadConflictError,
)
from nighttrain.providers.serving.backends.traffic import ReturningBackend
from nighttrain.providers.serving.rollouts.decide import Do, Seen, decide, give_up, is_measured
from nighttrain.providers.serving.rollouts.measuring import measure
from nighttrain.providers.serving.rollouts.registry_answers import (
    has_notes,
    holds_names,
    names_seconds,
    noted,
    refusal_of_notes,
)
from nighttrain.providers.serving.rollouts.route_answers import Driving
from nighttrain.providers.serving.rollouts.state import (
    HELD,
    UNDER_WAY_BACK,
    Holders,
    Names,
    Order,
    Phase,
    State,
    nothing_before,
    promoted_by,
)
from nighttrain.providers.serving.rollouts.store import Kept, RolloutMovedError, RolloutStore
from nighttrain.providers.serving.strategy import Strategy, require_possible

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.sources.base import Source
    from nighttrain.providers.serving.analysis.values import Sample
    from nighttrain.providers.serving.backends.traffic import (
        Addresses,
        Look,
        Progress,
        Target,
        TrafficBackend,
    )
    from nighttrain.providers.serving.rollouts.surroundings import (
        AskRoute,
        CheckMetric,
        Recorder,
        Registrar,
        WarmUp,
    )
    from nighttrain.providers.serving.spec import ServingSpec

# A change is followed within a second; while a share is held, an order is obeyed within two.
POLL_SECONDS, HELD_POLL_SECONDS = 1.0, 2.0

# An outage is waited out without filling the log or the network.
OUTAGE_POLL_SECONDS = 5.0

# What will not pass by waiting: nothing more is tried with this candidate.
_REFUSALS = (ConfigurationError, RegistryError, RolloutFailedError, TrackingError, WorkloadConflictError)

_ASK_ROUTE = frozenset({Phase.SHIFTING, Phase.SWITCHING, Phase.DRAINING})


class RolloutEngine:
    """Takes versions to production step by step on one serving system, watches them, and undoes them.

    :param sources: by the type that a metric names
    :param check_metric: refuses a metric whose source cannot be
    :param ask_route: ``None`` where the route cannot be reached from here: then shares are believed from
        where the serving system says them
    :param setting: what another process needs to open an engine like this one; kept with the state
    :param clock: seconds since 1970
    """

    def __init__(
        self,
        backend: TrafficBackend,
        store: RolloutStore,
        registrar: Registrar,
        *,
        sources: Mapping[str, Source],
        check_metric: CheckMetric,
        ask_route: AskRoute | None = None,
        warm_up: WarmUp | None = None,
        recorder: Recorder | None = None,
        setting: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._backend = backend
        self._store = store
        self._registrar = registrar
        self._sources = sources
        self._check_metric = check_metric
        self._ask_route = ask_route
        self._warm_up = warm_up
        self._recorder = recorder
        self._setting = dict(setting or {})
        self._clock = clock
        self._sleep = sleep

    async def begin(
        self,
        spec: ServingSpec,
        strategy: Strategy,
        *,
        rollout_id: str,
        actor: str,
        names: Names,
        tell: Progress,
    ) -> State | None:
        """Begin a rollout, or find the one that this very task began. Nothing is created but its state.

        One that is stalled, waits for a person or is paused, or whose alias is not its candidate's any more,
        or that this task began before it was cleared, is undone first: the newer one supersedes it.

        :param rollout_id: of this try; one and the same over a crash
        :param actor: the task, one and the same over all its tries

        :return: ``None`` if the version serves already
        :raises ConfigurationError: the strategy is not possible here, or the spec cannot be
        :raises RolloutUnderWayError: another rollout of this endpoint is
        """
        spec.validate()
        strategy.validate()
        self._check_metrics(strategy)
        require_possible(strategy, self._backend.name, await self._backend.capabilities(spec.namespace))
        while True:
            kept = await self._store.read(spec.endpoint, spec.namespace)
            if kept and kept.state.rollout_id == rollout_id and not (kept.state.ended and kept.state.taken):
                return kept.state
            if kept and not kept.state.ended:
                await self._supersede(kept, spec, actor, tell)
                continue
            try:
                return await self._begin(kept, spec, strategy, rollout_id, actor, names)
            except RolloutMovedError:
                continue

    async def begin_back(
        self, endpoint: str, namespace: str, *, rollout_id: str, actor: str, names: Names, reason: str
    ) -> State:
        """Begin the way back to the version that the last promoted rollout replaced, or join one under way.

        :param rollout_id: as of :meth:`begin`; the state names another one where somebody else began it
        :param names: what goes back with it, if one of the two versions holds it
        :raises NothingToRollBackToError: nothing was promoted there, or nothing served before it
        :raises RolloutUnderWayError: a rollout of the endpoint is, which has a way back of its own
        :raises ConfigurationError: the endpoint is not at rest, or its serving system has no such way
        """
        while True:
            kept = await self._read(endpoint, namespace, None)
            state = kept.state
            own = state.rollout_id == rollout_id and not state.taken
            if state.returns_because is not None and (own or not state.ended):
                return state
            if not state.ended:
                raise RolloutUnderWayError(
                    f"{state.describe()}, begun by {state.actor}. The way back from it is "
                    f"nighttrain rollout abort {endpoint}"
                )
            try:
                return await self._begin_back(kept, names, rollout_id, actor, reason)
            except RolloutMovedError:
                continue

    async def _begin_back(self, kept: Kept, names: Names, rollout_id: str, actor: str, reason: str) -> State:
        promoted = promoted_by(kept.state)
        if promoted is None or promoted.stable is None:
            raise NothingToRollBackToError(nothing_before(kept.state.target))
        target = await self._returning().way_back(promoted)
        holders = await self._registrar.holders(target.model_name, names) if names else Holders()
        names, holders = holders.of_either(names, target)
        begun = kept.state.returning(target, names, at=self._clock(), because=reason)
        text = f"{target.endpoint} goes back to version {target.candidate} from {target.stable}: {reason}"
        return await self._write_first(
            replace(begun, rollout_id=rollout_id, actor=actor), holders, text, kept
        )

    def _returning(self) -> ReturningBackend:
        if isinstance(self._backend, ReturningBackend):
            return self._backend
        raise ConfigurationError(
            "backend", self._backend.name, "it has no way back of its own: roll the version before out again"
        )

    async def _begin(
        self,
        kept: Kept | None,
        spec: ServingSpec,
        strategy: Strategy,
        rollout_id: str,
        actor: str,
        names: Names,
    ) -> State | None:
        target = replace(await self._backend.begin(spec), shares=strategy.shares)
        if target.stable == spec.version:
            return None
        holders = await self._registrar.holders(spec.model_name, names) if names else Holders()
        if holders.stage == spec.version and holders.alias not in (None, spec.version):
            # Somebody moved the stage alone: the alias is another's, and an undone rollout gives back the
            # one thing that was moved.
            names, holders = replace(names, alias=None), replace(holders, alias=None)
        now = self._clock()
        state = State(
            rollout_id=rollout_id,
            actor=actor,
            target=target,
            strategy=strategy,
            names=names,
            begun_at=now,
            since=now,
            startup_seconds=spec.startup_timeout_seconds,
            promoted_before=promoted_by(kept.state) if kept else None,
        )
        beside = f", beside version {target.stable}" if target.stable else ""
        text = f"rollout of version {spec.version} on {spec.endpoint} begins{beside}"
        return await self._write_first(state, holders, text, kept)

    async def _write_first(self, state: State, holders: Holders, text: str, kept: Kept | None) -> State:
        begun = replace(state.before_its_names_move(holders), setting=self._setting)
        return (await self._store.begin(begun.entering(Phase.STARTING, begun.begun_at, text), kept)).state

    def _check_metrics(self, strategy: Strategy) -> None:
        for number, metric in enumerate(strategy.analysis.metrics if strategy.analysis else ()):
            self._check_metric(f"strategy.analysis.metrics[{number}]", metric, strategy.golden)

    async def _supersede(self, kept: Kept, spec: ServingSpec, actor: str, tell: Progress) -> None:
        state = kept.state
        if state.phase not in UNDER_WAY_BACK and not await self._may_be_superseded(state, actor):
            raise RolloutUnderWayError(
                f"{state.describe()}, begun by {state.actor}; one rollout of an endpoint at a time. Wait for "
                f"it, or end it: nighttrain rollout abort {spec.endpoint}"
            )
        if state.phase not in UNDER_WAY_BACK:
            by = f"version {spec.version}"
            tell(f"{state.describe()}; it is superseded by {by}")
            try:
                await self._store.ask(kept, Order.ABORT, by=by, reason="a newer version supersedes it")
            except RolloutMovedError:
                return
        await self.drive(spec.endpoint, spec.namespace, rollout_id=state.rollout_id, tell=tell)

    async def _may_be_superseded(self, state: State, actor: str) -> bool:
        if state.phase in HELD or state.paused or state.actor == actor:
            return True
        if not state.moved:
            return False
        holders = await self._registrar.holders(state.target.model_name, state.names)
        return not holders.hold_all(state.target.candidate)

    async def drive(
        self,
        endpoint: str,
        namespace: str,
        *,
        rollout_id: str | None = None,
        spec: ServingSpec | None = None,
        until: Callable[[State], bool] | None = None,
        tell: Progress,
    ) -> State:
        """Carry the endpoint's rollout to its end. Outages of the cluster or of MLflow are waited out.

        :param rollout_id: only this one; any, if left out
        :param spec: of the candidate, for bringing it up; without it that is left to who has it
        :param until: return earlier, once this holds; another process goes on
        :raises NothingToRollBackToError: nothing was ever rolled out there
        :raises RolloutFailedError: another rollout has taken its place
        """
        driving: Driving | None = None
        outage = ""
        while True:
            try:
                kept = await self._read(endpoint, namespace, rollout_id)
                driving = driving or Driving(told=kept.state.events[-1].number - 1)
                self._tell(kept.state, driving, tell)
                if (until and until(kept.state)) or (kept.state.ended and await self._is_settled(kept)):
                    return kept.state
                kept = await self._once(kept, spec, driving, tell)
                outage = ""
                pause = HELD_POLL_SECONDS if kept.state.phase in HELD | {Phase.HOLDING} else POLL_SECONDS
            except (ObjectConflictError, RolloutMovedError):
                pause = 0.0
            except (
                ClusterRequestError,
                ClusterUnreachableError,
                ConfigurationError,
                TrackingUnreachableError,
            ) as error:
                if isinstance(error, ClusterRequestError) and not error.is_busy:
                    raise
                # What somebody took away from under a rollout can be put back: it holds meanwhile.
                if not outage:
                    tell(f"{endpoint}: waiting: {error}")
                outage = str(error)
                pause = OUTAGE_POLL_SECONDS
            await self._sleep(pause)

    async def abort(
        self, endpoint: str, namespace: str, rollout_id: str, *, by: str, reason: str, tell: Progress
    ) -> None:
        """Undo this rollout, if it is under way and has not got everything: traffic first, then the rest."""
        kept = await self._store.read(endpoint, namespace)
        while kept is not None and kept.state.rollout_id == rollout_id and not kept.state.ended:
            try:
                await self._store.ask(kept, Order.ABORT, by=by, reason=reason)
            except RolloutMovedError:
                kept = await self._store.read(endpoint, namespace)
                continue
            await self.drive(endpoint, namespace, rollout_id=rollout_id, tell=tell)
            return

    async def target(self, spec: ServingSpec) -> Target:
        """The endpoint and its versions as they are now; nothing is changed."""
        return await self._backend.begin(spec)

    async def addresses(self, target: Target) -> Addresses:
        """Where the endpoint and its versions answer."""
        return await self._backend.addresses(target)

    async def status(self, endpoint: str, namespace: str) -> State | None:
        """The endpoint's rollout, under way or ended; ``None`` if there never was one."""
        kept = await self._store.read(endpoint, namespace)
        return kept.state if kept else None

    async def take(self, endpoint: str, namespace: str, rollout_id: str) -> None:
        """Remember that the end was told to who began it: a new try of that task is a new rollout."""
        while True:
            kept = await self._read(endpoint, namespace, rollout_id)
            if kept.state.taken:
                return
            try:
                await self._store.write(replace(kept.state, taken=True), kept)
            except RolloutMovedError:
                continue

    async def _read(self, endpoint: str, namespace: str, rollout_id: str | None) -> Kept:
        kept = await self._store.read(endpoint, namespace)
        if kept is None:
            raise NothingToRollBackToError(f"there is no rollout of {endpoint} in namespace {namespace}")
        if rollout_id is not None and kept.state.rollout_id != rollout_id:
            raise RolloutFailedError(
                f"{endpoint}: another rollout has taken the place of this one: {kept.state.describe()}"
            )
        return kept

    async def _once(self, kept: Kept, spec: ServingSpec | None, driving: Driving, tell: Progress) -> Kept:
        state = kept.state
        if state.ended or (state.phase is Phase.STARTING and not state.brought_up):
            # Who may not write the history is told so before anything is made.
            kept = await self._note(kept, driving, tell)
            state = kept.state
        if state.ended:
            return kept
        look = driving.told_apart(state, await self._backend.look(state.target))
        if state.brought_up and state.phase is Phase.STARTING and look.readiness.detail != driving.readiness:
            driving.readiness = look.readiness.detail
            tell(f"{state.target.endpoint}: version {state.target.candidate}: {driving.readiness}")
        seen, samples = await self._see(kept, look, driving)
        following, actions = decide(state, seen, self._clock())
        if samples and self._recorder:
            run_id = await self._recorder.measured(following, samples)
            following = replace(following, run_id=run_id or following.run_id)
        if following != state:
            kept = await self._store.write(following, kept)
            self._tell(kept.state, driving, tell)
        for action in actions:
            kept = await self._do(action, kept, look, spec, driving, tell)
        return await self._note(kept, driving, tell)

    async def _see(self, kept: Kept, look: Look, driving: Driving) -> tuple[Seen, tuple[Sample, ...]]:
        state, now = kept.state, self._clock()
        seen = Seen(look=look, asked=kept.asked, answers_needed=self._ask_route is not None)
        if state.names and now - driving.names_looked_at >= names_seconds(state):
            driving.names_looked_at = now
            seen = replace(seen, holds_names=await holds_names(self._registrar, state))
        if state.phase is Phase.WARMING:
            seen = replace(seen, warmed=await self._warmed(state))
        if state.phase in _ASK_ROUTE and self._ask_route and look.fence >= state.fence:
            addresses = await self._backend.addresses(state.target)
            answers = await driving.answers.ask(self._ask_route, addresses, state.fence)
            seen = replace(seen, answers=answers)
        analysis = state.analysis
        if analysis is None or not is_measured(state, now):
            return seen, ()
        samples, memory = await measure(
            self._sources, state, analysis, await self._backend.addresses(state.target), now
        )
        return replace(seen, samples=samples, memory=memory), samples

    async def _warmed(self, state: State) -> bool | str:
        if self._warm_up is None:
            return True
        return await self._warm_up(state, await self._backend.addresses(state.target))

    async def _do(
        self,
        action: Do,
        kept: Kept,
        look: Look,
        spec: ServingSpec | None,
        driving: Driving,
        tell: Progress,
    ) -> Kept:
        state, target, fence = kept.state, kept.state.target, kept.state.fence
        try:
            match action:
                case Do.BRING_UP:
                    return await self._bring_up(kept, spec, tell)
                case Do.SET_TRAFFIC:
                    driving.set_times += 1
                    await self._backend.set_traffic(
                        target, look, fence, percent=state.percent, mirror_percent=state.mirror_percent
                    )
                case Do.MOVE:
                    await self._registrar.move(state)
                case Do.GIVE_BACK:
                    await self._registrar.give_back(state)
                case Do.PROMOTE:
                    await self._backend.promote(target, look, fence)
                case Do.UNDO:
                    await self._backend.undo(target, look, fence)
                case Do.WARM_UP:
                    pass
        except TrackingUnreachableError:
            raise
        except _REFUSALS as error:
            following = give_up(state, self._clock(), str(error))
            if following == state:
                raise
            return await self._store.write(following, kept)
        return kept

    async def _bring_up(self, kept: Kept, spec: ServingSpec | None, tell: Progress) -> Kept:
        state = kept.state
        if state.returns_because is not None:
            await self._returning().bring_back(state.target, state.fence, tell)
        elif spec is None:
            return kept
        else:
            await self._backend.bring_up(spec, state.target, state.fence, tell)
        # An outage before it was asked for is no time that it had to become ready.
        return await self._store.write(replace(state, brought_up=True, since=self._clock()), kept)

    async def _note(self, kept: Kept, driving: Driving, tell: Progress) -> Kept:
        """Write into the model's history what is not there yet.

        Where that is refused, a rollout that has made nothing is given up; one that has goes on without, so
        that what is bad is undone, and the refusal is raised at its end.
        """
        state = kept.state
        if not has_notes(state):
            return kept
        refusal = await refusal_of_notes(self._registrar, state)
        if refusal is None:
            return await self._store.write(noted(state), kept)
        if state.ended:
            raise RolloutFailedError(
                f"{state.describe()}. The history does not say so: {refusal}"
            ) from refusal
        if str(refusal) not in driving.refusals:
            driving.refusals.add(str(refusal))
            tell(f"{state.target.endpoint}: the history is not written: {refusal}")
        if state.phase is Phase.STARTING and not state.brought_up:
            return await self._store.write(give_up(state, self._clock(), str(refusal)), kept)
        return kept

    async def _is_settled(self, kept: Kept) -> bool:
        if has_notes(kept.state):
            return False
        if self._recorder:
            await self._recorder.ended(kept.state)
        return True

    @staticmethod
    def _tell(state: State, driving: Driving, tell: Progress) -> None:
        for event in state.events:
            if event.number > driving.told:
                tell(f"{state.target.endpoint}: version {state.target.candidate}: {event.text}")
                driving.told = event.number
