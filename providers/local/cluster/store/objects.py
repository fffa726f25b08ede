"""Plain JSON objects: copying, encoding, and the metadata that the server decides."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[str, str]
"""Namespace ("" for kinds that have none) and name."""

# Without vowels and look-alikes, as generateName does it: no suffix spells a word.
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def copy_object(value: Any) -> Any:
    """A private copy of plain JSON data; several times faster than ``copy.deepcopy``."""
    if isinstance(value, dict):
        return {key: copy_object(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_object(item) for item in value]
    return value


def encode(value: Any) -> bytes:
    """Compact JSON, as the API writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def timestamp(moment: datetime) -> str:
    """``2026-11-22T08:36:17Z``: the API's form, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_now() -> datetime:
    return datetime.now(UTC)


def generated_name(base: str) -> str:
    """``base`` and five random letters; the base is cut so that the whole fits a label."""
    return base[:58] + "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))


def at_revision(obj: Object, revision: int) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(revision)}}


# What the server decides: a write cannot change it.
_IDENTITY = (
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)


def keep_identity(old: Object, new: Object) -> None:
    for field in _IDENTITY:
        if field in old:
            new[field] = old[field]
        else:
            new.pop(field, None)
    for field in ("finalizers", "ownerReferences", "labels", "annotations"):
        if field in new and not new[field]:
            del new[field]
