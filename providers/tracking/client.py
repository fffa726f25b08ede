"""MLflow's REST API: one pooled async client, with retries, credentials and typed errors.

Paths are relative to ``api/2.0/mlflow/``; a path that starts with ``/`` is relative to the server's root.
"""

from __future__ import annotations

import dataclasses
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from nighttrain.providers.errors import (
    ConfigurationError,
    TrackingError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingTrashError,
    TrackingUnauthorizedError,
    TrackingUnreachableError,
    clip,
)
from nighttrain.providers.retries import say_retries_plainly
from nighttrain.providers.tracking.tags import redact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from types import TracebackType

    import httpx

API = "/api/2.0/mlflow/"

TIMEOUT_SECONDS = 30.0
"""For one answer. Searches of a busy server take seconds; a minute of silence would be a hang to whoever
waits."""

RETRY_SECONDS = 45.0
"""How long one call is tried again. A tracking server restarts in 20 to 40 seconds: this bridges a
restart."""

RETRY_ATTEMPTS = 10
"""With the back-off below this many tries fit into RETRY_SECONDS."""

_RETRY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_RETRY_AFTER_MAX = 10.0
"""A server that asks for more than this gets asked earlier: the retry budget is 45 seconds."""

_IN_TRASH = re.compile(r"must be in the 'active' state")
"""What MLflow says to a write to a run or an experiment that was deleted: it has no code of its own."""

_LOOPBACK = ("localhost", "127.", "::1")

