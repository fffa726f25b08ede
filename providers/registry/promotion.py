"""Promotion and rollback: a version gets an alias, and a stage where one is named; one call undoes one.

Both are entries of the model's history (:mod:`nighttrain.providers.registry.history`), which puts them in
order, finishes what a crash left half done, and keeps what was there before.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ConfigurationError,
    NothingToUndoError,
    PromotedSinceError,
    RegistryError,
    TrackingError,
)
from nighttrain.providers.registry.history.changes import PATIENCE_SECONDS, Changes
from nighttrain.providers.registry.history.earlier import RecordState, recorded
from nighttrain.providers.registry.history.entries import Entry, Kind, Move, text
from nighttrain.providers.registry.undoing import Scope, moves_back, named_entry, scopes, to_undo
from nighttrain.providers.registry.versions import (
    ACTIVE_STAGES,
    check_alias,
    check_name,
    check_stage,
    check_version,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nighttrain.providers.registry.history.ledger import Ledger
    from nighttrain.providers.registry.history.state import State
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion

NOBODY = ""
"""As what is to be replaced: nothing holds the alias yet."""


@dataclass(frozen=True, kw_only=True)
class Author:
    """Who makes a change, and why: texts for the history, redacted and clipped when they are written.

    :param actor: a DAG's task, a user, a command
    :param approver: the person who was asked and agreed
    :param evidence: text, or plain values such as ``Verdict.to_dict()``
    :param dag_run: the DAG and its run
    """

    actor: str = ""
    approver: str = ""
    reason: str = ""
    evidence: object = ""
    dag_run: str = ""

    def signed(self, entry: Entry) -> Entry:
        """The entry with these texts."""
        return replace(
            entry,
            actor=text(self.actor),
            approver=text(self.approver),
            reason=text(self.reason),
            evidence=text(self.evidence),
            dag_run=text(self.dag_run),
        )


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a promotion or a rollback came to. Plain values: it can be an XCom.

    :param version: the version that holds alias and stage now; ``None`` where nothing does any more
    :param previous_version: who held the alias before (without an alias: the stage)
    :param number: its entry in the history; ``None`` where nothing had to be changed
    """

    name: str
    version: str | None
    alias: str | None
    stage: str | None
    previous_version: str | None = None
    number: int | None = None

    @property
    def changed(self) -> bool:
        """True unless everything was in place already."""
        return self.number is not None


