"""Who moved it, as far as the model's history says: MLflow itself keeps no author of a change.

What the history does not explain was moved without nighttrain, and is recorded as such by whoever looks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

from nighttrain.providers.errors import NighttrainError
from nighttrain.providers.registry.feed.changes import ChangeKind
from nighttrain.providers.registry.history.noticing import notice
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.tracking.client import MLflowClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nighttrain.providers.registry.feed.changes import Change
    from nighttrain.providers.tracking.config import TrackingConfig

SECONDS = 5.0
"""A history is read in a tenth of a second. The news does not wait longer for its author."""

_log = logging.getLogger(__name__)


async def with_authors(config: TrackingConfig, changes: Sequence[Change]) -> tuple[Change, ...]:
    """The changes with their authors. Where the history cannot be asked now they stay as they are."""
    moved = [each for each in changes if each.kind in (ChangeKind.ALIAS, ChangeKind.STAGE)]
    if not moved:
        return tuple(changes)
    # The news itself came from an MLflow that answers; one that went away since is not waited for.
    async with MLflowClient(dataclasses.replace(config, retry_seconds=0.0)) as client:
        registry = ModelRegistry(client)
        return tuple([await _with_author(registry, each) if each in moved else each for each in changes])


async def _with_author(registry: ModelRegistry, change: Change) -> Change:
    alias = change.key if change.kind is ChangeKind.ALIAS else None
    stage = change.key if change.kind is ChangeKind.STAGE else None
    try:
        async with asyncio.timeout(SECONDS):
            entry = await notice(registry, change.name, version=change.version, alias=alias, stage=stage)
    except (NighttrainError, TimeoutError) as error:
        _log.warning("Who moved %s of %s is not known now: %s", change.key, change.name, error)
        return change
    if entry is None or not entry.actor:
        return change
    return dataclasses.replace(change, author=entry.actor)
