"""Promotion: give a version the alias and the stage, with a record on the version. One call undoes one.

The order is: read, write the record as started, move the alias, move the stage, write the record as done.
After a crash anywhere in between, promoting again finishes the same promotion, with the same version before.

Serialise promotions of one model (one task at a time, or a lease): MLflow has no compare-and-swap.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import ConfigurationError, RegistryError, clip
from nighttrain.providers.redaction import redact
from nighttrain.providers.registry.versions import check_alias, check_name, check_stage
from nighttrain.providers.tracking.measured import plain
from nighttrain.providers.tracking.names import MAX_VERSION_TAG
from nighttrain.providers.tracking.tags import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nighttrain.providers.registry.models import ModelRegistry
    from nighttrain.providers.registry.versions import ModelVersion

PROMOTION_TAG = f"{PREFIX}promotion"
"""The record, as JSON. The tags below repeat its main parts for people and for filters."""

ACTOR_TAG = f"{PREFIX}promoted_by"
TIME_TAG = f"{PREFIX}promoted_at"
REASON_TAG = f"{PREFIX}promotion_reason"
EVIDENCE_TAG = f"{PREFIX}promotion_evidence"
PREVIOUS_TAG = f"{PREFIX}previous_version"

MAX_HOLDERS = 50
"""Of the versions that shared the stage before, the newest are remembered: a record has to fit into a tag."""

MAX_TEXT = 1_000
"""Of a reason or of the evidence: a record is for reading, and has to fit into a tag."""


class PromotionState(StrEnum):
    """The steps of a promotion, as its record names them."""

    STARTED = "started"
    DONE = "done"
    UNDONE = "undone"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """The record of a promotion. Plain values: it can be an XCom or an argument of :func:`undo`.

    :param previous_version: who held the alias before (without an alias: the stage); ``None`` for the first
    :param previous_stage: the promoted version's own stage before
    :param stage_holders: versions in the stage before, the last updated first
    :param at: when, ISO 8601 in UTC
    :param changed: ``False`` when everything was in place already
    """

    name: str
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
    state: PromotionState = PromotionState.DONE
    changed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "stage_holders": list(self.stage_holders), "state": self.state.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Promotion:
        """Read what :meth:`to_dict` wrote; fields that this version does not know are left out."""
        known = {item.name for item in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        kept["stage_holders"] = tuple(kept.get("stage_holders") or ())
        kept["state"] = PromotionState(kept.get("state", PromotionState.DONE))
        return cls(**kept)


async def promote(
    registry: ModelRegistry,
    name: str,
    version: str | int,
    *,
    alias: str | None = "champion",
    stage: str | None = "Production",
    archive_existing: bool = True,
    actor: str = "",
    reason: str = "",
    evidence: object = "",
    clock: Callable[[], float] = time.time,
) -> Promotion:
    """Move ``alias`` and ``stage`` to the version and record it there. Repeating it changes nothing.

    :param archive_existing: other versions in the stage go to Archived
    :param evidence: text, or plain values such as ``Verdict.to_dict()``; clipped to 1,000 characters
    :param clock: seconds since 1970; injected in tests
    :raises ConfigurationError: neither alias nor stage, or one that MLflow refuses
    :raises ModelVersionNotFoundError: no such version
    :raises RegistryError: the version is not READY
    """
    check_name(name)
    alias = check_alias(alias) if alias else None
    stage = check_stage(stage) if stage else None
    if alias is None and stage is None:
        raise ConfigurationError("alias", None, "give an alias, a stage, or both")
    target = await registry.get_version(name, version)
    if target.status != "READY":
        raise RegistryError(
            f"version {target.version} of {name!r} is {target.status}, not READY: it cannot be promoted"
        )
    record = recorded(target)
    fits = record is not None and (record.alias, record.stage) == (alias, stage)
    if _in_place(target, alias, stage) and (record is None or (fits and record.state is PromotionState.DONE)):
        return replace(
            record or Promotion(name=name, version=target.version, alias=alias, stage=stage), changed=False
        )
    if record is None or not fits or record.state is not PromotionState.STARTED:
        record = await _planned(registry, target, alias, stage, archive_existing)
        record = replace(
            record,
            actor=_text(actor),
            reason=_text(reason),
            evidence=_text(evidence),
            at=_iso(clock()),
        )
        await _write(registry, record)
    if alias:
        await registry.set_alias(name, alias, target.version)
    if stage:
        await registry.transition_stage(name, target.version, stage, archive_existing=record.archived)
    done = replace(record, state=PromotionState.DONE, changed=True)
    await registry.set_tags(name, target.version, {PROMOTION_TAG: _json(done)})
    return done


async def undo(
    registry: ModelRegistry,
    promotion: Promotion,
    *,
    actor: str = "",
    reason: str = "",
    clock: Callable[[], float] = time.time,
) -> Promotion:
    """Give alias and stage back to the version before. Repeating it changes nothing.

    The stage goes back first, so that it is never empty; an alias that nobody held before is removed.

    :param clock: seconds since 1970; injected in tests
    :raises RegistryError: the alias has moved on to a third version since: undo that promotion first
    """
    model = await registry.get_model(promotion.name)
    if promotion.alias:
        _check_not_promoted_since(promotion, model.aliases.get(promotion.alias))
    if promotion.stage:
        await _give_stage_back(registry, promotion, promotion.stage)
    if promotion.alias and promotion.previous_version is None:
        await registry.delete_alias(promotion.name, promotion.alias)
    elif promotion.alias and promotion.previous_version is not None:
        await registry.set_alias(promotion.name, promotion.alias, promotion.previous_version)
    current = recorded(await registry.get_version(promotion.name, promotion.version))
    if current is not None and current.state is PromotionState.UNDONE:
        return replace(current, changed=False)
    undone = replace(
        promotion,
        state=PromotionState.UNDONE,
        actor=_text(actor),
        reason=_text(reason),
        at=_iso(clock()),
        changed=True,
    )
    await _write(registry, undone)
    return undone


def recorded(version: ModelVersion) -> Promotion | None:
    """The promotion recorded on a version; ``None`` when there is none that can be read."""
    try:
        values = json.loads(version.tags[PROMOTION_TAG])
        return Promotion.from_dict({**values, "name": version.name, "version": version.version})
    except (KeyError, ValueError, TypeError):
        return None


def _check_not_promoted_since(promotion: Promotion, holder: str | None) -> None:
    if holder not in (promotion.version, promotion.previous_version):
        raise RegistryError(
            f"alias {promotion.alias!r} of {promotion.name!r} is no longer on version {promotion.version} "
            f"but on {holder or 'none'}: somebody promoted since. Undo that promotion first"
        )


async def _give_stage_back(registry: ModelRegistry, promotion: Promotion, stage: str) -> None:
    # The last updated counts as the stage's holder, so the one that was it before comes last.
    for holder in reversed(promotion.stage_holders):
        if holder != promotion.version:
            await registry.transition_stage(promotion.name, holder, stage, archive_existing=False)
    own = promotion.previous_stage or "None"
    await registry.transition_stage(promotion.name, promotion.version, own, archive_existing=False)


def _in_place(version: ModelVersion, alias: str | None, stage: str | None) -> bool:
    return (alias is None or alias in version.aliases) and (stage is None or stage == version.stage)


async def _planned(
    registry: ModelRegistry,
    target: ModelVersion,
    alias: str | None,
    stage: str | None,
    archive_existing: bool,
) -> Promotion:
    holders = [
        version.version
        for version in (await registry.versions(target.name) if stage else ())
        if version.stage == stage and version.version != target.version
    ]
    if alias:
        previous = (await registry.get_model(target.name)).aliases.get(alias)
    else:
        previous = holders[0] if holders else None
    return Promotion(
        name=target.name,
        version=target.version,
        alias=alias,
        stage=stage,
        previous_version=None if previous == target.version else previous,
        previous_stage=target.stage,
        stage_holders=tuple(holders[:MAX_HOLDERS]),
        archived=archive_existing,
        state=PromotionState.STARTED,
    )


async def _write(registry: ModelRegistry, promotion: Promotion) -> None:
    tags = {
        PROMOTION_TAG: _json(promotion),
        ACTOR_TAG: promotion.actor,
        TIME_TAG: promotion.at,
        REASON_TAG: promotion.reason,
        EVIDENCE_TAG: promotion.evidence,
        PREVIOUS_TAG: promotion.previous_version or "",
    }
    await registry.set_tags(promotion.name, promotion.version, tags)


def _json(promotion: Promotion) -> str:
    values = promotion.to_dict()
    for name in ("name", "version", "changed"):
        del values[name]
    text = json.dumps(values, ensure_ascii=False)
    # Quotes and line breaks take more room in JSON. What is cut here is whole in the tags beside it.
    for limit in (MAX_TEXT // 2, MAX_TEXT // 4, 1):
        if len(text) > MAX_VERSION_TAG:
            values |= {name: clip(values[name], limit) for name in ("evidence", "reason", "actor")}
            text = json.dumps(values, ensure_ascii=False)
    return text


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False, default=str)
    return clip(redact(text), MAX_TEXT)
