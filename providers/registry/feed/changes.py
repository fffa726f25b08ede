"""The comparison: what one consumer was told last, beside what a poll saw.

It is level-triggered. A consumer's view is what it follows, as plain values; it is kept between two polls,
over restarts too. The first look tells what is held now, in one change. A change that was undone between
two polls is not seen; one that still stands is never missed, whatever was down in between.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError
from nighttrain.providers.registry.feed.model_state import WATCHED_STAGES
from nighttrain.providers.registry.versions import check_alias, check_name, check_stage
from nighttrain.providers.tracking.names import MAX_VERSION_TAG, check_key, check_text
from nighttrain.providers.tracking.tags import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.registry.feed.model_state import ModelState, TagFilter

LATEST = "latest"
"""The key of a change of kind ``version``."""


class ChangeKind(StrEnum):
    """What can change."""

    ALIAS = "alias"
    STAGE = "stage"
    VERSION = "version"
    TAG = "tag"


class Clock(StrEnum):
    """Whose time a change carries: MLflow's, or that of the poll which noticed it."""

    MLFLOW = "mlflow"
    NOTICED = "noticed"


@dataclass(frozen=True)
class Interest:
    """One thing of one model that somebody follows.

    :param key: the alias, the stage, or the tag's key; ``latest`` for versions
    :param value: the tag's value
    """

    name: str
    kind: ChangeKind
    key: str = LATEST
    value: str | None = None

    @property
    def tag(self) -> TagFilter | None:
        """The tag's key and value."""
        return (self.key, self.value or "") if self.kind is ChangeKind.TAG else None

    @property
    def needs_versions(self) -> bool:
        """Tell whether versions must be read, beside the model itself."""
        return self.kind in (ChangeKind.STAGE, ChangeKind.VERSION)

    def covered_by(self, state: ModelState) -> bool:
        """Tell whether a poll looked at what this follows."""
        if self.tag is not None:
            return self.tag in state.tagged
        return not self.needs_versions or state.versions is not None

    def sees_the_same(self, before: ModelState, now: ModelState) -> bool:
        """Tell whether a poll has nothing that was not there at the one before."""
        if self.tag is not None:
            return before.tagged[self.tag] == now.tagged[self.tag]
        if self.kind is ChangeKind.ALIAS:
            return before.aliases.get(self.key) == now.aliases.get(self.key)
        return before.created == now.created and before.versions is now.versions

    def checked(self) -> Interest:
        """Itself, in MLflow's spelling. :raises ConfigurationError: a name that MLflow or its filters
        refuse"""
        check_name(self.name)
        match self.kind:
            case ChangeKind.ALIAS:
                check_alias(self.key)
            case ChangeKind.STAGE:
                stage = check_stage(self.key)
                if stage not in WATCHED_STAGES:
                    raise ConfigurationError(
                        "stage", self.key, f"can be followed: {', '.join(WATCHED_STAGES)}"
                    )
                return replace(self, key=stage)
            case ChangeKind.TAG:
                check_key(self.key, field="tag")
                check_text("value", self.value or "", MAX_VERSION_TAG)
                if quoted(self.value or "") is None:
                    raise ConfigurationError(
                        "value",
                        self.value,
                        "use one sort of quote only, and no backslash at the end: MLflow has no escapes",
                    )
            case ChangeKind.VERSION:
                pass
        return self


def followed(
    name: str,
    *,
    stage: str | None = None,
    alias: str | None = None,
    versions: bool = False,
    tag: str | None = None,
    value: str | None = None,
) -> Interest:
    """The one thing that is named. Its names are not checked yet.

    :raises ConfigurationError: none or several of stage, alias, versions and tag; a tag without its value
    """
    found = []
    if stage is not None:
        found.append(Interest(name, ChangeKind.STAGE, stage))
    if alias is not None:
        found.append(Interest(name, ChangeKind.ALIAS, alias))
    if versions:
        found.append(Interest(name, ChangeKind.VERSION))
    if tag is not None:
        found.append(Interest(name, ChangeKind.TAG, tag, value))
    if len(found) != 1:
        given = {"stage": stage, "alias": alias, "versions": versions, "tag": tag}
        raise ConfigurationError(", ".join(given), list(given.values()), "name exactly one of them")
    if (tag is None) != (value is None):
        raise ConfigurationError("value", value, "a tag is followed by its value, and only a tag has one")
    return found[0]


