"""Promotions from before there was a history: a record in the tags of the version that was promoted."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.registry.history.entries import Entry, Kind, Move, as_many_as_fit, text
from nighttrain.providers.registry.versions import ACTIVE_STAGES, STAGES
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from nighttrain.providers.registry.history.state import State
    from nighttrain.providers.registry.versions import ModelVersion

PROMOTION_TAG = f"{PREFIX}promotion"


class RecordState(StrEnum):
    """The steps of a promotion, as its record names them."""

    STARTED = "started"
    DONE = "done"
    UNDONE = "undone"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a promotion, as versions up to 0.1 wrote it.

    :param previous_version: who held the alias before (without an alias: the stage); ``None`` for nobody
    :param previous_stage: the promoted version's own stage before
    :param stage_holders: versions in the stage before, the last updated first
    :param at: when, ISO 8601 in UTC
    """

    version: str
    alias: str | None = None
    stage: str | None = None
    previous_version: str | None = None
    previous_stage: str | None = None
    stage_holders: tuple[str, ...] = ()
    archived: bool = False
    actor: str = ""
    reason: str = ""
    evidence: str = ""
    at: str = ""
    state: RecordState = RecordState.DONE

    @property
    def moves(self) -> tuple[Move, ...]:
        """What it moved."""
        alias = (Move(self.version, alias=self.alias),) if self.alias else ()
        stage = (Move(self.version, stage=self.stage, archive=self.archived),) if self.stage else ()
        return (*alias, *stage)

    @property
    def back(self) -> tuple[Move, ...]:
        """What undoes it: the stage first, so that it is never empty."""
        stage: list[Move] = []
        if self.stage:
            others = [holder for holder in reversed(self.stage_holders) if holder != self.version]
            stage = [Move(holder, stage=self.stage) for holder in others]
            stage.append(Move(self.version, stage=self.previous_stage or "None"))
        return (*stage, *((Move(self.previous_version, alias=self.alias),) if self.alias else ()))


def recorded(version: ModelVersion | None) -> Record | None:
    """The promotion recorded on a version; ``None`` when there is none that can be read."""
    if version is None:
        return None
    try:
        values: dict[str, Any] = json.loads(version.tags[PROMOTION_TAG])
        known = {item.name for item in fields(Record)}
        kept = {key: value for key, value in values.items() if key in known}
        kept["stage_holders"] = tuple(map(str, kept.get("stage_holders") or ()))
        kept["state"] = RecordState(kept.get("state", RecordState.DONE))
        record = Record(**{**kept, "version": version.version})
        return record if _is_sound(record) else None
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def _is_sound(record: Record) -> bool:
    """Tell whether it can be what nighttrain wrote: its moves will be made."""
    versions = [*record.stage_holders, *([record.previous_version] if record.previous_version else [])]
    stages = [each for each in (record.stage, record.previous_stage) if each is not None]
    texts = (record.actor, record.reason, record.evidence, record.at, record.alias or "")
    return (
        all(isinstance(each, str) and each.isascii() and each.isdigit() for each in versions)
        and all(each in STAGES for each in stages)
        and all(isinstance(each, str) for each in texts)
        and record.previous_version != record.version
    )


def carried_over(model: str, state: State) -> Entry | None:
    """The first entry of a history: what holds what already, and by which promotion as far as it is recorded.

    :returns: ``None`` while nothing holds anything
    """
    holdings = state.holdings
    moves = (
        *(Move(version, alias=alias) for alias, version in sorted(holdings.aliases.items())),
        *(Move(held, stage=stage) for held, stage in holdings.stages.items() if stage in ACTIVE_STAGES),
    )
    if not moves:
        return None
    record = next(iter(in_effect(state)), None)
    return Entry(
        number=0,
        kind=Kind.CARRIED_OVER,
        model=model,
        version=record.version if record else None,
        moves=as_many_as_fit(moves),
        back=record.back if record else (),
        previous_version=record.previous_version if record else None,
        actor=text(record.actor) if record else "",
        reason=text(record.reason) if record else "held before there was a history",
        evidence=text(record.evidence) if record else "",
        at=record.at if record else "",
    )


def in_effect(state: State) -> list[Record]:
    """The records of promotions that still hold what they gave, the last one first."""
    records = [found for each in state.versions if (found := recorded(each)) and _still_holds(found, state)]
    # ISO 8601 in UTC sorts by time.
    return sorted(records, key=lambda found: found.at, reverse=True)


def _still_holds(record: Record, state: State) -> bool:
    if record.state is not RecordState.DONE:
        return False
    if record.alias:
        return state.aliases.get(record.alias) == record.version
    return bool(record.stage) and state.holders(record.stage or "")[:1] == (record.version,)
