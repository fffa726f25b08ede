"""Whether a webhook is MLflow's own, and new: what is asked of it before anybody looks.

A webhook says only "look now". What it says besides is not read, so a body needs no parser.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections import OrderedDict
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FRESH_SECONDS = 300.0
"""As the Standard Webhooks specification has it, both ways: clocks differ, and MLflow retries within a
minute."""

REMEMBERED = 10_000
"""Delivery ids that are kept, 1 MB: 33 a second for as long as they are fresh."""

LARGEST_BODY = 64 * 1024
"""Bytes. MLflow's largest is a model's or a version's creation, with its tags: a few kB."""

ID_HEADER, TIME_HEADER = "x-mlflow-delivery-id", "x-mlflow-timestamp"
SIGNATURE_HEADER = "x-mlflow-signature"


class Judgement(StrEnum):
    """What a delivery is."""

    NEW = "new"
    REPEATED = "repeated"
    STALE = "stale"
    FORGED = "forged"

    @property
    def looks(self) -> bool:
        """Tell whether it is a reason to look."""
        return self is Judgement.NEW


class DeliveryCheck:
    """Judges deliveries, and remembers those it took, in this process.

    :param clock: seconds since 1970
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._taken: OrderedDict[str, float] = OrderedDict()

    def accept(self, secret: str, headers: Mapping[str, str], body: bytes) -> Judgement:
        """Judge one delivery; what is genuine and fresh is remembered.

        :param headers: by their names in lower case
        """
        name, moment = headers.get(ID_HEADER, ""), headers.get(TIME_HEADER, "")
        if (
            not secret
            or not name
            or not _is_signed(secret, name, moment, body, headers.get(SIGNATURE_HEADER, ""))
        ):
            return Judgement.FORGED
        now = self._clock()
        if abs(now - float(moment)) > FRESH_SECONDS:
            return Judgement.STALE
        if name in self._taken:
            return Judgement.REPEATED
        self._taken[name] = now
        while len(self._taken) > REMEMBERED or next(iter(self._taken.values())) < now - 2 * FRESH_SECONDS:
            self._taken.popitem(last=False)
        return Judgement.NEW

    def forget(self, headers: Mapping[str, str]) -> None:
        """Take back that a delivery was taken: what it asked for could not be done, and MLflow sends it
        again."""
        self._taken.pop(headers.get(ID_HEADER, ""), None)


def _is_signed(secret: str, name: str, moment: str, body: bytes, signature: str) -> bool:
    version, _, given = signature.partition(",")
    if version != "v1" or not (moment.isascii() and moment.isdigit() and len(moment) <= 12):
        return False
    try:
        claimed = base64.b64decode(given, validate=True)
    except (ValueError, binascii.Error):
        return False
    signed = f"{name}.{moment}.".encode() + body
    return hmac.compare_digest(claimed, hmac.new(secret.encode(), signed, hashlib.sha256).digest())
