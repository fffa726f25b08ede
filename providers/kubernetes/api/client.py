"""One pooled async client per cluster. Plain dictionaries go in and come out."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from nighttrain.providers.errors import ClusterRequestError, ClusterUnreachableError, WatchExpiredError
from nighttrain.providers.kubernetes.api.calls import Asked, Call
from nighttrain.providers.kubernetes.api.connection import ClusterConfig
from nighttrain.providers.kubernetes.api.refusals import to_error
from nighttrain.providers.kubernetes.api.resources import (
    CONFIGMAPS,
    DEPLOYMENTS,
    EVENTS,
    JOBS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICES,
    Resource,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nighttrain.providers.kubernetes.api.transport import Transport

__all__ = [
    "CONFIGMAPS",
    "DEPLOYMENTS",
    "EVENTS",
    "JOBS",
    "NAMESPACES",
    "PODS",
    "SECRETS",
    "SERVICES",
    "ClusterClient",
    "ClusterConfig",
    "Resource",
    "WatchEvent",
    "shared_client",
]

# Five tries span about four seconds: an API server behind a load balancer fails over in that time, and a
# mistyped address is still reported before its author looks away.
ATTEMPTS = 5
# What the API server allows a request that is not a watch; so long may a log that is not followed be silent.
LOG_SILENCE_SECONDS = 60.0
# So long does an API server wait for an answer that it passes on.
REQUEST_SILENCE_SECONDS = 60.0
# A continue token lives for minutes, and a list begun anew comes in one answer from most servers: one that
# expires for the third time comes from a server that cannot keep up.
LIST_ROUNDS = 3
# The server closes a watch after timeoutSeconds; silence this much longer means that the connection is dead.
WATCH_GRACE_SECONDS = 15.0
# A log line longer than this reaches the sink in pieces: progress bars without line feeds must not pile up.
LOG_LINE_LIMIT = 64 * 1024


MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True)
class WatchEvent:
    """One change of a watched object: ``type`` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: dict[str, Any]


