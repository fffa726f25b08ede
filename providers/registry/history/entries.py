"""Entries of a model's history: plain values, and the digest by which each names the one before."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from nighttrain.providers.errors import clip
from nighttrain.providers.measured import plain
from nighttrain.providers.redaction import redact
from nighttrain.providers.registry.versions import STAGES
from nighttrain.providers.tracking.names import MAX_RUN_TAG

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_TEXT = 1_000
"""Characters of a reason or of the evidence: an entry is for reading, and has to fit into a tag."""

MAX_HOLDERS = 50
"""Of the versions that shared a stage before, the newest are remembered: an entry has to fit into a tag."""


class Kind(StrEnum):
    """The sorts of entries."""

    PROMOTION = "promotion"
    ROLLBACK = "rollback"
    RESTORED = "restored"
    """What a helper that was overtaken had moved afterwards is put right."""
    DONE = "done"
    """The moves of an earlier entry are made."""
    TAKEN_OVER = "taken over"
    """Another process makes the moves of an earlier entry, whose own process may be dead."""
    ABANDONED = "abandoned"
    """The moves of an earlier entry cannot be made, and what was made of them was taken back."""
    OUTSIDE = "outside"
    """Something that moved without nighttrain."""
    CARRIED_OVER = "carried over"
    """A promotion from before there was a history, as its version's tags tell it."""
    APPROVED = "approved"
    REJECTED = "rejected"
    UNANSWERED = "not answered"
    ANSWER_REFUSED = "answer refused"
    """What a person said who was asked whether a version may be promoted; the last: one who was not asked."""
    ROLLOUT = "rollout"
    """A step of a rollout; alias and stage are moved by a promotion or a rollback of their own."""


NOTES = frozenset({Kind.APPROVED, Kind.REJECTED, Kind.UNANSWERED, Kind.ANSWER_REFUSED, Kind.ROLLOUT})
"""Kinds that move nothing."""

INTENTIONS = frozenset({Kind.PROMOTION, Kind.ROLLBACK, Kind.RESTORED})
"""Kinds that are written before what they say is done: another entry closes them."""


