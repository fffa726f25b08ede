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
)
from nighttrain.providers.registry.history.changes import PATIENCE_SECONDS, Changes
from nighttrain.providers.registry.history.earlier import RecordState, recorded
from nighttrain.providers.registry.history.entries import Entry, Kind, Move, text
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
    withdraws: str | int | None = None,
    author: Author | None = None,
    patience: float = PATIENCE_SECONDS,
    clock: Callable[[], float] = time.time,
) -> Change:
    """Undo the last promotion that is in effect, and move back exactly what it had moved.

    :param alias: of which the last promotion is undone; the last of all, if left out
    :param stage: the same for promotions that moved no alias; not looked at where ``alias`` is given
    :param to: the version to go back to: every promotion since it was in place is undone
    :param withdraws: the version that an endpoint does not serve any more in favour of ``to``. Nothing is
        changed unless it holds the alias still, and ``to`` gets it also where no history knows of it
    :param patience: seconds that another process gets to finish what it began
    :param clock: seconds since 1970; injected in tests
    :raises NothingToUndoError: nothing is in effect, or ``to`` was not in place before it
    """
    check_name(name)
    alias = check_alias(alias) if alias else None
    stage = check_stage(stage) if stage and not alias else None
    target = None if to is None else check_version(to)
    withdrawn = None if withdraws is None else check_version(withdraws)
    seen = Change(name=name, version=None, alias=alias, stage=stage)
    changes = Changes(registry, name, patience=patience, clock=clock)
    if target is None and (repeated := await _same_rollback(changes, alias, author or Author())):
        return _rolled_back(name, repeated, alias)

    async def decide(ledger: Ledger, state: State) -> Entry | None:
        nonlocal seen
        scope = (alias, stage) if withdrawn is None else _held_by(state, withdrawn, alias, stage)
        last, undone = _to_undo(ledger, state, *scope, target)
        moved = scope[0] or (last.alias if last and not scope[1] else None)
        holder = _holder(state, moved, scope[1], last)
        seen = Change(name=name, version=holder, alias=moved, stage=scope[1])
        if (target is not None and holder == target) or (withdrawn is not None and holder != withdrawn):
            return None
        if target is None:
            _check_plain(name, ledger, last)
        if undone:
            back = _back(ledger, state, undone)
        elif target and withdrawn:
            back = _straight_to(state, target, withdrawn, moved)
        else:
            raise NothingToUndoError(_nothing(name, alias or stage, target))
        seen = Change(name=name, version=_given_to(back, moved), alias=moved, stage=_stage_given(back))
        entry = Entry(
            number=0,
            kind=Kind.ROLLBACK,
            model=name,
            version=seen.version,
            moves=back,
            back=ledger.holdings.undoing(back),
            previous_version=holder,
            undoes=tuple(each.number for each in undone),
        )
        return (author or Author()).signed(entry)

    entry = await changes.make(decide)
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


def _held_by(
    state: State, version: str, alias: str | None, stage: str | None
) -> tuple[str | None, str | None]:
    """The alias that the version holds, or else the stage that it is in."""
    found = state.version(version)
    if alias and state.aliases.get(alias) != version and found and found.stage in ACTIVE_STAGES:
        return None, found.stage
    return alias, stage


async def _same_rollback(changes: Changes, alias: str | None, author: Author) -> Entry | None:
    """The rollback that the same author began already, finished now: to repeat it is not to go back twice."""
    ledger = await changes.history.read()
    signed = author.signed(Entry(number=0, kind=Kind.ROLLBACK, model=changes.model))
    # A DAG run rolls back once. Somebody at a terminal may mean it when they say it again.
    begun = ledger.unfinished or (ledger.made_last if signed.dag_run else None)
    if begun is None or begun.kind is not Kind.ROLLBACK or (alias and begun.alias != alias):
        return None
    if (begun.actor, begun.dag_run) != (signed.actor, signed.dag_run):
        return None
    closing = (await changes.settled())[0].closing(begun.number)
    return begun if closing is not None and closing.kind is Kind.DONE else None


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


