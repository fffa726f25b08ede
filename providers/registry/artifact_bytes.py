"""An artifact's bytes, from MLflow or from the store that it refers to.

A server may refuse to pass artifacts through (MLFLOW_ARTIFACTS_PRESIGNED_ONLY). It gives a signed address of
its store instead, which needs no credentials: MLflow's own are never sent there.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import ssl
from typing import TYPE_CHECKING, Any

import httpx

from nighttrain.providers.errors import (
    TrackingBusyError,
    TrackingError,
    TrackingRequestError,
    TrackingUnauthorizedError,
)
from nighttrain.providers.tracking.call_errors import no_answer_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from nighttrain.providers.tracking.client import MLflowClient
    from nighttrain.providers.tracking.config import TrackingConfig

# Whoever has such an address may read the artifact until it expires: no log line shows it.
_SIGNATURE = re.compile(r"(^|&)(x-[a-z]+-)?(signature|sig|token|security-token|credential)=", re.IGNORECASE)


async def artifact_bytes(
    client: MLflowClient,
    route: str,
    query: Mapping[str, str],
    signed: Callable[[], Awaitable[Mapping[str, Any]]],
) -> AsyncIterator[bytes]:
    """The bytes in pieces. Not repeated here, as :meth:`MLflowClient.stream`.

    :param signed: asks MLflow for the signed address, where it does not give the bytes itself
    """
    try:
        async for piece in client.stream(route, query):
            yield piece
        return
    except TrackingUnauthorizedError as error:
        if error.error_code != "PERMISSION_DENIED":
            raise
        refused = error
    try:
        answer = await signed()
    except TrackingError:
        # It was the right that is missing, or a server that knows no other way.
        raise refused from None
    async for piece in _from_store(client.config, answer):
        yield piece


async def _from_store(config: TrackingConfig, answer: Mapping[str, Any]) -> AsyncIterator[bytes]:
    _hide_signatures()
    url = httpx.URL(str(answer.get("url") or answer.get("presigned_url") or ""))
    if url.scheme not in ("http", "https"):
        raise TrackingRequestError(f"MLflow at {config.uri} refers to no http address for an artifact")
    origin = f"{url.scheme}://{url.netloc.decode()}"
    about = f"MLflow at {config.uri} refers to the artifact store at {origin}"
    headers = {str(name): str(value) for name, value in (answer.get("headers") or {}).items()}
    try:
        async with (
            httpx.AsyncClient(timeout=config.timeout_seconds, verify=_verification(config)) as http,
            http.stream("GET", url, headers={"Accept-Encoding": "identity", **headers}) as response,
        ):
            status = response.status_code
            if status in (408, 429) or status >= 500:
                raise TrackingBusyError(f"{about}, which answers {status}", status=status)
            if not response.is_success:
                raise TrackingRequestError(f"{about}, which answers {status}", status=status)
            async for piece in response.aiter_bytes():
                yield piece
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
        found = await no_answer_error(dataclasses.replace(config, uri=origin), error)
        raise type(found)(f"{about}: {found}") from error


def _verification(config: TrackingConfig) -> ssl.SSLContext | bool:
    if not config.verify_ssl:
        return False
    context = httpx.create_ssl_context()
    if config.ca_certificate is not None:
        context.load_verify_locations(config.ca_certificate)
    return context


class _WithoutSignatures(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                value.copy_with(query=None)
                if isinstance(value, httpx.URL) and _SIGNATURE.search(value.query.decode())
                else value
                for value in record.args
            )
        return True


_filter = _WithoutSignatures()


def _hide_signatures() -> None:
    """The HTTP library logs every address it asks."""
    logging.getLogger("httpx").addFilter(_filter)
