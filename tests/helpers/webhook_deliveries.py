"""Webhooks as MLflow sends them, signed as its ``webhooks/delivery.py`` does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Delivery:
    headers: dict[str, str]
    body: bytes


def delivery(secret: str, at: float, body: dict[str, Any], delivery_id: str | None = None) -> Delivery:
    """A genuine one, sent at ``at`` (seconds since 1970)."""
    content = json.dumps(body).encode()
    name, moment = delivery_id or str(uuid.uuid4()), str(int(at))
    signed = hmac.new(secret.encode(), f"{name}.{moment}.".encode() + content, hashlib.sha256).digest()
    headers = {
        "content-type": "application/json",
        "x-mlflow-delivery-id": name,
        "x-mlflow-timestamp": moment,
        "x-mlflow-signature": f"v1,{base64.b64encode(signed).decode()}",
    }
    return Delivery(headers, content)