@dataclass(frozen=True)
class Move:
    """One move of an alias or of a version's stage.

    :param version: the version; ``None`` takes an alias away
    :param alias: the alias that goes to the version
    :param stage: the stage that the version goes to
    :param archive: the others in that stage go to Archived
    """

    version: str | None
    alias: str | None = None
    stage: str | None = None
    archive: bool = False

    def __str__(self) -> str:
        if self.alias is not None:
            return f"alias {self.alias} -> {self.version or 'none'}"
        return f"version {self.version} -> stage {self.stage}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry. Entries are never changed; what undoes one is an entry itself.

    :param number: 1, 2, 3 ... without a gap
    :param version: the version that it is about
    :param moves: what it moves, in this order
    :param back: what undoes it, in this order
    :param previous_version: who held the alias before (without an alias: the stage); ``None`` for nobody
    :param actor: a DAG's task, a user, a command
    :param approver: the person who was asked and agreed
    :param evidence: the gate's sentences
    :param dag_run: the DAG and its run
    :param at: when, ISO 8601 in UTC; for people: the order comes from the numbers
    :param undoes: numbers of the entries that it undoes; 0 stands for promotions from before the history
    :param finishes: the number of the entry that it closes
    :param takes_over: the number of the entry whose moves another process makes
    :param previous: the digest of the entry before; empty for the first
    :param model_created: when the registered model was made, in milliseconds since 1970, as MLflow says:
        tells it from another of the same name that was deleted; 0 where it is not known
    """

    number: int
    kind: Kind
    model: str
    version: str | None = None
    moves: tuple[Move, ...] = ()
    back: tuple[Move, ...] = ()
    previous_version: str | None = None
    actor: str = ""
    approver: str = ""
    reason: str = ""
    evidence: str = ""
    dag_run: str = ""
    at: str = ""
    undoes: tuple[int, ...] = ()
    finishes: int | None = None
    takes_over: int | None = None
    previous: str = ""
    model_created: int = 0

    @property
    def digest(self) -> str:
        """The sha256 of everything that the entry says."""
        return digest_of(self.to_json())

    @property
    def alias(self) -> str | None:
        """The alias that it moves; ``None`` where it moves none."""
        return next((move.alias for move in self.moves if move.alias is not None), None)

    @property
    def stage(self) -> str | None:
        """The stage that its version goes to; ``None`` where it stays."""
        found = (move.stage for move in self.moves if move.stage is not None and move.version == self.version)
        return next(found, None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without those that are as by default."""
        values = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.default is MISSING or getattr(self, item.name) != item.default
        }
        for name in ("moves", "back"):
            if name in values:
                values[name] = [_move_dict(move) for move in values[name]]
        return {**values, "kind": self.kind.value, **({"undoes": list(self.undoes)} if self.undoes else {})}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Entry:
        """Read what :meth:`to_dict` wrote; fields that this version does not know are left out.

        :raises ValueError, TypeError, KeyError: it is no entry
        """
        known = {item.name for item in fields(cls)}
        read: dict[str, Any] = {name: value for name, value in values.items() if name in known}
        read |= {"kind": Kind(values["kind"]), "undoes": tuple(values.get("undoes", ()))}
        for name in ("moves", "back"):
            read[name] = tuple(_read_move(move) for move in values.get(name, ()))
        for name in ("model", "actor", "approver", "reason", "evidence", "dag_run", "at", "previous"):
            _check(isinstance(read.get(name, ""), str), name)
        for name in ("version", "previous_version"):
            _check(_is_version(read.get(name)), name)
        numbers = (read.get("finishes"), read.get("takes_over"), *read["undoes"])
        for number in (*numbers, read.get("model_created", 0)):
            _check(number is None or isinstance(number, int), "a number")
        return cls(**read)

    def to_json(self) -> str:
        """The same text for the same entry, whoever writes it."""
        return json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def fitted(self) -> Entry:
        """The entry with its texts cut until it fits into a tag."""
        entry = self
        # Quotes and line breaks take more room in JSON, so the first limit may not do.
        for limit in (MAX_TEXT, MAX_TEXT // 2, MAX_TEXT // 4, 50):
            entry = replace(
                self,
                **{  # type: ignore[arg-type]
                    name: clip(getattr(self, name), limit)
                    for name in ("reason", "evidence", "actor", "approver", "dag_run")
                },
            )
            if len(entry.to_json()) <= MAX_RUN_TAG:
                break
        return entry


def _read_move(values: Mapping[str, Any]) -> Move:
    move = Move(**values)
    _check(_is_version(move.version), "a move's version")
    _check(move.alias is None or isinstance(move.alias, str), "a move's alias")
    _check(move.stage is None or move.stage in STAGES, "a move's stage")
    return move


def _is_version(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.isascii() and value.isdigit())


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"{what} is none")


def as_many_as_fit(moves: Sequence[Move]) -> tuple[Move, ...]:
    """The first of the moves, as many as leave room in an entry for what undoes them, and for its texts."""
    fitting: list[Move] = []
    room = MAX_RUN_TAG // 4
    for move in moves:
        room -= len(json.dumps(_move_dict(move)))
        if fitting and room < 0:
            break
        fitting.append(move)
    return tuple(fitting)


def digest_of(written: str) -> str:
    """The sha256 of an entry as it is written, whatever later versions of nighttrain added to it."""
    return hashlib.sha256(written.encode()).hexdigest()


def text(value: object) -> str:
    """A reason or evidence as an entry keeps it: a text, or plain values as JSON; redacted and clipped."""
    written = value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False, default=str)
    return clip(redact(written), MAX_TEXT)


def _move_dict(move: Move) -> dict[str, Any]:
    return {name: value for name, value in asdict(move).items() if name == "version" or value}