T = TypeVar("T")


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow is and who asks.

    :param uri: ``http://host:port`` or ``https://...``, with a path where the server runs under a prefix;
        ``user:password@`` in it is moved to ``username`` and ``password``
    :param token: bearer token. Basic authentication wins when both are given, as it does in MLflow's own
        client.
    :param registry_uri: a second address for the model registry; the credentials are the same
    :param ca_certificate: path of a PEM file that signs the server's certificate
    :param timeout_seconds: for one answer
    :param retry_seconds: how long an unanswered or refused call is repeated; 0 asks once
    :raises ConfigurationError: an address that is not http or https, or a CA file that cannot be used
    """

    uri: str
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    registry_uri: str | None = None
    ca_certificate: str | None = None
    verify_ssl: bool = True
    timeout_seconds: float = TIMEOUT_SECONDS
    retry_seconds: float = RETRY_SECONDS

    def __post_init__(self) -> None:
        uri, username, password = _split_uri("uri", self.uri)
        object.__setattr__(self, "uri", uri)
        if username and not self.username:
            object.__setattr__(self, "username", username)
            object.__setattr__(self, "password", password)
        if self.registry_uri:
            registry_uri, registry_user, _ = _split_uri("registry_uri", self.registry_uri)
            if registry_user:
                raise ConfigurationError(
                    "registry_uri",
                    None,
                    "give the user and password in username and password, not in the address",
                )
            object.__setattr__(self, "registry_uri", registry_uri)
        if self.ca_certificate and not Path(self.ca_certificate).is_file():
            raise ConfigurationError(
                "ca_certificate",
                self.ca_certificate,
                "no such file; give the path of a PEM file on this machine",
            )


def _split_uri(name: str, uri: str) -> tuple[str, str | None, str | None]:
    """Address without user information, user, password."""
    try:
        parts = urlsplit(str(uri).strip())
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(name, redact(str(uri)), f"not an address: {redact(str(error))}") from error
    if parts.scheme not in ("http", "https"):
        raise ConfigurationError(
            name,
            redact(str(uri)),
            "nighttrain speaks MLflow's REST API: give the http:// or https:// address of a tracking server. "
            "To serve an existing store: mlflow server --backend-store-uri sqlite:///mlflow.db",
        )
    if not parts.hostname:
        raise ConfigurationError(name, redact(str(uri)), "the host is missing: write http://host:port")
    if parts.query or parts.fragment:
        raise ConfigurationError(name, redact(str(uri)), "remove everything from '?' or '#' on")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    location = host if port is None else f"{host}:{port}"
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    return urlunsplit((parts.scheme, location, parts.path.rstrip("/"), "", "")), username, password


class _TransientError(TrackingRequestError):
    """An answer worth asking again for. Leaves this module only as a TrackingRequestError, which it is."""

    retry_after: float | None = None


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
        """GET, decoded. ``None`` values in ``params`` are left out; lists are repeated."""
        return await self._call("GET", path, params=params)

    async def post(self, path: str, body: Mapping[str, Any], *, idempotent: bool = True) -> dict[str, Any]:
        """POST, decoded.

        :param idempotent: pass ``False`` for calls that create something: they are repeated only while it is
            certain that the server did not act on them.
        """
        return await self._call("POST", path, body=body, idempotent=idempotent)

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PATCH, decoded."""
        return await self._call("PATCH", path, body=body)

    async def delete(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """DELETE with a JSON body, decoded."""
        return await self._call("DELETE", path, body=body)

    async def stream(self, path: str, params: Mapping[str, Any] | None = None) -> AsyncIterator[bytes]:
        """The body in pieces, never whole in memory. Not repeated here: a caller that folds the bytes
        starts over.

        Wrap the fold in :meth:`repeating`.
        """
        import httpx

        try:
            async with self._open().stream(
                "GET", self._url(path), params=_present(params), headers={"Accept-Encoding": "identity"}
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise self._error(response, path)
                async for piece in response.aiter_bytes():
                    yield piece
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise self._unreachable(error) from error

    async def repeating(
        self, call: Callable[[], Awaitable[T]], *, idempotent: bool = True, attempts: int | None = None
    ) -> T:
        """Run ``call``, again while MLflow is away or overloaded, with growing pauses, up to
        ``retry_seconds``."""
        import stamina

        def again(error: Exception) -> bool | float:
            if isinstance(error, TrackingUnreachableError):
                return idempotent or _never_sent(error)
            if isinstance(error, _TransientError):
                if not (idempotent or error.status == 429):
                    return False
                return True if error.retry_after is None else min(error.retry_after, _RETRY_AFTER_MAX)
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
        """One cheap call that needs the address, the allowed host and the credentials to be right. Asks once.

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
        import httpx

        try:
            response = await self._open().request(
                method,
                self._url(path),
                params=_present(params),
                json=None if body is None else _present(body),
            )
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise self._error(response, path)
        try:
            answer = response.json() if response.content else {}
        except ValueError as error:
            raise TrackingRequestError(
                f"{self.uri} does not answer like MLflow (no JSON from {path}): is it the tracking server's "
                "address, with the prefix it runs under?",
                status=response.status_code,
            ) from error
        return answer if isinstance(answer, dict) else {"value": answer}

    def _open(self) -> httpx.AsyncClient:
        import httpx

        if self._http is None:
            config = self.config
            headers = {"User-Agent": "nighttrain"}
            auth = httpx.BasicAuth(config.username, config.password or "") if config.username else None
            if auth is None and config.token:
                headers["Authorization"] = f"Bearer {config.token}"
            host = urlsplit(config.uri).hostname or ""
            self._http = httpx.AsyncClient(
                auth=auth,
                headers=headers,
                timeout=httpx.Timeout(config.timeout_seconds, connect=min(10.0, config.timeout_seconds)),
                verify=self._verification(),
                # A proxy for the outside world must not take the calls to this very machine.
                trust_env=not host.startswith(_LOOPBACK),
            )
        return self._http

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

    def _unreachable(self, error: Exception) -> TrackingUnreachableError:
        said = clip(redact(str(error)) or type(error).__name__, 200)
        return TrackingUnreachableError(
            f"MLflow at {self.uri} does not answer ({type(error).__name__}: {said}). "
            f"{_what_to_check(self.config, error)}"
        )

    def _error(self, response: httpx.Response, path: str) -> TrackingError:
        status = response.status_code
        code, message = _said(response)
        about = f"MLflow at {self.uri}, {path}: {status} {code}".rstrip()
        if status == 401:
            return TrackingUnauthorizedError(
                f"{about}: {_credentials_hint(self.config)}. The server says: {message or 'nothing'}"
            )
        if status == 403:
            return TrackingUnauthorizedError(f"{about}: {_forbidden_hint(self.uri, message)}")
        if status == 404 and code == "RESOURCE_DOES_NOT_EXIST":
            return TrackingNotFoundError(f"{about}: {message}")
        if status in (404, 405) and not code:
            message = (
                "the server has no such call: is this the tracking server's address, with the prefix it runs "
                "under, and is it MLflow 3?"
            )
        if response.is_redirect:
            target = redact(response.headers.get("location", "")).split("?")[0]
            message = (
                f"redirected to {target}: give the address that answers MLflow's API itself, "
                "without a login page"
            )
        if _IN_TRASH.search(message):
            return TrackingTrashError(f"{about}: {message}", status=status, error_code=code)
        # A database that is away answers 503; INTERNAL_ERROR is a fault in MLflow that waiting does not mend.
        if status in _RETRY_STATUSES and code != "INTERNAL_ERROR":
            transient = _TransientError(f"{about}: {message}", status=status, error_code=code)
            transient.retry_after = _seconds(response.headers.get("retry-after"))
            return transient
        return TrackingRequestError(f"{about}: {message}", status=status, error_code=code)


def _present(values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (values or {}).items() if value is not None}


def _said(response: httpx.Response) -> tuple[str, str]:
    """MLflow's error code and message; the body's beginning where it is not MLflow's JSON."""
    try:
        body = response.json()
    except ValueError:
        return "", clip(redact(response.text.strip()), 300)
    if not isinstance(body, dict):
        return "", clip(redact(str(body)), 300)
    return str(body.get("error_code", "")), clip(redact(str(body.get("message", ""))), 500)


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _never_sent(error: TrackingUnreachableError) -> bool:
    """Whether the request surely never reached the server, so that repeating it cannot do a thing twice."""
    import httpx

    return isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def _what_to_check(config: TrackingConfig, error: Exception) -> str:
    text = str(error).lower()
    if "certificate" in text or "ssl" in text:
        return "Check ca_certificate, and that the server's certificate names this host."
    if "name or service" in text or "getaddrinfo" in text or "nodename" in text or "name resolution" in text:
        return "The host's name is not known here: check the address, or use the Service's full name."
    return f"Check that the server runs and that {config.uri} can be reached from this machine."


def _credentials_hint(config: TrackingConfig) -> str:
    if config.username:
        return f"the password of user {config.username!r} is not accepted"
    if config.token:
        return "the token is not accepted"
    return "credentials are required: set username and password, or token"


def _forbidden_hint(uri: str, message: str) -> str:
    if "host header" in message.lower():
        host = urlsplit(uri).netloc
        return (
            f"the server does not accept the host name {host!r}. Start it with --allowed-hosts "
            f'"{host}" (MLFLOW_SERVER_ALLOWED_HOSTS). It says: {message}'
        )
    return f"these credentials lack the right. The server says: {message or 'nothing'}"
