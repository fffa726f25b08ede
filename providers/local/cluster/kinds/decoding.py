"""From a request's JSON to an object of its kind: types checked, unknown fields found and dropped."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from nighttrain.providers.local.cluster.kinds.schema_data import TYPES
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.objects import copy_object

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nighttrain.providers.local.cluster.store.resources import Custom, ResourceType

QUANTITY = re.compile(r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$")
_QUANTITY_NUMBERS = re.compile(r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$")
# An exponent has at most as many digits as Go reads into 64 bits.
_QUANTITY_SUFFIXES = re.compile(r"^(|[numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,18})$")
_QUANTITY_FIELDS = frozenset(
    (
        "limits",
        "requests",
        "capacity",
        "allocatable",
        "allocatedResources",
        "overhead",
        "sizeLimit",
        "hard",
        "used",
        "divisor",
    )
)
_BASE64_FIELDS = {("Secret", "data"), ("ConfigMap", "binaryData")}
# Whole numbers are int32 in the API except these.
_INT64_FIELDS = frozenset(
    (
        "activeDeadlineSeconds",
        "terminationGracePeriodSeconds",
        "tolerationSeconds",
        "runAsUser",
        "runAsGroup",
        "fsGroup",
        "generation",
        "observedGeneration",
        "deletionGracePeriodSeconds",
        "expirationSeconds",
        "maxExpirationSeconds",
        "supplementalGroups",
        "uid",
        "gid",
        "seconds",
        "sizeBytes",
        *("maxItems", "minItems", "maxLength", "minLength", "maxProperties", "minProperties"),
    )
)
# A number or a string; the client's models say of these only that they are something.
_INT_OR_STRING = frozenset(
    (
        ("HTTPGetAction", "port"),
        ("RollingUpdateDeployment", "maxSurge"),
        ("RollingUpdateDeployment", "maxUnavailable"),
        ("ServicePort", "targetPort"),
        ("TCPSocketAction", "port"),
    )
)
# An EndpointSlice without endpoints says so.
_KEPT_EMPTY = frozenset(("EndpointSlice",))
_GO_TYPES = {"s": "string", "b": "bool", "f": "float64", "t": "v1.Time"}
_LARGEST_FLOAT = sys.float_info.max
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")


class _MismatchError(Exception):
    """The JSON cannot be an object of the kind; the text is the API's own."""


class RepeatingBody(dict[str, Any]):
    """A JSON object in which fields are named more than once. :param repeated: their paths"""

    repeated: tuple[str, ...] = ()


class _Repeating(dict[str, Any]):
    names: tuple[str, ...] = ()


def _no_constant(name: str) -> Any:
    """Python reads NaN and Infinity; JSON has no such numbers."""
    raise ValueError(f"invalid character '{name[0]}' looking for beginning of value")


def _finite(text: str) -> float:
    """Python reads 1e999 as infinity, which is no JSON to answer with."""
    number = float(text)
    if abs(number) > _LARGEST_FLOAT:
        raise ValueError(f"cannot unmarshal number {text[:40]} into Go value of type float64")
    return number