@dataclass(frozen=True)
class Change:
    """One change of what a model holds.

    :param key: the alias, the stage, the tag's key, or ``latest``
    :param version: the version held now; ``None`` when nothing is held any more
    :param previous: the version held before; ``None`` when nothing was
    :param author: who did it, where the model's history says so
    :param at: when, in ms since 1970
    :param clock: whose time that is
    """

    kind: ChangeKind
    name: str
    key: str
    version: str | None
    previous: str | None = None
    author: str | None = None
    at: int | None = None
    clock: Clock | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {
            "kind": self.kind.value,
            "name": self.name,
            "key": self.key,
            "version": self.version,
            "previous": self.previous,
        }
        if self.at is None:
            return values
        return {**values, "author": self.author, "at": self.at, "clock": self.clock and self.clock.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Change:
        """Read what :meth:`to_dict` wrote, older forms too."""
        clock = values.get("clock")
        return cls(
            ChangeKind(values["kind"]),
            values["name"],
            values["key"],
            values.get("version"),
            values.get("previous"),
            values.get("author"),
            values.get("at"),
            None if clock is None else Clock(clock),
        )


View = dict[str, Any]
"""What a consumer was told last: plain JSON, kept between two polls."""


def compare(
    interest: Interest, before: View | None, state: ModelState, noticed: int
) -> tuple[View, list[Change]]:
    """The view after a poll, and the changes since ``before``, in order.

    :param before: ``None`` at the first look, which tells what is held now
    :param noticed: when the poll was, in ms since 1970
    """
    match interest.kind:
        case ChangeKind.ALIAS:
            view, moved = _alias(interest, before, state)
        case ChangeKind.STAGE:
            view, moved = _stage(interest, before, state)
        case ChangeKind.VERSION:
            view, moved = _versions(before, state)
        case ChangeKind.TAG:
            view, moved = _tag(interest, before, state)
    return view, [_change(interest, state, version, previous, noticed) for version, previous in moved]


Moves = list[tuple[str | None, str | None]]
"""Pairs of the version held now and the one before."""


def _alias(interest: Interest, before: View | None, state: ModelState) -> tuple[View, Moves]:
    now, previous = state.aliases.get(interest.key), (before or {}).get("version")
    return {"version": now}, [(now, previous)] if now != previous else []


def _stage(interest: Interest, before: View | None, state: ModelState) -> tuple[View, Moves]:
    """Of several versions in one stage only one that came in counts: a new description moves MLflow's
    timestamp of a version too, and must not look like a transition."""
    now, held = state.holders(interest.key), tuple((before or {}).get("holders", ()))
    previous = (before or {}).get("version")
    entered = [version for version in now if version not in held]
    if entered:
        told: str | None = entered[0]
    elif previous is not None and previous not in now:
        told = now[0] if now else None
    else:
        told = previous
    return {"holders": sorted(now, key=int), "version": told}, [(told, previous)] if told != previous else []


def _versions(before: View | None, state: ModelState) -> tuple[View, Moves]:
    """Each version once, in their order. A model that was made again counts from 1 again."""
    numbers = state.numbers
    last = 0 if before is None or before.get("created") != state.created else int(before["latest"])
    if not numbers and not state.created:
        return before or {"created": 0, "latest": 0}, []
    new = numbers[bisect_right(numbers, last) :]
    if before is None:
        new = new[-1:]
    moves: Moves = []
    for number in new:
        moves.append((str(number), str(last) if last else None))
        last = number
    return {"created": state.created, "latest": last}, moves


def _tag(interest: Interest, before: View | None, state: ModelState) -> tuple[View, Moves]:
    now = state.tagged[(interest.key, interest.value or "")]
    held = (before or {}).get("versions", ())
    gained = sorted((version for version in now if version not in held), key=int)
    lost = sorted((version for version in held if version not in now), key=int)
    if before is None:
        gained = gained[-1:]
    moves: Moves = [(None, version) for version in lost]
    moves += [(version, None) for version in gained]
    return {"versions": sorted(now, key=int)}, moves


def _change(
    interest: Interest, state: ModelState, version: str | None, previous: str | None, noticed: int
) -> Change:
    known = None if version is None else state.known(version)
    at, clock = noticed, Clock.NOTICED
    if known is not None and interest.kind is ChangeKind.STAGE:
        at, clock = known.updated, Clock.MLFLOW
    elif known is not None and interest.kind is ChangeKind.VERSION:
        at, clock = known.created, Clock.MLFLOW
    return Change(interest.kind, interest.name, interest.key, version, previous, None, at, clock)
