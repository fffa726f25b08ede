"""The HTTP face: who may ask, what is asked, and the answer or the refusal."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from nighttrain.providers.local.cluster.http import bodies, discovery, parameters, reading, writing
from nighttrain.providers.local.cluster.http.parameters import ListParameters
from nighttrain.providers.local.cluster.http.patches import APPLY_PATCH, APPLY_REFUSED
from nighttrain.providers.local.cluster.http.peers import is_own_user
from nighttrain.providers.local.cluster.http.routing import Target, find_target, split
from nighttrain.providers.local.cluster.kinds.crds import CustomResources
from nighttrain.providers.local.cluster.kinds.pods import choose_container
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.resources import BUILT_IN, NAMESPACES, ResourceTable
from nighttrain.providers.local.cluster.store.store import Object, Store, encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from starlette.types import Receive, Scope, Send

_logger = logging.getLogger(__name__)

USER = "nighttrain"
_HEALTH = frozenset(("healthz", "readyz", "livez"))
_JSON = "application/json"

# A log that has nothing to say yet begins its answer after this long, so that followers see that it stands;
# refusals are known at once.
_FIRST_LOG_SECONDS = 0.05

_INTERACTIVE = {
    "exec": "running a command in a container",
    "attach": "attaching to a container",
    "portforward": "forwarding a port (a pod's address is reachable from this machine as it is)",
    "proxy": "a proxy (addresses of pods and Services are reachable from this machine as they are)",
    "binding": "binding a pod to a node (there is one node)",
    "ephemeralcontainers": "ephemeral containers",
    "resize": "resizing a pod",
}


class LogSource(Protocol):
    """The kubelet, as far as logs need it."""

    def open_log(self, pod: Object, container: str | None, **options: Any) -> AsyncIterator[bytes]: ...


class Api:
    """An ASGI application over a :class:`Store`.

    :param token: the bearer token that opens the API; None lets everybody in
    :param trust_own_user: a connection of the user who runs the server needs no token. They can read the
        kubeconfig anyway, and kubectl keeps tokens to itself where there is no TLS.
    :param forbidden_namespaces: where everything is refused with 403, as for a user without rights
    """

    def __init__(
        self,
        store: Store,
        *,
        token: str | None = None,
        table: ResourceTable | None = None,
        forbidden_namespaces: Collection[str] = (),
        logs: LogSource | None = None,
        trust_own_user: bool = False,
    ) -> None:
        self.logs = logs
        self._store = store
        self._token = token
        self._trust_own_user = trust_own_user
        self._table = table or ResourceTable(BUILT_IN)
        self._crds = CustomResources(store, self._table)
        self._discovery = discovery.Discovery(self._table)
        self._forbidden = frozenset(forbidden_namespaces)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except errors.ApiError as error:
            response = _refusal(error)
        except ClientDisconnect:
            return
        except Exception as error:
            _logger.exception("%s %s failed", request.method, request.url.path)
            message = f"Internal error occurred: {type(error).__name__}: {error}"
            response = _refusal(errors.ApiError(500, "InternalError", message))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        parts = split(request.scope["path"])
        if not parts:
            return _json(encode({"paths": ["/api", "/apis", "/healthz", "/livez", "/readyz", "/version"]}))
        if parts[0] in _HEALTH:
            return PlainTextResponse("ok")
        self._authenticate(request)
        self._crds.refresh()
        if parts[0] in ("api", "apis"):
            return await self._api(request, parts)
        if parts == ["version"]:
            return _json(encode(discovery.VERSION))
        if parts[:2] == ["openapi", "v3"]:
            return self._openapi(parts[2:])
        return _page_not_found()

    def _authenticate(self, request: Request) -> None:
        if self._token is None:
            return
        header = request.headers.get("authorization", "")
        if not header:
            if self._trust_own_user and _is_own_tool(request):
                return
            raise _anonymous(self._table, request)
        given = header.removeprefix("Bearer ").strip()
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            raise errors.unauthorized()

    def _openapi(self, parts: list[str]) -> Response:
        groups = self._table.groups()
        match parts:
            case []:
                return _json(encode(self._discovery.openapi_index()))
            case ["api", version] if version in groups.get("", ()):
                return _json(encode(self._discovery.openapi("", version)))
            case ["apis", group, version] if version in groups.get(group, ()):
                return _json(encode(self._discovery.openapi(group, version)))
        return _page_not_found()

    async def _api(self, request: Request, parts: list[str]) -> Response:
        if request.method == "GET":
            document = self._discovery.document(parts, request.headers.get("host", ""))
            if document is not None:
                return _json(encode(document))
        target = find_target(self._table, parts)
        if target is None:
            return _page_not_found()
        query = request.query_params
        watch = parameters.flag(query, "watch")
        verb = _verb(request.method, target, watch=watch)
        self._authorize(verb, target)
        if verb in ("get", "list", "watch"):
            return await self._read(request, verb, target)
        return await self._write(request, verb, target)

    def _authorize(self, verb: str, target: Target) -> None:
        space = target.name if target.resource is NAMESPACES else target.namespace
        if space in self._forbidden:
            raise _forbidden(USER, verb, target, space)

    async def _read(self, request: Request, verb: str, target: Target) -> Response:
        query = request.query_params
        if target.subresource == "log":
            return await self._log(request, target)
        store = self._store
        if target.subresource == "scale":
            found = store.get(target.resource, target.namespace, target.name)
            return _json(encode(writing.scale(found)))
        form = reading.Form(request.headers.get("accept", ""), query)
        if verb == "get":
            return _json(reading.get(store, target, form))
        asked = ListParameters.read(query, target.resource, target.name)
        if verb == "list":
            return _json(reading.list_objects(store, target, asked, form))
        stream = reading.WatchStream(store, target, asked, form)
        return StreamingResponse(stream.lines(), media_type=_JSON)

    async def _write(self, request: Request, verb: str, target: Target) -> Response:
        raw = await bodies.read(request)
        # Definitions may have changed while the body was on its way.
        self._crds.refresh()
        try:
            return _written(self._written(request, verb, target, raw))
        finally:
            self._crds.refresh()

    def _written(self, request: Request, verb: str, target: Target, raw: bytes) -> writing.Written:
        store = self._store
        query = dict(request.query_params)
        content_type = request.headers.get("content-type", "")
        if verb == "delete":
            options = writing.read_body(raw, content_type) if raw.strip() else None
            return writing.delete(store, target, options, query)
        if verb == "patch" and content_type.startswith(APPLY_PATCH):
            raise errors.unsupported_media_type(APPLY_REFUSED)
        if verb == "patch" and not content_type.split(";")[0].endswith("+json"):
            raise errors.unsupported_media_type()
        body = writing.read_body(raw, content_type)
        if target.subresource == "scale":
            patch_type = content_type if verb == "patch" else None
            return writing.write_scale(store, target, patch_type, body, query)
        if target.subresource == "eviction":
            return writing.evict(store, target, body, query)
        if verb == "create":
            return writing.create(store, target, body, query)
        if verb == "update":
            return writing.replace(store, target, body, query)
        return writing.patch(store, target, content_type, body, query)

    async def _log(self, request: Request, target: Target) -> Response:
        query = request.query_params
        pod = self._store.get(target.resource, target.namespace, target.name)
        container = choose_container(pod, query.get("container"))
        if not pod["spec"].get("nodeName"):
            return Response(status_code=204)
        if self.logs is None:
            raise errors.not_implemented("this server runs without a kubelet: there are no logs")
        pieces = self.logs.open_log(
            pod,
            container,
            follow=parameters.flag(query, "follow"),
            tail_lines=parameters.number(query, "tailLines"),
            since_seconds=parameters.number(query, "sinceSeconds"),
            since_time=query.get("sinceTime") or None,
            timestamps=parameters.flag(query, "timestamps"),
            limit_bytes=parameters.number(query, "limitBytes"),
            previous=parameters.flag(query, "previous"),
        )
        return _LogResponse(await _first_piece(pieces), pieces)


def _is_own_tool(request: Request) -> bool:
    """A local program of the server's user, and not a page in their browser: pages are told by the headers
    that browsers add, and names that point to loopback by the Host."""
    headers = request.headers
    if "origin" in headers or "referer" in headers or any(name.startswith("sec-fetch-") for name in headers):
        return False
    client, server = request.scope.get("client"), request.scope.get("server")
    if client is None or server is None or headers.get("host") != f"{server[0]}:{server[1]}":
        return False
    return is_own_user(client, server)


def _verb(method: str, target: Target, *, watch: bool) -> str:
    """The API's word for the request.

    :raises ApiError: 405 when the method means nothing there, 501 for what the embedded cluster does not do
    """
    if target.subresource:
        _check_subresource(target)
        verb = {"GET": "get", "PUT": "update", "PATCH": "patch"}.get(method, "")
        if target.subresource == "log" and verb != "get":
            verb = ""
        if target.subresource == "eviction":
            verb = "create" if method == "POST" else ""
    elif target.name:
        verb = {"GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, "")
        verb = "watch" if verb == "get" and watch else verb
    else:
        verb = {"GET": "list", "POST": "create"}.get(method, "")
        verb = "watch" if verb == "list" and watch else verb
        everywhere = target.resource.namespaced and not target.namespace
        if verb not in target.resource.verbs or (everywhere and verb == "create"):
            verb = ""
    if not verb:
        raise errors.method_not_allowed()
    return verb


def _check_subresource(target: Target) -> None:
    if target.subresource in target.resource.subresources:
        return
    if target.subresource in _INTERACTIVE:
        what = _INTERACTIVE[target.subresource]
        raise errors.not_implemented(f"the embedded cluster does not do {what}")
    raise errors.ApiError(404, "NotFound", "the server could not find the requested resource", {})


def _forbidden(user: str, verb: str, target: Target, space: str) -> errors.ApiError:
    resource = target.resource
    what = f"{resource.plural}/{target.subresource}" if target.subresource else resource.plural
    where = f'in the namespace "{space}"' if space else "at the cluster scope"
    why = f'User "{user}" cannot {verb} resource "{what}" in API group "{resource.group}" {where}'
    return errors.forbidden(resource, target.name, why)


def _anonymous(table: ResourceTable, request: Request) -> errors.ApiError:
    """A request without credentials is somebody's, who may do nothing."""
    path = request.scope["path"]
    parts = split(path)
    target = find_target(table, parts) if parts[0] in ("api", "apis") else None
    if target is None:
        message = f'forbidden: User "system:anonymous" cannot {request.method.lower()} path "{path}"'
        return errors.ApiError(403, "Forbidden", message, {})
    verb = _verb(request.method, target, watch=parameters.flag(request.query_params, "watch"))
    return _forbidden("system:anonymous", verb, target, target.namespace)


