"""What a rollback undoes, and the moves that do so. Pure: from a model's history and what holds what now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.errors import NothingToUndoError
from nighttrain.providers.registry.history.earlier import RecordState, in_effect, recorded
from nighttrain.providers.registry.history.entries import Entry, Kind, Move
from nighttrain.providers.registry.versions import ACTIVE_STAGES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from nighttrain.providers.registry.history.earlier import Record
    from nighttrain.providers.registry.history.ledger import Ledger
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
    """The moves that undo these entries, the last of them first.

    The alias goes back to where the first of them found it. Stages become what they are without all that was
    undone, now and before: promotions of several aliases may share a stage, and in whichever order they are
    undone, a later one keeps what it took, and no version whose promotion was undone comes back.
    """
    staying = {entry.number for entry in ledger.in_effect()} - {entry.number for entry in undone}
    touched = {
        move.version
        for entry in (*_given(ledger), *undone)
        if entry.number not in staying
        for move in _stage_moves(entry.back)
    }
    # Those that are in a stage by what came last are moved into it last: who was updated last holds it.
    moves = [
        Move(version, stage=stage)
        for version, stage in _stages_by(ledger, state, staying, undone).items()
        # A version that was deleted can be moved nowhere, and holds nothing.
        if version in touched and (found := state.version(version)) and found.stage != stage
    ]
    # First into stages, then out of them: none is empty in between.
    moves.sort(key=lambda move: move.stage not in ACTIVE_STAGES)
    return (*moves, *(move for move in undone[-1].back if move.alias is not None))


def _stages_by(
    ledger: Ledger, state: State, staying: Collection[int], undone: Sequence[Entry]
) -> dict[str, str]:
    """The stages that versions are in by the entries that stay, those that came into theirs last behind."""
    stages = _stages_before(ledger, staying)
    records = [found for each in _withdrawn(ledger) if (found := recorded(state.version(each)))]
    records.sort(key=lambda record: record.at, reverse=True)
    for back in (*(record.back for record in records), *(entry.back for entry in undone if not entry.number)):
        _move(stages, back)
    withdrawn: set[str | None] = set()
    for entry in _given(ledger):
        if entry.number not in staying:
            withdrawn |= {move.version for move in _stage_moves(entry.back)}
        elif entry.kind is not Kind.CARRIED_OVER:
            _move(stages, (move for move in entry.moves if not _is_out_already(move, stages, withdrawn)))
    return stages


def _is_out_already(move: Move, stages: Mapping[str, str], withdrawn: Collection[str | None]) -> bool:
    """Tell whether it takes a version out of a stage in which it is not, now that its promotion is undone."""
    return (
        move.version in withdrawn
        and move.stage not in ACTIVE_STAGES
        and stages.get(str(move.version)) not in ACTIVE_STAGES
    )


def _stages_before(ledger: Ledger, staying: Collection[int]) -> dict[str, str]:
    """What each version's stage was before anything in the history moved it."""
    stages: dict[str, str] = {}
    for entry in _given(ledger):
        carried = entry.kind is Kind.CARRIED_OVER
        for move in _stage_moves(entry.moves if carried else entry.back):
            stages.setdefault(str(move.version), str(move.stage))
        if carried and entry.number not in staying:
            _move(stages, entry.back)
    return stages


def _move(stages: dict[str, str], moves: Iterable[Move]) -> None:
    for move in _stage_moves(moves):
        version, stage = str(move.version), str(move.stage)
        if move.archive and stage in ACTIVE_STAGES:
            for other in [each for each, held in stages.items() if held == stage and each != version]:
                stages[other] = "Archived"
        stages.pop(version, None)
        stages[version] = stage


def _stage_moves(moves: Iterable[Move]) -> Iterator[Move]:
    return (move for move in moves if move.stage is not None and move.version is not None)


def _given(ledger: Ledger) -> list[Entry]:
    """The entries that gave something anew: what was put back stands or falls with who gave it first."""
    return [
        entry
        for entry in ledger.made
        if entry.kind is not Kind.RESTORED and not (entry.kind is Kind.ROLLBACK and entry.undoes)
    ]


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
