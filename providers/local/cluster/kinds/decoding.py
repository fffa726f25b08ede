"""From a request's JSON to an object of its kind: types checked, unknown fields found and dropped."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.cluster.kinds.builtin_schemas import schema_of
from nighttrain.providers.local.cluster.kinds.schemas import Schema, WrongTypeError, complete, fit
from nighttrain.providers.local.cluster.store import errors
from nighttrain.providers.local.cluster.store.objects import copy_object

if TYPE_CHECKING:
    from nighttrain.providers.local.cluster.store.resources import ResourceType

_LARGEST_FLOAT = sys.float_info.max


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
    """The JSON, the last of repeated fields winning.

    :raises ValueError: it is not JSON
    """
    return json.loads(raw, parse_constant=_no_constant, parse_float=_finite)


def decode(resource: ResourceType, body: Any) -> tuple[dict[str, Any], list[str]]:
    """The object without nulls and unknown fields, and the unknown fields' paths.

    :raises ApiError: 400 when a value has the wrong type; 422 where a definition says which is right
    """
    refusal = cannot_be_handled(resource)
    if resource.custom is None:
        return _fitted(schema_of(resource.kind), body, refusal)
    obj, unknown = _fitted(_custom(), body, refusal)
    schema = resource.custom.schema
    try:
        unknown += fit({**schema, "x-kubernetes-embedded-resource": True}, obj, custom=True)
    except WrongTypeError as error:
        why = f"Invalid value: {error.field} in body {error.why}"
        cause = errors.Cause("FieldValueTypeInvalid", why, error.field)
        raise errors.invalid(resource, str(obj.get("metadata", {}).get("name", "")), [cause]) from None
    complete(schema, obj)
    return obj, unknown


def decode_part(type_: str, body: Any) -> dict[str, Any]:
    """An object that is sent to an action rather than stored, such as ``DeleteOptions``.

    :raises ApiError: 400 when a value has the wrong type
    """
    return _fitted(schema_of(type_), body, f'{type_} in version "v1" cannot be handled as a {type_}')[0]


def _custom() -> Schema:
    """Of a custom object before its own schema is applied: its metadata alone is known."""
    properties = {"metadata": schema_of("ObjectMeta")}
    return {"type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": True}


def _fitted(schema: Schema, body: Any, refusal: str) -> tuple[dict[str, Any], list[str]]:
    if not isinstance(body, dict):
        raise errors.bad_request(f"{refusal}: it is no object")
    if _has_a_number_for_no_type(body):
        raise errors.bad_request(f"{refusal}: a number is out of range")
    obj: dict[str, Any] = copy_object(dict(body))
    try:
        return obj, fit(schema, obj)
    except WrongTypeError as error:
        raise errors.bad_request(f"{refusal}: {error}") from None


def _has_a_number_for_no_type(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_a_number_for_no_type, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) > _LARGEST_FLOAT


def cannot_be_handled(resource: ResourceType, kind: str = "") -> str:
    return f'{kind or resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
