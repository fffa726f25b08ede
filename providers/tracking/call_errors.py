"""The error for a call to MLflow that failed: an outage or a mistake, told apart here and nowhere else.

An outage (refused, timed out, overloaded) passes by itself and is waited out. A mistake (an unknown host, a
certificate, credentials, something at the address that is not MLflow) stays until somebody changes it, and is
reported at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from nighttrain.providers.errors import (
    TrackingBusyError,
    TrackingError,
    TrackingMisconfiguredError,
    TrackingNotFoundError,
    TrackingRequestError,
    TrackingTrashError,
    TrackingUnauthorizedError,
    TrackingUnreachableError,
    clip,
)
from nighttrain.providers.redaction import redact
from nighttrain.providers.tracking.config import NAMESPACED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nighttrain.providers.tracking.config import TrackingConfig

HANDSHAKE_SECONDS = 5.0
"""For one look at what a server speaks that does not answer in HTTP: its first words take milliseconds."""

GREETING_SECONDS = 1.0
"""For one look whether a server speaks before it is asked, as none of HTTP's does."""

# What the resolver says when it could not find out; anything else is an answer about the name.
_RESOLVER_AWAY = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM})
# A handshake that ended like these says nothing about certificates or protocols: a server that goes away.
_HANDSHAKE_CUT = frozenset({"UNEXPECTED_EOF_WHILE_READING", "TLSV1_ALERT_INTERNAL_ERROR"})
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})
_ILLEGAL_LINE = re.compile(r"illegal (status|request) line", re.IGNORECASE)
_TLS_ALERT = re.compile(r"illegal (status|request) line.*\\x1[56]\\x03", re.IGNORECASE | re.DOTALL)
# What MLflow says to a write to a run or an experiment that was deleted: it has no code of its own.
_IN_TRASH = re.compile(r"must be in the 'active' state")
# Those that pass, or are about one request, whoever says them. Any other refusal without a code of MLflow's
# says that the address is not its API's.
_OF_ONE_REQUEST = frozenset({408, 409, 411, 413, 414, 425, 429, 431})
_NO_SUCH_CALL = frozenset({"", "ENDPOINT_NOT_FOUND"})


class NotMLflowError(TrackingMisconfiguredError, TrackingRequestError):
    """Something answered, and it is not MLflow's API."""


async def no_answer_error(config: TrackingConfig, error: Exception) -> TrackingError:
    """The error for a call that got no answer."""
    mistake = _mistake(config, error)
    if mistake is None and await _speaks_tls(config, error):
        mistake = f"the server speaks TLS: write https:// instead of {config.uri.partition('://')[0]}://"
    if mistake is None and await _speaks_another_protocol(config, error):
        mistake = "what listens there does not speak HTTP: check the port"
    if mistake is not None:
        return TrackingMisconfiguredError(f"MLflow cannot be reached at {config.uri}: {mistake}")
    return TrackingUnreachableError(
        f"MLflow at {config.uri} does not answer ({_said_by(error)}). "
        f"Check that the server runs and that {config.uri} can be reached from this machine."
    )


def refusal_error(config: TrackingConfig, response: httpx.Response, path: str) -> TrackingError:
    """The error for an answer that is a refusal."""
    status = response.status_code
    code, message = _said(response)
    about = f"MLflow at {config.uri}, {path}: {status} {code}".rstrip()
    if status == 401:
        return TrackingUnauthorizedError(
            f"{about}: {_credentials_hint(config)}. The server says: {message or 'nothing'}"
        )
    if status == 403:
        forbidden = TrackingUnauthorizedError(f"{about}: {_forbidden_hint(config.uri, message)}")
        forbidden.error_code = code
        return forbidden
    if workspace := _workspace_hint(config, code, message):
        return TrackingMisconfiguredError(f"{about}: {workspace}. The server says: {message}")
    if status == 404 and code == "RESOURCE_DOES_NOT_EXIST":
        return TrackingNotFoundError(f"{about}: {message}")
    if response.is_redirect:
        target = redact(response.headers.get("location", "")).split("?")[0]
        return NotMLflowError(
            f"{about}: redirected to {target}: give the address that answers MLflow's API itself, "
            "without a login page",
            status=status,
        )
    if _is_no_api(status) and code in _NO_SUCH_CALL:
        return NotMLflowError(
            f"{about}: the server has no such call: is this the tracking server's address, with the prefix "
            f"it runs under, and is it MLflow 3? It says: {message or 'nothing'}",
            status=status,
        )
    if _IN_TRASH.search(message):
        return TrackingTrashError(f"{about}: {message}", status=status, error_code=code)
    if (
        status in (408, 429)
        or (status >= 500 and status not in (501, 505))
        or _conflicts_with_nothing(response, code)
    ):
        busy = TrackingBusyError(f"{about}: {message}", status=status, error_code=code)
        busy.retry_after = _seconds(response.headers.get("retry-after"))
        return busy
    return TrackingRequestError(f"{about}: {message}", status=status, error_code=code)


def _is_no_api(status: int) -> bool:
    return (400 <= status < 500 and status not in _OF_ONE_REQUEST) or status in (501, 505, 511)


def _conflicts_with_nothing(response: httpx.Response, code: str) -> bool:
    """Tell whether a conflict says nothing about the request, so that it may be repeated.

    It is one in answer to a read, or one without MLflow's code: from a proxy before it or from its store.
    """
    asked = response.request
    reads = asked.method == "GET" or asked.url.path.endswith("/search")
    return response.status_code == 409 and (reads or not code)


