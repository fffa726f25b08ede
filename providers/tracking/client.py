"""MLflow's REST API: one pooled async client, with retries, credentials and typed errors.

Paths are relative to ``api/2.0/mlflow/``; a path that starts with ``/`` is relative to the server's root.
"""

from __future__ import annotations

import dataclasses
import ssl
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import stamina

from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingBusyError,
    TrackingRequestError,
    TrackingUnreachableError,
)
from nighttrain.providers.retries import say_retries_plainly
from nighttrain.providers.tracking.call_errors import (
    missing_field_error,
    no_answer_error,
    no_json_error,
    refusal_error,
)
from nighttrain.providers.tracking.config import (
    WORKSPACE_HEADER,
    TrackingConfig,
    authorization,
    workspace_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from types import TracebackType

__all__ = ["MLflowClient", "TrackingConfig"]

API = "/api/2.0/mlflow/"

RETRY_ATTEMPTS = 10
"""With stamina's back-off this many tries fit into RETRY_SECONDS."""

_RETRY_AFTER_MAX = 10.0
"""A server that asks for more than this gets asked earlier: the retry budget is 45 seconds."""

_LOOPBACK = ("localhost", "127.", "::1")

T = TypeVar("T")


class _Answer(dict[str, Any]):
    """MLflow's JSON; a field that is missing though MLflow always sends it raises NotMLflowError."""

    def __init__(self, values: Mapping[str, Any], config: TrackingConfig, path: str) -> None:
        super().__init__({name: value for name, value in values.items() if value is not None})
        self._asked = config, path

    def __missing__(self, name: str) -> Any:
        raise missing_field_error(*self._asked, name)


class MLflowClient:
    """One MLflow server. Use as an async context manager, or call :meth:`aclose` at the end.

    Nothing is sent before the first call. Belongs to the event loop it is used in.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self.config = config
        self.uri = config.uri
        """The server's address without credentials: safe to show."""
        self._http: httpx.AsyncClient | None = None
        self._registry: MLflowClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. The client may be used again afterwards; it opens new ones."""
        registry, self._registry = self._registry, None
        if registry is not None:
            await registry.aclose()
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def for_registry(self) -> MLflowClient:
        """The client of the model registry: itself, unless ``registry_uri`` names another server.

        Closed together with this one.
        """
        if not self.config.registry_uri or self.config.registry_uri == self.config.uri:
            return self
        if self._registry is None:
            config = dataclasses.replace(self.config, uri=self.config.registry_uri, registry_uri=None)
            self._registry = MLflowClient(config)
        return self._registry

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """GET, decoded. ``None`` values in ``params`` are left out; lists are repeated.

        :raises TrackingError: MLflow does not answer, or refuses; the same for every verb
        """
        return await self._call("GET", path, params=params)

    async def post(self, path: str, body: Mapping[str, Any], *, idempotent: bool = True) -> dict[str, Any]:
        """POST, decoded.

        :param idempotent: pass ``False`` for calls that create something: they are repeated only while it is
            certain that the server did not act on them.
        """
        return await self._call("POST", path, body=body, idempotent=idempotent)

    async def search(
        self, kind: str, asked: Mapping[str, Any], *, found_as: str | None = None
    ) -> list[dict[str, Any]]:
        """Every object that a search finds, however many pages they take.

        :param kind: ``runs``, ``experiments`` or ``logged-models``
        :param found_as: what the answer calls them; as ``kind``, by default
        :raises TrackingRequestError: the pages have no end
        """
        found: list[dict[str, Any]] = []
        token, seen = None, {""}
        while True:
            answer = await self.post(f"{kind}/search", {**asked, "page_token": token})
            found += answer.get(found_as or kind, ())
            token = answer.get("next_page_token")
            if not token:
                return found
            if token in seen:
                raise TrackingRequestError(
                    f"MLflow at {self.uri}, {kind}/search: a page leads back to itself"
                )
            seen.add(token)

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PATCH, decoded."""
        return await self._call("PATCH", path, body=body)

    async def delete(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """DELETE with a JSON body, decoded."""
        return await self._call("DELETE", path, body=body)

    async def upload(
        self, method: str, path: str, content: bytes, *, params: Mapping[str, Any] | None = None
    ) -> None:
        """Send a file's bytes. The same bytes to the same place again are fine, so it is repeated."""

        async def once() -> None:
            try:
                response = await self._open().request(
                    method, self._url(path), params=_present(params), content=content
                )
            except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
                raise await no_answer_error(self.config, error) from error
            if not response.is_success:
                raise refusal_error(self.config, response, path)

        await self.repeating(once)

    async def stream(self, path: str, params: Mapping[str, Any] | None = None) -> AsyncIterator[bytes]:
        """The body in pieces, never whole in memory.

        It is not repeated here, since a caller that folds the bytes has to start over: wrap the fold in
        :meth:`repeating`.

        :raises TrackingError: MLflow does not answer, or refuses
        """
        try:
            async with self._open().stream(
                "GET", self._url(path), params=_present(params), headers={"Accept-Encoding": "identity"}
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise refusal_error(self.config, response, path)
                async for piece in response.aiter_bytes():
                    yield piece
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise await no_answer_error(self.config, error) from error

    async def repeating(
        self, call: Callable[[], Awaitable[T]], *, idempotent: bool = True, attempts: int | None = None
    ) -> T:
        """Run ``call``, and repeat it with growing pauses while MLflow is away or overloaded.

        :param idempotent: ``False`` repeats it only while it is certain that the server did not act on it
        :param attempts: calls in all; the whole takes at most ``retry_seconds``
        :raises TrackingError: the last call's
        """

        def again(error: Exception) -> bool | float:
            if isinstance(error, TrackingBusyError):
                # A database that is away answers 503; INTERNAL_ERROR is a fault in MLflow that no second try
                # mends.
                if error.error_code == "INTERNAL_ERROR" or not (idempotent or error.status == 429):
                    return False
                return True if error.retry_after is None else min(error.retry_after, _RETRY_AFTER_MAX)
            if isinstance(error, TrackingUnreachableError):
                return idempotent or _never_sent(error)
            return False

        say_retries_plainly()
        seconds = self.config.retry_seconds
        async for attempt in stamina.retry_context(
            on=again,
            attempts=(attempts or RETRY_ATTEMPTS) if seconds > 0 else 1,
            timeout=seconds if seconds > 0 else None,
        ):
            with attempt:
                return await call()
        raise AssertionError("unreachable")  # pragma: no cover

    async def ping(self) -> None:
        """Check address, allowed host and credentials by one cheap call, which is not repeated.

        :raises TrackingError: with what to check
        """
        await self._once("GET", "experiments/search", params={"max_results": 1})
        registry = self.for_registry()
        if registry is not self:
            await registry._once("GET", "registered-models/search", params={"max_results": 1})

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        idempotent: bool = True,
    ) -> dict[str, Any]:
        async def once() -> dict[str, Any]:
            return await self._once(method, path, params=params, body=body)

        return await self.repeating(once, idempotent=idempotent)

    async def _once(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        try:
            response = await self._open().request(
                method,
                self._url(path),
                params=_present(params),
                json=None if body is None else _present(body),
            )
        except UnicodeError as error:
            raise ConfigurationError(
                path, None, "a text has half of a surrogate pair, which no request can carry: remove it"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise await no_answer_error(self.config, error) from error
        if not response.is_success:
            raise refusal_error(self.config, response, path)
        try:
            answer = response.json() if response.content else {}
        except ValueError as error:
            raise no_json_error(self.config, response, path) from error
        return _Answer(answer if isinstance(answer, dict) else {"value": answer}, self.config, path)

    def _open(self) -> httpx.AsyncClient:
        if self._http is None:
            config = self.config
            headers = {"User-Agent": "nighttrain"}
            auth = httpx.BasicAuth(config.username, config.password or "") if config.username else None
            if auth is None and config.token:
                headers["Authorization"] = f"Bearer {config.token}"
            if workspace := workspace_of(config):
                headers[WORKSPACE_HEADER] = workspace
            host = urlsplit(config.uri).hostname or ""
            self._http = httpx.AsyncClient(
                auth=auth,
                headers=headers,
                timeout=httpx.Timeout(config.timeout_seconds, connect=min(10.0, config.timeout_seconds)),
                event_hooks={"request": [self._authorize]},
                verify=self._verification(),
                # A proxy for the outside world must not take the calls to this very machine.
                trust_env=not host.startswith(_LOOPBACK),
            )
        return self._http

    async def _authorize(self, request: httpx.Request) -> None:
        if self.config.auth and "Authorization" not in request.headers:
            request.headers["Authorization"] = authorization(self.config)

    def _verification(self) -> ssl.SSLContext | bool:
        if not self.config.verify_ssl or self.config.uri.startswith("http://"):
            return False
        if self.config.ca_certificate is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.config.ca_certificate)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(
                "ca_certificate", self.config.ca_certificate, f"not a usable PEM file ({error})"
            ) from error

    def _url(self, path: str) -> str:
        return self.uri + (path if path.startswith("/") else API + path)


def _present(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (values or {}).items() if value is not None}


def _never_sent(error: TrackingUnreachableError) -> bool:
    """Tell whether the request surely never reached the server: repeating it cannot do a thing twice."""
    return isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
