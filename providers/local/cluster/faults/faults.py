"""Faults on request: what a cluster does to its clients on a bad day, scripted and repeatable.

A :class:`Fault` says what happens and to which call; a :class:`FaultPlan` holds the faults of one cluster and
a record of those that struck. :class:`FaultLayer` is the ASGI application in front of the API that carries
them out; without faults it costs one comparison per request.
"""

from __future__ import annotations

import asyncio
import enum
import json
import random
import socket
import struct
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.objects import encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A planned stall of a random plan: long enough to be seen, short enough for a test that really waits.
_RANDOM_STALL_SECONDS = 0.2

# Sub-resources of a namespace itself; any other third part of /namespaces/NAME/... is a kind inside it.
_OF_NAMESPACES = ("status", "finalize")


class Effect(enum.Enum):
    """What happens to a call."""

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

    @classmethod
    def random(
        cls,
        seed: int,
        number: int = 6,
        *,
        within: int = 20,
        verbs: tuple[str, ...] = ("get", "list", "create", "patch", "delete", "watch"),
        resource: str = "",
    ) -> FaultPlan:
        """Transient faults that a careful client survives; the same seed makes the same plan.

        :param number: how many
        :param within: each strikes one of the first so many calls of its verb
        """
        chance = random.Random(seed)
        return cls([_random_fault(chance, chance.choice(verbs), within, resource) for _ in range(number)])

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
        """How often the fault struck; None: all of them together."""
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
        """Whether a fault needs the name that only a creation's body tells."""
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


def _random_fault(chance: random.Random, verb: str, within: int, resource: str) -> Fault:
    aim: dict[str, Any] = {"verb": verb, "resource": resource, "nth": chance.randint(1, within)}
    if verb == "watch":
        after = chance.randint(0, 3)
        return chance.choice(
            (
                Fault.cut(after=after, **aim),
                Fault.cut(after=after, torn=True, **aim),
                Fault.expire(after=after, **aim),
                Fault.answer(503, **aim),
                Fault.compact(**aim),
            )
        )
    return chance.choice(
        (
            Fault.answer(429, retry_after=1, **aim),
            Fault.answer(500, **aim),
            Fault.answer(503, **aim),
            Fault.drop_reply(**aim),
            Fault.reset(**aim),
            Fault.stall(_RANDOM_STALL_SECONDS, **aim),
        )
    )


