"""A request's query, read once into typed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.selection import FieldSelector, LabelSelector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nighttrain.providers.local.cluster.store.resources import ResourceType

# As Go reads booleans; the Python clients write "True".
_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
FIELD_VALIDATIONS = ("Ignore", "Warn", "Strict")


def flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "") in _TRUE


def number(query: Mapping[str, str], name: str) -> int | None:
    """:raises ApiError: 400 when it is not a whole number"""
    text = query.get(name, "")
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise errors.bad_request(
            f'unable to convert the parameter "{name}": strconv.ParseInt: parsing "{text}": invalid syntax'
        ) from None


def dry_run(query: Mapping[str, str]) -> bool:
    value = query.get("dryRun", "")
    if value not in ("", "All"):
        raise errors.invalid_options("Options", errors.unsupported_value("dryRun", [value], ("All",)))
    return value == "All"


def field_validation(query: Mapping[str, str]) -> str:
    value = query.get("fieldValidation") or "Warn"
    if value not in FIELD_VALIDATIONS:
        cause = errors.unsupported_value("fieldValidation", value, tuple(sorted(FIELD_VALIDATIONS)))
        raise errors.invalid_options("Options", cause)
    return value


@dataclass(frozen=True, slots=True)
class ListParameters:
    """The parameters of a list or a watch. ``revision`` None: not said; 0: any state will do."""

    labels: LabelSelector | None
    fields: FieldSelector | None
    limit: int
    token: str
    revision: int | None
    match: str
    watch: bool
    timeout_seconds: int | None
    bookmarks: bool
    initial_events: bool

    @classmethod
    def read(cls, query: Mapping[str, str], resource: ResourceType, name: str = "") -> ListParameters:
        """:raises ApiError: 400 for what does not parse"""
        labels = query.get("labelSelector", "")
        fields = query.get("fieldSelector", "")
        if name:
            fields = f"{fields},metadata.name={name}"
        revision = query.get("resourceVersion", "")
        if revision and not revision.isdecimal():
            raise errors.bad_request(
                f'resourceVersion: Invalid value: "{revision}": strconv.ParseUint: parsing "{revision}": '
                "invalid syntax"
            )
        return cls(
            labels=LabelSelector.parse(labels) if labels else None,
            fields=FieldSelector.parse(fields, resource) if fields else None,
            limit=max(0, number(query, "limit") or 0),
            token=query.get("continue", ""),
            revision=int(revision) if revision else None,
            match=query.get("resourceVersionMatch", ""),
            watch=flag(query, "watch"),
            timeout_seconds=number(query, "timeoutSeconds"),
            bookmarks=flag(query, "allowWatchBookmarks"),
            initial_events=flag(query, "sendInitialEvents"),
        )