class ClusterClient:
    """Talks to one API server over one pooled session.

    Every method raises only errors of :mod:`nighttrain.providers.errors`. Calls that are safe to repeat are
    repeated on 429, 500, 502, 503, 504 and lost connections, with jitter, honouring Retry-After; ``create``
    is among them because names are chosen by the caller, so that a repeated call answers AlreadyExists.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @classmethod
    async def open(cls, config: ClusterConfig, *, attempts: int = ATTEMPTS) -> ClusterClient:
        """Load the configuration and make the session; the server is not asked anything yet.

        :raises ConfigurationError: the configuration cannot be used
        :raises ClusterUnreachableError: its certificates cannot be used
        """
        # Heavy: whoever names a client in an annotation, or a configuration, does not need it.
        from nighttrain.providers.kubernetes.api.transport import Transport

        return cls(await Transport.open(config, attempts=attempts))

    async def close(self) -> None:
        """Close the session and its connections."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def namespace(self) -> str:
        """The connection's, else the kubeconfig context's, else ``default``."""
        return self._transport.namespace

    @property
    def cluster_time(self) -> float | None:
        """The API server's clock in seconds since 1970, about; ``None`` before its first answer."""
        return self._transport.cluster_time

    @property
    def server(self) -> str:
        """The API server's URL, for messages."""
        return self._transport.server

    async def create(
        self, resource: Resource, namespace: str | None, body: dict[str, Any], *, dry_run: bool = False
    ) -> dict[str, Any]:
        """Create an object; unknown fields are an error.

        :raises ObjectExistsError: the name is taken, possibly by an earlier try of this very call
        """
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        name = (body.get("metadata") or {}).get("name")
        asked = self._asked("create", resource, namespace, name)
        call = Call(asked, "POST", resource.path(namespace), query, body, safe_to_repeat=name is not None)
        return await self._transport.answer(call)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        """Read an object.

        :raises ObjectNotFoundError: there is none of that name
        """
        asked = self._asked("get", resource, namespace, name)
        return await self._transport.answer(Call(asked, "GET", resource.path(namespace, name)))

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int | None = None,
    ) -> dict[str, Any]:
        """The List object, complete however many answers it takes.

        :param limit: how many objects one answer may hold; a server may send fewer of its own accord
        :raises WatchExpiredError: the rest was too old to be read, time and again
        """
        for round_ in range(1, LIST_ROUNDS + 1):
            # A list that expired half-way begins anew, in one answer if the server likes.
            size = limit if round_ == 1 else None
            found: list[Any] = []
            try:
                async for page in self.pages(
                    resource,
                    namespace,
                    label_selector=label_selector,
                    field_selector=field_selector,
                    limit=size,
                ):
                    found += page.get("items") or []
            except WatchExpiredError:
                if round_ == LIST_ROUNDS:
                    raise
                continue
            rest = ("continue", "remainingItemCount")
            meta = {key: held for key, held in (page.get("metadata") or {}).items() if key not in rest}
            return {**page, "metadata": meta, "items": found}
        raise AssertionError("the last round returns or raises")

    async def pages(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """One List object after the other until the last, as the server divides them.

        :raises WatchExpiredError: the rest is too old to be read: begin anew
        """
        query = _selectors(label_selector, field_selector)
        if limit is not None:
            query["limit"] = str(limit)
        asked = self._asked("list", resource, namespace)
        while True:
            page = await self._transport.answer(Call(asked, "GET", resource.path(namespace), query))
            yield page
            token = str((page.get("metadata") or {}).get("continue") or "")
            if not token:
                return
            if token == query.get("continue"):
                raise ClusterRequestError(
                    f"{asked}: {self.server} answers each page with the same continue token: is it a proxy "
                    "that drops the query?",
                    status=200,
                )
            query["continue"] = token

    async def replace(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: dict[str, Any],
    ) -> dict[str, Any]:
        """Write an object whole; guarded by its resourceVersion where the body has one.

        :raises ObjectConflictError: it changed since it was read
        """
        asked = self._asked("update", resource, namespace, name)
        path = resource.path(namespace, name)
        return await self._transport.answer(Call(asked, "PUT", path, {"fieldValidation": "Strict"}, body))

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Any,
        *,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """Change part of an object, by a merge patch: that is safe to repeat.

        :param subresource: change this part of it instead, e.g. ``status``
        """
        query = {"fieldValidation": "Strict", "fieldManager": "nighttrain"}
        asked = self._asked("patch", resource, namespace, name, subresource)
        path = resource.path(namespace, name, subresource)
        return await self._transport.answer(Call(asked, "PATCH", path, query, body, MERGE_PATCH))

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Foreground",
    ) -> None:
        """Ask for an object's deletion; it may take its time to go.

        :param uid: delete only the object with this uid
        :param resource_version: delete it only if it has not changed since it had this version
        :raises ObjectNotFoundError: it is gone already
        :raises ObjectConflictError: another object has that name now, or it has changed
        """
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if any(preconditions.values()):
            body["preconditions"] = {name: value for name, value in preconditions.items() if value}
        asked = self._asked("delete", resource, namespace, name)
        await self._transport.answer(Call(asked, "DELETE", resource.path(namespace, name), body=body))

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 300,
    ) -> AsyncIterator[WatchEvent]:
        """One watch request; it ends when the server closes it. Resuming is the caller's part.

        :param timeout_seconds: how long the server keeps the stream open. Five minutes is the least an API
            server chooses by itself.
        :raises WatchExpiredError: ``resource_version`` is too old; list again
        :raises ClusterUnreachableError: the connection was lost, or fell silent
        """
        query = _selectors(label_selector, field_selector) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        }
        asked = self._asked("watch", resource, namespace)
        silence = timeout_seconds + WATCH_GRACE_SECONDS
        call = Call(asked, "GET", resource.path(namespace), query)
        async with self._transport.stream(call, silence) as chunks:
            async for line in _lines(chunks, limit=None):
                yield _watch_event(asked, line)

    async def logs(
        self,
        namespace: str,
        pod: str,
        *,
        container: str | None = None,
        follow: bool = False,
        since_time: str | None = None,
        timestamps: bool = False,
        tail_lines: int | None = None,
    ) -> AsyncIterator[str]:
        """A container's log, line by line; nothing for a pod that is not scheduled yet.

        :param since_time: an RFC 3339 time; the server looks at its whole seconds only
        :raises ClusterRequestError: the container has not started, or there is none of that name
        """
        given = {
            "container": container,
            "follow": "true" if follow else None,
            "sinceTime": since_time,
            "timestamps": "true" if timestamps else None,
            "tailLines": None if tail_lines is None else str(tail_lines),
        }
        query = {name: value for name, value in given.items() if value is not None}
        asked = self._asked("get", PODS, namespace, pod, "log")
        # A silent training run is healthy: a followed log may be still for as long as it likes.
        silence = None if follow else LOG_SILENCE_SECONDS
        call = Call(asked, "GET", PODS.path(namespace, pod, "log"), query)
        async with self._transport.stream(call, silence) as chunks:
            async for line in _lines(chunks, limit=LOG_LINE_LIMIT):
                yield line.decode("utf-8", "replace")

    async def ask_service(self, namespace: str, service: str, port: str, path: str, body: Any) -> bytes:
        """Send JSON to a Service through the API server, from wherever that is reached; once.

        :param port: the name of the Service's port
        :raises ObjectNotFoundError: no such Service, or an API server without such a way
        :raises ClusterForbiddenError: ``create`` on ``services/proxy`` is not granted
        :raises ClusterRequestError: the Service has no ready pod, or answers with this status
        """
        asked = self._asked("create", SERVICES, namespace, service, "proxy")
        where = f"{SERVICES.path(namespace, f'{service}:{port}', 'proxy')}/{path.lstrip('/')}"
        # The answer is the Service's own, whatever its form.
        async with self._transport.stream(
            Call(asked, "POST", where, body=body), REQUEST_SILENCE_SECONDS
        ) as chunks:
            return b"".join([chunk async for chunk in chunks])

    def _asked(
        self,
        verb: str,
        resource: Resource,
        namespace: str | None,
        name: str | None = None,
        subresource: str | None = None,
    ) -> Asked:
        what = resource.plural if subresource is None else f"{resource.plural}/{subresource}"
        return Asked(verb, what, namespace if resource.namespaced else None, name, self.server)


