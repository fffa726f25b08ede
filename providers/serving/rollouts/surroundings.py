"""Who a rollout works with beside the serving system, as interfaces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nighttrain.providers.serving.analysis.golden import Golden
    from nighttrain.providers.serving.analysis.metrics import Metric
    from nighttrain.providers.serving.analysis.values import Sample
    from nighttrain.providers.serving.backends.traffic import Addresses
    from nighttrain.providers.serving.rollouts.state import Event, Holders, Names, State


class Registrar(Protocol):
    """The registry's part of a rollout."""

    async def holders(self, model_name: str, names: Names) -> Holders:
        """The versions that hold alias and stage."""
        ...

    async def move(self, state: State) -> None:
        """Move alias and stage to the candidate.

        :raises PromotedSinceError: somebody else did
        """
        ...

    async def give_back(self, state: State) -> None:
        """Move them back to who held them before, unless the candidate does not hold them any more."""
        ...

    async def note(self, state: State, event: Event) -> None:
        """Write the event into the model's history, once."""
        ...


class Recorder(Protocol):
    """Who keeps series and picture. Whatever happens there, the rollout goes on."""

    async def measured(self, state: State, samples: tuple[Sample, ...]) -> str | None:
        """Keep the samples; the id of the run that holds them."""
        ...

    async def ended(self, state: State) -> None:
        """Draw the picture and close the run."""
        ...


class AskRoute(Protocol):
    """Sends small requests through a route."""

    async def __call__(self, addresses: Addresses, count: int) -> list[str | None]:
        """The versions that answered, empty where one did not name itself, ``None`` for each failure."""
        ...


WarmUp = Callable[["State", "Addresses"], Awaitable["bool | str"]]
"""Sends golden requests to the candidate; a text says why it did not answer them."""

CheckMetric = Callable[["str", "Metric", "Golden | None"], None]
"""Refuses a metric whose source cannot be, by the name of its field."""
