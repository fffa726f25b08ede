"""Structural schemas of custom resources: pruning, defaults, validation in the API's own words."""

from __future__ import annotations

import functools
import ipaddress
import json
import re
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from nighttrain.providers.local.errors import Cause
from nighttrain.providers.local.objects import copy_object

if TYPE_CHECKING:
    from collections.abc import Callable

Schema = dict[str, Any]
EMBEDDED = ("apiVersion", "kind", "metadata")
_RANGES = {"int32": 2**31, "int64": 2**63}
_DURATION = re.compile(r"^([+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+$|^[+-]?0$")


def prune(schema: Schema, value: Any, path: str = "", *, root: bool = False) -> list[str]:
    """Take out of ``value`` what the schema does not name, in place.

    :param root: the schema is a whole object's: ``apiVersion``, ``kind`` and ``metadata`` are always known
    :return: the paths of what went
    """
    unknown: list[str] = []
    _prune(schema, value, path, root or bool(schema.get("x-kubernetes-embedded-resource")), unknown)
    return unknown


def _prune(schema: Schema, value: Any, path: str, embedded: bool, unknown: list[str]) -> None:
    if isinstance(value, list):
        items = schema.get("items")
        if isinstance(items, dict):
            for index, item in enumerate(value):
                _descend(items, item, f"{path}[{index}]", unknown)
    elif isinstance(value, dict):
        properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        for key in list(value):
            here = f"{path}.{key}" if path else key
            if embedded and key in EMBEDDED:
                continue
            if key in properties:
                _descend(properties[key], value[key], here, unknown)
            elif isinstance(additional, dict):
                _descend(additional, value[key], here, unknown)
            elif additional is not True and not schema.get("x-kubernetes-preserve-unknown-fields"):
                unknown.append(here)
                del value[key]


def _descend(schema: Schema, value: Any, path: str, unknown: list[str]) -> None:
    _prune(schema, value, path, bool(schema.get("x-kubernetes-embedded-resource")), unknown)


def complete(schema: Schema, value: Any) -> None:
    """Set defaults in place. A null where none is allowed is taken as absent."""
    if isinstance(value, list):
        items = schema.get("items")
        if isinstance(items, dict):
            for item in value:
                complete(items, item)
        return
    if not isinstance(value, dict):
        return
    properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
    for name, below in properties.items():
        if name in value and value[name] is None and not below.get("nullable"):
            del value[name]
        if name not in value and below.get("default") is not None:
            value[name] = copy_object(below["default"])
        if name in value:
            complete(below, value[name])
    if isinstance(additional, dict):
        for name in [each for each in value if each not in properties]:
            if value[name] is None and not additional.get("nullable"):
                del value[name]
            else:
                complete(additional, value[name])


