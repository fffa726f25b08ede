"""What holds what in MLflow now, and the moves that change it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from nighttrain.providers.registry.history.entries import MAX_HOLDERS, Move
from nighttrain.providers.registry.history.ledger import Holdings
from nighttrain.providers.registry.versions import ACTIVE_STAGES

if TYPE_CHECKING:
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion


@dataclass(frozen=True)
class State:
    """What holds what in MLflow now.

    :param aliases: alias -> version
    :param versions: all of them, the last updated first, without their aliases
    :param created: when the registered model was made, in milliseconds since 1970
    """

    aliases: dict[str, str]
    versions: tuple[ModelVersion, ...]
    created: int = 0

    @cached_property
    def holdings(self) -> Holdings:
        """The same, to be compared with a history."""
        return Holdings(
            dict(self.aliases), {each.version: each.stage for each in self.versions if each.stage != "None"}
        )

    def holders(self, stage: str) -> tuple[str, ...]:
        """The versions in a stage, the last updated first."""
        return tuple(each.version for each in self.versions if each.stage == stage)

    def version(self, number: str | None) -> ModelVersion | None:
        """The version of that number; ``None`` where there is none."""
        return next((each for each in self.versions if each.version == number), None)

    def gone(self, expected: Holdings) -> frozenset[str]:
        """The versions of a history that were deleted."""
        return frozenset(expected.stages) - {each.version for each in self.versions}

    def stage_moves(
        self, version: ModelVersion, stage: str, *, archive: bool
    ) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
        """The move of a version into a stage, and the moves that undo it.

        The last updated counts as a stage's holder, so the one that was it before goes back last, and before
        the version itself leaves: the stage is never empty.
        """
        others = [holder for holder in self.holders(stage)[:MAX_HOLDERS] if holder != version.version]
        archived = reversed(others) if archive and stage in ACTIVE_STAGES else ()
        back = (
            *(Move(holder, stage=stage) for holder in archived),
            Move(version.version, stage=version.stage),
        )
        return (Move(version.version, stage=stage, archive=archive),), back


async def read_state(registry: ModelRegistry, model: str) -> State:
    """Read what holds what.

    :raises ModelNotFoundError: no such model
    :raises TrackingError: MLflow does not answer, or refuses
    """
    found = await registry.get_model(model)
    return State(found.aliases, tuple(await registry.versions(model)), found.created)