def _code(status: dict[str, Any]) -> int:
    code = status.get("code")
    return code if isinstance(code, int) else 500


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    query = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in query.items() if value}


def _watch_event(asked: Asked, line: bytes) -> WatchEvent:
    try:
        event = json.loads(line)
        kind, content = str(event["type"]), dict(event["object"])
    except (ValueError, KeyError, TypeError) as error:
        # Half a line is what a connection cut in the middle leaves behind.
        raise ClusterUnreachableError(f"{asked}: the stream from {asked.server} was cut") from error
    if kind == "ERROR":
        raise to_error(asked, _code(content), content)
    return WatchEvent(kind, content)


async def _lines(chunks: AsyncIterator[bytes], *, limit: int | None) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            if line or limit is not None:
                yield line
        if limit is not None and len(rest) > limit:
            yield rest
            rest = b""
    if rest:
        yield rest


class _Shared:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.client: ClusterClient | None = None


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def shared_client(config: ClusterConfig) -> AsyncIterator[ClusterClient]:
    """The client of this configuration in the running loop: made for the first user, closed after the last.

    All tasks of a triggerer share one session, and with it the TLS handshakes.
    """
    clients = _shared.setdefault(asyncio.get_running_loop(), {})
    entry = clients.setdefault(config.key, _Shared())
    entry.users += 1
    try:
        async with entry.lock:
            if entry.client is None:
                entry.client = await ClusterClient.open(config)
        yield entry.client
    finally:
        entry.users -= 1
        if entry.users == 0:
            if clients.get(config.key) is entry:
                del clients[config.key]
            if entry.client is not None:
                await entry.client.close()
