"""Waiting for the end of a rollout in steps: what the sensor and its trigger share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from nighttrain.providers.errors import RolloutStoppedError, RolloutUndoneError
from nighttrain.providers.serving.rollouts.state import Phase, State
from nighttrain.providers.serving.rollouts.store import RolloutStore

if TYPE_CHECKING:
    from nighttrain.providers.kubernetes.api.client import ClusterClient

# Rollouts take minutes to hours; one small request each few seconds tells the end soon enough.
POLL_SECONDS = 3.0


async def rollout_of(
    client: ClusterClient, namespace: str, endpoint: str, version: str | None
) -> State | None:
    """The endpoint's rollout, if it is of that version (any, if None); else ``None``."""
    kept = await RolloutStore(client).read(endpoint, namespace)
    if kept is None or (version is not None and kept.state.target.candidate != version):
        return None
    return kept.state


async def wait_end(
    client: ClusterClient,
    namespace: str,
    endpoint: str,
    version: str | None,
    *,
    on_progress: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> State:
    """Return the rollout once it has ended."""
    told = ""
    while True:
        state = await rollout_of(client, namespace, endpoint, version)
        if state and state.ended:
            return state
        detail = state.describe() if state else f"{endpoint}: no such rollout yet"
        if detail != told:
            told = detail
            on_progress(detail)
        await sleep(POLL_SECONDS)


def raise_unless_promoted(state: State) -> None:
    """Make an end that is no success an error.

    :raises RolloutUndoneError: it was undone
    :raises RolloutStoppedError: it ended where it was
    """
    if state.phase is Phase.UNDONE:
        raise RolloutUndoneError(state.describe())
    if state.phase is Phase.STOPPED:
        raise RolloutStoppedError(state.describe())
