"""Alias, stage and history of a rollout, in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nighttrain.providers.errors import ModelVersionNotFoundError, NothingToUndoError
from nighttrain.providers.registry.history.entries import Kind
from nighttrain.providers.registry.promotion import Author, note, promote, roll_back
from nighttrain.providers.serving.rollouts.state import Holders

if TYPE_CHECKING:
    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.serving.rollouts.state import Event, Names, State


class MLflowRegistrar:
    """Moves what a rollout moves in the registry, by the same changes as a promotion or a rollback."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def holders(self, model_name: str, names: Names) -> Holders:
        """The versions that hold alias and stage."""
        return Holders(
            alias=await self._holds_alias(model_name, names.alias) if names.alias is not None else None,
            stage=await self._is_in_stage(model_name, names.stage) if names.stage is not None else None,
        )

    async def _holds_alias(self, model_name: str, alias: str) -> str:
        try:
            return (await self._registry.version_by_alias(model_name, alias)).version
        except ModelVersionNotFoundError:
            return ""

    async def _is_in_stage(self, model_name: str, stage: str) -> str:
        try:
            return (await self._registry.version_in_stage(model_name, stage)).version
        except ModelVersionNotFoundError:
            return ""

    async def move(self, state: State) -> None:
        """Move alias and stage to the candidate; on a way back what its promotion moved, by undoing that.

        :raises PromotedSinceError: somebody else moved the alias since the rollout began
        """
        target = state.target
        if state.returns_because is not None:
            await self._back(state, state.returns_because, to=target.candidate, withdraws=target.stable)
            if (await self.holders(target.model_name, state.names)).hold_all(target.candidate):
                return
        await promote(
            self._registry,
            target.model_name,
            target.candidate,
            alias=state.names.alias,
            stage=state.names.stage,
            replaces=state.replaces,
            author=_author(state, f"all requests of {target.endpoint} go to it"),
        )

    async def give_back(self, state: State) -> None:
        """Move them back to who held them before, unless the candidate does not hold them any more."""
        target = state.target
        try:
            why = f"rollout on {target.endpoint} undone: {state.reason}"
            await self._back(state, why, to=target.stable, withdraws=target.candidate)
        except NothingToUndoError:
            # It holds them by no promotion that anybody knows: there is nobody to give them back to.
            if target.stable is not None:
                raise

    async def _back(self, state: State, why: str, *, to: str | None, withdraws: str | None) -> None:
        await roll_back(
            self._registry,
            state.target.model_name,
            alias=state.names.alias,
            stage=state.names.stage,
            to=to,
            withdraws=withdraws,
            author=_author(state, why),
        )

    async def note(self, state: State, event: Event) -> None:
        """Write the event into the model's history; a repetition by another process is found there."""
        target = state.target
        author = _author(state, f"{event.text} ({state.rollout_id}, {event.number})")
        await note(
            self._registry,
            target.model_name,
            Kind.ROLLOUT,
            version=target.candidate,
            author=author,
            once=True,
        )


def _author(state: State, reason: str) -> Author:
    return Author(actor=state.actor, reason=reason, dag_run=state.rollout_id)
