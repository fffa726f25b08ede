"""The entries of one model, in order, and what they say that its aliases and stages hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from nighttrain.providers.registry.history.entries import INTENTIONS, Entry, Kind, Move
from nighttrain.providers.registry.versions import ACTIVE_STAGES

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Holdings:
    """What holds what.

    :param aliases: alias -> version
    :param stages: version -> its stage; versions that are not named are in none that matters
    """

    aliases: dict[str, str] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)

    def after(self, moves: Iterable[Move]) -> Holdings:
        """What it is once these moves are made."""
        aliases, stages = dict(self.aliases), dict(self.stages)
        for move in moves:
            if move.alias is not None:
                aliases.pop(move.alias, None)
                if move.version is not None:
                    aliases[move.alias] = move.version
            if move.stage is not None and move.version is not None:
                if move.archive and move.stage in ACTIVE_STAGES:
                    stages |= {
                        held: "Archived"
                        for held, stage in stages.items()
                        if stage == move.stage and held != move.version
                    }
                stages[move.version] = move.stage
        return Holdings(aliases, stages)

    def towards(self, other: Holdings, *, gone: frozenset[str] = frozenset()) -> tuple[Move, ...]:
        """The moves that make this the other.

        Aliases count where either has them, stages of versions where both know them, and of others where
        they are in one that matters.

        :param gone: versions that are deleted, and can be moved nowhere
        """
        moves = [
            Move(other.aliases.get(alias), alias=alias)
            for alias in sorted(self.aliases.keys() | other.aliases.keys())
            if self.aliases.get(alias) != other.aliases.get(alias)
        ]
        for version in sorted(self.stages.keys() | other.stages.keys(), key=int):
            before, after = self.stages.get(version, "None"), other.stages.get(version, "None")
            matters = version in self.stages or after in ACTIVE_STAGES
            if before != after and matters and version not in gone:
                moves.append(Move(version, stage=after))
        return tuple(moves)

    def undoing(self, moves: Iterable[Move]) -> tuple[Move, ...]:
        """The moves that undo these, which lead away from this."""
        return tuple(
            Move(self.aliases.get(move.alias), alias=move.alias)
            if move.alias is not None
            else Move(move.version, stage=self.stages.get(move.version or "", "None"))
            for move in moves
        )


@dataclass(frozen=True)
class Ledger:
    """A model's history as it was read.

    :param entries: those that can be read, from the first to the last
    :param last_number: the number of the last, whether it can be read or not; 0 before the first
    :param last_digest: the digest of the last, which the next entry names
    :param faults: sentences about entries that are gone, changed or unreadable
    :param model_created: of the model that the entries are about; 0 while that is not looked at
    :param earlier: how many entries are about a model of this name that was deleted
    """

    model: str
    entries: tuple[Entry, ...] = ()
    last_number: int = 0
    last_digest: str = ""
    faults: tuple[str, ...] = ()
    model_created: int = 0
    earlier: int = 0

    def of_model(self, created: int) -> Ledger:
        """The history of the model that was made then: without what is about one that was deleted.

        Numbers go on, as does the chain of digests. An entry that does not say which it is about counts.
        """
        entries = tuple(entry for entry in self.entries if entry.model_created in (0, created))
        earlier = len(self.entries) - len(entries)
        return replace(self, entries=entries, model_created=created, earlier=earlier)

    @property
    def unfinished(self) -> Entry | None:
        """The entry whose moves may not all be made: the last intention, while nothing closes it."""
        closed = {entry.finishes for entry in self.entries}
        return next(
            (
                entry
                for entry in reversed(self.entries)
                if entry.kind in INTENTIONS and entry.number not in closed
            ),
            None,
        )

    @property
    def holdings(self) -> Holdings:
        """What holds what, as the entries say."""
        holdings = Holdings()
        for entry in self.entries:
            holdings = holdings.after(self._moved_at(entry))
        return holdings

    def _moved_at(self, entry: Entry) -> tuple[Move, ...]:
        if entry.kind in (Kind.OUTSIDE, Kind.CARRIED_OVER):
            return entry.moves
        finished = self.entry(entry.finishes) if entry.kind is Kind.DONE else None
        return finished.moves if finished else ()

    @cached_property
    def _by_number(self) -> dict[int, Entry]:
        return {entry.number: entry for entry in self.entries}

    def entry(self, number: int | None) -> Entry | None:
        """The entry of that number; ``None`` where there is none, or none that can be read."""
        return None if number is None else self._by_number.get(number)

    def closing(self, number: int) -> Entry | None:
        """The entry that closes the one of that number; ``None`` while it is not closed."""
        return next((entry for entry in self.entries if entry.finishes == number), None)

    def in_effect(self) -> tuple[Entry, ...]:
        """The entries that moved something and were not undone, oldest first."""
        found: list[Entry] = []
        for entry in self.made:
            if entry.kind is Kind.ROLLBACK and entry.undoes:
                found = [each for each in found if each.number not in entry.undoes]
            elif entry.kind is not Kind.RESTORED:
                found.append(entry)
        return tuple(found)

    @property
    def made_last(self) -> Entry | None:
        """The last entry that moved something."""
        return self.made[-1] if self.made else None

    def moved_last(self, *, alias: str | None = None, version: str | None = None) -> Entry | None:
        """The last entry that moved that alias, or that version's stage."""

        def moves(entry: Entry) -> bool:
            return any(
                (alias is not None and move.alias == alias)
                or (version is not None and move.stage is not None and move.version == version)
                for move in entry.moves
            )

        return next((entry for entry in reversed(self.made) if moves(entry)), None)

    @cached_property
    def made(self) -> tuple[Entry, ...]:
        """The entries that moved something, in the order in which they did."""
        made = []
        for entry in self.entries:
            if entry.kind in (Kind.OUTSIDE, Kind.CARRIED_OVER):
                made.append(entry)
            elif entry.kind is Kind.DONE and (finished := self.entry(entry.finishes)):
                made.append(finished)
        return tuple(made)
