"""A kind's schema applied to an object: pruned, completed, checked; a built-in kind's or a definition's.

Of a CustomResourceDefinition's schema is checked what JSON Schema and Kubernetes' structural schemas have in
common. Rules in CEL, patterns (a definition's expression could hold up the server), keys of lists and most
formats are not.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jsonschema import Draft4Validator, Draft6Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import create, extend

from nighttrain.providers.local.cluster.kinds.formats import FORMATS, OF_TYPES
from nighttrain.providers.local.cluster.store.errors import Cause
from nighttrain.providers.local.cluster.store.objects import copy_object

Schema = dict[str, Any]
EMBEDDED = ("apiVersion", "kind", "metadata")
_REASONS = {
    "type": "FieldValueTypeInvalid",
    "x-kubernetes-int-or-string": "FieldValueTypeInvalid",
    "enum": "FieldValueNotSupported",
    "required": "FieldValueRequired",
    "maxLength": "FieldValueTooLong",
    "maxItems": "FieldValueTooMany",
    "maxProperties": "FieldValueTooMany",
}


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
    elif isinstance(value, dict):
        properties, additional = schema.get("properties") or {}, schema.get("additionalProperties")
        for name, below in properties.items():
            _complete_field(below, value, name)
        if isinstance(additional, dict):
            for name in [each for each in value if each not in properties]:
                _complete_field(additional, value, name)


def _complete_field(schema: Schema, parent: dict[str, Any], name: str) -> None:
    present = name in parent
    if present:
        null = parent[name] is None and not schema.get("nullable")
        unset = "x-unset" in schema and "default" in schema and parent[name] in schema["x-unset"]
        if null or unset:
            del parent[name]
            present = False
    if not present and schema.get("default") is not None:
        parent[name] = copy_object(schema["default"])
        present = True
    if present:
        complete(schema, parent[name])


def tidy(schema: Schema, value: Any) -> None:
    """Write a built-in kind's value, in place, as the API stores it.

    That is without nulls, without lists and maps that are empty and need not be there, and with amounts as texts.
    """
    if isinstance(value, list):
        for item in value:
            tidy(schema.get("items") or {}, item)
    elif isinstance(value, dict):
        properties = schema.get("properties") or {}
        other: Schema = schema.get("additionalProperties") or {}
        for name, item in list(value.items()):
            below: Schema = properties.get(name) or other
            if item is None or (item in ([], {}) and _is_optional_collection(schema, name, below)):
                del value[name]
            elif below.get("format") == "quantity" and isinstance(item, int | float):
                value[name] = item if isinstance(item, bool) else str(item)
            else:
                tidy(below, item)
        for name, zero in schema.get("x-zeros", {}).items():
            value.setdefault(name, zero)


def _is_optional_collection(schema: Schema, name: str, below: Schema) -> bool:
    collection = below.get("type") == "array" or "additionalProperties" in below
    return collection and name not in schema.get("required", ()) and not below.get("x-kept-empty")


def wrong_schema(schema: Schema) -> str:
    """What makes it no schema at all; empty if it is one."""
    try:
        Draft4Validator.check_schema(schema)
    except SchemaError as error:
        return str(error.message)
    return ""


def validate(schema: Schema, value: Any) -> list[Cause]:
    """What is wrong with a custom object, field by field."""
    errors = _custom_validator()(schema, format_checker=FormatChecker()).iter_errors(value)
    return [_cause(error) for error in errors]


def mismatch(schema: Schema, value: Any) -> str | None:
    """The first field of an object of a built-in kind that has the wrong type, and how; None if none has."""
    error = next(_type_validator()(schema).iter_errors(value), None)
    return None if error is None else f"{_path(error) or 'the object'}: {error.message}"


def broken_rules(schema: Schema, value: Any, path: str = "") -> list[Cause]:
    """What is wrong with the values of an object of a built-in kind, field by field.

    :param path: where the object is in the one that is checked
    """
    # A type's format has been checked by now: this one is a rule about the value.
    errors = _rule_validator()(schema).iter_errors(value)
    return [_cause(error, path, formats="FieldValueInvalid") for error in errors]


@functools.cache
def _custom_validator() -> Any:
    keywords = {
        "type": _type,
        "enum": _enum,
        "required": _required,
        "x-kubernetes-int-or-string": _int_or_string,
        "pattern": _unchecked,
    }
    # Draft 4 has OpenAPI's exclusiveMinimum, draft 6 its integers: 2.0 is one.
    return extend(Draft4Validator, keywords, type_checker=Draft6Validator.TYPE_CHECKER)


_INNER = {key: Draft4Validator.VALIDATORS[key] for key in ("properties", "items", "additionalProperties")}


@functools.cache
def _type_validator() -> Any:
    keywords = {
        **_INNER,
        "type": _type,
        "format": lambda _, name, value, _schema: _formatted(OF_TYPES, name, value),
        "x-kubernetes-int-or-string": _int_or_string,
    }
    return create({}, keywords, type_checker=Draft4Validator.TYPE_CHECKER)


@functools.cache
def _rule_validator() -> Any:
    keywords = {
        **_INNER,
        "enum": _if_set(_enum),
        "format": _if_set(lambda _, name, value, _schema: _formatted(FORMATS, name, value)),
        "minimum": _if_set(Draft4Validator.VALIDATORS["minimum"]),
        "maximum": _if_set(Draft4Validator.VALIDATORS["maximum"]),
        "required": _required_and_filled,
    }
    return create({}, keywords, type_checker=Draft4Validator.TYPE_CHECKER)


Errors = Iterator[ValidationError]
Keyword = Callable[[Any, Any, Any, Schema], Errors]


def _if_set(keyword: Keyword) -> Keyword:
    def check(validator: Any, declared: Any, value: Any, schema: Schema) -> Errors:
        # What is not there and must be is told as required.
        if value is not None and value not in schema.get("x-unset", ()):
            yield from keyword(validator, declared, value, schema) or ()

    return check


def _formatted(known: Mapping[str, Callable[[Any], str]], name: str, value: Any) -> Errors:
    why = known[name](value) if name in known else ""
    if why:
        yield ValidationError(why)


def _type(validator: Any, declared: str, value: Any, schema: Schema) -> Errors:
    if not (value is None and schema.get("nullable")) and not validator.is_type(value, declared):
        yield ValidationError(f'must be of type {declared}: "{_word(value)}"')


def _int_or_string(validator: Any, wanted: bool, value: Any, _: Schema) -> Errors:
    if wanted and not (validator.is_type(value, "integer") or isinstance(value, str)):
        yield ValidationError(f'must be of type integer,string: "{_word(value)}"')


def _enum(_: Any, allowed: list[Any], value: Any, schema: Schema) -> Errors:
    if not (value is None and schema.get("nullable")) and value not in allowed:
        yield ValidationError(f"supported values: {', '.join(map(json.dumps, allowed))}")


def _required(_: Any, names: list[str], value: Any, _schema: Schema) -> Errors:
    if isinstance(value, dict):
        for name in names:
            if name not in value:
                yield ValidationError("", path=[name])


def _required_and_filled(_: Any, names: list[str], value: Any, _schema: Schema) -> Errors:
    for name in names:
        if value.get(name) in (None, "", []):
            yield ValidationError("", path=[name])


def _unchecked(*_: Any) -> Errors:
    return iter(())


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    words: dict[type, str] = {float: "number", str: "string", list: "array", dict: "object"}
    return words.get(type(value), "null")


def _path(error: ValidationError) -> str:
    path = ""
    for part in error.absolute_path:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _cause(error: ValidationError, within: str = "", formats: str = "FieldValueTypeInvalid") -> Cause:
    path = ".".join(filter(None, (within, _path(error))))
    reason = _REASONS.get(str(error.validator), "FieldValueInvalid")
    reason = formats if error.validator == "format" else reason
    if reason == "FieldValueRequired":
        return Cause(reason, "Required value", path)
    shown = json.dumps(error.instance, separators=(",", ":"), ensure_ascii=False)
    if reason == "FieldValueNotSupported":
        return Cause(reason, f"Unsupported value: {shown}: {error.message}", path or "<nil>")
    return Cause(reason, f"Invalid value: {shown}: {path} in body {error.message}", path or "<nil>")