def _holder(state: State, alias: str | None, stage: str | None, last: Entry | None) -> str | None:
    if alias is not None:
        return state.aliases.get(alias)
    if stage is not None:
        return next(iter(state.holders(stage)), None)
    return last.version if last else None


def _to_undo(
    ledger: Ledger, state: State, alias: str | None, stage: str | None, target: str | None
) -> tuple[Entry | None, list[Entry]]:
    """The last entry in effect, and those to undo from it on; none where nothing leads back to ``target``."""

    def concerns(entry: Entry) -> bool:
        if not _is_possible(entry, state):
            return False
        if alias is not None:
            return any(move.alias == alias for move in entry.back)
        if stage is not None:
            return entry.alias is None and entry.stage == stage
        # A stage that somebody moved by hand is no promotion.
        return entry.kind is not Kind.OUTSIDE or entry.alias is not None

    entries = [entry for entry in reversed(ledger.in_effect()) if entry.back and concerns(entry)]
    entries += _from_records(state, alias, stage, entries)
    last = next(iter(entries), None)
    if target is None or last is None:
        return last, entries[:1]
    same = [entry for entry in entries if entry.alias == (alias or last.alias)]
    for number, entry in enumerate(same):
        if entry.previous_version == target:
            return last, same[: number + 1]
    return last, []


def _is_possible(entry: Entry, state: State) -> bool:
    """Tell whether the versions that the alias would go back to are there."""
    back = [move.version for move in entry.back if move.alias is not None and move.version is not None]
    return all(state.version(version) is not None for version in back)


def _from_records(
    state: State, alias: str | None, stage: str | None, entries: Sequence[Entry]
) -> list[Entry]:
    """What the tags of versions tell of promotions before those that the history knows."""
    found: list[Entry] = []
    before = entries[-1].previous_version if entries else _holder(state, alias, stage, None)
    passed = {entry.version for entry in entries}
    while before and before not in passed:
        record = recorded(state.version(before))
        if record is None or record.state is not RecordState.DONE:
            break
        if (alias and record.alias != alias) or (not alias and record.stage != stage):
            break
        passed.add(before)
        found.append(
            Entry(
                number=0,
                kind=Kind.CARRIED_OVER,
                model="",
                version=record.version,
                moves=record.moves,
                back=record.back,
                previous_version=record.previous_version,
            )
        )
        before = record.previous_version
    return found


def _back(ledger: Ledger, state: State, undone: Sequence[Entry]) -> tuple[Move, ...]:
    """The moves that undo these entries: of one its own, of several what they come to."""
    if len(undone) == 1:
        entry = undone[0]
        version = state.version(entry.version)
        holders = state.holders(entry.stage or "")
        stands = entry.stage is None or version is None or version.stage == entry.stage or not holders
        # Another promotion may have taken the stage since, and keeps it.
        return tuple(move for move in entry.back if stands or move.alias is not None)
    after = ledger.holdings
    for entry in undone:
        after = after.after(entry.back)
    return ledger.holdings.towards(after, gone=state.gone(after))


def _straight_to(state: State, target: str, withdrawn: str, alias: str | None) -> tuple[Move, ...]:
    version, before = state.version(target), state.version(withdrawn)
    moves = (Move(target, alias=alias),) if alias else ()
    if version is None or before is None or before.stage not in ACTIVE_STAGES:
        return moves
    return (*state.stage_moves(version, before.stage, archive=True)[0], *moves)


def _given_to(moves: Sequence[Move], alias: str | None) -> str | None:
    if alias is None:
        stages = [move.version for move in moves if move.stage in ACTIVE_STAGES]
        return stages[-1] if stages else None
    return next((move.version for move in moves if move.alias == alias), None)


def _stage_given(moves: Sequence[Move]) -> str | None:
    return next((move.stage for move in moves if move.stage in ACTIVE_STAGES), None)


def _nothing(name: str, moved: str | None, target: str | None) -> str:
    where = f" of {moved!r}" if moved else ""
    if target is None:
        return f"the history of {name!r} has no promotion{where} in effect that can be undone"
    return (
        f"version {target} of {name!r} was not in place before the promotions{where} that are in effect: "
        "promote it instead"
    )


def _shown(version: str | None) -> str:
    return f"version {version}" if version else "no version"
