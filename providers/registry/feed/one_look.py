"""One look without a poll that goes on: for an orchestrator that keeps the memory itself, between two
processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.registry.feed.changes import ChangeKind, compare
from nighttrain.providers.registry.feed.reader import RegistryReader, Scope

if TYPE_CHECKING:
    from nighttrain.providers.registry.feed.changes import Change, Interest, View
    from nighttrain.providers.tracking.client import MLflowClient


async def look(
    client: MLflowClient, interest: Interest, before: View | None, updated: int, noticed: int
) -> tuple[View, int, list[Change]]:
    """What is held now, MLflow's time of the model's last update, and the changes since ``before``.

    One call while the model was not updated since; one more for every 1,000 versions otherwise.

    :param before: what was held at the last look; ``None`` at the first
    :param updated: the time of update at the last look
    :param noticed: now; both in ms since 1970
    :raises TrackingError: MLflow does not answer, or refuses
    """
    reader = RegistryReader(client)
    if before is not None and interest.needs_versions:
        glance = await reader.read(Scope(models=frozenset({interest.name})))
        state = glance[interest.name]
        made_again = interest.kind is ChangeKind.VERSION and before.get("created") != state.created
        if state.updated == updated and state.updated and not made_again:
            return before, updated, []
    state = (await reader.read(Scope.of([interest])))[interest.name]
    view, changes = compare(interest, before, state, noticed)
    return view, state.updated, changes
