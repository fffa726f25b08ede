"""MLflow's webhooks, registered at MLflow: they shorten the wait between two polls, and no more.

MLflow sends none for a stage's transition and none for a deletion, and gives up on one that cannot be
delivered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nighttrain.providers.errors import ConfigurationError, TrackingBusyError, TrackingRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nighttrain.providers.tracking.client import MLflowClient

PATH = "/nighttrain/registry/webhook"
"""Below Airflow's address, where the receiver is."""

SECRET_VARIABLE = "NIGHTTRAIN_WEBHOOK_SECRET"  # noqa: S105
SECRET_CHARACTERS = 16
"""At least: a signature can be tried at leisure by whoever saw one delivery."""

WEBHOOK_EVENTS = (
    "registered_model.created",
    "model_version.created",
    "model_version_alias.created",
    "model_version_alias.deleted",
    "model_version_tag.set",
    "model_version_tag.deleted",
)

SCHEMES_HINT = "start MLflow with MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https"
PRIVATE_HINT = "start MLflow with MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"
KEY_HINT = (
    "MLflow needs MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY (a Fernet key, the same in all of its processes): "
    "without it each process makes a key of its own, and deliveries fail at random"
)


@dataclass(frozen=True)
class Registered:
    """A webhook as MLflow has it, and how its first delivery went.

    :param problem: why the delivery did not arrive; empty if it did
    """

    webhook_id: str
    url: str
    made: bool
    problem: str = ""


def receiver_url(airflow_url: str) -> str:
    """The receiver's address. :raises ConfigurationError: not the address of an Airflow"""
    parts = urlsplit(airflow_url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(
            "--airflow-url", airflow_url, "give an address such as https://airflow.example.com"
        )
    if parts.username or parts.password:
        raise ConfigurationError(
            "--airflow-url", None, "leave user and password out: MLflow keeps it readable"
        )
    return airflow_url.strip().rstrip("/") + PATH


async def register(
    client: MLflowClient, *, name: str, url: str, secret: str, events: Sequence[str] = WEBHOOK_EVENTS
) -> Registered:
    """Have MLflow send its events to ``url``, signed, and send one to try it. Repeating it changes nothing.

    :param name: the webhook's name in MLflow; one of that name is changed
    :raises ConfigurationError: an event that MLflow does not have, a secret that is none, or an address that
        MLflow refuses, with what to set there
    """
    if len(secret) < SECRET_CHARACTERS:
        raise ConfigurationError(
            SECRET_VARIABLE,
            None,
            f"must have {SECRET_CHARACTERS} characters or more, such as `openssl rand -hex 32`",
        )
    registry = client.for_registry()
    body: dict[str, Any] = {
        "name": name,
        "url": url,
        "events": [_event(each) for each in events],
        "secret": secret,
        "status": "ACTIVE",
        "description": "Tells nighttrain's sensors and watchers in Airflow to look now",
    }
    existing = next((each for each in await _all(registry) if each["name"] == name), None)
    try:
        if existing is None:
            answer = await registry.post("webhooks", body, idempotent=False)
        else:
            answer = await registry.patch(f"webhooks/{existing['webhook_id']}", body)
    except TrackingBusyError:
        raise
    except TrackingRequestError as error:
        raise ConfigurationError("--airflow-url", url, _advice(str(error))) from error
    webhook_id = str(answer["webhook"]["webhook_id"])
    return Registered(webhook_id, url, existing is None, await _problem(registry, webhook_id))


async def remove(client: MLflowClient, name: str) -> bool:
    """Remove the webhook of that name. :return: False where there was none"""
    registry = client.for_registry()
    found = [each for each in await _all(registry) if each["name"] == name]
    for each in found:
        await registry.delete(f"webhooks/{each['webhook_id']}")
    return bool(found)


async def _all(registry: MLflowClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    token = None
    while True:
        answer = await registry.get("webhooks", {"max_results": 100, "page_token": token})
        found += answer.get("webhooks", ())
        token = answer.get("next_page_token")
        if not token:
            return found


async def _problem(registry: MLflowClient, webhook_id: str) -> str:
    """Why a delivery that MLflow makes now does not arrive."""
    answer = await registry.post(f"webhooks/{webhook_id}/test", {}, idempotent=False)
    result = answer.get("result", {})
    if result.get("success"):
        return ""
    status = result.get("response_status")
    if status == 401:
        return f"the receiver has another secret: give Airflow's API server the same {SECRET_VARIABLE}"
    if status == 404:
        return "nothing is there: is nighttrain installed where Airflow's API server runs?"
    if status:
        return f"the receiver answers {status}: {result.get('response_body', '')[:200]}"
    return _advice(str(result.get("error_message", "no reason given")))


def _event(text: str) -> dict[str, str]:
    entity, _, action = text.partition(".")
    if text not in WEBHOOK_EVENTS:
        raise ConfigurationError("--events", text, f"MLflow sends {', '.join(WEBHOOK_EVENTS)}")
    return {"entity": entity.upper(), "action": action.upper()}


def _advice(reason: str) -> str:
    """What to set at MLflow, for a reason that it gives."""
    lowered = reason.lower()
    if "scheme" in lowered:
        return f"MLflow sends to https only. Use https, or {SCHEMES_HINT}"
    if "public" in lowered or "private" in lowered:
        return f"MLflow sends to public addresses only. Use one, or {PRIVATE_HINT}"
    return f"MLflow cannot send to it: {reason[:500]}"
