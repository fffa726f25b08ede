"""Who moved it, as far as the model's history says: MLflow itself keeps no author of a change.

What the history does not explain was moved without nighttrain, and is recorded as such by whoever looks.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from nighttrain.providers.errors import NighttrainError, clip
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

AT_ONCE = 4
"""Histories that one process reads at a time: when it starts, hundreds of watchers look at once."""

_log = logging.getLogger(__name__)

_Key = tuple[object, ...]


@dataclasses.dataclass
class _Lookups:
    """The lookups of one event loop: watchers who are told of the same move share one."""

    slots: asyncio.Semaphore = dataclasses.field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    running: dict[_Key, asyncio.Task[str]] = dataclasses.field(default_factory=dict)


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lookups] = WeakKeyDictionary()


async def with_authors(config: TrackingConfig, changes: Sequence[Change]) -> tuple[Change, ...]:
    """The changes with their authors. Where the history cannot be asked now they stay as they are."""
    return tuple([await _with_author(config, each) for each in changes])


async def _with_author(config: TrackingConfig, change: Change) -> Change:
    if change.kind not in (ChangeKind.ALIAS, ChangeKind.STAGE):
        return change
    lookups = _loops.setdefault(asyncio.get_running_loop(), _Lookups())
    key = (config, change.name, change.version, change.kind, change.key)
    task = lookups.running.get(key)
    if task is None:
        task = lookups.running[key] = asyncio.ensure_future(_author(config, change, lookups.slots))
        task.add_done_callback(lambda _: lookups.running.pop(key, None))
    # Whoever is cancelled takes the answer from nobody else.
    author = await asyncio.shield(task)
    return dataclasses.replace(change, author=author) if author else change


async def _author(config: TrackingConfig, change: Change, slots: asyncio.Semaphore) -> str:
    """Who moved it; empty where the history cannot be asked, or does not say."""
    alias = change.key if change.kind is ChangeKind.ALIAS else None
    stage = change.key if change.kind is ChangeKind.STAGE else None
    # The news itself came from an MLflow that answers; one that went away since is not waited for.
    at_once = dataclasses.replace(config, retry_seconds=0.0)
    try:
        async with slots, asyncio.timeout(SECONDS), MLflowClient(at_once) as client:
            registry = ModelRegistry(client)
            entry = await notice(registry, change.name, version=change.version, alias=alias, stage=stage)
    except TimeoutError:
        _log.warning(
            "Who moved %s of %s is not known: no answer within %g s", change.key, change.name, SECONDS
        )
        return ""
    except NighttrainError as error:
        why = clip(str(error), 300)
        _log.warning("Who moved %s of %s is not known now: %s", change.key, change.name, why)
        return ""
    return entry.actor if entry else ""
