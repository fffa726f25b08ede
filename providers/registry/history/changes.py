"""One change at a time for a model: written first, then made, then written as done.

What orders changes is who gets the next number of the history. A process that finds a change that was begun
and not finished waits a moment out of courtesy, says in the history that it takes over, and makes the moves
itself: nobody can tell a dead process from a slow one, so nothing is decided by how long it takes. A slow one
looks before each move whether it was overtaken. What it may still move in between is recognised afterwards by
the entry that was taken over, and put right by an entry of its own.

Whatever differs from the history in any other way was moved without nighttrain, and becomes an entry too.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ConfigurationError,
    HistoryMovedError,
    ModelNotFoundError,
    ModelVersionNotFoundError,
    RegistryError,
    TrackingBusyError,
    TrackingRequestError,
    TrackingUnauthorizedError,
)
from nighttrain.providers.registry.history.earlier import carried_over
from nighttrain.providers.registry.history.entries import INTENTIONS, Entry, Kind, Move, as_many_as_fit
from nighttrain.providers.registry.history.ledger import Ledger
from nighttrain.providers.registry.history.state import State, read_state
from nighttrain.providers.registry.history.store import History
from nighttrain.providers.tracking.run_store import RunStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from nighttrain.providers.registry.models import ModelRegistry

PATIENCE_SECONDS = 1.0
"""How long another process gets to finish what it began: some ten requests of 10 ms take a tenth of that."""

LATE_SECONDS = 900.0
"""How long after it was overtaken a process may still move something: a request and its repetitions end
within a few minutes. It decides only who is blamed for a move, a helper or a person."""

LOOK_SECONDS = 0.1
"""Between two looks at what another process began, and on average before reading again what moved."""


class Changes:
    """Changes the aliases and stages of one model, in its history's order.

    :param patience: seconds that another process gets to finish what it began
    :param sleep: waits so many seconds; injected in tests
    """

    def __init__(
        self,
        registry: ModelRegistry,
        model: str,
        *,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.registry = registry
        self.model = model
        store = RunStore(registry.client, clock=clock) if clock else RunStore(registry.client)
        self.history = History(store, model)
        self._patience = patience
        self._sleep = sleep

    async def make(self, decide: Callable[[Ledger, State], Awaitable[Entry | None]]) -> Entry | None:
        """Decide on what holds now, and do it, before anybody else changes the model.

        :param decide: gives the entry to write, or ``None`` where there is nothing to do; called again when
            somebody else was first. What it raises is passed on, and nothing was changed
        :returns: the entry, whose moves are made
        :raises ModelNotFoundError: no such model
        :raises RegistryError: the moves cannot be made, or somebody else gave them up
        :raises TrackingError: MLflow does not answer, or refuses; another call finishes what was begun
        """
        while True:
            ledger, state = await self.settled()
            entry = await decide(ledger, state)
            if entry is None:
                return None
            try:
                written = await self.history.append(ledger, entry)
            except HistoryMovedError:
                await self._pause()
                continue
            try:
                closing: Entry | None = await self._carry_out(written, written)
            except HistoryMovedError:
                closing = (await self.settled())[0].closing(written.number)
            if closing is not None and closing.kind is Kind.ABANDONED:
                moves = ", ".join(map(str, written.moves))
                raise RegistryError(f"{self.model!r}: {moves}: {closing.reason}")
            return written

    async def read(self) -> Ledger:
        """The history of the model of that name that there is now.

        :raises ModelNotFoundError: no such model
        :raises TrackingError: MLflow does not answer, or refuses
        """
        ledger = await self.history.read()
        return ledger.of_model((await self.registry.get_model(self.model)).created)

    async def note(self, entry: Entry, *, once: bool = False) -> Entry:
        """Write an entry that moves nothing; what is unfinished stays so.

        But a rollout finishes what a process of its own left half done: it has no other change to come.

        :param once: unless one of its kind says the same of the same version already
        """
        while True:
            ledger = await self.read()
            if _is_of_its_own(ledger.unfinished, entry):
                await self.settled()
                continue
            if once and (found := _same(ledger, entry)) is not None:
                return found
            try:
                return await self.history.append(ledger, entry)
            except HistoryMovedError:
                await self._pause()

    async def recorded(self) -> Ledger:
        """The history, with an entry for what moved without it. Nothing is moved, nor taken over.

        :raises ModelNotFoundError: no such model
        :raises TrackingError: MLflow does not answer, or refuses
        """
        while True:
            ledger, state = await self._read_both()
            if ledger.unfinished is not None:
                return ledger
            found = self._difference(ledger, state)
            if found is None or found.kind in INTENTIONS:
                return ledger
            try:
                await self.history.append(ledger, found)
            except HistoryMovedError:
                await self._pause()

    async def settled(self) -> tuple[Ledger, State]:
        """The history with nothing unfinished in it, and what holds what: the two agree.

        :raises ModelNotFoundError: no such model
        :raises TrackingError: MLflow does not answer, or refuses
        """
        while True:
            ledger, state = await self._read_both()
            unfinished = ledger.unfinished
            try:
                if unfinished is not None:
                    await self._wait_or_take_over(ledger, unfinished)
                    continue
                found = self._difference(ledger, state)
                if found is None:
                    return ledger, state
                written = await self.history.append(ledger, found)
                if written.kind in INTENTIONS:
                    await self._carry_out(written, written)
            except HistoryMovedError:
                await self._pause()

    async def _read_both(self) -> tuple[Ledger, State]:
        # The history first: what moves after it was read belongs to an entry that nobody can write before.
        ledger = await self.history.read()
        state = await read_state(self.registry, self.model)
        return ledger.of_model(state.created), state

    async def _pause(self) -> None:
        # By chance, so that many who wait for one another do not all come again at once.
        await self._sleep(LOOK_SECONDS * 2 * random.random())

    async def _wait_or_take_over(self, ledger: Ledger, unfinished: Entry) -> None:
        last = ledger.last_number
        for _ in range(int(self._patience / LOOK_SECONDS)):
            await self._sleep(LOOK_SECONDS)
            if await self.history.has_moved_past(last):
                return
        state = await read_state(self.registry, self.model)
        taken = await self.history.append(
            ledger,
            Entry(number=0, kind=Kind.TAKEN_OVER, model=self.model, takes_over=unfinished.number),
        )
        if _was_overruled(unfinished, ledger, state):
            reason = "somebody moved it by hand since"
            await self._close(taken, Kind.ABANDONED, unfinished, reason=reason)
        else:
            await self._carry_out(unfinished, taken)

    async def _carry_out(self, entry: Entry, last: Entry) -> Entry:
        """Make the moves of an entry and close it; the entry that closes it.

        :param last: the entry by which this process does so: the same, or the one that took it over
        :raises HistoryMovedError: another process does so
        """
        try:
            await self._move(entry.moves, last.number)
        except TrackingUnauthorizedError as error:
            if last is not entry:
                raise  # somebody else's change is for somebody else to finish
            # Nobody with more rights is to do later what this one may not.
            await self._take_back(entry, last)
            return await self._close(last, Kind.ABANDONED, entry, reason=str(error))
        except _ImpossibleMoveError as error:
            await self._take_back(entry, last)
            return await self._close(last, Kind.ABANDONED, entry, reason=str(error))
        return await self._close(last, Kind.DONE, entry)

    async def _take_back(self, entry: Entry, last: Entry) -> None:
        for move in entry.back:
            try:
                await self._move([move], last.number)
            except (_ImpossibleMoveError, TrackingUnauthorizedError):
                continue  # that version is gone, too, or was never moved

    async def _close(self, last: Entry, kind: Kind, entry: Entry, reason: str = "") -> Entry:
        ledger = Ledger(self.model, (last,), last.number, last.digest, model_created=last.model_created)
        closing = Entry(
            number=0, kind=kind, model=self.model, version=entry.version, finishes=entry.number, reason=reason
        )
        return await self.history.append(ledger, closing)

    async def _move(self, moves: Iterable[Move], last: int) -> None:
        for move in moves:
            if await self.history.has_moved_past(last):
                raise HistoryMovedError(f"another process finished the change of {self.model!r}")
            try:
                await self._move_one(move)
            except (ModelVersionNotFoundError, ModelNotFoundError, ConfigurationError) as error:
                raise _ImpossibleMoveError(str(error)) from error
            except TrackingRequestError as error:
                if isinstance(error, TrackingBusyError) or not 400 <= error.status < 500:
                    raise
                raise _ImpossibleMoveError(str(error)) from error

    async def _move_one(self, move: Move) -> None:
        if move.alias is not None and move.version is None:
            await self.registry.delete_alias(self.model, move.alias)
        elif move.alias is not None and move.version is not None:
            await self.registry.set_alias(self.model, move.alias, move.version)
        elif move.stage is not None and move.version is not None:
            await self.registry.transition_stage(
                self.model, move.version, move.stage, archive_existing=move.archive
            )

    def _difference(self, ledger: Ledger, state: State) -> Entry | None:
        """The entry that says what the history does not; ``None`` while the two agree."""
        if not ledger.entries:
            return carried_over(self.model, state)
        expected = ledger.holdings
        moved = as_many_as_fit(expected.towards(state.holdings, gone=state.gone(expected)))
        if not moved:
            return None
        if _are_late(moved, self._recently_taken_over(ledger)):
            back = expected.undoing(moved)
            return Entry(number=0, kind=Kind.RESTORED, model=self.model, moves=back, back=moved)
        aliased = next((move for move in moved if move.alias is not None), moved[0])
        # One entry for each alias, so that each can be undone by itself.
        moved = tuple(move for move in moved if move.alias is None or move is aliased)
        back = expected.undoing(moved)
        return Entry(
            number=0,
            kind=Kind.OUTSIDE,
            model=self.model,
            version=aliased.version,
            moves=moved,
            back=back,
            previous_version=expected.aliases.get(aliased.alias or ""),
            reason="moved without nighttrain; MLflow does not say by whom",
        )

    def _recently_taken_over(self, ledger: Ledger) -> list[Entry]:
        """Entries whose own process may still have a request on its way.

        A person who makes the same move by hand much later is not to be mistaken for it.
        """
        now = self.history.now()
        found = []
        for taken in ledger.entries:
            entry = ledger.entry(taken.takes_over)
            if entry is not None and now - _seconds(taken.at) < LATE_SECONDS:
                closing = ledger.closing(entry.number)
                given_up = closing is not None and closing.kind is Kind.ABANDONED
                found.append(entry if given_up else replace(entry, back=()))
        return found


class _ImpossibleMoveError(Exception):
    """MLflow refuses the move, and would however often it is asked."""


def _was_overruled(entry: Entry, ledger: Ledger, state: State) -> bool:
    """Tell whether an alias that it moves is where neither it nor what was before it has put it."""
    before = ledger.holdings.aliases
    return any(
        state.aliases.get(move.alias) not in (before.get(move.alias), move.version)
        for move in entry.moves
        # A version that was deleted took its alias along: that is nobody's word.
        if move.alias is not None and (move.version is None or state.version(move.version) is not None)
    )


def _are_late(moved: Sequence[Move], taken_over: Sequence[Entry]) -> bool:
    """Tell whether all of it may be what overtaken processes moved afterwards."""
    late = {
        (move.alias, move.stage, move.version) for entry in taken_over for move in (*entry.moves, *entry.back)
    }
    archives = any(move.archive for entry in taken_over for move in entry.moves)
    return all(
        (move.alias, move.stage, move.version) in late or (archives and move.stage == "Archived")
        for move in moved
    )


def _seconds(at: str) -> float:
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def _is_of_its_own(unfinished: Entry | None, entry: Entry) -> bool:
    return unfinished is not None and entry.kind is Kind.ROLLOUT and unfinished.dag_run == entry.dag_run


def _same(ledger: Ledger, entry: Entry) -> Entry | None:
    said = (entry.kind, entry.version, entry.reason)
    return next((each for each in ledger.entries if (each.kind, each.version, each.reason) == said), None)
