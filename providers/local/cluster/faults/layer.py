"""The ASGI application in front of the API that carries faults out.

Without faults it costs one comparison per request.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from nighttrain.providers.local.cluster.faults.faults import Call, Effect, Fault, FaultPlan
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.objects import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Sub-resources of a namespace itself; any other third part of /namespaces/NAME/... is a kind inside it.
_OF_NAMESPACES = ("status", "finalize")


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
    """The call that a request is, by its method and path alone."""
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
