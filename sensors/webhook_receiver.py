"""What MLflow's webhooks are sent to: it checks that one is MLflow's own and new, and tells the triggerers
to look.

A plain ASGI application below Airflow's API server, and open to everybody who reaches that: the signature is
the way in. Several API servers, or processes of one, remember deliveries each for itself: a copy may cause
one look in each.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from nighttrain.sensors.common.nudges import write_nudge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)

SECRET_CONNECTION = "nighttrain_webhook"  # noqa: S105
SECRET_SECONDS = 60.0
"""How long a secret is used before it is read again: whoever knocks must not cause a read each time."""


def configured_secret() -> str:
    """The secret that deliveries are signed with; empty where none is configured."""
    from nighttrain.providers.registry.feed.webhooks import SECRET_VARIABLE

    if given := os.environ.get(SECRET_VARIABLE):
        return given
    from airflow.models.connection import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return Connection.get_connection_from_secrets(SECRET_CONNECTION).password or ""
    except AirflowNotFoundException:
        return ""


class WebhookReceiver:
    """The application.

    :param secret: gives the secret; it may block
    :param nudge: tells the triggerers to look; it may block
    :param clock: seconds since 1970
    """

    def __init__(
        self,
        *,
        secret: Callable[[], str] = configured_secret,
        nudge: Callable[[], None] = write_nudge,
        clock: Callable[[], float] = time.time,
    ) -> None:
        from nighttrain.providers.registry.feed.deliveries import DeliveryCheck

        self._read_secret, self._nudge, self._clock = secret, nudge, clock
        self._check = DeliveryCheck(clock=clock)
        self._secret, self._secret_until = "", 0.0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if not scope["path"].endswith("/webhook"):
            await _answer(send, 404, "not here")
            return
        if scope["method"] != "POST":
            await _answer(send, 405, "POST only")
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        body = await _body(receive)
        if body is None:
            await _answer(send, 413, "too large")
            return
        await _answer(send, *await self._take(headers, body))

    async def _take(self, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        from nighttrain.providers.registry.feed.deliveries import Judgement

        if not (secret := await self._current_secret()):
            return 503, "no secret is configured here"
        match judged := self._check.accept(secret, headers, body):
            case Judgement.FORGED:
                return 401, "not signed with the secret"
            case Judgement.STALE:
                return 400, "too old, or the clocks differ"
            case Judgement.REPEATED:
                return 200, judged.value
            case Judgement.NEW:
                try:
                    await asyncio.to_thread(self._nudge)
                except Exception:
                    self._check.forget(headers)
                    _log.exception("The triggerers could not be told to look; MLflow will send it again")
                    return 503, "Airflow's database does not answer"
                return 202, judged.value

    async def _current_secret(self) -> str:
        if self._clock() >= self._secret_until:
            try:
                self._secret = await asyncio.to_thread(self._read_secret)
            except Exception:
                _log.exception("The webhooks' secret cannot be read now")
            self._secret_until = self._clock() + SECRET_SECONDS
        return self._secret


async def _body(receive: Receive) -> bytes | None:
    """The request's body; ``None`` if it is larger than any of MLflow's, without reading the rest."""
    from nighttrain.providers.registry.feed.deliveries import LARGEST_BODY

    body: bytes = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > LARGEST_BODY:
            return None
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return body


async def _answer(send: Send, status: int, text: str) -> None:
    content = json.dumps({"webhook": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