def validate(schema: Schema, value: Any, path: str = "") -> list[Cause]:
    """What is wrong with ``value``, field by field."""
    if value is None and schema.get("nullable"):
        return []
    found = _word(value)
    if schema.get("x-kubernetes-int-or-string"):
        if found not in ("integer", "string"):
            return [_wrong_type(path, "integer,string", found)]
    elif schema.get("type") and not _has_type(schema["type"], value):
        return [_wrong_type(path, schema["type"], found)]
    causes = _enumerated(schema, value, path)
    if isinstance(value, dict):
        causes += _object(schema, value, path)
    elif isinstance(value, list):
        causes += _array(schema, value, path)
    elif isinstance(value, str):
        causes += _string(schema, value, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        causes += _number(schema, value, path)
    return causes + _combined(schema, value, path)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    words: dict[type, str] = {float: "number", str: "string", list: "array", dict: "object"}
    return words.get(type(value), "null")


def _has_type(declared: str, value: Any) -> bool:
    found = _word(value)
    if declared == "number":
        return found in ("number", "integer")
    if declared == "integer" and isinstance(value, float):
        return value.is_integer()
    return found == declared


def _wrong_type(path: str, declared: str, found: str) -> Cause:
    message = f'Invalid value: "{found}": {path} in body must be of type {declared}: "{found}"'
    return Cause("FieldValueTypeInvalid", message, path or "<nil>")


def _invalid(path: str, value: Any, why: str) -> Cause:
    return Cause(
        "FieldValueInvalid", f"Invalid value: {_shown(value)}: {path} in body {why}", path or "<nil>"
    )


def _shown(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _enumerated(schema: Schema, value: Any, path: str) -> list[Cause]:
    allowed = schema.get("enum")
    if not allowed or any(each == value and type(each) is type(value) for each in allowed):
        return []
    choices = ", ".join(f'"{each}"' if isinstance(each, str) else f'"{_shown(each)}"' for each in allowed)
    message = f"Unsupported value: {_shown(value)}: supported values: {choices}"
    return [Cause("FieldValueNotSupported", message, path or "<nil>")]


def _object(schema: Schema, value: dict[str, Any], path: str) -> list[Cause]:
    causes: list[Cause] = []
    least, most = schema.get("minProperties"), schema.get("maxProperties")
    if least is not None and len(value) < least:
        causes.append(_invalid(path, len(value), f"should have at least {least} properties"))
    if most is not None and len(value) > most:
        causes.append(_too_many(path, len(value), most))
    properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
    for name in schema.get("required") or ():
        if name not in value:
            causes.append(Cause("FieldValueRequired", "Required value", _join(path, name)))
    if schema.get("x-kubernetes-embedded-resource"):
        for name in ("apiVersion", "kind"):
            if not value.get(name):
                text = "Required value: must not be empty"
                causes.append(Cause("FieldValueRequired", text, _join(path, name)))
    for name in sorted(value):
        if name in properties:
            causes += validate(properties[name], value[name], _join(path, name))
        elif isinstance(additional, dict):
            causes += validate(additional, value[name], _join(path, name))
    return causes


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _too_many(path: str, found: int, most: int) -> Cause:
    return Cause("FieldValueTooMany", f"Too many: {found}: must have at most {most} items", path or "<nil>")


def _array(schema: Schema, value: list[Any], path: str) -> list[Cause]:
    causes: list[Cause] = []
    least, most = schema.get("minItems"), schema.get("maxItems")
    if least is not None and len(value) < least:
        causes.append(_invalid(path, len(value), f"should have at least {least} items"))
    if most is not None and len(value) > most:
        causes.append(_too_many(path, len(value), most))
    items = schema.get("items")
    if isinstance(items, dict):
        for index, item in enumerate(value):
            causes += validate(items, item, f"{path}[{index}]")
    seen = set()
    for index, item in enumerate(value):
        identity = identify(schema, item)
        if identity is None:
            continue
        text = _shown(identity)
        if text in seen:
            causes.append(Cause("FieldValueDuplicate", f"Duplicate value: {text}", f"{path}[{index}]"))
        seen.add(text)
    return causes


def identify(schema: Schema, item: Any) -> Any:
    """What tells an item of a list from its neighbours: its keys, or itself in a set; None in other lists."""
    kind = schema.get("x-kubernetes-list-type")
    if kind == "set":
        return item
    if kind == "map" and isinstance(item, dict):
        items = (schema.get("items") or {}).get("properties") or {}
        keys = schema.get("x-kubernetes-list-map-keys") or ()
        return {key: item.get(key, (items.get(key) or {}).get("default")) for key in sorted(keys)}
    return None


@functools.lru_cache(maxsize=2048)
def pattern(text: str) -> re.Pattern[str] | None:
    """The expression; None for one that only Go understands, which is then not checked."""
    try:
        return re.compile(text.replace(r"\z", r"\Z"))
    except re.error:
        return None


def _string(schema: Schema, value: str, path: str) -> list[Cause]:
    causes: list[Cause] = []
    least, most = schema.get("minLength"), schema.get("maxLength")
    if most is not None and len(value) > most:
        message = f"Too long: may not be more than {most} bytes"
        causes.append(Cause("FieldValueTooLong", message, path or "<nil>"))
    if least is not None and len(value) < least:
        causes.append(_invalid(path, value, f"should be at least {least} chars long"))
    expression = pattern(schema["pattern"]) if schema.get("pattern") else None
    if expression is not None and not expression.search(value):
        causes.append(_invalid(path, value, f"should match '{schema['pattern']}'"))
    check = _FORMATS.get(schema.get("format", ""))
    if check is not None and not _passes(check, value):
        shown = _shown(value)
        message = f"Invalid value: {shown}: {path} in body must be of type {schema['format']}: {shown}"
        causes.append(Cause("FieldValueTypeInvalid", message, path or "<nil>"))
    return causes


def _passes(check: Callable[[str], object], value: str) -> bool:
    try:
        return check(value) is not None
    except ValueError:
        return False


# Formats that are checked; the API ignores those it does not know, and so does this.
_FORMATS: dict[str, Callable[[str], object]] = {
    "date-time": lambda text: datetime.fromisoformat(text) if "T" in text.upper() else None,
    "date": lambda text: datetime.strptime(text, "%Y-%m-%d"),
    "duration": _DURATION.match,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "cidr": lambda text: ipaddress.ip_network(text, strict=False) if "/" in text else None,
    "uuid": uuid.UUID,
    "email": re.compile(r"^[^@\s]+@[^@\s]+$").match,
    "uri": re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:.+$").match,
    "byte": re.compile(r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$").match,
}


def _number(schema: Schema, value: float, path: str) -> list[Cause]:
    causes: list[Cause] = []
    limit = _RANGES.get(schema.get("format", ""))
    if limit is not None and not -limit <= value < limit:
        why = f"Checked value must be of type {schema.get('type')} with format {schema['format']}"
        causes.append(Cause("FieldValueInvalid", f"Invalid value: {_shown(value)}: {why}", path or "<nil>"))
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None:
        strict = schema.get("exclusiveMinimum")
        if value < least or (strict and value == least):
            why = "should be greater than" if strict else "should be greater than or equal to"
            causes.append(_invalid(path, value, f"{why} {_shown(least)}"))
    if most is not None:
        strict = schema.get("exclusiveMaximum")
        if value > most or (strict and value == most):
            why = "should be less than" if strict else "should be less than or equal to"
            causes.append(_invalid(path, value, f"{why} {_shown(most)}"))
    factor = schema.get("multipleOf")
    if factor and not _is_multiple(value, factor):
        causes.append(_invalid(path, value, f"should be a multiple of {_shown(factor)}"))
    return causes


def _is_multiple(value: float, factor: float) -> bool:
    try:
        return abs(value / factor - round(value / factor)) <= 1e-9
    except OverflowError:
        # More often than there is a number for: as for Go, that is a multiple.
        return True


def _combined(schema: Schema, value: Any, path: str) -> list[Cause]:
    causes: list[Cause] = []

    def add(why: str) -> None:
        causes.append(Cause("FieldValueInvalid", f'Invalid value: "": "{path}" {why}', path or "<nil>"))

    some = schema.get("anyOf")
    if some and not any(not validate(each, value, path) for each in some):
        add("must validate at least one schema (anyOf)")
    one = schema.get("oneOf")
    if one:
        count = sum(not validate(each, value, path) for each in one)
        if count != 1:
            found = "none valid" if count == 0 else f"{count} valid alternatives"
            add(f"must validate one and only one schema (oneOf). Found {found}")
    every = schema.get("allOf")
    if every:
        broken = [cause for each in every for cause in validate(each, value, path)]
        if broken:
            add("must validate all the schemas (allOf)")
            causes += broken
    if schema.get("not") is not None and not validate(schema["not"], value, path):
        add("must not validate the schema (not)")
    return causes
