"""Get, list and watch, in the form the client asked for."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.store import EventType, Object, Record, Store, Watcher, encode
from nighttrain.providers.local.cluster.tables import tables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from nighttrain.providers.local.cluster.http.parameters import ListParameters
    from nighttrain.providers.local.cluster.http.routing import Target
    from nighttrain.providers.local.cluster.store.resources import ResourceType

# A watch without timeoutSeconds ends after this long or up to twice that, as a real one does, so that clients
# which cannot resume are found out.
_WATCH_SECONDS = 1800

# How often a bookmark tells an idle client where it stands.
_BOOKMARK_SECONDS = 60.0


class Form:
    """The representation a client accepts: whole objects, or rows of a table."""

    def __init__(self, accept: str, query: Mapping[str, str]) -> None:
        self.is_table = _wants_table(accept)
        self.include = query.get("includeObject") or "Metadata"

    def one(self, store: Store, resource: ResourceType, obj: Object, *, headers: bool = True) -> Object:
        """A table with the object as its only row."""
        about = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        return tables.table(resource, (obj,), about, now=store.clock(), headers=headers, include=self.include)


def _wants_table(accept: str) -> bool:
    """The first alternative that is served wins, as the header orders them.

    :raises ApiError: 406 when none is
    """
    for alternative in accept.replace(" ", "").split(","):
        media, *details = alternative.split(";")
        form = next((each for each in details if each.startswith("as=")), "")
        if media in ("", "*/*", "application/*", "application/json"):
            if form == "as=Table" and "g=meta.k8s.io" in details:
                return True
            if not form:
                return False
    message = "only the following media types are accepted: application/json"
    raise errors.ApiError(406, "NotAcceptable", message, {})


def get(store: Store, target: Target, form: Form) -> bytes:
    """One object's JSON.

    :raises ApiError: 404
    """
    record = store.record(target.resource, target.namespace, target.name)
    if record is None:
        raise errors.not_found(target.resource, target.name)
    record = record.of_version(target.resource.api_version)
    return encode(form.one(store, target.resource, record.object)) if form.is_table else record.encoded


def list_objects(store: Store, target: Target, asked: ListParameters, form: Form) -> bytes:
    """A page of a list. Later pages show the state of the first one.

    :raises ApiError: 400 for a continue token that is none, 410 for one or a version that is too old, 504 for
        a version that has not been yet
    """
    resource, revision = target.resource, store.revision
    if asked.token:
        revision, start = _read_token(asked.token)
        found = _records_at(store, target, revision)
        found = [record for record in found if _key(record) > start and _selected(record, asked)]
    else:
        if asked.match and asked.revision is None:
            why = "resourceVersionMatch is forbidden unless resourceVersion is provided"
            cause = errors.forbidden_value("resourceVersionMatch", why)
            raise errors.invalid_options("ListOptions", cause)
        if asked.revision and asked.revision > store.revision:
            raise errors.from_the_future(asked.revision, store.revision)
        if asked.match == "Exact" and asked.revision:
            revision = asked.revision
            found = _records_at(store, target, revision)
            found = [record for record in found if _selected(record, asked)]
        else:
            found = store.records(resource, target.namespace, labels=asked.labels, fields=asked.fields)
    metadata: dict[str, Any] = {"resourceVersion": str(revision)}
    if asked.limit and len(found) > asked.limit:
        rest = len(found) - asked.limit
        found = found[: asked.limit]
        metadata["continue"] = _token(revision, _key(found[-1]))
        if asked.labels is None and asked.fields is None:
            metadata["remainingItemCount"] = rest
    return _render(store, resource, found, metadata, form)


def _records_at(store: Store, target: Target, revision: int) -> list[Record]:
    """:raises ApiError: 410 when the history does not reach back that far"""
    try:
        return store.records_at(target.resource, target.namespace, revision)
    except errors.ApiError as error:
        raise errors.expired_list() from error


def _render(
    store: Store, resource: ResourceType, records: list[Record], metadata: dict[str, Any], form: Form
) -> bytes:
    found = [record.of_version(resource.api_version) for record in records]
    if form.is_table:
        objects = (record.object for record in found)
        rendered = tables.table(resource, objects, metadata, now=store.clock(), include=form.include)
        return encode(rendered)
    head = {"kind": resource.list_kind, "apiVersion": resource.api_version, "metadata": metadata}
    if resource.custom is not None:
        items_json = [record.encoded for record in found]
    else:
        # Items of a built-in kind do not repeat kind and apiVersion; what is left is the shared encoding.
        prefix = encode({"kind": resource.kind, "apiVersion": resource.api_version})[:-1] + b","
        items_json = [b"{" + record.encoded.removeprefix(prefix) for record in found]
    return encode(head)[:-1] + b',"items":[' + b",".join(items_json) + b"]}"


def _selected(record: Record, asked: ListParameters) -> bool:
    selectors = (asked.labels, asked.fields)
    return all(each.matches(record.object) for each in selectors if each is not None)


def _key(record: Record) -> tuple[str, str]:
    metadata = record.object["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _token(revision: int, last: tuple[str, str]) -> str:
    text = json.dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": "/".join(last) + "\0"})
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        fields = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, _, name = str(fields["start"]).rstrip("\0").rpartition("/")
        return int(fields["rv"]), (namespace, name)
    except (ValueError, KeyError, TypeError) as error:
        raise errors.bad_request(f"invalid continue token: continue key is not valid: {error}") from None


_NO_INITIAL_EVENTS = (
    "a watch stream was requested by the client but the required storage feature RequestWatchProgress is "
    "disabled"
)


class WatchStream:
    """The lines of one watch. Subscribes when made: nothing is missed before the first line is read."""

    def __init__(self, store: Store, target: Target, asked: ListParameters, form: Form) -> None:
        self._store = store
        self._resource = target.resource
        self._asked = asked
        self._form = form
        self._first_table = True
        self._refusal: errors.ApiError | None = None
        self._watcher: Watcher | None = None
        since = asked.revision
        try:
            if asked.initial_events:
                # As recorded; clients then list and watch.
                raise errors.ApiError(500, "InternalError", _NO_INITIAL_EVENTS)
            if since and since > store.revision:
                raise errors.from_the_future(since, store.revision)
            self._watcher = store.watch(
                target.resource, target.namespace or None, since, labels=asked.labels, fields=asked.fields
            )
        except errors.ApiError as error:
            # A watch that cannot start says so inside the stream, with status 200: clients look for it there.
            self._refusal = error
        self._revision = store.revision

    async def lines(self) -> AsyncIterator[bytes]:
        """JSON lines until the time is up, the server stops, or the client falls too far behind."""
        if self._refusal is not None or self._watcher is None:
            yield _line(EventType.ERROR, encode(self._refusal.status() if self._refusal else {}))
            return
        seconds = self._asked.timeout_seconds
        deadline = _now() + (seconds if seconds else _WATCH_SECONDS * random.uniform(1, 2))
        try:
            # Even an empty first piece sends the headers: the client knows that the watch stands.
            yield self._pending()
            async for piece in self._follow(self._watcher, deadline):
                yield piece
        except errors.ApiError as error:
            yield _line(EventType.ERROR, encode(error.status()))
        finally:
            self._watcher.close()

    async def _follow(self, watcher: Watcher, deadline: float) -> AsyncIterator[bytes]:
        while not watcher.closed:
            left = deadline - _now()
            if left <= 0:
                break
            if await watcher.wait(min(left, _BOOKMARK_SECONDS)):
                yield self._pending()
            elif self._asked.bookmarks and not watcher.closed:
                yield self._bookmark()

    def _pending(self) -> bytes:
        assert self._watcher is not None  # noqa: S101 - only called while subscribed
        lines = []
        for type_, record in self._watcher.drain():
            lines.append(_line(type_, self._body(record)))
            self._revision = max(self._revision, record.revision)
        return b"".join(lines)

    def _body(self, record: Record) -> bytes:
        record = record.of_version(self._resource.api_version)
        if not self._form.is_table:
            return record.encoded
        shown = self._form.one(self._store, self._resource, record.object, headers=self._first_table)
        self._first_table = False
        return encode(shown)

    def _bookmark(self) -> bytes:
        # With nothing pending, the watcher has seen everything: it stands where the store does.
        metadata: dict[str, Any] = {"resourceVersion": str(self._store.revision), "creationTimestamp": None}
        body = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        return _line(EventType.BOOKMARK, encode(body))


def _line(type_: EventType, body: bytes) -> bytes:
    return b'{"type":"' + type_.encode() + b'","object":' + body + b"}\n"


def _now() -> float:
    return asyncio.get_running_loop().time()
