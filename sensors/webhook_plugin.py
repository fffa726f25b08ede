"""The plugin that puts the webhooks' receiver into Airflow's API server.

Every process of Airflow's imports plugins: this one imports nothing until a webhook comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from nighttrain.sensors.webhook_receiver import Message, Receive, Send, WebhookReceiver

URL_PREFIX = "/nighttrain/registry"
"""A mount matches only what stands below it: the receiver is at ``/webhook``."""


class _Lazily:
    """The receiver, made when the first request comes."""

    def __init__(self) -> None:
        self._made: WebhookReceiver | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._made is None:
            from nighttrain.sensors.webhook_receiver import WebhookReceiver

            self._made = WebhookReceiver()
        await self._made(scope, receive, send)


class WebhookPlugin(AirflowPlugin):
    """Adds the receiver to the API server."""

    name = "nighttrain_webhooks"
    fastapi_apps: list[Any] = [  # noqa: RUF012
        {"app": _Lazily(), "url_prefix": URL_PREFIX, "name": "nighttrain: MLflow's webhooks"}
    ]
