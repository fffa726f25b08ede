"""Who made a change that was seen in the registry; what nobody of ours made is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.registry.history.changes import Changes

if TYPE_CHECKING:
    from nighttrain.providers.registry.history.entries import Entry
    from nighttrain.providers.registry.history.ledger import Ledger
    from nighttrain.providers.registry.models import ModelRegistry


async def notice(
    registry: ModelRegistry,
    model: str,
    *,
    version: str | None,
    alias: str | None = None,
    stage: str | None = None,
) -> Entry | None:
    """The entry by which a version came to hold the alias, or the stage, if it still does.

    What the history does not explain becomes an entry, whoever looks.

    :param version: what holds it, as it was seen; ``None`` where nothing does
    :param alias: the alias that moved
    :param stage: the stage that it came into, where no alias moved
    :raises ModelNotFoundError: no such model
    :raises TrackingError: MLflow does not answer, or refuses
    """
    changes = Changes(registry, model)
    ledger = await changes.read()
    # A change that is under way explains it, too, and is not waited for.
    found = _explains(ledger.unfinished, version, alias, stage) or _last(ledger, version, alias, stage)
    return found or _last(await changes.recorded(), version, alias, stage)


def _last(ledger: Ledger, version: str | None, alias: str | None, stage: str | None) -> Entry | None:
    last = ledger.moved_last(alias=alias) if alias else ledger.moved_last(version=version)
    return _explains(last, version, alias, stage)


def _explains(entry: Entry | None, version: str | None, alias: str | None, stage: str | None) -> Entry | None:
    """The entry, if it gives the alias, or a stage, to that version."""
    if entry is None:
        return None
    moves = [move for move in entry.moves if (move.alias == alias if alias else move.stage == stage)]
    return entry if any(move.version == version for move in moves) else None
