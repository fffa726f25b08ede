"""What one consumer was told: a cursor that loses nothing and, told again, says the same.

Handing events over and keeping the cursor are two writes. So what is about to be handed over is kept first,
with its number: a consumer that died in between is told the very same again, under the same number, and
only then what happened since. So a copy can be recognised, and nothing hides behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nighttrain.providers.registry.feed.changes import Change, ChangeKind, compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.registry.feed.changes import Interest, View
    from nighttrain.providers.registry.feed.model_state import ModelState


@dataclass(frozen=True)
class Told:
    """A change, and its number among all that this consumer is told."""

    change: Change
    sequence: int


@dataclass(frozen=True)
class Outbox:
    """A consumer's memory. Immutable: each step is a new one, to be kept before the next.

    :param view: what it was told, ``sending`` included; ``None`` before the first look
    :param sequence: the number of the last change, ``sending`` included
    :param sending: what may not have arrived yet
    """

    view: View | None = None
    sequence: int = 0
    sending: tuple[Change, ...] = ()

    def seen(self, interest: Interest, state: ModelState, noticed: int, *, removals: bool = True) -> Outbox:
        """What is to be told after a poll; only once nothing is on its way, which keeps the order.

        :param removals: tell also that no version holds it any more
        """
        if self.sending:
            raise ValueError("what is on its way has to arrive first")
        view, changes = compare(interest, self.view, state, noticed)
        changes = [change for change in changes if removals or change.version is not None]
        return Outbox(view, self.sequence + len(changes), tuple(changes))

    def to_tell(self) -> list[Told]:
        """What is on its way, with its numbers."""
        first = self.sequence - len(self.sending) + 1
        return [Told(change, first + place) for place, change in enumerate(self.sending)]

    def arrived(self) -> Outbox:
        """Everything on its way is where it should be."""
        return replace(self, sending=())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "view": self.view,
            "sequence": self.sequence,
            "sending": [change.to_dict() for change in self.sending],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outbox:
        """Read what :meth:`to_dict` wrote."""
        sending = tuple(Change.from_dict(each) for each in values.get("sending") or ())
        return cls(values.get("view"), int(values.get("sequence") or 0), sending)


def view_of_former_cursor(interest: Interest, values: Mapping[str, Any]) -> View | None:
    """The view in a cursor of nighttrain 0.1's first form, which held a whole model."""
    if interest.kind is ChangeKind.ALIAS:
        version = (values.get("aliases") or {}).get(interest.key)
        return {"version": None if version is None else str(version)}
    if interest.kind is ChangeKind.STAGE:
        version = (values.get("stages") or {}).get(interest.key)
        held = (values.get("holders") or {}).get(interest.key) or ([] if version is None else [version])
        return {
            "holders": sorted((str(each) for each in held), key=int),
            "version": None if version is None else str(version),
        }
    return None