def parse_json(raw: bytes) -> Any:
    """The JSON, the last of repeated fields winning; a :class:`RepeatingBody` where there are some.

    :raises ValueError: it is not JSON
    """
    found = False

    def remember(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        obj = dict(pairs)
        if len(obj) == len(pairs):
            return obj
        found = True
        marked = _Repeating(obj)
        names = [name for name, _ in pairs]
        marked.names = tuple(dict.fromkeys(name for name in names if names.count(name) > 1))
        return marked

    parsed = json.loads(raw, object_pairs_hook=remember, parse_constant=_no_constant, parse_float=_finite)
    if not found or not isinstance(parsed, dict):
        return parsed if not found else json.loads(raw)
    body = RepeatingBody(json.loads(raw))
    body.repeated = tuple(_repeated(parsed, ""))
    return body


def _repeated(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        base = f"{path}." if path else ""
        if isinstance(value, _Repeating):
            yield from (f"{base}{name}" for name in value.names)
        for name, item in value.items():
            yield from _repeated(item, f"{base}{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _repeated(item, f"{path}[{index}]")


def decode(resource: ResourceType, body: Any) -> tuple[dict[str, Any], list[str]]:
    """The object without nulls and unknown fields, and the unknown fields' paths.

    :raises ApiError: 400 when a value has the wrong type
    """
    if not isinstance(body, dict):
        raise errors.bad_request(
            f"{cannot_be_handled(resource)}: json: cannot unmarshal {_word(body)} into an object"
        )
    unknown: list[str] = []
    try:
        if resource.custom is not None:
            return _custom(resource.custom, body, unknown), unknown
        return _struct(resource.kind, body, "", "", unknown), unknown
    except _MismatchError as mismatch:
        raise errors.bad_request(f"{cannot_be_handled(resource)}: {mismatch}") from None


def decode_part(type_: str, body: Any) -> dict[str, Any]:
    """An object that is sent to an action rather than stored, such as ``DeleteOptions``.

    :raises ApiError: 400 when a value has the wrong type
    """
    try:
        if not isinstance(body, dict):
            raise _MismatchError(f"json: cannot unmarshal {_word(body)} into Go value of type v1.{type_}")
        return _struct(type_, body, "", "", [])
    except _MismatchError as mismatch:
        raise errors.bad_request(
            f'{type_} in version "v1" cannot be handled as a {type_}: {mismatch}'
        ) from None


def _custom(version: Custom, body: dict[str, Any], unknown: list[str]) -> dict[str, Any]:
    metadata = body.get("metadata") or {}
    _check_numbers(body)
    if not isinstance(metadata, dict):
        raise _wrong(metadata, "ObjectMeta", ("ObjectMeta", "metadata"), "metadata")
    obj = copy_object({**body, "metadata": _struct("ObjectMeta", metadata, "metadata", "metadata", unknown)})
    unknown += version.decode(obj)
    return cast("dict[str, Any]", obj)


def _check_numbers(value: Any) -> None:
    """Custom objects hold what their schema allows, but no number that is too large for any type."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_numbers(each)
    elif isinstance(value, int) and abs(value) > _LARGEST_FLOAT:
        raise _MismatchError("json: cannot unmarshal number out of range into Go value of type float64")


def cannot_be_handled(resource: ResourceType, kind: str = "") -> str:
    return f'{kind or resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'


def _struct(type_: str, value: dict[str, Any], path: str, plain: str, unknown: list[str]) -> dict[str, Any]:
    """:param plain: the path without indexes, as Go's messages have it"""
    fields = TYPES.get(type_)
    if fields is None:
        return value
    found = {}
    for name, item in value.items():
        declared = fields.get(name)
        here = f"{path}.{name}" if path else name
        if declared is None:
            if name != "managedFields":
                unknown.append(here)
        elif item is not None and not (_is_omitted(declared, type_) and item in ([], {})):
            below = f"{plain}.{name}" if plain else name
            known = _SUBSCHEMA if type_ == _SUBSCHEMA and _holds_schema(name, item) else declared.rstrip("!")
            found[name] = _value(known, item, (type_, name), here, below, unknown)
    if type_.endswith("Condition") or type_ in _WRITTEN_WHOLE:
        zeros = {name: _ZEROS[it] for name, it in fields.items() if it in _ZEROS and name not in found}
        found.update(zeros)
    return found


# What is missing in these is written as the zero value of its type, as everywhere in Go; whoever reads a
# status relies on it. In a specification it would hide that something is missing.
_WRITTEN_WHOLE = frozenset(("ContainerStatus", "ContainerStateTerminated"))
_ZEROS: dict[str, Any] = {"s!": "", "b!": False, "i!": 0}


# The client's models say nothing of the schemas in these two fields.
_SUBSCHEMA = "JSONSchemaProps"


def _holds_schema(field: str, item: Any) -> bool:
    return field == "items" or (field == "additionalProperties" and not isinstance(item, bool))


def _is_omitted(declared: str, type_: str) -> bool:
    """Whether an empty list or map of the field is as good as none, and not kept."""
    return declared[0] in "[{" and not declared.endswith("!") and type_ not in _KEPT_EMPTY


def _value(
    declared: str, item: Any, field: tuple[str, str], path: str, plain: str, unknown: list[str]
) -> Any:
    sign = declared[0]
    if declared == "*":
        return _int_or_string(item) if field in _INT_OR_STRING else item
    if sign == "[":
        if not isinstance(item, list):
            raise _wrong(item, declared, field, plain)
        return [
            _value(declared[1:], each, field, f"{path}[{index}]", plain, unknown)
            for index, each in enumerate(item)
        ]
    if sign == "{":
        if not isinstance(item, dict):
            raise _wrong(item, declared, field, plain)
        return {
            key: _value(declared[1:], each, field, f"{path}.{key}", plain, unknown)
            for key, each in item.items()
            if each is not None
        }
    if len(declared) == 1:
        return _scalar(declared, item, field, plain)
    if not isinstance(item, dict):
        raise _wrong(item, declared, field, plain)
    return _struct(declared, item, path, plain, unknown)


def _scalar(declared: str, item: Any, field: tuple[str, str], plain: str) -> Any:
    if field[1] in _QUANTITY_FIELDS:
        return _quantity(item)
    if declared == "s" and isinstance(item, str):
        if field in _BASE64_FIELDS:
            _check_base64(item)
        return item
    if declared == "i" and isinstance(item, int | float) and not isinstance(item, bool):
        bits = 64 if field[1] in _INT64_FIELDS else 32
        if not isinstance(item, int) or not -(2 ** (bits - 1)) <= item < 2 ** (bits - 1):
            raise _wrong(item, declared, field, plain, f"number {_number(item)}")
        return item
    if declared == "b" and isinstance(item, bool):
        return item
    if declared == "f" and isinstance(item, int | float) and not isinstance(item, bool):
        if not abs(item) <= _LARGEST_FLOAT:
            raise _wrong(item, declared, field, plain, f"number {_number(item)}")
        return item
    if declared == "t" and isinstance(item, str):
        _check_time(item)
        return item
    raise _wrong(item, declared, field, plain)


def _number(item: float) -> str:
    """A number as it was sent, but not at any length."""
    return json.dumps(item) if abs(item) <= _LARGEST_FLOAT else "out of range"


def _int_or_string(item: Any) -> Any:
    if isinstance(item, str) or (
        isinstance(item, int) and not isinstance(item, bool) and -(2**31) <= item < 2**31
    ):
        return item
    number = isinstance(item, int | float) and not isinstance(item, bool)
    word = f"number {_number(item)}" if number else _word(item)
    raise _MismatchError(f"json: cannot unmarshal {word} into Go value of type int32")


def _check_time(text: str) -> None:
    shown = json.dumps(text)
    if not _TIME.match(text):
        raise _MismatchError(
            f'parsing time {shown} as "2006-01-02T15:04:05Z07:00": cannot parse {shown} as "2006"'
        )
    try:
        datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        month, _day, hour, minute, second = (int(part) for part in re.findall(r"\d+", text)[1:6])
        part = "day" if 1 <= month <= 12 else "month"
        for word, number, most in (("hour", hour, 23), ("minute", minute, 59), ("second", second, 59)):
            part = word if number > most else part
        raise _MismatchError(f"parsing time {shown}: {part} out of range") from None


def _quantity(item: Any) -> str:
    # str() of a number of thousands of digits is an error of its own.
    if isinstance(item, int | float) and not isinstance(item, bool):
        text: Any = str(item) if abs(item) <= _LARGEST_FLOAT else ""
    else:
        text = item
    match = QUANTITY.match(text) if isinstance(text, str) else None
    if match is None or not _QUANTITY_NUMBERS.match(match.group(1)):
        raise _MismatchError(f"quantities must match the regular expression '{QUANTITY.pattern}'")
    if not _QUANTITY_SUFFIXES.match(match.group(2)):
        raise _MismatchError("unable to parse quantity's suffix")
    return str(text)


def _check_base64(text: str) -> None:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        position = next((i for i, c in enumerate(text) if not re.match(r"[A-Za-z0-9+/=]", c)), 0)
        raise _MismatchError(f"illegal base64 data at input byte {position}") from None


def _wrong(item: Any, declared: str, field: tuple[str, str], plain: str, word: str = "") -> _MismatchError:
    go_type = _go_type(declared, field[1])
    return _MismatchError(
        f"json: cannot unmarshal {word or _word(item)} into Go struct field {field[0]}.{plain} "
        f"of type {go_type}"
    )


def _go_type(declared: str, field: str) -> str:
    if declared[0] == "[":
        return "[]" + _go_type(declared[1:], field)
    if declared[0] == "{":
        return "map[string]" + _go_type(declared[1:], field)
    if declared == "i":
        return "int64" if field in _INT64_FIELDS else "int32"
    return _GO_TYPES.get(declared, f"v1.{declared}")


def _word(item: Any) -> str:
    """JSON's name of a value's type, as Go's messages have it."""
    if isinstance(item, bool):
        return "bool"
    if isinstance(item, int | float):
        return "number"
    words: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return words.get(type(item), "null")
