"""Faults on request: what a cluster does to its clients on a bad day, scripted and repeatable.

A :class:`Fault` says what happens and to which call; a :class:`FaultPlan` holds the faults of one cluster and
a record of those that struck. :mod:`~nighttrain.providers.local.cluster.faults.layer` carries them out.
"""

from __future__ import annotations

import asyncio
import enum
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


class Effect(enum.Enum):
    """The effect of a fault on a call."""

    ANSWER = "answer"
    DROP_REPLY = "drop_reply"
    STALL = "stall"
    RESET = "reset"
    CUT = "cut"
    EXPIRE = "expire"
    COMPACT = "compact"
    EVICT = "evict"

    def __repr__(self) -> str:
        # So that a fault's repr is the expression that makes it.
        return f"Effect.{self.name}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault and its aim. Made by the class methods; all of them take the aim's fields by name.

    :param verb: ``get``, ``list``, ``watch``, ``create``, ``update``, ``patch``, ``delete``,
        ``deletecollection``; outside the API the method in small letters. "" means any
    :param resource: the plural as in the URL, or ``pods/log`` and the like; a path such as ``/version``
        outside the API; patterns as in a shell (``pods*``). "" means any
    :param name: pattern of the object's name; a creation's is the one in its body (or its generateName). A
        watch or list of one name by field selector has none. "" means any
    :param nth: the first of the matching calls that is hit, counted from 1
    :param count: how many calls in a row from there; None: all of them
    :param code: HTTP status of an answer
    :param retry_after: whole seconds in the ``Retry-After`` header of an answer; None: no header
    :param seconds: length of a stall
    :param after: complete lines that a cut answer still delivers
    :param torn: a cut answer ends in the middle of the next line
    :param pod: pattern of the names of the pods that are evicted
    """

    effect: Effect
    verb: str = ""
    resource: str = ""
    name: str = ""
    nth: int = 1
    count: int | None = 1
    code: int = 0
    retry_after: int | None = None
    seconds: float = 0.0
    after: int = 0
    torn: bool = False
    pod: str = ""

    def __post_init__(self) -> None:
        if self.nth < 1 or (self.count is not None and self.count < 1):
            raise ValueError("nth and count are counted from 1")
        if self.effect is Effect.ANSWER and not 400 <= self.code <= 599:
            raise ValueError(f"a refusal has a code from 400 to 599, not {self.code}")
        if self.effect is Effect.EVICT and not self.pod:
            raise ValueError("name the pod to evict (a pattern; * means all)")

    @classmethod
    def answer(cls, code: int, *, retry_after: int | None = None, **aim: Any) -> Fault:
        """Refuse the call, without doing it, in the API's own form."""
        return cls(Effect.ANSWER, code=code, retry_after=retry_after, **aim)

    @classmethod
    def drop_reply(cls, **aim: Any) -> Fault:
        """Do the work, and close the connection instead of answering."""
        return cls(Effect.DROP_REPLY, **aim)

    @classmethod
    def stall(cls, seconds: float, **aim: Any) -> Fault:
        """Do nothing for a while, then the work."""
        return cls(Effect.STALL, seconds=seconds, **aim)

    @classmethod
    def reset(cls, **aim: Any) -> Fault:
        """Reset the connection (TCP RST) without doing the work."""
        return cls(Effect.RESET, **aim)

    @classmethod
    def cut(cls, *, after: int = 0, torn: bool = False, **aim: Any) -> Fault:
        """Close the connection of a watch or a log after so many lines (or halfway through the next)."""
        return cls(Effect.CUT, after=after, torn=torn, **aim)

    @classmethod
    def expire(cls, *, after: int = 0, **aim: Any) -> Fault:
        """End a watch, after so many events, with the ERROR event of a history that was compacted (410)."""
        return cls(Effect.EXPIRE, after=after, **{"verb": "watch", **aim})

    @classmethod
    def compact(cls, **aim: Any) -> Fault:
        """Forget the history before the call: watches and continue tokens from earlier get 410."""
        return cls(Effect.COMPACT, **aim)

    @classmethod
    def evict(cls, pod: str, **aim: Any) -> Fault:
        """Evict the pods of this name, as the eviction API does; then do the call's work."""
        return cls(Effect.EVICT, pod=pod, **aim)

    def aims_at(self, call: Call) -> bool:
        return (
            self.verb in ("", call.verb)
            and (not self.resource or fnmatchcase(call.resource, self.resource))
            and (not self.name or fnmatchcase(call.name, self.name))
        )


@dataclass(frozen=True, slots=True)
class Call:
    """A request as faults see it."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that struck, and the call it hit."""

    fault: Fault
    call: Call


@dataclass(slots=True, eq=False)
class _Armed:
    fault: Fault
    seen: int = 0

    def takes(self, call: Call) -> bool:
        """Count the call if it is meant; whether it is hit."""
        fault = self.fault
        if not fault.aims_at(call):
            return False
        self.seen += 1
        return self.seen >= fault.nth and (fault.count is None or self.seen < fault.nth + fault.count)

    @property
    def spent(self) -> bool:
        fault = self.fault
        return fault.count is not None and self.seen >= fault.nth + fault.count - 1


@dataclass(eq=False)
class FaultPlan:
    """The faults of one cluster, and what they hit. Any thread may use it.

    A call is hit by at most one fault, the one added first; the others do not count that call. So three
    faults with one aim strike three calls in a row.

    :param sleep: waits, for stalls; replaced in tests that do not want to
    """

    faults: Iterable[Fault] = ()
    hits: list[Hit] = field(default_factory=list)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        self._armed = [_Armed(fault) for fault in self.faults]
        self._struck = threading.Condition()

    def add(self, *faults: Fault) -> None:
        """Arm faults; their calls are counted from now on."""
        with self._struck:
            self._armed = [*self._armed, *(_Armed(fault) for fault in faults)]

    def clear(self) -> None:
        """Disarm everything. The record of hits stays."""
        with self._struck:
            self._armed = []

    @property
    def pending(self) -> list[Fault]:
        """The faults that may still strike."""
        return [armed.fault for armed in self._armed]

    def struck(self, fault: Fault | None = None) -> int:
        """The number of times the fault struck; None: all of them together."""
        return sum(1 for hit in list(self.hits) if fault is None or hit.fault == fault)

    def wait_for(self, fault: Fault, times: int = 1, timeout: float = 10.0) -> bool:
        """Wait, in a thread that is not the cluster's, until the fault struck so often; whether it did."""
        with self._struck:
            return self._struck.wait_for(lambda: self.struck(fault) >= times, timeout)

    @property
    def idle(self) -> bool:
        return not self._armed

    @property
    def reads_bodies(self) -> bool:
        """True if a fault needs the name that only a creation's body tells."""
        return any(each.fault.name and each.fault.verb in ("", "create") for each in self._armed)

    def choose(self, call: Call) -> Fault | None:
        """The fault that hits this call. Counts it, and records the hit."""
        with self._struck:
            for armed in self._armed:
                if armed.takes(call):
                    if armed.spent:
                        self._armed = [each for each in self._armed if each is not armed]
                    self.hits.append(Hit(armed.fault, call))
                    self._struck.notify_all()
                    return armed.fault
        return None
