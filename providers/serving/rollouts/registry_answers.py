"""What MLflow says to a rollout: whose alias and stage are, and what it does not write into the history."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nighttrain.providers.errors import (
    ModelNotFoundError,
    RegistryError,
    TrackingError,
    TrackingUnreachableError,
)
from nighttrain.providers.serving.rollouts.state import UNDER_WAY_BACK, Phase

if TYPE_CHECKING:
    from nighttrain.providers.serving.rollouts.state import State
    from nighttrain.providers.serving.rollouts.surroundings import Registrar

# Who moved an alias by hand during a rollout sees it end within seconds; one small request each.
NAMES_SECONDS = 10.0


def names_seconds(state: State) -> float:
    """How long the last answer about alias and stage is good for."""
    moving = state.phase in UNDER_WAY_BACK or (state.phase is Phase.WATCHING and not state.moved)
    return 0.0 if moving or state.phase is Phase.PROMOTING else NAMES_SECONDS


async def holds_names(registrar: Registrar, state: State) -> bool | None:
    """Whether alias and stage are the candidate's; on the way back, whether one of them is still.

    ``None`` without MLflow, or where it does not say: nobody knows, and the analysis goes on.
    """
    try:
        holders = await registrar.holders(state.target.model_name, state.names)
    except ModelNotFoundError:
        return False
    except (RegistryError, TrackingError):
        return None
    on_the_way_back = state.phase in UNDER_WAY_BACK
    return (holders.hold_any if on_the_way_back else holders.hold_all)(state.target.candidate)


async def refusal_of_notes(registrar: Registrar, state: State) -> RegistryError | TrackingError | None:
    """Write what is not in the history yet; what MLflow says where it refuses that.

    :raises TrackingUnreachableError: MLflow cannot be asked, which may pass
    """
    try:
        for event in state.events:
            if event.to_note:
                await registrar.note(state, event)
    except TrackingUnreachableError:
        raise
    except (RegistryError, TrackingError) as error:
        return error
    return None


def has_notes(state: State) -> bool:
    """Whether steps of the rollout are not in the history yet."""
    return any(event.to_note for event in state.events)


def noted(state: State) -> State:
    """The state once all its steps are in the history."""
    return replace(state, events=tuple(replace(event, to_note=False) for event in state.events))