async def promote(
    registry: ModelRegistry,
    name: str,
    version: str | int,
    *,
    alias: str | None = "champion",
    stage: str | None = None,
    archive_existing: bool = True,
    replaces: str | None = None,
    author: Author | None = None,
    patience: float = PATIENCE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> Change:
    """Move ``alias``, and ``stage`` where one is named, to the version. Repeating it changes nothing.

    :param archive_existing: other versions in the stage go to Archived
    :param replaces: the version that the candidate was compared with, which must hold the alias still;
        :data:`NOBODY` where there was none, ``None`` to replace whatever there is
    :param patience: seconds that another process gets to finish what it began
    :param clock: seconds since 1970; injected in tests
    :raises ConfigurationError: neither alias nor stage, or one that MLflow refuses
    :raises ModelVersionNotFoundError: no such version
    :raises PromotedSinceError: another version than ``replaces`` holds the alias
    :raises RegistryError: the version is not READY
    """
    check_name(name)
    alias = check_alias(alias) if alias else None
    stage = check_stage(stage) if stage else None
    if alias is None and stage is None:
        raise ConfigurationError("alias, stage", None, "name an alias, a stage, or both")
    number = check_version(version)
    target = await registry.get_version(name, number)
    if target.status != "READY":
        raise RegistryError(
            f"version {number} of {name!r} is {target.status}, not READY: it cannot be promoted"
        )
    seen = Change(name=name, version=number, alias=alias, stage=stage)

    async def decide(ledger: Ledger, state: State) -> Entry | None:
        nonlocal seen
        # It may have been transitioned since it was read above.
        present = state.version(number) or target
        holder = state.aliases.get(alias) if alias else next(iter(state.holders(stage or "")), None)
        if _holds(state, present, alias, stage):
            last = ledger.moved_last(alias=alias) if alias else ledger.moved_last(version=number)
            before = last.previous_version if last and last.version == number else None
            seen = replace(seen, previous_version=before)
            return None
        _check_replaced(name, alias, holder, number, replaces)
        entry = _promotion(state, present, alias, stage, archive_existing, holder)
        return (author or Author()).signed(entry)

    entry = await Changes(registry, name, patience=patience, clock=clock).make(decide)
    return seen if entry is None else _made(seen, entry)


async def roll_back(
    registry: ModelRegistry,
    name: str,
    *,
    alias: str | None = None,
    stage: str | None = None,
    to: str | int | None = None,
    undo: int | None = None,
    withdraws: str | int | None = None,
    author: Author | None = None,
    patience: float = PATIENCE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> Change:
    """Undo the last promotion that is in effect, and move back exactly what it had moved.

    :param alias: of which the last promotion is undone; the last of all, if left out
    :param stage: the same for promotions that moved no alias; not looked at where ``alias`` is given
    :param to: the version to go back to: every promotion since it was in place is undone
    :param undo: the number of the history's entry to undo, and no other: to repeat it never goes back twice
    :param withdraws: the version that an endpoint does not serve any more in favour of ``to``. Nothing is
        changed unless it holds the alias still, and ``to`` gets it also where no history knows of it
    :param patience: seconds that another process gets to finish what it began
    :param clock: seconds since 1970; injected in tests
    :raises ConfigurationError: ``to`` without an alias, where several were moved
    :raises NothingToUndoError: nothing is in effect, or ``to`` was not in place before it, or ``undo`` is
        undone already
    :raises TrackingError: MLflow does not answer, or refuses; a note on it says how to repeat it
    """
    check_name(name)
    asked = _asked(alias, stage, to, undo, withdraws)
    seen = Change(name=name, version=None, alias=asked.scope.alias, stage=asked.scope.stage)
    undoing: tuple[int, ...] = ()
    changes = Changes(registry, name, patience=patience, clock=clock)
    if asked.target is None and (repeated := await _same_rollback(changes, asked, author or Author())):
        return _rolled_back(name, repeated, asked.scope.alias)

    async def decide(ledger: Ledger, state: State) -> Entry | None:
        nonlocal seen, undoing
        scope = _scope(ledger, state, asked)
        last, undone = to_undo(ledger, state, scope, asked.target)
        holder = scope.holder(state)
        seen = Change(name=name, version=holder, alias=scope.alias, stage=scope.stage)
        if holder is not None and holder == asked.target:
            return None
        if asked.withdrawn is not None and holder != asked.withdrawn:
            return None
        if asked.target is None and asked.undo is None:
            _check_plain(name, ledger, last)
        if undone:
            back = moves_back(ledger, state, undone)
        elif asked.target and asked.withdrawn:
            back = _straight_to(state, asked.target, asked.withdrawn, scope.alias)
        else:
            raise NothingToUndoError(_nothing(name, scope, asked.target, scopes(ledger, state)))
        undoing = tuple(each.number for each in undone)
        version = _holder_after(scope, state, back)
        seen = Change(name=name, version=version, alias=scope.alias, stage=_stage_given(back))
        entry = Entry(
            number=0,
            kind=Kind.ROLLBACK,
            model=name,
            version=version,
            moves=back,
            back=ledger.holdings.undoing(back),
            previous_version=holder,
            undoes=undoing,
        )
        return (author or Author()).signed(entry)

    try:
        entry = await changes.make(decide)
    except TrackingError as error:
        _note_what_was_begun(error, undoing)
        raise
    return seen if entry is None else _made(seen, entry)


async def note(
    registry: ModelRegistry,
    name: str,
    kind: Kind,
    *,
    version: str | int,
    author: Author,
    once: bool = False,
    clock: Callable[[], float] = time.time,
) -> int:
    """Write into the history what was said about a version, or done with it; the number of the entry.

    :param kind: one of those that move nothing: approved, rejected, not answered, answer refused, rollout
    :param once: unless an entry says the same already
    :raises ModelNotFoundError: no such model
    """
    check_name(name)
    entry = author.signed(Entry(number=0, kind=kind, model=name, version=check_version(version)))
    return (await Changes(registry, name, clock=clock).note(entry, once=once)).number


def _made(seen: Change, entry: Entry) -> Change:
    return replace(seen, previous_version=entry.previous_version, number=entry.number)


def _holds(state: State, version: ModelVersion, alias: str | None, stage: str | None) -> bool:
    return (alias is None or state.aliases.get(alias) == version.version) and (
        stage is None or stage == version.stage
    )


def _check_replaced(
    name: str, alias: str | None, holder: str | None, version: str, replaces: str | None
) -> None:
    if replaces is None or holder == version or (holder or NOBODY) == replaces:
        return
    where = f"alias {alias!r}" if alias else "the stage"
    raise PromotedSinceError(
        f"version {version} of {name!r} was judged beside {_shown(replaces)}, and {where} is on "
        f"{_shown(holder)} now: somebody promoted since. Evaluate it again"
    )


def _promotion(
    state: State,
    target: ModelVersion,
    alias: str | None,
    stage: str | None,
    archive: bool,
    holder: str | None,
) -> Entry:
    record = recorded(target)
    if record and record.state is RecordState.STARTED and (record.alias, record.stage) == (alias, stage):
        # A version of nighttrain without a history died within this promotion: what was before it, it knew.
        moves, back, holder = record.moves, record.back, record.previous_version
    else:
        moves, back = ((), ()) if stage is None else state.stage_moves(target, stage, archive=archive)
        if alias:
            moves = (Move(target.version, alias=alias), *moves)
            back = (*back, Move(holder, alias=alias))
    return Entry(
        number=0,
        kind=Kind.PROMOTION,
        model=target.name,
        version=target.version,
        moves=moves,
        back=back,
        previous_version=None if holder == target.version else holder,
    )


@dataclass(frozen=True)
class _Asked:
    """What a rollback was asked for, checked."""

    scope: Scope
    target: str | None
    undo: int | None
    withdrawn: str | None


def _asked(
    alias: str | None, stage: str | None, to: str | int | None, undo: int | None, withdraws: str | int | None
) -> _Asked:
    if undo is not None:
        if isinstance(undo, bool) or not isinstance(undo, int) or undo < 1:
            raise ConfigurationError(
                "undo", undo, "give the number of an entry, as nighttrain history shows it"
            )
        for field, value in (("alias", alias), ("stage", stage), ("to", to), ("withdraws", withdraws)):
            if value is not None:
                raise ConfigurationError(field, value, f"leave it out: entry {undo} says what it had moved")
    alias = check_alias(alias) if alias else None
    return _Asked(
        Scope(alias, check_stage(stage) if stage and not alias else None),
        None if to is None else check_version(to),
        undo,
        None if withdraws is None else check_version(withdraws),
    )


def _scope(ledger: Ledger, state: State, asked: _Asked) -> Scope:
    """Whose promotion is undone, where it is not said: the last one's."""
    if asked.undo is not None:
        return Scope.of(named_entry(ledger, state, asked.undo))
    if asked.withdrawn is not None:
        return _held_by(state, asked.withdrawn, asked.scope)
    if asked.scope != Scope():
        return asked.scope
    found = scopes(ledger, state)
    if asked.target is not None and len(found) > 1:
        raise ConfigurationError(
            "alias",
            None,
            f"{_listed(found)} of {ledger.model!r} were moved: say which of them goes back to version "
            f"{asked.target}",
        )
    return found[0] if found else Scope()


def _held_by(state: State, version: str, scope: Scope) -> Scope:
    """The alias that the version holds, or else the stage that it is in."""
    found = state.version(version)
    if scope.alias and scope.holder(state) != version and found and found.stage in ACTIVE_STAGES:
        return Scope(None, found.stage)
    return scope


async def _same_rollback(changes: Changes, asked: _Asked, author: Author) -> Entry | None:
    """The rollback that the same author began already, finished now: to repeat it is not to go back twice."""
    ledger = await changes.read()
    signed = author.signed(Entry(number=0, kind=Kind.ROLLBACK, model=changes.model))
    # A DAG run rolls back once. Somebody at a terminal may mean it when they say it again.
    begun = ledger.unfinished or (ledger.made_last if signed.dag_run else None)
    alias = asked.scope.alias
    if begun is None or begun.kind is not Kind.ROLLBACK or (alias and begun.alias != alias):
        return None
    if asked.undo is not None and begun.undoes != (asked.undo,):
        return None
    if (begun.actor, begun.dag_run) != (signed.actor, signed.dag_run):
        return None
    try:
        closing = (await changes.settled())[0].closing(begun.number)
    except TrackingError as error:
        _note_what_was_begun(error, begun.undoes)
        raise
    return begun if closing is not None and closing.kind is Kind.DONE else None


def _note_what_was_begun(error: TrackingError, undoing: Sequence[int]) -> None:
    """Say on an error how to repeat the rollback: nobody knows whether it was made."""
    if not undoing:
        return
    number = undoing[0]
    how = f"undo entry {number} by its number (--undo {number}): that does not go back twice"
    if len(undoing) > 1 or not number:
        how = "look at the model's history first"
    error.add_note(f"The rollback may be begun or done already. To repeat it, {how}")


def _rolled_back(name: str, entry: Entry, alias: str | None) -> Change:
    return Change(
        name=name,
        version=entry.version,
        alias=alias or entry.alias,
        stage=_stage_given(entry.moves),
        previous_version=entry.previous_version,
        number=entry.number,
    )


def _check_plain(name: str, ledger: Ledger, last: Entry | None) -> None:
    """Refuse to guess where to go back to."""
    if ledger.faults:
        raise NothingToUndoError(
            f"the history of {name!r} has faults: {'; '.join(ledger.faults[:3])}. Say which version to go "
            "back to"
        )
    if last is not None and last.kind is Kind.OUTSIDE:
        moves = ", ".join(map(str, last.moves))
        raise NothingToUndoError(
            f"{moves} of {name!r} was moved without nighttrain (entry {last.number}, before: "
            f"{_shown(last.previous_version)}). Say which version to go back to"
        )


def _straight_to(state: State, target: str, withdrawn: str, alias: str | None) -> tuple[Move, ...]:
    version, before = state.version(target), state.version(withdrawn)
    moves = (Move(target, alias=alias),) if alias else ()
    if version is None or before is None or before.stage not in ACTIVE_STAGES:
        return moves
    return (*state.stage_moves(version, before.stage, archive=True)[0], *moves)


def _holder_after(scope: Scope, state: State, moves: Sequence[Move]) -> str | None:
    """Who holds the alias, or the stage, once these moves are made."""
    if scope.alias is not None:
        return state.holdings.after(moves).aliases.get(scope.alias)
    given = [move.version for move in moves if move.stage == scope.stage]
    moved = {move.version for move in moves if move.stage is not None}
    left = [each for each in state.holders(scope.stage or "") if each not in moved]
    return next(iter((*given[-1:], *left)), None)


def _stage_given(moves: Sequence[Move]) -> str | None:
    return next((move.stage for move in moves if move.stage in ACTIVE_STAGES), None)


def _nothing(name: str, scope: Scope, target: str | None, known: Sequence[Scope]) -> str:
    where = "" if scope == Scope() else f" of {scope}"
    others = [each for each in known if each != scope]
    hint = f"; promotions of {_listed(others)} are on record, too: name one" if others else ""
    if target is None:
        return f"the history of {name!r} has no promotion{where} in effect that can be undone{hint}"
    return (
        f"version {target} of {name!r} was not in place before the promotions{where} that are in effect: "
        f"promote it instead{hint}"
    )


def _listed(scopes: Sequence[Scope]) -> str:
    return " and ".join(f"{'alias' if each.alias else 'stage'} {each}" for each in scopes)


def _shown(version: str | None) -> str:
    return f"version {version}" if version else "no version"
