"""Who made a change that was seen in the registry; what nobody of ours made is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.registry.history.changes import Changes

if TYPE_CHECKING:
    from nighttrain.providers.registry.history.entries import Entry
    from nighttrain.providers.registry.models import ModelRegistry


async def notice(
    registry: ModelRegistry, model: str, *, version: str | None, alias: str | None = None
) -> Entry | None:
    """The entry by which a version came to hold the alias, or its stage, if it still does.

    What the history does not explain becomes an entry first, whoever looks.

    :param version: what holds it, as it was seen; ``None`` where nothing does
    :param alias: the alias that moved; without one it is the version's stage
    :raises ModelNotFoundError: no such model
    :raises TrackingError: MLflow does not answer, or refuses
    """
    ledger, _ = await Changes(registry, model).settled()
    entry = ledger.moved_last(alias=alias) if alias else ledger.moved_last(version=version)
    if entry is None:
        return None
    moves = [move for move in entry.moves if (move.alias == alias if alias else move.stage is not None)]
    return entry if any(move.version == version for move in moves) else None
