"""A process that promotes and rolls back one model, and may die at a call: ``python -m helpers.promoter``.

Arguments: MLflow's address, the model, a seed, how many changes, at which call to die (0 for never).
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import Any

from nighttrain.providers.errors import NothingToUndoError, PromotedSinceError
from nighttrain.providers.registry.models import ModelRegistry
from nighttrain.providers.registry.promotion import NOBODY, Author, promote, roll_back
from nighttrain.providers.tracking.client import MLflowClient, TrackingConfig

DIED = 9


class _Dying(MLflowClient):
    calls_left = 0

    async def _call(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        self.calls_left -= 1
        if self.calls_left == 0:
            # Some of them after the server acted on it.
            if random.random() < 0.5:
                await super()._call(method, path, **given)
            os._exit(DIED)
        return await super()._call(method, path, **given)


async def change_often(uri: str, model: str, seed: int, changes: int, dies_at: int) -> None:
    """Make random changes, each a promotion over what was the champion when it was looked at."""
    chance = random.Random(seed)
    random.seed(seed)
    async with _Dying(TrackingConfig(uri)) as client:
        client.calls_left = dies_at
        registry = ModelRegistry(client)
        for number in range(changes):
            author = Author(actor=f"promoter {seed}", reason=f"change {number}")
            if chance.random() < 0.3:
                try:
                    await roll_back(registry, model, alias="champion", author=author, patience=0.2)
                except NothingToUndoError:
                    continue
                continue
            found = await registry.get_model(model)
            champion = found.aliases.get("champion", NOBODY)
            versions = [each.version for each in await registry.versions(model)]
            stage = chance.choice([None, "Production"])
            author = Author(actor=author.actor, reason=f"{author.reason}, judged beside {champion or 'none'}")
            try:
                await promote(
                    registry,
                    model,
                    chance.choice(versions),
                    stage=stage,
                    replaces=champion,
                    author=author,
                    patience=0.2,
                )
            except PromotedSinceError:
                continue


if __name__ == "__main__":
    uri, model, seed, changes, dies_at = sys.argv[1:]
    asyncio.run(change_often(uri, model, int(seed), int(changes), int(dies_at)))
