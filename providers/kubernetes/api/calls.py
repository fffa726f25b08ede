"""Calls to an API server, as plain values: what is asked for, in words, and what is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Asked:
    """The purpose of a call, in the words of messages."""

    verb: str
    what: str
    namespace: str | None
    name: str | None
    server: str

    def __str__(self) -> str:
        name = f" {self.name}" if self.name else ""
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.what}{name}{where}"


@dataclass(frozen=True)
class Call:
    """One request.

    :param path: the path of the URL, quoted
    :param body: sent as JSON
    :param safe_to_repeat: a second one does no harm where the first one's answer was lost
    """

    asked: Asked
    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: Any = None
    media_type: str = "application/json"
    safe_to_repeat: bool = True