class _LogResponse(StreamingResponse):
    """A log, closed however the answer ends: its reader may leave before the first piece, or between two."""

    def __init__(self, first: asyncio.Future[bytes], pieces: AsyncIterator[bytes]) -> None:
        super().__init__(_joined(first, pieces), media_type="text/plain")
        self._first = first
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await _close_log(self._first, self._pieces)


async def _first_piece(pieces: AsyncIterator[bytes]) -> asyncio.Future[bytes]:
    """The first piece, there or on its way, once it is sure that no refusal comes instead of it."""
    first = asyncio.ensure_future(anext(pieces, b""))
    try:
        await asyncio.wait((first,), timeout=_FIRST_LOG_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        await _close_log(first, pieces)
        raise
    return first


async def _joined(first: asyncio.Future[bytes], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield await first
    async for piece in pieces:
        yield piece


async def _close_log(first: asyncio.Future[bytes], pieces: AsyncIterator[bytes]) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    close = getattr(pieces, "aclose", None)
    if close is not None:
        await close()


def _json(body: bytes, code: int = 200) -> Response:
    return Response(body, code, headers={"Content-Type": _JSON})


def _written(written: writing.Written) -> Response:
    response = _json(encode(written.body), written.code)
    for text in written.warnings:
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.append("Warning", f'299 - "{quoted}"')
    return response


def _refusal(error: errors.ApiError) -> Response:
    response = _json(encode(error.status()), error.code)
    for name, value in error.headers.items():
        response.headers[name] = value
    return response


def _page_not_found() -> Response:
    return PlainTextResponse("404 page not found\n", 404)
