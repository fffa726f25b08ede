"""The schema of a CustomResourceDefinition applied to an object: pruned, completed, checked.

What is checked is what JSON Schema and Kubernetes' structural schemas have in common. Rules in CEL, patterns
(a definition's expression could hold up the server), keys of lists and most formats are not.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft4Validator, Draft6Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import extend

from nighttrain.providers.local.cluster.store.errors import Cause
from nighttrain.providers.local.cluster.store.objects import copy_object

Schema = dict[str, Any]
EMBEDDED = ("apiVersion", "kind", "metadata")
_REASONS = {
    "type": "FieldValueTypeInvalid",
    "format": "FieldValueTypeInvalid",
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


def wrong_schema(schema: Schema) -> str:
    """What makes it no schema at all; empty if it is one."""
    try:
        Draft4Validator.check_schema(schema)
    except SchemaError as error:
        return str(error.message)
    return ""


def validate(schema: Schema, value: Any) -> list[Cause]:
    """What is wrong with ``value``, field by field."""
    errors = _validator()(schema, format_checker=FormatChecker()).iter_errors(value)
    return [_cause(error) for error in errors]


@functools.cache
def _validator() -> Any:
    keywords = {
        "type": _type,
        "enum": _enum,
        "required": _required,
        "x-kubernetes-int-or-string": _int_or_string,
        "pattern": _unchecked,
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
        yield ValidationError(f"supported values: {', '.join(map(json.dumps, allowed))}")


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


def _cause(error: ValidationError) -> Cause:
    path = ""
    for part in error.absolute_path:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    path = path.removeprefix(".")
    reason = _REASONS.get(str(error.validator), "FieldValueInvalid")
    if reason == "FieldValueRequired":
        return Cause(reason, "Required value", path)
    shown = json.dumps(error.instance, separators=(",", ":"), ensure_ascii=False)
    if reason == "FieldValueNotSupported":
        return Cause(reason, f"Unsupported value: {shown}: {error.message}", path or "<nil>")
    return Cause(reason, f"Invalid value: {shown}: {path} in body {error.message}", path or "<nil>")
