"""What a rollback undoes, and the moves that do so. Pure: from a model's history and what holds what now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.errors import NothingToUndoError
from nighttrain.providers.registry.history.earlier import RecordState, in_effect, recorded
from nighttrain.providers.registry.history.entries import Entry, Kind, Move
from nighttrain.providers.registry.versions import ACTIVE_STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nighttrain.providers.registry.history.earlier import Record
    from nighttrain.providers.registry.history.ledger import Holdings, Ledger
    from nighttrain.providers.registry.history.state import State


@dataclass(frozen=True)
class Scope:
    """Whose promotions are meant: those of an alias, or those that moved this stage and no alias."""

    alias: str | None = None
    stage: str | None = None

    def __str__(self) -> str:
        return repr(self.alias or self.stage)

    @classmethod
    def of(cls, moved: Entry | Record) -> Scope:
        """The one that an entry belongs to, by what undoes it: one alias, if any."""
        alias = next((move.alias for move in moved.back if move.alias is not None), None)
        return cls(alias) if alias is not None else cls(None, moved.stage)

    def holder(self, state: State) -> str | None:
        """The version that holds it now."""
        if self.alias is not None:
            return state.aliases.get(self.alias)
        return next(iter(state.holders(self.stage or "")), None)


def scopes(ledger: Ledger, state: State) -> list[Scope]:
    """Of which something can be undone, the last moved first."""
    # A stage that somebody moved by hand is no promotion.
    found = [
        Scope.of(entry)
        for entry in _undoable(ledger, state)
        if entry.kind is not Kind.OUTSIDE or entry.alias is not None
    ]
    withdrawn = _withdrawn(ledger)
    found += [Scope.of(record) for record in in_effect(state) if record.version not in withdrawn]
    return list(dict.fromkeys(found))


def to_undo(
    ledger: Ledger, state: State, scope: Scope, target: str | None
) -> tuple[Entry | None, list[Entry]]:
    """The last entry in effect, and those to undo from it on; none where nothing leads back to ``target``."""
    entries = [entry for entry in _undoable(ledger, state) if Scope.of(entry) == scope]
    entries += _from_records(ledger, state, scope, entries)
    last = next(iter(entries), None)
    if target is None:
        return last, entries[:1]
    for number, entry in enumerate(entries):
        if entry.previous_version == target:
            return last, entries[: number + 1]
    return last, []


def named_entry(ledger: Ledger, state: State, number: int) -> Entry:
    """The entry of that number, if it is the last of its alias that is in effect.

    :raises NothingToUndoError: it is not, in words that say why
    """
    entry = ledger.entry(number)
    name = f"entry {number} of the history of {ledger.model!r}"
    if entry is None:
        raise NothingToUndoError(f"there is no {name}")
    undone = next((each for each in ledger.made if number in each.undoes), None)
    if undone is not None:
        raise NothingToUndoError(f"{name} was undone already, by entry {undone.number}")
    if not entry.back or entry not in ledger.in_effect():
        raise NothingToUndoError(
            f"{name} is none that can be undone ({entry.kind.value}): name a promotion that is done"
        )
    scope = Scope.of(entry)
    last, undone_first = to_undo(ledger, state, scope, None)
    if last is None or last.number != number:
        later = f"entry {last.number} moved {scope} since: undo that first" if undone_first and last else ""
        raise NothingToUndoError(
            f"{name} cannot be undone now: {later or 'the version before it is gone'}; or say which version "
            "to go back to"
        )
    return entry


def moves_back(ledger: Ledger, state: State, undone: Sequence[Entry]) -> tuple[Move, ...]:
    """The moves that undo these entries, the last of them first: of one its own, of several what they come
    to.

    In whichever order promotions of several aliases that share a stage are undone, the same holds in the end:
    a stage that a later promotion took stays with it, and what was left for that is made up for once the
    later one is undone, too. So no version whose promotion was undone comes back into the stage.
    """
    staying = [entry for entry in ledger.in_effect() if entry not in undone]
    now = state.holdings
    moves: tuple[Move, ...] = ()
    for entry in undone:
        moves = tuple(_moves_back(ledger, state, entry, now, staying))
        now = now.after(moves)
    return moves if len(undone) == 1 else state.holdings.towards(now, gone=state.gone(now))


def _moves_back(
    ledger: Ledger, state: State, entry: Entry, now: Holdings, staying: Sequence[Entry]
) -> Iterator[Move]:
    keeps = _is_overtaken(entry, now, staying)
    own = [move for move in entry.back if move.alias is not None or not keeps]
    numbers = {each.number for each in staying}
    for move in _without_withdrawn(ledger, own, entry.number, numbers):
        # A version that was deleted can be moved nowhere, and holds nothing.
        if move.version is None or state.version(move.version) is not None:
            yield move


def _is_overtaken(entry: Entry, now: Holdings, staying: Sequence[Entry]) -> bool:
    """Tell whether another promotion took its stage, or moved its version on, and keeps what it has."""
    if entry.stage is None:
        return False
    taken = now.stages.get(entry.version or "") != entry.stage and entry.stage in now.stages.values()
    return taken or any(
        later.kind is Kind.PROMOTION and later.number > entry.number and _moves_stage(later, entry.version)
        for later in staying
    )


def _moves_stage(entry: Entry, version: str | None) -> bool:
    return any(move.stage is not None and move.version == version for move in entry.back)


def _without_withdrawn(
    ledger: Ledger, moves: Iterable[Move], before: int, staying: set[int]
) -> Iterator[Move]:
    """The moves, where for a version whose own promotion was undone meanwhile comes what undoes that."""
    for move in moves:
        gave = _gave_stage(ledger, move, before) if move.stage in ACTIVE_STAGES else None
        if gave is None or gave.number in staying or not _moves_stage(gave, move.version):
            yield move
        else:
            back = [each for each in gave.back if each.stage is not None]
            yield from _without_withdrawn(ledger, back, gave.number, staying)


def _gave_stage(ledger: Ledger, move: Move, before: int) -> Entry | None:
    """The entry by which the version had come into the stage, before that number."""
    for entry in reversed(ledger.made):
        # What was put back is not given anew: it stands or falls with the entry that gave it first.
        puts_back = entry.kind is Kind.RESTORED or (entry.kind is Kind.ROLLBACK and entry.undoes)
        if entry.number < before and not puts_back:
            given = (each for each in entry.moves if each.stage == move.stage)
            if any(each.version == move.version for each in given):
                return entry
    return None


def _undoable(ledger: Ledger, state: State) -> list[Entry]:
    """The entries in effect that can be undone, the last first."""
    return [entry for entry in reversed(ledger.in_effect()) if entry.back and _is_possible(entry, state)]


def _is_possible(entry: Entry, state: State) -> bool:
    """Tell whether the versions that the alias would go back to are there."""
    back = [move.version for move in entry.back if move.alias is not None and move.version is not None]
    return all(state.version(version) is not None for version in back)


def _from_records(ledger: Ledger, state: State, scope: Scope, entries: Sequence[Entry]) -> list[Entry]:
    """What the tags of versions tell of promotions before those that the history knows."""
    found: list[Entry] = []
    before = entries[-1].previous_version if entries else scope.holder(state)
    passed = {entry.version for entry in entries} | _withdrawn(ledger)
    while before and before not in passed:
        record = recorded(state.version(before))
        if record is None or record.state is not RecordState.DONE or Scope.of(record) != scope:
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


def _withdrawn(ledger: Ledger) -> set[str | None]:
    """The versions whose record was undone: each is undone once, though the record stays as it is."""
    carried = {each.number: each.version for each in ledger.made if each.kind is Kind.CARRIED_OVER}
    undone = [each for each in ledger.made if each.kind is Kind.ROLLBACK]
    found = {carried[number] for each in undone for number in each.undoes if number in carried}
    return found | {each.previous_version for each in undone if 0 in each.undoes}
