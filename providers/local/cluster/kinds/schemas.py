"""A kind's schema applied to an object: pruned, completed, checked; a built-in kind's or a definition's.

Of a CustomResourceDefinition's schema is checked what JSON Schema and Kubernetes' structural schemas have in
common. Rules in CEL, patterns (a definition's expression could hold up the server), keys of lists and most
formats are not.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft4Validator, Draft6Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import extend

from nighttrain.providers.local.cluster.kinds.formats import FORMATS, OF_TYPES
from nighttrain.providers.local.cluster.store.errors import (
    Cause,
    invalid_value,
    required_value,
    unsupported_value,
)
from nighttrain.providers.local.cluster.store.objects import copy_object

Schema = dict[str, Any]
EMBEDDED = ("apiVersion", "kind", "metadata")
_REASONS = {
    "format": "FieldValueTypeInvalid",
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


class WrongTypeError(Exception):
    """A field has a value of another type. Names the field."""


def fit(schema: Schema, value: Any) -> list[str]:
    """Write an object of a built-in kind, in place, as the API stores it.

    That is without unknown fields, nulls, and what is empty and need not be there; amounts are texts.

    :return: the paths of the unknown fields
    :raises WrongTypeError: for the first value of a wrong type
    """
    # Not by the library: it takes several times as long, and every pod of the cluster's own passes here.
    unknown: list[str] = []
    _fit(schema, value, "", unknown)
    return unknown


def _fit(schema: Schema, value: Any, path: str, unknown: list[str]) -> None:
    why = _wrong_type(schema, value)
    if why:
        raise WrongTypeError(f"{path or 'the object'}: {why}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            _fit(schema["items"], item, f"{path}[{index}]", unknown)
    elif isinstance(value, dict):
        _fit_fields(schema, value, f"{path}." if path else "", unknown)


def _fit_fields(schema: Schema, fields: dict[str, Any], base: str, unknown: list[str]) -> None:
    properties, other = schema.get("properties") or {}, schema.get("additionalProperties")
    for name, item in list(fields.items()):
        below = properties.get(name) or other
        if below is None:
            if not schema.get("x-kubernetes-preserve-unknown-fields"):
                unknown.append(base + name)
                del fields[name]
        elif item is None:
            del fields[name]
        else:
            if (
                below.get("format") == "quantity"
                and isinstance(item, int | float)
                and not isinstance(item, bool)
            ):
                item = fields[name] = str(item)
            _fit(below, item, base + name, unknown)
            if item in ([], {}) and _is_optional_collection(schema, name, below):
                del fields[name]
    for name, zero in schema.get("x-zeros", {}).items():
        fields.setdefault(name, zero)


def _is_optional_collection(schema: Schema, name: str, below: Schema) -> bool:
    collection = below.get("type") == "array" or "additionalProperties" in below
    return collection and name not in schema.get("required", ()) and not below.get("x-kept-empty")


def wrong_schema(schema: Schema) -> str:
    """The reason why it is no schema at all; empty if it is one."""
    try:
        Draft4Validator.check_schema(schema)
    except SchemaError as error:
        return str(error.message)
    return ""


_CUSTOM_FORMATS = ("date", "email", "ipv4", "ipv6", "uuid")


def validate(schema: Schema, value: Any) -> list[Cause]:
    """The errors of a custom object, field by field."""
    errors = _custom_validator()(schema, format_checker=FormatChecker(_CUSTOM_FORMATS)).iter_errors(value)
    return [_cause(error) for error in errors]


def broken_rules(schema: Schema, value: Any, path: str = "") -> list[Cause]:
    """The errors of the values of an object of a built-in kind, field by field.

    :param path: where the object is in the one that is checked
    """
    causes = [
        required_value(f"{path}.{name}" if path else name)
        for name in schema.get("required", ())
        if value.get(name) in (None, "", [])
    ]
    # What is not there and must be is told as required.
    if not _RULES.isdisjoint(schema) and value is not None and value not in schema.get("x-unset", ()):
        causes += _broken_rule(schema, value, path)
    for below, item, where in _below(schema, value, path):
        causes += broken_rules(below, item, where)
    return causes


def _below(schema: Schema, value: Any, path: str) -> list[tuple[Schema, Any, str]]:
    """The parts of the value, each with its schema and its path."""
    if isinstance(value, dict):
        properties, other = schema.get("properties") or {}, schema.get("additionalProperties")
        base = f"{path}." if path else ""
        found = [(properties.get(name) or other, item, base + name) for name, item in value.items()]
        return [(below, item, where) for below, item, where in found if below]
    if isinstance(value, list) and "items" in schema:
        return [(schema["items"], item, f"{path}[{index}]") for index, item in enumerate(value)]
    return []


_RULES = frozenset(("enum", "format", "maximum", "minimum"))
_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "integer,string": (int, str),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}


def _wrong_type(schema: Schema, value: Any) -> str:
    type_ = schema.get("type") or ("integer,string" if schema.get("x-kubernetes-int-or-string") else "")
    if type_ and (not isinstance(value, _TYPES[type_]) or (isinstance(value, bool) and type_ != "boolean")):
        return f'must be of type {type_}: "{_word(value)}"'
    form = schema.get("format")
    return OF_TYPES[form](value) if form in OF_TYPES else ""


def _broken_rule(schema: Schema, value: Any, path: str) -> Iterator[Cause]:
    if "enum" in schema and value not in schema["enum"]:
        yield unsupported_value(path, value, schema["enum"])
    least, most = schema.get("minimum"), schema.get("maximum")
    why = FORMATS[schema["format"]](value) if schema.get("format") in FORMATS else ""
    if least is not None and value < least:
        why = f"must be greater than or equal to {least}"
    elif most is not None and value > most:
        why = f"must be less than or equal to {most}"
    if why:
        yield invalid_value(path, value, why)


@functools.cache
def _custom_validator() -> Any:
    keywords = {
        "type": _type,
        "enum": _enum,
        "required": _required,
        "x-kubernetes-int-or-string": _int_or_string,
        "pattern": _unchecked,
        "uniqueItems": _unchecked,
    }
    # Draft 4 has OpenAPI's exclusiveMinimum, draft 6 its integers: 2.0 is one.
    return extend(Draft4Validator, keywords, type_checker=Draft6Validator.TYPE_CHECKER)


Errors = Iterator[ValidationError]


def _type(validator: Any, declared: str, value: Any, schema: Schema) -> Errors:
    if not (value is None and schema.get("nullable")) and not validator.is_type(value, declared):
        yield ValidationError(f'must be of type {declared}: "{_word(value)}"')


def _int_or_string(validator: Any, wanted: bool, value: Any, _: Schema) -> Errors:
    if wanted and not (validator.is_type(value, "integer") or isinstance(value, str)):
        yield ValidationError(f'must be of type integer,string: "{_word(value)}"')


def _enum(_: Any, allowed: list[Any], value: Any, schema: Schema) -> Errors:
    if not (value is None and schema.get("nullable")) and value not in allowed:
        yield ValidationError("")


def _required(_: Any, names: list[str], value: Any, _schema: Schema) -> Errors:
    if isinstance(value, dict):
        for name in names:
            if name not in value:
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


def _cause(error: ValidationError) -> Cause:
    path, reason = _path(error), _REASONS.get(str(error.validator), "FieldValueInvalid")
    if reason == "FieldValueRequired":
        return required_value(path)
    if reason == "FieldValueNotSupported":
        return unsupported_value(path or "<nil>", error.instance, error.validator_value)
    shown = json.dumps(error.instance, separators=(",", ":"), ensure_ascii=False)
    return Cause(reason, f"Invalid value: {shown}: {path} in body {error.message}", path or "<nil>")
