"""Send calls to an API server: with credentials that are renewed in time, and again where that helps.

Only :class:`~nighttrain.providers.kubernetes.api.client.ClusterClient` imports this, when it is opened: the
libraries underneath are heavy.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import stamina

from nighttrain.providers.errors import (
    ClusterError,
    ClusterRequestError,
    ClusterUnauthorizedError,
    ClusterUnreachableError,
    ObjectNotFoundError,
)
from nighttrain.providers.kubernetes.api.loading import Loaded, load
from nighttrain.providers.kubernetes.api.refusals import parse_status, to_error
from nighttrain.providers.kubernetes.api.session import (
    Credentials,
    Session,
    credentials,
    explain,
    open_session,
)
from nighttrain.providers.retries import say_retries_plainly

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nighttrain.providers.kubernetes.api.calls import Asked, Call
    from nighttrain.providers.kubernetes.api.connection import ClusterConfig

RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504})
# The API server's own limit for a request that is not a watch.
REQUEST_TIMEOUT_SECONDS = 60.0
CONNECT_TIMEOUT_SECONDS = 10.0
# A server that honours Retry-After with more than this is down, not busy.
RETRY_AFTER_MAXIMUM_SECONDS = 30.0


class _TryAgain(Exception):
    def __init__(self, error: ClusterError, wait: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


@dataclass(frozen=True)
class _Access:
    """A configuration as loaded at one time, with the connections made by it."""

    loaded: Loaded
    session: Session
    credentials: Credentials


class Transport:
    """One pooled session to one API server.

    :param attempts: how often a call that is safe to repeat is tried
    """

    def __init__(self, config: ClusterConfig, loaded: Loaded, session: Session, *, attempts: int) -> None:
        self._config = config
        self._access = _Access(loaded, session, credentials(loaded.configuration))
        self._sessions = [session]
        self._renewing = asyncio.Lock()
        self._attempts = attempts
        self._ahead: float | None = None

    @classmethod
    async def open(cls, config: ClusterConfig, *, attempts: int) -> Transport:
        """Load the configuration and make the session; the server is not asked anything yet.

        :raises ConfigurationError: the configuration cannot be used
        :raises ClusterUnreachableError: its certificates cannot be used
        """
        loaded = await load(config)
        return cls(config, loaded, open_session(loaded.configuration, loaded.source), attempts=attempts)

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions:
            await session.close()

    @property
    def namespace(self) -> str:
        """The connection's default namespace."""
        return self._access.loaded.namespace

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self._access.loaded.configuration.host)

    @property
    def cluster_time(self) -> float | None:
        """The API server's clock in seconds since 1970, about; ``None`` before its first answer."""
        return None if self._ahead is None else time.time() + self._ahead

    async def answer(self, call: Call) -> dict[str, Any]:
        """Send a call and return the object that the server answers.

        :raises ClusterError: the server refuses, or does not answer after the last attempt
        """

        def wait(error: Exception) -> bool | float:
            if not call.safe_to_repeat or not isinstance(error, _TryAgain):
                return False
            return True if error.wait is None else min(error.wait, RETRY_AFTER_MAXIMUM_SECONDS)

        say_retries_plainly()
        number = 0
        try:
            async for attempt in stamina.retry_context(on=wait, attempts=self._attempts):
                with attempt:
                    number = attempt.num
                    return await self._once(call)
        except _TryAgain as last:
            raise last.error from last.__cause__
        except ObjectNotFoundError:
            if call.method == "DELETE" and number > 1:  # an earlier try went through, its answer was lost
                return {}
            raise
        raise AssertionError("the retry loop always returns or raises")

    @asynccontextmanager
    async def stream(self, call: Call, silence: float | None) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send a call, once, and give out its answer as it comes.

        :param silence: seconds without a byte after which the connection counts as dead; ``None``: never
        :raises ClusterError: the server refuses, or the connection is lost
        """
        limits = aiohttp.ClientTimeout(connect=CONNECT_TIMEOUT_SECONDS, sock_read=silence)
        try:
            response = await self._request(call, limits)
            try:
                if not 200 <= response.status < 300:
                    raise _refusal(call.asked, response, await response.read())
                yield response.content.iter_any()
            finally:
                response.close()  # nobody reads the rest of a stream: the connection does not go back
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(call.asked, error)[0] from error

    async def _once(self, call: Call) -> dict[str, Any]:
        limits = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
        try:
            response = await self._request(call, limits)
            async with response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            unreachable, passing = self._unreachable(call.asked, error)
            raise (_TryAgain(unreachable, None) if passing else unreachable) from error
        if not 200 <= response.status < 300:
            refusal = _refusal(call.asked, response, content)
            if response.status in RETRIED_STATUSES:
                raise _TryAgain(refusal, _retry_after(response))
            raise refusal
        try:
            answer = json.loads(content) if content else {}
        except ValueError as error:
            raise ClusterRequestError(
                f"{call.asked}: the answer of {self.server} is not JSON. Is it an API server, or a proxy?",
                status=response.status,
            ) from error
        return answer if isinstance(answer, dict) else {}

    async def _request(self, call: Call, limits: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        used = self._access
        response = await _send(used, call, limits)
        if response.status == 401 and await self._renewed(used):
            response.close()
            response = await _send(self._access, call, limits)
        self._note_time(response)
        return response

    def _note_time(self, response: aiohttp.ClientResponse) -> None:
        try:
            told = parsedate_to_datetime(response.headers.get("Date", ""))
        except ValueError:
            return
        if told.tzinfo is not None:
            self._ahead = told.timestamp() - time.time()

    async def _renewed(self, used: _Access) -> bool:
        """Look once more where the credentials came from: tokens and certificates expire meanwhile.

        :return: true if there are others than those just used
        """
        async with self._renewing:
            if self._access is not used:  # another request was refused first, and has looked already
                return True
            try:
                loaded = await load(self._config)
                fresh = credentials(loaded.configuration)
                if fresh == used.credentials:
                    return False
                session = used.session
                if fresh.certificates != used.credentials.certificates:
                    session = open_session(loaded.configuration, loaded.source)
                    # Streams may still run over the old one: it is closed with the transport.
                    self._sessions.append(session)
            except (ClusterError, ValueError, OSError):
                return False
            self._access = _Access(loaded, session, fresh)
            return True

    def _unreachable(self, asked: Asked, error: BaseException) -> tuple[ClusterUnreachableError, bool]:
        """The error for a call without an answer; and whether trying again may help."""
        source, proxy = self._access.loaded.source, self._access.session.proxy
        reason, passing = explain(error, source)
        through = f" through the proxy {proxy}" if proxy else ""
        text = f"{asked}: no answer from {self.server}{through}, configured by {source}: {reason}"
        return ClusterUnreachableError(text), passing


async def _send(access: _Access, call: Call, limits: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
    headers = {
        "Accept": "application/json, */*",
        "Content-Type": call.media_type,
        "User-Agent": "nighttrain",
    }
    try:
        settings = (await access.loaded.configuration.auth_settings()).get("BearerToken")
    except Exception as error:  # whatever a refresh hook raises, such as for a token file that is gone
        raise ClusterUnauthorizedError(
            f"the token of {access.loaded.source} cannot be read: {error}"
        ) from error
    if settings is not None:
        headers[settings["key"]] = settings["value"].strip()
    return await access.session.request(
        call.method, call.path, query=call.query, headers=headers, body=call.body, limits=limits
    )


def _refusal(asked: Asked, response: aiohttp.ClientResponse, content: bytes) -> ClusterError:
    refusal = to_error(asked, response.status, parse_status(content))
    if isinstance(refusal, ClusterRequestError):
        refusal.retry_after = _retry_after(response)
    return refusal


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,6}", value) else None