def no_json_error(config: TrackingConfig, response: httpx.Response, path: str) -> TrackingError:
    """The error for an answer of 200 that is none of MLflow's."""
    kind = response.headers.get("content-type", "").partition(";")[0] or "something without a content type"
    return NotMLflowError(
        f"{config.uri} does not answer like MLflow (no JSON from {path}, but {kind}): is it the tracking "
        "server's address, with the prefix it runs under, and not a login page or a proxy's?",
        status=response.status_code,
    )


def missing_field_error(config: TrackingConfig, path: str, name: str) -> TrackingError:
    """The error for JSON that is not MLflow's."""
    return NotMLflowError(
        f"{config.uri} does not answer like MLflow (no {name!r} in the JSON from {path}): is it the tracking "
        "server's address, with the prefix it runs under?"
    )


def _mistake(config: TrackingConfig, error: Exception) -> str | None:
    """The mistake to correct, where the error shows one."""
    host = urlsplit(config.uri).hostname
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return f"it is no address ({_said_by(error)})"
    if isinstance(error, httpx.LocalProtocolError):
        # The library's words hold the header, and with it the credential.
        return "a header cannot be sent: look for a line break in token, user name, password or workspace"
    if isinstance(error, httpx.ProxyError) and re.match(r"4\d\d\b", str(error)):
        return f"the proxy refuses it ({_said_by(error)}): check https_proxy, http_proxy and no_proxy"
    if isinstance(error, httpx.DecodingError):
        return f"what it answers is not what it says it is ({_said_by(error)}): is it MLflow's address?"
    if isinstance(error, httpx.RemoteProtocolError) and _TLS_ALERT.search(str(error)):
        return "the server speaks TLS: write https:// instead of http://"
    for cause in _chain(error):
        if isinstance(cause, socket.gaierror) and cause.errno not in _RESOLVER_AWAY:
            return f"no host is called {host!r} here: check the name, or write the Service's full name"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not accepted ({cause.verify_message or _said_by(cause)}): check "
                "ca_certificate, the certificate's dates, and that it names this host"
            )
        connecting = isinstance(error, httpx.ConnectError)
        if isinstance(cause, ssl.SSLError) and (connecting or "CERTIFICATE" in (cause.reason or "")):
            if _cut_off(cause):
                continue
            if cause.reason in _NO_TLS:
                return "the server does not speak TLS: write http:// instead of https://, or check the port"
            return f"no TLS connection comes about ({_said_by(cause)}): check ca_certificate and the port"
    return None


def _cut_off(error: ssl.SSLError) -> bool:
    ended = ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError
    return isinstance(error, ended) or error.reason in _HANDSHAKE_CUT or error.reason is None


async def _speaks_tls(config: TrackingConfig, error: Exception) -> bool:
    """Try TLS with a server that cut plain HTTP off: some say nothing before they hang up."""
    parts = urlsplit(config.uri)
    if parts.scheme != "http" or not isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return False
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, ssl=context)
    except ssl.SSLError as answer:
        return answer.reason not in _NO_TLS and not _cut_off(answer)
    except (OSError, TimeoutError):
        return False
    await _closed(writer)
    return True


async def _speaks_another_protocol(config: TrackingConfig, error: Exception) -> bool:
    """Listen whether a port speaks another protocol than HTTP: a shell's, a mail or a database server's.

    Many of these speak first, and the HTTP library hides what they said.
    """
    parts = urlsplit(config.uri)
    odd = httpx.RemoteProtocolError | httpx.ReadError | httpx.ReadTimeout
    if parts.scheme != "http" or not isinstance(error, odd):
        return False
    if _ILLEGAL_LINE.search(str(error)):
        return True
    try:
        async with asyncio.timeout(GREETING_SECONDS):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
            try:
                return bool(await reader.read(1))
            finally:
                await _closed(writer)
    except (OSError, TimeoutError):
        return False


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _chain(each)
        error = error.__cause__ or error.__context__


def _said_by(error: BaseException) -> str:
    said = clip(redact(str(error)), 200)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _said(response: httpx.Response) -> tuple[str, str]:
    """MLflow's error code and message; the body's beginning where it is not MLflow's JSON."""
    try:
        body = response.json()
    except ValueError:
        return "", clip(redact(response.text.strip()), 300)
    if not isinstance(body, dict):
        return "", clip(redact(str(body)), 300)
    return str(body.get("error_code") or ""), clip(redact(str(body.get("message") or "")), 500)


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _credentials_hint(config: TrackingConfig) -> str:
    if config.username:
        return f"the password of user {config.username!r} is not accepted"
    if config.token:
        return "the token is not accepted"
    if config.auth:
        return "the service account's token is not accepted"
    return "credentials are required: set username and password, or token"


def _workspace_hint(config: TrackingConfig, code: str, message: str) -> str | None:
    named = config.workspace is not None or config.auth == NAMESPACED
    if named and code == "FEATURE_DISABLED":
        return "this server has no workspaces: leave workspace out, or start it with --enable-workspaces"
    if code == "RESOURCE_DOES_NOT_EXIST" and message.lower().startswith("workspace "):
        return f"make the workspace, or name another in workspace = {config.workspace!r}"
    return None


def _forbidden_hint(uri: str, message: str) -> str:
    if "host header" in message.lower():
        host = urlsplit(uri).netloc
        return (
            f"the server does not accept the host name {host!r}. Start it with --allowed-hosts "
            f'"{host}" (MLFLOW_SERVER_ALLOWED_HOSTS). It says: {message}'
        )
    return f"these credentials lack the right. The server says: {message or 'nothing'}"