class FaultLayer:
    """The ASGI application in front of the API.

    :param compact: forgets the history
    :param evict: evicts the pods whose names match a pattern
    """

    def __init__(
        self,
        app: ASGIApp,
        plan: FaultPlan,
        *,
        compact: Callable[[], None],
        evict: Callable[[str], None],
    ) -> None:
        self._app = app
        self._plan = plan
        self._compact = compact
        self._evict = evict
        self._killed = False

    def kill(self) -> None:
        """Answer nobody any more: the process that this stands for is dead."""
        self._killed = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._killed and scope["type"] == "http":  # accepted before the port was closed
            await _Line(send).reset()
            return
        if self._plan.idle or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = call_of(scope)
        if call.verb == "create" and self._plan.reads_bodies:
            body = await _read(receive)
            call = Call(call.verb, call.resource, call.namespace, _name_in(body))
            receive = _again(body, receive)
        fault = self._plan.choose(call)
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await self._strike(fault, call, scope, receive, send)

    async def _strike(self, fault: Fault, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        line = _Line(send)
        match fault.effect:
            case Effect.ANSWER:
                await _refuse(fault, call, send)
                return
            case Effect.RESET:
                await line.reset()
                return
            case Effect.STALL:
                await self._plan.sleep(fault.seconds)
            case Effect.COMPACT:
                self._compact()
            case Effect.EVICT:
                self._evict(fault.pod)
            case Effect.DROP_REPLY:
                await self._app(scope, receive, line.drop)
                await line.close()
                return
            case Effect.CUT | Effect.EXPIRE:
                send = _Cut(fault, line)
        await self._app(scope, receive, send)


def reset(transport: asyncio.Transport) -> None:
    """Break the connection with RST."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        # With a linger time of zero the kernel sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class _Line:
    """The connection below one answer. ASGI has no word for breaking it, so this asks the server's own object
    that the ``send`` is a method of."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self._transport: asyncio.Transport = getattr(send, "__self__").transport  # noqa: B009 - not in ASGI
        self._streams = False

    async def reset(self) -> None:
        reset(self._transport)
        await self._noticed()

    async def close(self) -> None:
        self._transport.close()
        await self._noticed()

    async def drop(self, message: Message) -> None:
        """Takes an answer and keeps it. A stream never ends by itself: it is broken at its first piece."""
        if message["type"] == "http.response.body" and message.get("more_body"):
            await self.close()

    async def _noticed(self) -> None:
        # The server learns of the loss in the next turns of the loop; until then it would write a 500.
        for _ in range(3):
            await asyncio.sleep(0)


class _Cut:
    """A ``send`` that ends the answer after so many lines."""

    def __init__(self, fault: Fault, line: _Line) -> None:
        self._fault = fault
        self._line = line
        self._left = fault.after
        self._over = False

    async def __call__(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] != "http.response.body":
            headers = [each for each in message["headers"] if each[0].lower() != b"content-length"]
            await self._line.send({**message, "headers": headers})
            return
        kept: list[bytes] = []
        rest = message.get("body", b"")
        while self._left and rest:
            whole, newline, rest = rest.partition(b"\n")
            kept.append(whole + newline)
            self._left -= 1
        if self._left:
            await self._line.send({**message, "body": b"".join(kept)})
            return
        await self._end(b"".join(kept), rest)

    async def _end(self, kept: bytes, rest: bytes) -> None:
        if self._fault.effect is Effect.EXPIRE:
            self._over = True
            status = errors.ApiError(410, "Expired", "The resourceVersion for the provided watch is too old.")
            kept += b'{"type":"ERROR","object":' + encode(status.status()) + b"}\n"
            await self._line.send({"type": "http.response.body", "body": kept, "more_body": False})
            return
        line = rest.partition(b"\n")[0]
        if self._fault.torn and not line:
            if kept:
                await self._line.send({"type": "http.response.body", "body": kept, "more_body": True})
            return
        self._over = True
        if self._fault.torn:
            kept += line[: len(line) // 2]
        await self._line.send({"type": "http.response.body", "body": kept, "more_body": True})
        await self._line.close()


def call_of(scope: Scope) -> Call:
    """What the request asks for, by its method and path alone."""
    parts = [unquote(part) for part in scope["path"].split("/") if part]
    method = scope["method"]
    start = {"api": 2, "apis": 3}.get(parts[0], 0) if parts else 0
    if not start or len(parts) <= start:
        return Call(method.lower(), scope["path"])
    rest, namespace = parts[start:], ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in _OF_NAMESPACES:
        namespace, rest = rest[1], rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    resource = f"{rest[0]}/{rest[2]}" if len(rest) > 2 else rest[0]
    verbs = {"GET": "get" if name else "list", "POST": "create", "PUT": "update", "PATCH": "patch"}
    verbs["DELETE"] = "delete" if name else "deletecollection"
    verb = verbs.get(method, method.lower())
    if verb in ("get", "list") and _is_watch(scope["query_string"]):
        verb = "watch"
    return Call(verb, resource, namespace, name)


def _is_watch(query: bytes) -> bool:
    return any(each.lower() in (b"watch=true", b"watch=1", b"watch=t") for each in query.split(b"&"))


_REASONS = {
    400: ("BadRequest", "the request was refused on request of a fault"),
    401: ("Unauthorized", "Unauthorized"),
    403: ("Forbidden", 'User "nighttrain" cannot {verb} resource "{resource}"'),
    404: ("NotFound", '{resource} "{name}" not found'),
    409: ("Conflict", f'Operation cannot be fulfilled on {{resource}} "{{name}}": {errors.MODIFIED}'),
    410: ("Expired", "The resourceVersion for the provided list is too old."),
    429: ("TooManyRequests", "Too many requests, please try again later."),
    500: ("InternalError", "Internal error occurred: etcdserver: request timed out"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "the server was unable to return a response in the time allotted"),
}


async def _refuse(fault: Fault, call: Call, send: Send) -> None:
    reason, message = _REASONS.get(fault.code, ("Unknown", "the server has refused the request"))
    details: dict[str, Any] = {"name": call.name, "kind": call.resource}
    headers = [(b"content-type", b"application/json")]
    if fault.retry_after is not None:
        details["retryAfterSeconds"] = fault.retry_after
        headers.append((b"retry-after", str(fault.retry_after).encode()))
    text = message.format(verb=call.verb, resource=call.resource, name=call.name)
    body = encode(errors.ApiError(fault.code, reason, text, details).status())
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": fault.code, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that tells the body once more, then what the connection says."""
    told = False

    async def tell() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return tell


def _name_in(body: bytes) -> str:
    try:
        metadata = json.loads(body)["metadata"]
        return str(metadata.get("name") or metadata.get("generateName") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
