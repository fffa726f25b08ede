"""Watching for as long as a component runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nighttrain.providers.local.cluster.store.resources import ResourceType
    from nighttrain.providers.local.cluster.store.store import EventType, Object, Store


async def follow(
    store: Store,
    resource: ResourceType,
    seen: Callable[[EventType, Object], None],
    relisted: Callable[[], None] = lambda: None,
) -> None:
    """Tell of what is there, then of every change, for ever.

    :param relisted: called before what is there is told: at first, and when the watch fell too far behind
    """
    while True:
        with store.watch(resource) as watcher:
            relisted()
            try:
                async for type_, obj in watcher:
                    seen(type_, obj)
                return
            except ApiError as error:
                if error.code != 410:
                    raise
